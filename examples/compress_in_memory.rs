//! Compresses a network in memory: bytes in, bytes out, images from an array, progress and report of one's own.
//!
//! ```text
//! cargo run --release --no-default-features --example compress_in_memory
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example")]

use basisopt::ir::Tensor;
use basisopt::{CompressOptions, Dataset, Host, Model, Preprocess, Recipe, Settings, compress};

/// Says on stderr what is being done.
#[derive(Debug)]
struct Lines;

impl Host for Lines {
    fn read_text(&self, path: &str) -> Result<String, String> {
        std::fs::read_to_string(path).map_err(|e| e.to_string())
    }
    fn stage(&self, name: &str) {
        eprintln!("{name} …");
    }
    fn progress(&self, _done: usize, _total: usize, _what: &str) {}
    fn interrupted(&self) -> bool {
        false
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Whatever the bytes come from: a file, a socket, another library.
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/models/glyphnet.onnx"))?;
    let mut model = Model::from_bytes("glyphnet", bytes.into(), None)?;

    // Images as the network is fed them, [N, 3, 32, 32]; noise has to do here. No labels: versions are judged by whether
    // they agree with the original.
    let pixels: Vec<f32> = (0..256u32 * 3 * 32 * 32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32)
        .collect();
    let images = Tensor::from_f32s(vec![256, 3, 32, 32], &pixels)?;
    let data = Dataset::in_memory("noise", &images, None)?;

    let recipe = Recipe { budget: Some("macs=0.5".to_owned()), ..Recipe::default() };
    let mut options = CompressOptions {
        settings: Settings { host: &Lines, ..Settings::default() },
        untimed: true,
        ..CompressOptions::default()
    };
    options.share(&recipe, Some(data), Preprocess::default(), None)?;
    let done = compress(&mut model, &recipe, options)?;

    for layer in &done.layers {
        match (layer.rank, layer.full_rank, &layer.reason) {
            (Some(rank), Some(full), None) => println!("{:<24} {rank} of {full}", layer.name),
            (_, _, reason) => println!("{:<24} whole: {}", layer.name, reason.as_deref().unwrap_or("")),
        }
    }
    let small = model.to_bytes()?.concat();
    println!("{} bytes → {} bytes", done.before.file_bytes, small.len());
    Ok(())
}

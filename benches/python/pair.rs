//! The Rust half of `benches/python/overhead.py`: a pipeline over a model in memory, bytes to bytes, once for every line on
//! standard input. Each answer is a line of JSON: seconds, and a checksum of the result.
//!
//! ```text
//! python_pair NETWORK PIPELINE
//! ```

#![allow(clippy::print_stdout, reason = "a program for scripts")]

use basisopt::{Model, OptimizeOptions, optimize, parse};
use std::error::Error;
use std::io::{BufRead as _, Write as _};
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [network, pipeline] = arguments.as_slice() else {
        return Err("usage: python_pair NETWORK PIPELINE".into());
    };
    let bytes = std::fs::read(network)?;
    for line in std::io::stdin().lock().lines() {
        line?;
        // As Python's own bytes, which are not copied on the way in.
        let given = bytes::Bytes::from(bytes.clone());
        let started = Instant::now();
        let mut model = Model::from_bytes("the model", given, None)?;
        optimize(&mut model, &parse(pipeline)?, OptimizeOptions::default())?;
        let result = model.to_bytes()?.concat();
        let seconds = started.elapsed().as_secs_f64();
        let answer = serde_json::json!({ "seconds": seconds, "crc32": crc32fast::hash(&result) });
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

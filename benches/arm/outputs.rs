//! Whether a network computes the same on two machines: one writes inputs and outputs, the other computes the outputs
//! again and says how far they are apart.
//!
//! ```text
//! outputs write NETWORK FILE
//! outputs check NETWORK FILE [fused]
//! ```
//!
//! The inputs stand in the file, as their last bits may hang on a machine's mathematical library.

#![allow(clippy::print_stdout, reason = "a program for scripts")]

use basisopt::ir::Tensor;
use basisopt::runtime::{Engine, LoadOptions, Session, Source, random_inputs};
use std::error::Error;

/// What outputs may differ by, relative to the largest magnitude of the output.
const TOLERANCE: f32 = 1e-5;
const IMAGES: u64 = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (task, network, path, engine) = match arguments.as_slice() {
        [task, network, path] => (task, network, path, Engine::Stock),
        [task, network, path, engine] if engine == "fused" => (task, network, path, Engine::Fused),
        _ => return Err("usage: outputs write|check NETWORK FILE [fused]".into()),
    };
    let options = LoadOptions { engine, ..LoadOptions::default() };
    let mut session = Session::load(&Source::from_file(network)?, &options)?;
    match task.as_str() {
        "write" => {
            let mut bytes = Vec::new();
            for seed in 0..IMAGES {
                let inputs = random_inputs(session.inputs(), seed);
                let outputs = session.run(&inputs)?;
                for tensor in inputs.iter().chain(&outputs) {
                    bytes.extend_from_slice(&tensor.to_bytes()?);
                }
            }
            std::fs::write(path, bytes)?;
        }
        "check" => {
            let bytes = std::fs::read(path)?;
            let mut rest = bytes.as_slice();
            let (mut worst, mut n, mut n_same) = (0.0f32, 0, 0);
            for _ in 0..IMAGES {
                let mut inputs = Vec::new();
                for info in session.inputs() {
                    let like = Tensor::full(info.dtype, info.shape.clone(), 0.0)?;
                    let bytes = take(&mut rest, like.to_bytes()?.len())?;
                    inputs.push(Tensor::from_bytes(info.dtype, info.shape.clone(), bytes.to_vec().into())?);
                }
                for output in session.run(&inputs)? {
                    let expected = take(&mut rest, output.to_bytes()?.len())?;
                    let expected = Tensor::from_bytes(
                        output.dtype(),
                        output.shape().to_vec(),
                        expected.to_vec().into(),
                    )?;
                    let (found, expected) = (output.to_f32s()?, expected.to_f32s()?);
                    let scale = expected.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
                    for (a, b) in found.iter().zip(&expected) {
                        // Not `max`, which would pass over a NaN.
                        let off = (a - b).abs() / scale;
                        if a.to_bits() != b.to_bits() && (off > worst || off.is_nan()) {
                            worst = off;
                        }
                        n += 1;
                        n_same += u32::from(a.to_bits() == b.to_bits());
                    }
                }
            }
            if !rest.is_empty() {
                return Err("the file has more outputs than the network".into());
            }
            println!("{n_same} of {n} values have the same bits; the others are at most {worst:.1e} apart");
            if worst > TOLERANCE || worst.is_nan() {
                return Err(format!("that is more than {TOLERANCE:.0e}").into());
            }
        }
        _ => return Err(format!("what is {task}?").into()),
    }
    Ok(())
}

/// The next bytes of a file.
fn take<'a>(rest: &mut &'a [u8], n: usize) -> Result<&'a [u8], String> {
    let (head, tail) = rest.split_at_checked(n).ok_or("the file has fewer outputs than the network")?;
    *rest = tail;
    Ok(head)
}

//! Loads and runs every `.onnx` file it is given, at batch 1 on random inputs, and says what tract said.
//!
//! `cargo run --release -p basisopt-runtime --example try_models -- models/*.onnx [--dim H=224 …]`

#![allow(clippy::print_stdout, reason = "an example")]

use basisopt_runtime::{LoadOptions, Session, Source, random_inputs};
use std::time::Instant;

fn main() {
    let mut dims = Vec::new();
    let mut files = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--dim" {
            let pin = arguments.next().unwrap_or_default();
            let Some((name, size)) = pin.rsplit_once('=') else { continue };
            dims.push((name.to_owned(), size.parse().expect("a size")));
        } else {
            files.push(argument);
        }
    }
    let options = LoadOptions { dims, ..LoadOptions::default() };
    for file in files {
        let started = Instant::now();
        let outcome =
            Source::from_file(&file).and_then(|s| Session::load(&s, &options)).and_then(|mut session| {
                let loaded = started.elapsed();
                let started = Instant::now();
                let outputs = session.run(&random_inputs(session.inputs(), 1))?;
                let inputs: Vec<_> =
                    session.inputs().iter().map(|i| format!("{} {}{:?}", i.name, i.dtype, i.shape)).collect();
                let shapes: Vec<_> =
                    outputs.iter().map(|o| format!("{}{:?}", o.dtype(), o.shape())).collect();
                Ok(format!(
                    "{} -> {}  (load {loaded:.0?}, run {:.1?})",
                    inputs.join(" "),
                    shapes.join(" "),
                    started.elapsed()
                ))
            });
        match outcome {
            Ok(line) => println!("ok   {file}: {line}"),
            Err(error) => println!("FAIL {error}"),
        }
    }
}

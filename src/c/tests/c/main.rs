//! C programs against the library as users link it: the example, and a program that makes every slip.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod compile;

use basisopt_embed::{CompressOptions, OptimizeOptions, Recipe, Settings, compress, optimize, parse};
use basisopt_ir::Tensor;
use basisopt_onnx::Model;
use basisopt_runtime::{Dataset, Preprocess};
use compile::{Link, MODEL, NATIVE, compile, library, output};
use std::fs;
use std::path::Path;
use std::process::Command;

const PIPELINE: &str = "freeze-weights,@fold,factorize-conv:energy=0.9,dead-code";

/// What the library says of itself in Rust, without what a clock says.
fn by_rust(pipeline: &str) -> (Vec<u8>, serde_json::Value) {
    let mut model = Model::from_bytes(MODEL, fs::read(MODEL).unwrap().into(), None).unwrap();
    let done = optimize(&mut model, &parse(pipeline).unwrap(), OptimizeOptions::default()).unwrap();
    // Through text, as from C: numbers may lose their last bit on the way.
    let report = serde_json::to_string(&done.summary()).unwrap();
    (model.to_bytes().unwrap().concat().to_vec(), timeless(serde_json::from_str(&report).unwrap()))
}

fn timeless(mut report: serde_json::Value) -> serde_json::Value {
    for pass in report["passes"].as_array_mut().unwrap() {
        let pass = pass.as_object_mut().unwrap();
        assert!(pass.remove("time_ms").is_some() && pass.remove("overhead_ms").is_some());
    }
    report
}

fn factorizes(link: Link) {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = compile("examples/factorize.c", link, folder.path()) else { return };
    let small = folder.path().join("small.onnx");
    let report = output(Command::new(&program).arg(MODEL).arg(&small).arg(PIPELINE));
    let (bytes, summary) = by_rust(PIPELINE);
    assert!(bytes.len() < fs::read(MODEL).unwrap().len());
    assert!(fs::read(&small).unwrap() == bytes, "C and Rust make different models");
    assert_eq!(timeless(serde_json::from_str(&report).unwrap()), summary);

    let failed = Command::new(&program).arg(MODEL).arg(&small).arg("no-such-pass").output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("no-such-pass"));
}

#[test]
fn the_example_factorizes_as_rust_does() {
    factorizes(Link::Dynamic);
}

#[test]
fn the_example_linked_statically_does_the_same() {
    factorizes(Link::Static);
    let docs = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/c.md")).unwrap();
    assert!(docs.contains(&format!("libbasisopt_c.a {NATIVE}\n")), "docs/c.md links with something else");
}

/// Noise, as `border.c` makes it.
fn noise() -> Dataset {
    let values: Vec<f32> = (0..64u32 * 3 * 32 * 32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32)
        .collect();
    Dataset::in_memory("noise", &Tensor::from_f32s(vec![64, 3, 32, 32], &values).unwrap(), None).unwrap()
}

#[test]
fn every_slip_is_an_error_and_compression_is_that_of_rust() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = compile("tests/c/border.c", Link::Dynamic, folder.path()) else { return };
    let small = folder.path().join("small.onnx");
    let said = output(Command::new(program).arg(MODEL).arg(&small));
    assert!(said.contains("cases as expected"), "{said}");

    let mut model = Model::from_bytes("model", fs::read(MODEL).unwrap().into(), None).unwrap();
    let recipe = Recipe { budget: Some("macs=0.5".to_owned()), ..Recipe::default() };
    let settings = Settings { seed: 7, ..Settings::default() };
    let mut options = CompressOptions { settings, untimed: true, ..CompressOptions::default() };
    options.share(&recipe, Some(noise()), Preprocess::default(), None).unwrap();
    compress(&mut model, &recipe, options).unwrap();
    assert!(
        fs::read(&small).unwrap() == model.to_bytes().unwrap().concat(),
        "C and Rust make different models"
    );
}

#[test]
fn nothing_leaks_and_nothing_is_read_that_is_not_there() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("not run: valgrind is not on this machine");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = compile("tests/c/border.c", Link::Dynamic, folder.path()) else { return };
    // Rayon's threads live as long as the process, and what they hold is reachable to the end: that is no leak.
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--error-exitcode=9", "--leak-check=full"]);
    command.args(["--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"]);
    let said = output(command.arg(program).arg(MODEL));
    assert!(said.contains("cases as expected"), "{said}");
}

#[test]
fn cpp_takes_the_header_too() {
    let cpp = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if Command::new(&cpp).arg("--version").output().is_err() {
        println!("not run: there is no C++ compiler {cpp}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("header.cpp");
    fs::write(&source, "#include <basisopt.h>\nint main() { return basisopt_version() == nullptr; }\n")
        .unwrap();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    output(
        Command::new(cpp)
            .args(["-std=c++11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"])
            .arg(include)
            .arg(&source),
    );
}

#[test]
fn nothing_else_is_exported() {
    let Some(library) = library(Link::Dynamic) else { return };
    let Ok(found) = Command::new("nm").args(["-D", "--defined-only"]).arg(library).output() else {
        println!("not run: nm is not on this machine");
        return;
    };
    let text = String::from_utf8(found.stdout).unwrap();
    let names: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(names.iter().filter(|n| n.starts_with("basisopt_")).count(), 9, "{names:?}");
    assert_eq!(names.len(), 9, "{names:?}");
}

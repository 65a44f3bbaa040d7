//! Damaged input: every file is read or refused, none brings the program down.
//!
//! A small deterministic cousin of the fuzz targets in `tests/fuzz`, with the fixtures as seeds.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use basisopt::ir::parse;
use basisopt::onnx::Model;
use basisopt::passes::ManagerError;
use basisopt::{Manager, NoObserver, Pipeline, Registry};
use std::path::PathBuf;

/// A multiplicative congruential generator: damage must be the same on every machine.
struct Damage(u64);

impl Damage {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }

    /// Flips, overwrites, cuts or repeats a few bytes.
    fn apply(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes.truncate(at),
                1 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                2 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                3 => {
                    let end = (at + self.below(40)).min(bytes.len());
                    let piece = bytes[at.min(end)..end].to_vec();
                    bytes.splice(at.min(end)..at.min(end), piece);
                }
                _ => {
                    let end = (at + self.below(40)).min(bytes.len());
                    bytes.drain(at.min(end)..end);
                }
            }
        }
    }
}

fn fixtures() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for info in Registry::builtin().passes() {
        let dir = common::root().join("fixtures").join(info.name);
        files.extend(std::fs::read_dir(dir).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())));
    }
    files.retain(|p| p.extension().is_some_and(|e| e == "bir"));
    files.sort();
    assert!(files.len() > 40, "the fixtures are where they should be");
    files
}

/// ONNX bytes of every fixture that can be written as ONNX.
fn onnx_seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for path in fixtures() {
        let graph = parse::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        if let Ok(bytes) = basisopt::onnx::export_new(&graph) {
            seeds.push((path.file_stem().unwrap().to_string_lossy().into_owned(), bytes.to_vec()));
        }
    }
    assert!(seeds.len() > 40);
    seeds
}

#[test]
fn damaged_text_is_parsed_or_refused() {
    let mut damage = Damage(1);
    let mut n_errors = 0;
    for path in fixtures() {
        let text = std::fs::read(&path).unwrap();
        for _ in 0..40 {
            let mut bytes = text.clone();
            damage.apply(&mut bytes);
            let text = String::from_utf8_lossy(&bytes);
            match parse::parse(&text) {
                Ok(graph) => {
                    let printed = basisopt::ir::print::print(&graph);
                    let again = parse::parse(&printed).unwrap();
                    assert_eq!(basisopt::ir::print::print(&again), printed, "from:\n{text}");
                }
                Err(e) => {
                    n_errors += 1;
                    assert!(!e.to_string().is_empty());
                }
            }
        }
    }
    assert!(n_errors > 500, "the damage is real: {n_errors} errors");
}

#[test]
fn damaged_files_are_read_or_refused() {
    let pipeline = Pipeline::parse("@fold,merge-factors", &Registry::builtin()).unwrap();
    let mut damage = Damage(2);
    let (mut n_errors, mut n_read) = (0, 0);
    for (name, seed) in onnx_seeds() {
        for _ in 0..40 {
            let mut bytes = seed.clone();
            damage.apply(&mut bytes);
            match Model::from_bytes(name.as_str(), bytes.into(), None) {
                Err(e) => {
                    n_errors += 1;
                    let message = e.to_string();
                    assert!(message.starts_with(&name) && !message.contains('\n'), "{message}");
                }
                Ok(mut model) => {
                    n_read += 1;
                    // Contradictions in the graph are refused here; nothing else may go wrong.
                    match Manager::default().run(&mut model.graph, &pipeline, &mut NoObserver) {
                        Ok(_) => {
                            if let Ok(encoded) = model.to_bytes() {
                                Model::from_bytes("again", encoded.concat(), None).unwrap();
                            }
                        }
                        Err(ManagerError::Input(_) | ManagerError::Types(_)) => {}
                        // Shapes that contradict each other may show only once constants are folded.
                        Err(ManagerError::Broken { violations, .. })
                            if violations.iter().all(|v| (7..=9).contains(&v.invariant)) => {}
                        Err(e) => panic!("{name}: {e}"),
                    }
                }
            }
        }
    }
    assert!(n_errors > 200 && n_read > 200, "{n_errors} refused, {n_read} read");
}

#[test]
fn a_few_bytes_do_not_get_terabytes() {
    let text = "graph @g(%x: f32[1,1048576,6,6]) -> (%y) {
      %shape = i64[4] [1048576, 1048576, 3, 3]
      %w = ConstantOfShape(%shape)
      %y = Conv(%x, %w)
    }";
    let bytes = basisopt::onnx::export_new(&parse::parse(text).unwrap()).unwrap();
    assert!(bytes.len() < 400);
    let mut model = Model::from_bytes("m", bytes, None).unwrap();
    for pass in ["factorize-conv", "fold-constants", "fold-batch-norm", "merge-factors"] {
        let pipeline = Pipeline::parse(pass, &Registry::builtin()).unwrap();
        let report = Manager::default().run(&mut model.graph, &pipeline, &mut NoObserver).unwrap();
        assert_eq!(report.n_rewrites(), 0, "{pass}");
    }
}

#[test]
#[ignore = "writes the seeds of the fuzz target"]
fn write_seeds() {
    let dir = common::root().join("tests/fuzz/seeds/onnx");
    std::fs::create_dir_all(&dir).unwrap();
    for (name, bytes) in onnx_seeds() {
        if bytes.len() < 4096 {
            std::fs::write(dir.join(name).with_extension("onnx"), bytes).unwrap();
        }
    }
}

//! What no pass touched leaves byte for byte: tested on real models, by the splicing path that a
//! changed graph would take.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use basisopt_onnx::Model;
use std::path::{Path, PathBuf};

fn models() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models");
    let mut found = Vec::new();
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "onnx") {
                found.push(path);
            }
        }
    }
    found.sort();
    if found.is_empty() {
        println!("skipped: there is no folder of shared models");
    }
    found
}

#[test]
fn real_models_survive_splicing_byte_for_byte() {
    for path in models() {
        let model = Model::read(&path).unwrap_or_else(|e| panic!("{e}"));
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(model.to_bytes().unwrap().concat(), bytes, "{}", path.display());
        let spliced = model.source().encode_spliced(&model.graph).unwrap();
        assert!(spliced.concat() == bytes, "{} changed", path.display());
        assert!(spliced.pieces().len() <= 3, "{}: slices are joined", path.display());
        for (location, pieces) in spliced.data_files() {
            let data = std::fs::read(path.parent().unwrap().join(location)).unwrap();
            assert!(pieces.concat() == data, "{location} changed");
        }
        println!("{}: {} nodes", path.display(), model.graph.n_nodes());
    }
}

#[test]
fn written_files_equal_the_ones_that_were_read() {
    let out = tempfile::tempdir().unwrap();
    for path in models() {
        let target = out.path().join(path.file_name().unwrap());
        let model = Model::read(&path).unwrap();
        model.write(&target).unwrap();
        assert!(std::fs::read(&target).unwrap() == std::fs::read(&path).unwrap(), "{}", path.display());
        let again = Model::read(&target).unwrap();
        assert_eq!(again.graph.n_nodes(), model.graph.n_nodes());
    }
}

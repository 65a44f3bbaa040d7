//! Real networks, where they are at hand: in the folder that `BASISOPT_MODELS` names, else one folder
//! up in `shared/models`. Skipped, saying so, where that is absent.
//!
//! For every network: the bytes that go in come out, verbatim and spliced together anew; at full
//! rank the factored network computes what the original does; the error of every factored layer is
//! its discarded energy.

mod common;

use basisopt::onnx::Model;
use basisopt::passes::{Check, RemarkKind};
use basisopt::{Manager, NoObserver, Pipeline, Registry, TractExecutor};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};

/// What tract cannot run, and the words in which it says so. A network that begins to run, or that
/// stops for another reason, fails its test.
const NOT_RUN: &[(&str, &str)] = &[
    ("cifar10_resnet20_fp16.onnx", "Output mismatch"),
    ("mediapipe_blazeface_front128.onnx", "Failed analyse"),
];

/// Sizes for what a network leaves open beside its batch.
const DIMS: &[(&str, &str, usize)] = &[
    ("paddle_ppocrv3_det.onnx", "p2o.DynamicDimension.1", 64),
    ("paddle_ppocrv3_det.onnx", "p2o.DynamicDimension.2", 96),
];

/// Networks whose rounding on random input, which they were never meant to see, is amplified.
const LOOSER: &[(&str, f64)] = &[("yolox_nano_coco.onnx", 5e-4)];

/// The ranks of the paper's ResNet-56 at energy 0.63, from the authors' log.
const PAPER_RANKS: [usize; 55] = [
    3, 4, 5, 5, 5, 5, 6, 5, 5, 6, 5, 5, 5, 5, 5, 5, 4, 4, 4, 9, 11, 10, 11, 11, 12, 10, 12, 11, 12, 11, 12,
    11, 11, 11, 12, 11, 10, 19, 24, 23, 24, 23, 23, 25, 23, 25, 22, 25, 19, 22, 17, 19, 12, 13, 7,
];

fn main() {
    let arguments = Arguments::from_args();
    let folder = std::env::var_os("BASISOPT_MODELS").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| common::root().join("../shared/models"));
    let mut files = Vec::new();
    collect(&folder, &mut files);
    files.sort();
    let mut trials = Vec::new();
    if files.is_empty() {
        let name = format!("skipped: there are no networks in {}", folder.display());
        trials.push(Trial::test(name, || Ok(())).with_ignored_flag(true));
    }
    for path in files {
        let name = path.strip_prefix(&folder).unwrap_or(&path).display().to_string();
        let (a, b) = (path.clone(), path);
        if a.ends_with("cifar10_resnet56_tayyab_bn.onnx") {
            let path = a.clone();
            trials.push(Trial::test("paper_ranks", move || paper_ranks(&path)));
        }
        trials.push(Trial::test(format!("bytes::{name}"), move || same_bytes(&a)));
        trials.push(Trial::test(format!("full_rank::{name}"), move || full_rank(&b)));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "onnx") {
            files.push(path);
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn same_bytes(path: &Path) -> Result<(), Failed> {
    let original = std::fs::read(path)?;
    let model = Model::read(path)?;
    if model.to_bytes()?.concat() != original {
        return Err("the untouched model leaves with other bytes".into());
    }
    if model.source().encode_spliced(&model.graph)?.concat() != original {
        return Err("put together anew, the untouched model has other bytes".into());
    }
    Ok(())
}

fn full_rank(path: &Path) -> Result<(), Failed> {
    let name = file_name(path);
    let mut model = Model::read(path)?;
    let dims =
        DIMS.iter().filter(|(file, ..)| *file == name).map(|(_, dim, n)| ((*dim).to_owned(), *n)).collect();
    let mut executor = TractExecutor::new(model.source().clone()).with_dims(dims);
    let mut manager = Manager { executor: Some(&mut executor), ..Manager::default() };
    let text = "freeze-weights,factorize-conv:ratio=1:guard=off";
    let report =
        manager.run(&mut model.graph, &Pipeline::parse(text, &Registry::builtin())?, &mut NoObserver)?;
    check_errors(&report, name.contains("fp16"))?;
    let not_run = NOT_RUN.iter().find(|(file, _)| *file == name);
    for pass in &report.passes {
        match (&pass.check, not_run) {
            (Check::NotNeeded, _) => {}
            (Check::Compared(found), None) => {
                let tolerance = LOOSER.iter().find(|(file, _)| *file == name).map_or(1e-4, |(_, t)| *t);
                if found.relative > tolerance {
                    return Err(
                        format!("{}: {} is off by {:e}", pass.item, found.output, found.relative).into()
                    );
                }
            }
            (Check::Impossible(reason), Some((_, words))) if reason.contains(words) => {}
            (check, _) => return Err(format!("{}: {check:?}", pass.item).into()),
        }
    }
    Ok(())
}

/// Of every factored layer, the squared error is the discarded energy, and the basis orthonormal.
fn check_errors(report: &basisopt::Report, half: bool) -> Result<(), Failed> {
    for remark in report.remarks().filter(|r| r.kind == RemarkKind::Applied && r.code == "factored") {
        let value = |key: &str| remark.values.get(key).copied().unwrap_or(f64::NAN);
        let (error, discarded, norm) = (value("squared_error"), value("discarded"), value("squared_norm"));
        // Rounding the factors adds about the square of the type's precision, relative to all.
        let (floor, orthonormal) = if half { (1e-6, 2e-3) } else { (1e-12, 1e-6) };
        if (error - discarded).abs() > 1e-6 * discarded + floor * norm {
            return Err(
                format!("{}: squared error {error}, discarded energy {discarded}", remark.node).into()
            );
        }
        if value("defect") > orthonormal {
            return Err(
                format!("{}: the basis is off orthonormal by {}", remark.node, value("defect")).into()
            );
        }
    }
    Ok(())
}

/// The paper's bare rule on the paper's own network gives the paper's ranks and its reduction.
fn paper_ranks(path: &Path) -> Result<(), Failed> {
    let mut model = Model::read(path)?;
    let pipeline = Pipeline::parse("factorize-conv:energy=0.63:guard=off", &Registry::builtin())?;
    let report = Manager::default().run(&mut model.graph, &pipeline, &mut NoObserver)?;
    check_errors(&report, false)?;
    let factored: Vec<_> = report.remarks().filter(|r| r.code == "factored").collect();
    let ranks: Vec<usize> = factored.iter().map(|r| r.values["rank"] as usize).collect();
    if ranks != PAPER_RANKS {
        return Err(format!("ranks {ranks:?}").into());
    }
    let ids = model.graph.node_ids();
    let macs: u64 = ids.filter_map(|id| basisopt::ir::infer::conv_geometry(&model.graph, id)?.macs).sum();
    // 125,485,696 multiply-adds in the original's convolutions.
    let saved = 100.0 * (1.0 - macs as f64 / 125_485_696.0);
    if format!("{saved:.2}") != "64.11" {
        Err(format!("{saved:.2} % fewer multiply-adds").into())
    } else {
        Ok(())
    }
}

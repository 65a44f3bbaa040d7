//! Real networks, where they are at hand: in the folder that `BASISOPT_MODELS` names, else one folder
//! up in `shared/models`. Skipped, saying so, where that is absent.
//!
//! For every network: the bytes that go in come out, verbatim and spliced together anew; at full
//! rank the factored network computes what the original does; the error of every factored layer is
//! its discarded energy; the trainer computes what tract does, and has a gradient.

mod common;

use basisopt::ir::infer::infer;
use basisopt::onnx::Model;
use basisopt::passes::{Check, Executor as _, RemarkKind, cost, trainable};
use basisopt::train::differentiate::{Request, differentiate, frontier};
use basisopt::train::exec::{Plan, Program};
use basisopt::{Manager, NoObserver, Pipeline, Registry, TractExecutor};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};

/// What tract cannot run, and the words in which it says so. A network that begins to run, or that
/// stops for another reason, fails its test.
const NOT_RUN: &[(&str, &str)] = &[
    ("cifar10_resnet20_fp16.onnx", "Output mismatch"),
    ("mediapipe_blazeface_front128.onnx", "Failed analyse"),
];

/// What the trainer cannot run, and the words in which it says so.
const NOT_TRAINED: &[(&str, &str)] = &[
    // Weights are quantised.
    ("cifar10_resnet20_int8_qdq.onnx", "DequantizeLinear"),
    ("mobilenetv2_int8.onnx", "Shape"),
    // All of it is inside of `If` and recurrent nodes.
    ("silero_vad.onnx", "\"input\" is not known"),
    ("vnn_unet_simp_small.onnx", "\"46\" is not known"), // OneHot
];

/// Images that a program runs side by side.
const LANES: usize = 16;

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
        let (a, b, c) = (path.clone(), path.clone(), path);
        if a.ends_with("cifar10_resnet56_tayyab_bn.onnx") {
            let path = a.clone();
            trials.push(Trial::test("paper_ranks", move || paper_ranks(&path)));
        }
        trials.push(Trial::test(format!("bytes::{name}"), move || same_bytes(&a)));
        trials.push(Trial::test(format!("full_rank::{name}"), move || full_rank(&b)));
        trials.push(Trial::test(format!("trainer::{name}"), move || trainer(&c)));
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
    let mut executor = TractExecutor::new(model.source().clone()).with_dims(dims(&name));
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

fn dims(name: &str) -> Vec<(String, usize)> {
    DIMS.iter().filter(|(file, ..)| *file == name).map(|(_, dim, n)| ((*dim).to_owned(), *n)).collect()
}

/// The trainer's kernels against tract, and the gradient of all weights as a program.
fn trainer(path: &Path) -> Result<(), Failed> {
    let name = file_name(path);
    let mut model = Model::read(path)?;
    let clean = Pipeline::parse("freeze-weights,@clean", &Registry::builtin())?;
    Manager::default().run(&mut model.graph, &clean, &mut NoObserver)?;
    cost::pin(&mut model.graph, &dims(&name));
    infer(&mut model.graph)?;
    let refused = |error: String| match NOT_TRAINED.iter().find(|(file, _)| *file == name) {
        Some((_, words)) if error.contains(words) => Ok(()),
        _ => Err(Failed::from(error)),
    };
    let program: Program<f32> = match Program::compile(&model.graph, &Plan::default()) {
        Ok(program) => program,
        Err(e) => return refused(e.to_string()),
    };
    let parameters = trainable(&model.graph)?;
    let parameters: Vec<_> = parameters.iter().filter_map(|p| model.graph.find_value(p)).collect();
    let request = Request { targets: frontier(&model.graph, &parameters), parameters };
    let derived = differentiate(&model.graph, &request)?;
    let plan = Plan { parameters: derived.parameters.clone(), summed: derived.summed.clone() };
    let backward: Program<f32> = match Program::compile(&derived.graph, &plan) {
        Ok(program) => program,
        Err(e) => return refused(e.to_string()),
    };
    drop(backward);
    let mut executor = TractExecutor::new(model.source().clone()).with_dims(dims(&name));
    let (Ok(inputs), graph) = (executor.example_inputs(&model.graph, 5), &model.graph) else { return Ok(()) };
    let Ok(expected) = executor.run(graph, &inputs) else { return Ok(()) };
    let mut lanes = Vec::new();
    for input in &inputs {
        lanes.push(input.to_f32s()?.iter().flat_map(|&v| [v; LANES]).collect::<Vec<f32>>());
    }
    let slices: Vec<&[f32]> = lanes.iter().map(Vec::as_slice).collect();
    let (shared, mut workspace, mut sums) = (program.shared(), program.workspace(), program.sums());
    program.run(&slices, &shared, &mut workspace, &mut sums);
    for (i, (expected, port)) in expected.iter().zip(program.outputs()).enumerate() {
        let Some(found) = program.output(i, &workspace) else { continue };
        let expected = expected.to_f32s()?;
        // A sigmoid far in its tail is zero, give or take.
        let scale = expected.iter().fold(1e-2f32, |m, v| m.max(v.abs()));
        let off = expected.iter().zip(found.chunks_exact(LANES)).map(|(e, f)| (e - f[0]).abs() / scale);
        let off = off.fold(0.0f32, |m, v| if v.is_nan() { f32::INFINITY } else { m.max(v) });
        let tolerance = LOOSER.iter().find(|(file, _)| *file == name).map_or(1e-4, |(_, t)| *t);
        if f64::from(off) > tolerance || found.len() != expected.len() * LANES {
            return Err(format!("{}: off by {off:e} from tract's", port.name).into());
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

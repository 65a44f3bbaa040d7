//! One test per `fixtures/<pass>/<case>.bir`.
//!
//! A fixture is a graph in text with the pipeline in its first lines (`// passes: …`). One file
//! buys: parsing and printing, verification in and out, an honest outcome, a second run that finds
//! nothing, the numerical check through tract, an ONNX round trip, and a snapshot beside it of
//! what came out and what was remarked. Review snapshots with `cargo insta review`.

mod common;

use basisopt::ir::{Graph, parse, print};
use basisopt::passes::{
    Check, Executor, Fidelity, Host, Manager, NoObserver, Pipeline, Registry, Remark, RemarkKind, Report,
    Training, deviation,
};
use common::{FreshExecutor, Kept, Patterns};
use libtest_mimic::{Arguments, Failed, Trial};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for info in Registry::builtin().passes() {
        let dir = common::root().join("fixtures").join(info.name);
        let mut cases: Vec<PathBuf> = std::fs::read_dir(&dir)
            .map(|d| d.filter_map(|e| Some(e.ok()?.path())).collect())
            .unwrap_or_default();
        cases.retain(|p| p.extension().is_some_and(|e| e == "bir"));
        cases.sort();
        // A pass without fixtures is a failing test, not a silent one.
        if cases.is_empty() {
            trials.push(Trial::test(format!("{}::(none)", info.name), move || {
                Err(format!("{} has no fixtures", dir.display()).into())
            }));
        }
        for case in cases {
            let name = format!("{}::{}", info.name, case.file_stem().unwrap_or_default().to_string_lossy());
            trials.push(Trial::test(name, move || run_case(&case)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// Files that options name lie beside the fixture.
struct Beside<'a>(&'a Path);

impl Host for Beside<'_> {
    fn read_text(&self, path: &str) -> Result<String, String> {
        std::fs::read_to_string(self.0.with_file_name(path)).map_err(|e| e.to_string())
    }
    fn progress(&self, _done: usize, _total: usize, _what: &str) {}
    fn interrupted(&self) -> bool {
        false
    }
}

fn run(graph: &mut Graph, pipeline: &Pipeline, fixture: &Path) -> Result<Report, Failed> {
    let (mut executor, host) = (FreshExecutor, Beside(fixture));
    let (examples, validation) = (Patterns::of(graph, 256, 0), Patterns::of(graph, 64, 1));
    let mut session = Kept::default();
    let mut manager = Manager { executor: Some(&mut executor), host: &host, ..Manager::default() };
    manager.training = Some(Training {
        examples: &examples,
        validation: &validation,
        original: None,
        session: &mut session,
    });
    Ok(manager.run(graph, pipeline, &mut NoObserver)?)
}

fn run_case(path: &Path) -> Result<(), Failed> {
    let text = std::fs::read_to_string(path)?;
    let directives = parse::directives(&text);
    let pipeline = directives.iter().find(|(k, _)| k == "passes").ok_or("no `// passes:` line")?;
    let pipeline = Pipeline::parse(&pipeline.1, &Registry::builtin())?;
    let original = parse::parse(&text).map_err(|e| format!("\n{e}"))?;

    let printed = print::print(&original);
    let reparsed = parse::parse(&printed).map_err(|e| format!("what was printed does not parse:\n{e}"))?;
    if print::print(&reparsed) != printed {
        return Err("printing what was parsed from a printed graph gives another text".into());
    }

    let mut graph = original.clone();
    let report = run(&mut graph, &pipeline, path)?;
    check_numbers(&original, &report, &pipeline, path)?;
    check_training(&original, &graph, &report, &pipeline, path)?;
    check_round_trip(&graph)?;

    // A ranks file names layers that a second run finds factored; training can always go on.
    let is_trained = pipeline.items.iter().any(|i| i.info.fidelity == Fidelity::Trained);
    if pipeline.items.len() == 1 && !is_trained && !pipeline.to_string().contains("ranks=") {
        let mut again = graph.clone();
        if run(&mut again, &pipeline, path)?.n_rewrites() != 0 {
            return Err("a second run found more to do".into());
        }
    }

    let mut snapshot = String::new();
    for pass in &report.passes {
        writeln!(snapshot, "// {}: {} rewrites", pass.item, pass.outcome.n_rewrites())?;
        for remark in &pass.remarks {
            match pass.fidelity {
                // What training reaches differs in its last bits from machine to machine.
                Fidelity::Trained => writeln!(snapshot, "//   {}: {}", remark.code, remark.node)?,
                _ => writeln!(snapshot, "//   {remark}")?,
            }
        }
    }
    // What the pass noted in the model for later readers.
    for (key, value) in graph.metadata.iter().filter(|(k, _)| k.starts_with("basisopt.layer.")) {
        writeln!(snapshot, "// {key} = {value}")?;
    }
    let trained = report.passes.iter().any(|p| p.fidelity == Fidelity::Trained);
    snapshot += &if trained { without_norms(&print::print(&graph)) } else { print::print(&graph) };
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(path.parent().ok_or("a fixture without a folder")?);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    settings.bind(|| insta::assert_snapshot!(name, snapshot));
    Ok(())
}

/// What training reaches is another number on another machine: neither norms nor the values of small constants.
fn without_norms(text: &str) -> String {
    let line = |l: &str| {
        let cut = |(before, _): (&str, &str), with: &str| format!("{before}{with}");
        let values = l.split_once("] [").filter(|(before, _)| before.contains(" = f"));
        l.split_once("norm ")
            .map(|parts| cut(parts, "norm …"))
            .or_else(|| values.map(|parts| cut(parts, "] …")))
            .unwrap_or_else(|| l.to_owned())
    };
    text.lines().map(|l| line(l) + "\n").collect()
}

/// A trained network does better on images that it was not trained on, and its pairs are pairs; the same run gives
/// the same network.
fn check_training(
    original: &Graph,
    graph: &Graph,
    report: &Report,
    pipeline: &Pipeline,
    path: &Path,
) -> Result<(), Failed> {
    let is_trained = |r: &&Remark| ["trained", "reconstructed"].contains(&r.code.as_str());
    let Some(remark) = report.remarks().find(is_trained) else { return Ok(()) };
    let value = |key: &str| remark.values.get(key).copied().ok_or(format!("no {key} in the remark"));
    let (before, after) = match remark.code.as_str() {
        "trained" => (value("validation_loss_before")?, value("validation_loss")?),
        _ => (value("error_before")?, value("error")?),
    };
    if after.is_nan() || after >= 0.9 * before {
        return Err(format!("the loss on images kept apart went from {before} to {after}").into());
    }
    let merged = |g: &Graph| -> Result<usize, Failed> {
        let mut g = g.clone();
        Ok(run(&mut g, &Pipeline::parse("merge-factors", &Registry::builtin())?, path)?.n_rewrites())
    };
    let factored = report.remarks().filter(|r| r.code == "factored").count();
    if merged(graph)? != factored {
        return Err("a pair is not orthonormal any more".into());
    }
    let mut again = original.clone();
    run(&mut again, pipeline, path)?;
    if print::print(&again) != print::print(graph) {
        return Err("a second run gave another network".into());
    }
    Ok(())
}

/// Exact passes were held to their tolerance by the manager, if the graph could be run at all.
/// Approximate ones are held to theory: the error of every layer is its discarded energy, and at
/// full rank nothing is lost.
fn check_numbers(original: &Graph, report: &Report, pipeline: &Pipeline, path: &Path) -> Result<(), Failed> {
    for pass in &report.passes {
        if let Check::Impossible(reason) = &pass.check {
            return Err(format!("changed, but could not be run: {reason}").into());
        }
    }
    for remark in report.remarks().filter(|r| r.kind == RemarkKind::Applied && r.code == "factored") {
        let value = |key: &str| remark.values.get(key).copied().ok_or(format!("no {key} in the remark"));
        let (error, discarded, norm) = (value("squared_error")?, value("discarded")?, value("squared_norm")?);
        // Half precision rounds the factors to 11 bits; its share of the error is theirs.
        let half = print::print(original).contains("f16[");
        let (slack, orthonormal) = if half { (1e-6, 1e-3) } else { (1e-12, 1e-6) };
        if (error - discarded).abs() > 1e-6 * discarded + slack * norm {
            return Err(
                format!("{}: squared error {error} but discarded energy {discarded}", remark.node).into()
            );
        }
        if value("defect")? > orthonormal {
            return Err(format!("{}: the basis is not orthonormal: {}", remark.node, value("defect")?).into());
        }
    }
    let approximate: Vec<&str> = pipeline
        .items
        .iter()
        .filter(|i| i.info.fidelity == Fidelity::Approximate)
        .map(|i| i.info.name)
        .collect();
    if report.n_rewrites() == 0 || approximate.is_empty() {
        return Ok(());
    }
    let full =
        approximate.iter().map(|name| format!("{name}:ratio=1:guard=off")).collect::<Vec<_>>().join(",");
    let mut graph = original.clone();
    run(&mut graph, &Pipeline::parse(&full, &Registry::builtin())?, path)?;
    let mut executor = FreshExecutor;
    let inputs = executor.example_inputs(original, 1)?;
    let reference = executor.run(original, &inputs)?;
    let found = deviation(original, &reference, &executor.run(&graph, &inputs)?);
    let tolerance = if print::print(original).contains("f16[") { 1e-2 } else { 1e-5 };
    if found.relative > tolerance {
        return Err(format!("at full rank, output {} is off by {:e}", found.output, found.relative).into());
    }
    Ok(())
}

/// Written as ONNX and read again, the graph has the same nodes and computes the same numbers.
fn check_round_trip(graph: &Graph) -> Result<(), Failed> {
    let bytes = basisopt::onnx::export_new(graph)?;
    let model = basisopt::onnx::Model::from_bytes("fixture", bytes, None)?;
    basisopt::ir::verify(&model.graph).map_err(|v| v.to_string())?;
    let ops = |g: &Graph| {
        let mut ops: Vec<String> = g
            .node_ids()
            .map(|id| {
                format!(
                    "{} {:?}",
                    g.node(id).op.op_type(),
                    g.node(id).outputs.iter().map(|v| &v.name).collect::<Vec<_>>()
                )
            })
            .collect();
        ops.sort();
        ops
    };
    if ops(graph) != ops(&model.graph) {
        return Err(format!("ONNX round trip: {:#?} became {:#?}", ops(graph), ops(&model.graph)).into());
    }
    let mut executor = FreshExecutor;
    // Graphs that tract cannot run are held to the structure alone.
    let Ok(inputs) = executor.example_inputs(graph, 2) else { return Ok(()) };
    let Ok(outputs) = executor.run(graph, &inputs) else { return Ok(()) };
    let found = deviation(graph, &outputs, &executor.run(&model.graph, &inputs)?);
    if found.relative > 0.0 {
        Err(format!("ONNX round trip moved {} by {:e}", found.output, found.relative).into())
    } else {
        Ok(())
    }
}

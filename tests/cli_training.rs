//! Training from the command line, as a user runs it: the ladder, logs and pages, kills and resumption, slips.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, outside of the test functions")]

mod common;

use common::program::{Bench, program};
use serde_json::Value;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Training that takes some seconds.
const TRAIN: [&str; 8] = [
    "opt",
    "glyphnet.onnx",
    "-p",
    "@fold,factorize-conv:ratio=0.5,fine-tune:epochs=6:batch=32",
    "--train",
    "glyphs_test.npz",
    "--no-check",
    "-o",
];

fn start(bench: &Bench, args: &[&str]) -> Child {
    program(bench.dir.path(), args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until a file is there, or the program has ended without it.
fn wait_for(bench: &Bench, name: &str, child: &mut Child) {
    let started = Instant::now();
    while !bench.has(name) {
        assert!(child.try_wait().unwrap().is_none(), "it ended without {name}");
        assert!(started.elapsed() < Duration::from_secs(120), "no {name} after two minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn lines(log: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(log).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn the_ladder_stops_where_the_goal_is_met_and_the_report_says_what_each_rung_did() {
    let bench = Bench::new();
    let fixed =
        ["compress", "glyphnet.onnx", "--budget", "macs=0.12", "--no-bench", "-q", "--format", "json"];
    let all =
        [&fixed[..], &["--fine-tune", "epochs=2:batch=32", "--goal", "0", "--html", "page.html"]].concat();
    let report: Value = serde_json::from_str(&bench.run(0, &all).0).unwrap();
    let rungs = report["rungs"].as_array().unwrap();
    let titles: Vec<&str> = rungs.iter().map(|r| r["title"].as_str().unwrap()).collect();
    assert_eq!(titles, ["factors", "biases", "blocks, one by one", "distillation", "the whole network"]);
    // Once it is met nothing more is done, and before that everything is.
    let skipped: Vec<bool> = rungs.iter().map(|r| !r["skipped"].is_null()).collect();
    let first_met = rungs.iter().position(|r| r["met"] == Value::Bool(true)).unwrap_or(rungs.len());
    for (i, skipped) in skipped.iter().enumerate() {
        assert_eq!(*skipped, i > first_met, "{rungs:?}");
    }
    for rung in rungs.iter().filter(|r| r["skipped"].is_null()) {
        assert!((0.0..=1.0).contains(&rung["score"].as_f64().unwrap()), "{rung}");
    }
    let page = String::from_utf8(bench.read("page.html")).unwrap();
    assert!(page.contains("\"title\":\"blocks, one by one\"") && !page.contains("/*REPORT*/null"));

    let easy = [&fixed[..], &["--fine-tune", "epochs=2:batch=32", "--goal", "100"]].concat();
    let report: Value = serde_json::from_str(&bench.run(0, &easy).0).unwrap();
    let rungs = report["rungs"].as_array().unwrap();
    assert!(rungs[0]["met"] == Value::Bool(true) && rungs[1..].iter().all(|r| !r["skipped"].is_null()));
    assert_eq!(report["training"].as_array().unwrap().len(), 0);
}

#[test]
fn training_writes_a_log_and_leaves_no_checkpoint() {
    let bench = Bench::new();
    bench.run(0, &[&TRAIN[..], &["a.onnx", "--log", "a.log", "-q"]].concat());
    let log = lines(&bench.read("a.log"));
    assert_eq!(log.len(), 7, "before training, and six epochs");
    assert_eq!(log[0]["epoch"], 0.0);
    for line in &log[1..] {
        for key in ["loss", "images_per_second", "validation_loss", "validation_accuracy"] {
            assert!(line[key].as_f64().is_some_and(f64::is_finite), "{key} of {line}");
        }
    }
    assert!(bench.has("a.onnx") && !bench.has("a.onnx.checkpoint"));
}

/// Killed at any moment after the first checkpoint, and resumed, the file is what it would have been.
#[test]
fn a_killed_run_is_resumed_to_the_same_bytes() {
    let bench = Bench::new();
    bench.run(0, &[&TRAIN[..], &["whole.onnx", "-q"]].concat());
    let args = [&TRAIN[..], &["cut.onnx", "-q"]].concat();
    for delay in [0, 150] {
        let mut child = start(&bench, &args);
        wait_for(&bench, "cut.onnx.checkpoint", &mut child);
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        if bench.has("cut.onnx") {
            // It was over before the blow.
            std::fs::remove_file(bench.dir.path().join("cut.onnx")).unwrap();
            continue;
        }
        bench.run(0, &[&args[..], &["--resume"]].concat());
        assert!(bench.read("whole.onnx") == bench.read("cut.onnx"), "killed after {delay} ms");
        std::fs::remove_file(bench.dir.path().join("cut.onnx")).unwrap();
    }
}

#[test]
fn slips_in_resuming_are_named() {
    let bench = Bench::new();
    let args = [&TRAIN[..], &["a.onnx", "-q"]].concat();
    let (_, err) = bench.run(1, &[&args[..], &["--resume"]].concat());
    assert!(err.contains("there is no checkpoint"), "{err}");
    bench.run(0, &[&args[..], &["--checkpoint", "kept"]].concat());
    assert!(bench.has("kept"), "one that was asked for stays");
    let mut other = args.clone();
    other[3] = "@fold,factorize-conv:ratio=0.5,fine-tune:epochs=6:batch=16";
    let (_, err) = bench.run(1, &[&other[..], &["--checkpoint", "kept", "--resume"]].concat());
    assert!(err.contains("other options"), "{err}");
    std::fs::write(bench.dir.path().join("kept"), b"not one").unwrap();
    let (_, err) = bench.run(1, &[&args[..], &["--checkpoint", "kept", "--resume"]].concat());
    assert!(err.contains("no checkpoint, or one of another version"), "{err}");
    // A checkpoint that is there is not lost for want of a flag.
    let (_, err) = bench.run(1, &[&args[..], &["--checkpoint", "kept"]].concat());
    assert!(err.contains("earlier run") && err.contains("--resume"), "{err}");
    std::fs::remove_file(bench.dir.path().join("kept")).unwrap();
    // A run that is over is passed over.
    bench.run(0, &[&args[..], &["--checkpoint", "kept"]].concat());
    let whole = bench.read("a.onnx");
    bench.run(0, &[&args[..], &["--checkpoint", "kept", "--resume"]].concat());
    assert!(whole == bench.read("a.onnx"));
}

#[test]
fn what_training_needs_is_asked_for() {
    let bench = Bench::new();
    let (_, err) = bench.run(2, &["opt", "glyphnet.onnx", "--fine-tune", "-q"]);
    assert!(err.contains("--train"), "{err}");
    let (_, err) = bench.run(2, &["opt", "glyphnet.onnx", "--dead-code", "--train", "glyphs_test.npz", "-q"]);
    assert!(err.contains("--fine-tune"), "{err}");
    let (_, err) = bench.run(2, &["compress", "glyphnet.onnx", "--log", "a.log", "-q"]);
    assert!(err.contains("--fine-tune"), "{err}");
    let (_, err) = bench.run(2, &["compress", "glyphnet.onnx", "--fine-tune", "epochs=3,flip=on", "-q"]);
    assert!(err.contains("colons"), "{err}");
    let (_, err) = bench.run(2, &["compress", "glyphnet.onnx", "--goal", "1", "-q"]);
    assert!(err.contains("--fine-tune"), "{err}");
    let (_, err) = bench.run(2, &["compress", "glyphnet.onnx", "--fine-tune", "epoch=3", "-q"]);
    assert!(err.contains("epochs"), "a near miss is named: {err}");
}

/// A network that was compressed before is trained to imitate the one it was made from.
#[test]
fn the_original_can_be_given() {
    let bench = Bench::new();
    let pipeline = "@fold,factorize-conv:ratio=0.5,dead-code";
    bench.run(0, &["opt", "glyphnet.onnx", "-p", pipeline, "--no-check", "-q", "-o", "small.onnx"]);
    std::fs::copy(bench.dir.path().join("glyphnet.toml"), bench.dir.path().join("small.toml")).unwrap();
    let train = ["-p", "fine-tune:loss=distill:epochs=1:batch=32", "--train", "glyphs_calibration.npz"];
    let rest = ["--original", "glyphnet.onnx", "--remarks=json", "--no-check", "-q", "-o", "b.onnx"];
    let (out, _) = bench.run(0, &[&["opt", "small.onnx"], &train[..], &rest[..]].concat());
    assert!(out.contains("trained"), "{out}");
    // Imitating itself it would have nothing to learn.
    let itself = [&["opt", "small.onnx"], &train[..], &rest[2..]].concat();
    let (out, _) = bench.run(0, &itself);
    let loss = out.split("\"validation_loss_before\":").nth(1).unwrap();
    let loss: f64 = loss.split([',', '}']).next().unwrap().trim().parse().unwrap();
    assert!(loss.abs() < 1e-5, "{out}");
}

/// Nothing that is read is written to, and nothing is written twice.
#[test]
fn outputs_that_would_destroy_something_are_refused() {
    let bench = Bench::new();
    let fixed = ["compress", "glyphnet.onnx", "--fine-tune", "epochs=1", "-q", "-o", "x.onnx"];
    for (flags, words) in [
        (["--checkpoint", "glyphnet.onnx"], "it is the input"),
        (["--checkpoint", "x.onnx"], "both name"),
        (["--html", "x.onnx"], "both name"),
        (["--html", "-"], "cannot go to stdout"),
        (["--checkpoint", "nowhere/kept"], "there is no folder"),
    ] {
        let (_, err) = bench.run(1, &[&fixed[..], &flags[..]].concat());
        assert!(err.contains(words), "{flags:?}: {err}");
    }
    assert!(!bench.has("x.onnx") && !bench.has("x.onnx.checkpoint"));
}

/// A slip in the labels is told before any slow work, with the image that has it.
#[test]
fn labels_that_are_no_class_are_named_at_once() {
    let bench = Bench::new();
    let labels: String =
        (0..400).map(|i| if i == 7 { "99\n".to_owned() } else { format!("{}\n", i % 14) }).collect();
    std::fs::write(bench.dir.path().join("labels.txt"), labels).unwrap();
    let args = ["compress", "glyphnet.onnx", "--budget", "macs=0.5", "--fine-tune", "epochs=1"];
    let data = ["--data", "glyphs_test.npz", "--labels", "labels.txt"];
    let (_, err) = bench.run(1, &[&args[..], &data[..]].concat());
    assert!(err.contains("label 99 of image 7") && err.contains("0 to 13"), "{err}");
    assert!(!err.contains("factorize-conv"), "after the slow work: {err}");
}

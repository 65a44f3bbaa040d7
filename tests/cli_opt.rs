//! `basisopt opt`, `compress`, `bisect`, `passes` and `completions`, as a user runs them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, outside of the test functions")]

mod common;

use assert_cmd::Command;
use basisopt::onnx::Model;
use common::program::{program, run};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn glyphnet() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/glyphnet.onnx")
}

/// The program, on a copy of the fixture network in an empty folder.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(glyphnet(), dir.path().join("m.onnx")).unwrap();
        Self { dir }
    }

    fn command(&self, args: &[&str]) -> Command {
        Command::from_std(program(self.dir.path(), args))
    }

    /// Runs the program, which must exit with this code.
    fn run(&self, code: i32, args: &[&str]) -> (String, String) {
        run(self.dir.path(), code, args)
    }

    /// The bytes that `opt m.onnx … -o NAME` writes.
    fn opt(&self, name: &str, args: &[&str]) -> Vec<u8> {
        self.run(0, &[&["opt", "m.onnx", "-o", name], args].concat());
        std::fs::read(self.dir.path().join(name)).unwrap()
    }

    /// Names of the files in the folder, sorted.
    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn metadata(&self, name: &str) -> Vec<(String, String)> {
        Model::read(self.dir.path().join(name)).unwrap().source().metadata()
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn pipeline_of(metadata: &[(String, String)]) -> &str {
    &metadata.iter().find(|(k, _)| k == "basisopt.pipeline").unwrap().1
}

#[test]
fn flags_and_text_are_the_same_pipeline_in_the_same_order() {
    let b = Bench::new();
    let flags =
        b.opt("flags.onnx", &["--fold-batch-norm", "--factorize-conv=rank=4:guard=off", "--dead-code"]);
    let text = b.opt("text.onnx", &["-p", "fold-batch-norm,factorize-conv:rank=4:guard=off,dead-code"]);
    let mixed =
        b.opt("mixed.onnx", &["--fold-batch-norm", "-p", "factorize-conv:rank=4:guard=off", "--dead-code"]);
    assert_eq!(flags, text);
    assert_eq!(flags, mixed);
    let metadata = b.metadata("flags.onnx");
    assert_eq!(pipeline_of(&metadata), "fold-batch-norm,factorize-conv:rank=4:guard=off,dead-code");
    let layers: Vec<_> = metadata.iter().filter(|(k, _)| k.starts_with("basisopt.layer.")).collect();
    assert!(!layers.is_empty());
    for (key, value) in layers {
        let value = json(value);
        assert!(value["rank"].as_u64().unwrap() <= 4, "{key}: {value}");
        let energy = value["energy"].as_f64().unwrap();
        let error = value["error"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&energy), "{key}: {value}");
        // ‖W − w·F‖² is the energy that was discarded.
        assert!((error * error - (1.0 - energy)).abs() < 1e-5, "{key}: {value}");
    }
    b.opt("turned.onnx", &["--dead-code", "--factorize-conv=rank=4:guard=off", "--fold-batch-norm"]);
    assert_eq!(
        pipeline_of(&b.metadata("turned.onnx")),
        "dead-code,factorize-conv:rank=4:guard=off,fold-batch-norm"
    );
}

#[test]
fn the_bytes_do_not_depend_on_the_run_or_on_threads() {
    let b = Bench::new();
    let passes = ["-p", "@fold,factorize-conv:energy=0.8,dead-code"];
    let one = b.opt("1.onnx", &[&passes[..], &["--threads", "1"]].concat());
    let two = b.opt("2.onnx", &[&passes[..], &["--threads", "2"]].concat());
    let again = b.opt("3.onnx", &[&passes[..], &["--threads", "2", "--no-check", "--seed", "9"]].concat());
    assert_eq!(one, two);
    assert_eq!(one, again);
}

#[test]
fn without_passes_the_file_comes_back_as_it_was() {
    let b = Bench::new();
    assert_eq!(b.opt("same.onnx", &[]), std::fs::read(glyphnet()).unwrap());
}

#[test]
fn nothing_is_written_without_an_output_nor_over_the_input() {
    let b = Bench::new();
    let (stdout, stderr) = b.run(0, &["opt", "m.onnx", "-p", "@fold"]);
    assert_eq!(stdout, "");
    assert!(stderr.contains("nothing was written"), "{stderr}");
    for output in ["m.onnx", "./m.onnx"] {
        let (_, stderr) = b.run(1, &["opt", "m.onnx", "-p", "@fold", "-o", output]);
        assert!(stderr.contains("it is the input model"), "{stderr}");
    }
    let (_, stderr) = b.run(1, &["opt", "m.onnx", "-p", "@fold", "-o", "nowhere/out.onnx"]);
    assert!(stderr.contains("there is no folder nowhere"), "{stderr}");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("m.onnx", b.dir.path().join("link.onnx")).unwrap();
        b.run(1, &["opt", "m.onnx", "-p", "@fold", "-o", "link.onnx"]);
        std::fs::remove_file(b.dir.path().join("link.onnx")).unwrap();
    }
    assert_eq!(b.files(), ["m.onnx"]);
    assert_eq!(std::fs::read(b.dir.path().join("m.onnx")).unwrap(), std::fs::read(glyphnet()).unwrap());
}

#[test]
fn mistakes_in_the_command_line_exit_with_2_and_help() {
    let b = Bench::new();
    let cases: &[(&[&str], &str)] = &[
        (&["opt", "m.onnx", "--factorise-conv"], "--factorize-conv"),
        (&["opt", "m.onnx", "-p", "fold-batchnorm"], "did you mean \"fold-batch-norm\""),
        (&["opt", "m.onnx", "-p", "@nothing"], "@fold"),
        (&["opt", "m.onnx", "--factorize-conv=enrgy=0.5"], "did you mean \"energy\""),
        (&["opt", "m.onnx", "--factorize-conv=energy=1.5"], "a number from 0 to 1"),
        (&["opt", "m.onnx", "--factorize-conv=energy=0.5:rank=3"], "not several"),
        (&["opt", "m.onnx", "--factorize-conv=energy=0.5,guard=off"], "energy=0.5:guard=off"),
        (&["opt", "m.onnx", "--factorize-conv", "--print-after=dead-code"], "factorize-conv"),
        (&["opt", "m.onnx", "--remarks=json", "-o", "-"], "stdout"),
        (&["opt", "m.onnx", "--dim", "H"], "NAME=N"),
        (&["bisect", "m.onnx"], "no passes"),
        (&["passes", "dead-cod"], "did you mean \"dead-code\""),
        (&["compress", "m.onnx", "--energy", "2"], "a number from 0 to 1"),
    ];
    for (args, expected) in cases {
        let (stdout, stderr) = b.run(2, args);
        assert!(stdout.is_empty() && stderr.contains(expected), "{args:?}: {stderr}");
    }
    assert_eq!(b.files(), ["m.onnx"]);
}

#[test]
fn files_that_are_no_models_are_one_clear_error() {
    let b = Bench::new();
    let model = std::fs::read(glyphnet()).unwrap();
    // A multiplicative generator: bytes without pattern, the same on every run.
    let noise: Vec<u8> = (1u32..2000).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let cases: [(&str, &[u8]); 5] = [
        ("empty.onnx", b""),
        ("half.onnx", &model[..model.len() / 2]),
        ("text.onnx", b"this is no model\nbut a note\n"),
        ("noise.onnx", &noise),
        ("text.bir", b"graph @g(%x: f32[1]) -> (%y) {"),
    ];
    for (name, bytes) in cases {
        std::fs::write(b.dir.path().join(name), bytes).unwrap();
        for command in
            [&["opt", name, "-p", "@fold", "-o", "out.onnx"][..], &["compress", name, "-o", "out.onnx"]]
        {
            let (stdout, stderr) = b.run(1, command);
            assert_eq!(stdout, "", "{name}");
            assert!(stderr.starts_with("error: ") && stderr.contains(name), "{name}: {stderr}");
            assert!(stderr.lines().count() <= 4, "{name}: {stderr}");
        }
        assert_eq!(std::fs::read(b.dir.path().join(name)).unwrap(), bytes);
        std::fs::remove_file(b.dir.path().join(name)).unwrap();
    }
    let (_, stderr) = b.run(1, &["opt", "missing.onnx", "-o", "out.onnx"]);
    assert!(stderr.contains("missing.onnx"), "{stderr}");
    assert_eq!(b.files(), ["m.onnx"]);
}

#[test]
fn models_flow_through_pipes() {
    let b = Bench::new();
    let model = std::fs::read(glyphnet()).unwrap();
    let output =
        b.command(&["opt", "-", "-o", "-", "--fold-batch-norm"]).write_stdin(model).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b.opt("file.onnx", &["--fold-batch-norm"]));
}

#[test]
fn text_graphs_are_models_too() {
    let b = Bench::new();
    let text = "graph @g(%x: f32[1,8,6,6]) -> (%y) {
      %w = f32[16,8,3,3] lowrank(2, seed=1)
      %y = Conv<pads=[1,1,1,1]>(%x, %w)
    }";
    std::fs::write(b.dir.path().join("g.bir"), text).unwrap();
    let (stdout, _) =
        b.run(0, &["opt", "g.bir", "--factorize-conv=energy=0.999", "-o", "g.onnx", "--format", "json"]);
    let report = json(&stdout);
    assert_eq!(report["rewrites"], 1);
    // 16·8·9 weights become 2·8·9 + 16·2; each stands at 36 positions.
    assert_eq!(report["before"]["macs"], 36 * 1152);
    assert_eq!(report["after"]["macs"], 36 * (144 + 32));
    assert_eq!(report["after"]["params"], 144 + 32);
    // The weight has rank 2, so nothing but rounding is lost.
    assert!(report["passes"][0]["deviation"].as_f64().unwrap() < 1e-5);
}

#[test]
fn stop_after_and_remarks_tell_the_same_story() {
    let b = Bench::new();
    let passes = ["--factorize-conv=rank=2:guard=off"];
    let count = |extra: &[&str]| {
        let (stdout, _) = b.run(0, &[&["opt", "m.onnx", "--remarks=json"], &passes[..], extra].concat());
        let remarks = json(&stdout);
        let remarks = remarks.as_array().unwrap().clone();
        assert!(remarks.iter().all(|r| r["pass"] == "factorize-conv" && r["node"].is_string()));
        remarks.iter().filter(|r| r["kind"] == "applied").count()
    };
    let all = count(&[]);
    assert!(all > 2, "{all}");
    assert_eq!(count(&["--stop-after=2"]), 2);
    assert_eq!(count(&["--stop-after", "0"]), 0);

    let (_, stderr) = b.run(0, &["opt", "m.onnx", passes[0], "--remarks"]);
    assert_eq!(stderr.lines().filter(|l| l.trim_start().starts_with("+ factorize-conv: ")).count(), all);
    let (_, stderr) = b.run(0, &["opt", "m.onnx", "--factorize-conv=exclude=*"]);
    assert!(stderr.contains("left alone; --remarks says why"), "{stderr}");
    let (stdout, stderr) = b.run(0, &["opt", "m.onnx", passes[0], "--quiet"]);
    assert_eq!((stdout.as_str(), stderr.as_str()), ("", ""));
}

#[test]
fn the_text_before_and_after_can_be_seen() {
    let b = Bench::new();
    let (diff, _) =
        b.run(0, &["opt", "m.onnx", "--dead-code", "--factorize-conv=rank=3:guard=off", "--diff"]);
    // dead-code has nothing to do here, so only one pass has a diff.
    assert_eq!(diff.matches("--- before ").count(), 1);
    assert!(diff.starts_with("--- before factorize-conv:rank=3:guard=off\n"), "{diff}");
    assert!(diff.lines().any(|l| l.starts_with('+') && l.contains(".basis")), "{diff}");

    let (text, _) =
        b.run(0, &["opt", "m.onnx", "--dead-code", "--factorize-conv=rank=3", "--print-after=dead-code"]);
    assert_eq!(text.matches("// after ").count(), 1);
    basisopt::ir::parse::parse(&text).unwrap();
}

#[test]
fn bisect_names_the_rewrite() {
    let b = Bench::new();
    let passes = ["-p", "@fold,factorize-conv:energy=0.5:guard=off"];
    let find = |tolerance: &str| {
        let args =
            [&["bisect", "m.onnx", "--format", "json", "--tolerance", tolerance], &passes[..]].concat();
        json(&b.run(0, &args).0)
    };
    let found = find("0.02");
    let culprit = &found["culprit"];
    assert_eq!(culprit["pass"], "factorize-conv:energy=0.5:guard=off", "{found}");
    assert!(culprit["deviation_before"].as_f64().unwrap() <= 0.02);
    assert!(culprit["deviation_after"].as_f64().unwrap() > 0.02);
    assert!(culprit["node"].as_str().is_some_and(|n| !n.is_empty()));

    // The rewrite counted from 1 is the one that --stop-after stops at.
    let stop = culprit["rewrite"].to_string();
    let (stdout, _) =
        b.run(0, &[&["opt", "m.onnx", "--remarks=json", "--stop-after", &stop], &passes[..]].concat());
    let remarks = json(&stdout);
    let last = remarks.as_array().unwrap().iter().rfind(|r| r["kind"] == "applied").unwrap();
    assert_eq!(last["node"], culprit["node"]);

    assert!(find("1000")["culprit"].is_null());
}

#[test]
fn an_exact_pass_that_moves_the_outputs_stops_everything() {
    let b = Bench::new();
    // No rounding is allowed, and folding rounds.
    let (_, stderr) = b.run(1, &["opt", "m.onnx", "--fold-batch-norm", "--tolerance", "0", "-o", "out.onnx"]);
    assert!(stderr.contains("error: m.onnx: fold-batch-norm is exact, but output"), "{stderr}");
    assert_eq!(b.files(), ["m.onnx"]);
}

#[test]
fn checks_can_use_images() {
    let b = Bench::new();
    let models = glyphnet().parent().unwrap().to_owned();
    for file in ["glyphnet.toml", "glyphs_test.npz"] {
        let name = file.replace("glyphnet.toml", "m.toml");
        std::fs::copy(models.join(file), b.dir.path().join(name)).unwrap();
    }
    let args = ["opt", "m.onnx", "--fold-batch-norm", "--format", "json"];
    let random = json(&b.run(0, &args).0);
    let images = json(&b.run(0, &[&args[..], &["--check-data", "glyphs_test.npz"]].concat()).0);
    let deviation = |report: &serde_json::Value| report["passes"][0]["deviation"].as_f64().unwrap();
    assert!(deviation(&images) > 0.0 && deviation(&images) < 1e-4, "{images}");
    assert_ne!(deviation(&images), deviation(&random), "the same number on other inputs");
    let (_, stderr) =
        b.run(1, &["opt", "m.onnx", "--fold-batch-norm", "--check-data", "nowhere", "-o", "o.onnx"]);
    assert!(stderr.contains("nowhere") && !b.files().contains(&"o.onnx".to_owned()), "{stderr}");
}

#[test]
fn a_network_that_cannot_be_run_is_changed_unchecked() {
    let b = Bench::new();
    // A height that nobody pins.
    let text = "graph @g(%x: f32[1,8,H,6]) -> (%y) {
      %w = f32[16,8,3,3] lowrank(2, seed=1)
      %y = Conv<pads=[1,1,1,1]>(%x, %w)
    }";
    std::fs::write(b.dir.path().join("g.bir"), text).unwrap();
    let (_, stderr) = b.run(0, &["opt", "g.bir", "--factorize-conv", "-o", "g.onnx"]);
    assert!(stderr.contains("check skipped: ") && stderr.contains("--dim H=N"), "{stderr}");
    assert!(b.files().contains(&"g.onnx".to_owned()));
    let (_, stderr) = b.run(0, &["opt", "g.bir", "--factorize-conv", "--dim", "H=5"]);
    assert!(stderr.contains("outputs moved by"), "{stderr}");
}

#[test]
fn compress_reports_cost_accuracy_and_agreement() {
    let b = Bench::new();
    let model = glyphnet();
    let model = model.to_str().unwrap();
    let args = ["compress", model, "-o", "small.onnx", "--energy", "0.8", "--no-bench", "--format", "json"];
    let report = json(&b.run(0, &args).0);
    let number = |path: &str| {
        report.pointer(path).and_then(serde_json::Value::as_f64).unwrap_or_else(|| panic!("{path} {report}"))
    };
    let written = std::fs::metadata(b.dir.path().join("small.onnx")).unwrap().len();
    assert_eq!(number("/after/file_bytes"), written as f64);
    assert!(number("/after/params") < number("/before/params"));
    assert!(number("/after/macs") < number("/before/macs"));
    assert!(number("/measured/accuracy/before") > 0.95);
    assert!((0.0..=1.0).contains(&number("/measured/agreement/share")));
    assert!(report["measured"]["latency"].is_null());
    let layers = report["layers"].as_array().unwrap();
    assert!(layers.iter().any(|l| l["factored"] == true && l["energy"].as_f64().unwrap() >= 0.8));
    for layer in layers.iter().filter(|l| l["factored"] == false) {
        assert!(layer["reason"].is_string(), "{layer}");
    }
    assert_eq!(
        pipeline_of(&b.metadata("small.onnx")),
        "freeze-weights,fold-constants,eliminate-identity,fold-batch-norm,dead-code,factorize-conv:energy=0.8,dead-code"
    );

    // Without settings beside it, random inputs have to do; the table is for people.
    let (stdout, stderr) = b.run(0, &["compress", "m.onnx", "--energy", "1", "--no-bench", "--layers"]);
    assert!(stdout.contains("random inputs") && stdout.contains("left alone because"), "{stdout}");
    assert!(stderr.contains("nothing was written"), "{stderr}");
}

#[test]
fn passes_and_completions_are_made_from_the_registry() {
    let b = Bench::new();
    let listed = json(&b.run(0, &["passes", "--format", "json"]).0);
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    let registry = basisopt::Registry::builtin();
    assert_eq!(names, registry.passes().iter().map(|p| p.name).collect::<Vec<_>>());
    let (help, _) = b.run(0, &["opt", "--help"]);
    for name in names {
        assert!(help.contains(&format!("--{name}")), "{name}");
        assert!(b.run(0, &["passes", name]).0.contains(name));
    }
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(b.run(0, &["completions", shell]).0.contains("factorize-conv"), "{shell}");
    }
}

#[test]
fn inputs_that_no_memory_holds_are_an_error_and_not_an_abort() {
    let b = Bench::new();
    let text = "graph @g(%x: f32[N,1048576,1048576]) -> (%y) {\n  %i = Identity(%x)\n  %y = Relu(%i)\n}\n";
    std::fs::write(b.dir.path().join("huge.bir"), text).unwrap();
    let (_, stderr) = b.run(0, &["opt", "huge.bir", "--eliminate-identity", "-o", "out.onnx"]);
    assert!(stderr.contains("check skipped: ") && stderr.contains("does not fit in memory"), "{stderr}");
    for args in [&["compare", "huge.bir", "huge.bir"][..], &["bench", "m.onnx", "--batch", "1000000000"]] {
        let (stdout, stderr) = b.run(1, args);
        assert!(stdout.is_empty() && stderr.contains("does not fit in memory"), "{args:?}: {stderr}");
    }
}

#[test]
fn a_stream_without_end_is_not_read_to_it() {
    let b = Bench::new();
    if std::path::Path::new("/dev/full").exists() {
        let (_, stderr) = b.run(1, &["opt", "m.onnx", "--fold-batch-norm", "-q", "-o", "/dev/full"]);
        assert!(stderr.contains("No space left"), "{stderr}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_name() {
    let b = Bench::new();
    for value in ["NaN", "-inf"] {
        let text = format!(
            "graph @g(%x: f32[1,1,4,4]) -> (%y) {{\n  %w = f32[1,1,1,1] full({value})\n  %y = Conv@c(%x, %w)\n}}\n"
        );
        std::fs::write(b.dir.path().join("bad.bir"), text).unwrap();
        for args in
            [&["opt", "bad.bir", "--dead-code", "-o", "o.onnx"][..], &["compress", "bad.bir", "-o", "o.onnx"]]
        {
            let (_, stderr) = b.run(1, args);
            assert!(
                stderr.contains(r#"bad.bir: weight "w" of Conv "c" contains NaN or infinity"#),
                "{stderr}"
            );
        }
    }
    // An infinite bound is no weight.
    let text = "graph @g(%x: f32[1,4]) -> (%y) {\n  %low = f32[] [-inf]\n  %y = Max(%x, %low)\n}\n";
    std::fs::write(b.dir.path().join("mask.bir"), text).unwrap();
    b.run(0, &["opt", "mask.bir", "--dead-code"]);
    assert_eq!(b.files(), ["bad.bir", "m.onnx", "mask.bir"]);
}

#[test]
fn filters_and_pins_that_name_nothing_are_errors() {
    let b = Bench::new();
    let (_, stderr) = b.run(1, &["opt", "m.onnx", "--factorize-conv=include=nomatch"]);
    assert!(stderr.contains("include= matches the name of no layer"), "{stderr}");
    let (_, stderr) = b.run(1, &["opt", "m.onnx", "--fold-batch-norm", "--dim", "Q=3"]);
    assert!(stderr.contains("--dim Q=…: its open sizes are N"), "{stderr}");
    // By its place as well as by its name.
    let (_, stderr) = b.run(0, &["opt", "m.onnx", "--fold-batch-norm", "--dim", "image:0=3"]);
    assert!(stderr.contains("outputs equal to"), "{stderr}");
}

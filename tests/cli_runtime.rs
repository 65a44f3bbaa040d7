//! The commands that look at networks and run them, as a user has them: the program, its exit
//! codes, what it prints.
//!
//! The expected accuracy of the fixture network comes from onnxruntime, its ranks from NumPy.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

mod common;

use assert_cmd::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Right answers of the fixture network on its 400 test images.
const N_CORRECT: u64 = 392;

fn basisopt() -> Command {
    Command::from_std(common::program::basisopt())
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models")
}

fn glyphnet() -> PathBuf {
    models().join("glyphnet.onnx")
}

/// Runs to success and parses what is printed as JSON.
fn json(command: &mut Command) -> Value {
    let output = command.args(["--format", "json"]).assert().success().get_output().clone();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs to failure with this code; stdout is empty. Returns the error message.
fn error(command: &mut Command, code: i32) -> String {
    let output = command.assert().code(code).get_output().clone();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.stdout.is_empty(), "results were printed along with {message}");
    assert!(message.contains("error:"), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

/// The fixture network in a folder of its own, without its settings.
fn alone() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("net.onnx");
    std::fs::copy(glyphnet(), &model).unwrap();
    (dir, model)
}

const FLAGS: [&str; 4] = ["--mean", "0.5,0.5,0.5", "--std", "0.3,0.3,0.3"];

#[test]
fn eval_finds_the_accuracy_that_onnxruntime_finds() {
    let report = json(basisopt().arg("eval").arg(glyphnet()));
    assert_eq!((report["n_correct"].as_u64(), report["n"].as_u64()), (Some(N_CORRECT), Some(400)));
    assert_eq!(report["top1"].as_f64(), Some(0.98));
    assert_eq!(report["complete"], true);
    assert!(report["top5"].as_f64().unwrap() >= 0.98);
    // Wilson's interval for 392 of 400, worked out in Python.
    let interval = report["top1_interval"].as_array().unwrap();
    assert!((interval[0].as_f64().unwrap() - 0.961_036_6).abs() < 1e-6, "{report}");
    assert!((interval[1].as_f64().unwrap() - 0.989_831_6).abs() < 1e-6, "{report}");
    let text = stdout(basisopt().arg("eval").arg(glyphnet()));
    assert!(text.contains("98.00 %") && text.contains("392 of 400"), "{text}");
}

#[test]
fn flags_do_what_the_settings_file_does_and_can_be_stored_in_one() {
    let (dir, model) = alone();
    let data = models().join("glyphs_test.npz");
    let report = json(basisopt().arg("eval").arg(&model).arg("--data").arg(&data).args(FLAGS));
    assert_eq!(report["n_correct"].as_u64(), Some(N_CORRECT));
    assert!(!dir.path().join("net.toml").exists(), "nothing is written unasked");

    // The wrong normalisation is another network input, and so another result.
    let raw = json(basisopt().arg("eval").arg(&model).arg("--data").arg(&data).args(["--scale", "1"]));
    assert_ne!(raw["n_correct"].as_u64(), Some(N_CORRECT));

    basisopt()
        .arg("eval")
        .arg(&model)
        .arg("--data")
        .arg(&data)
        .args(FLAGS)
        .arg("--save-config")
        .assert()
        .success();
    let stored = json(basisopt().arg("eval").arg(&model).args(["--batch", "7"]));
    assert_eq!(stored["n_correct"].as_u64(), Some(N_CORRECT), "the padding of the last batch must not count");
    assert_eq!(stored["batch"].as_u64(), Some(7));
}

#[test]
fn settings_of_another_model_can_be_named() {
    let (_dir, model) = alone();
    let report = json(basisopt().arg("eval").arg(&model).arg("--config").arg(models().join("glyphnet.toml")));
    assert_eq!(report["n_correct"].as_u64(), Some(N_CORRECT));
}

#[test]
fn labels_that_are_no_class_are_an_error_and_shifted_ones_are_wrong() {
    // Class 13 is the last: shifted by one, it is none.
    let message = error(basisopt().arg("eval").arg(glyphnet()).args(["--label-offset", "1"]), 1);
    assert!(message.contains("label 13 with label-offset 1") && message.contains("0…13"), "{message}");

    let dir = tempfile::tempdir().unwrap();
    let labels = dir.path().join("labels.txt");
    std::fs::write(&labels, "1\n".repeat(399)).unwrap();
    let message = error(basisopt().arg("eval").arg(glyphnet()).arg("--labels").arg(&labels), 1);
    assert!(message.contains("399") && message.contains("400"), "{message}");
}

#[test]
fn without_data_eval_says_what_to_give() {
    let (_dir, model) = alone();
    let message = error(basisopt().arg("eval").arg(&model), 1);
    assert!(
        message.contains("net.onnx") && message.contains("--data") && message.contains("net.toml"),
        "{message}"
    );

    let message = error(basisopt().arg("eval").arg(&model).args(["--data", "no/such/folder"]), 1);
    assert!(message.contains("no/such/folder"), "{message}");
    assert_eq!(message.matches("os error").count(), 1, "the cause is said once: {message}");
}

#[test]
fn truncated_data_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(models().join("glyphs_test.npz")).unwrap();
    for n in [0, 100, bytes.len() / 2, bytes.len() - 10] {
        let path = dir.path().join("cut.npz");
        std::fs::write(&path, &bytes[..n]).unwrap();
        let message = error(basisopt().arg("eval").arg(glyphnet()).arg("--data").arg(&path), 1);
        assert!(message.contains("cut.npz"), "{message}");
    }
}

/// Records in the CIFAR-10 format: a constant image per class, whatever the network makes of it.
fn cifar(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| [(i % 10) as u8].into_iter().chain([(i * 37 % 256) as u8; 3072])).collect()
}

#[test]
fn cifar_files_are_read_with_their_labels() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data_batch_1.bin");
    std::fs::write(&path, cifar(30)).unwrap();
    let report =
        json(basisopt().arg("eval").arg(glyphnet()).arg("--data").arg(&path).args(["--samples", "25"]));
    assert_eq!(report["n"].as_u64(), Some(25));
    assert!(report["data"].as_str().unwrap().contains("25 of 30 samples"));
    assert!(report["n_correct"].as_u64() < Some(25), "flat images are no glyphs");

    std::fs::write(&path, &cifar(30)[..4000]).unwrap();
    let message = error(basisopt().arg("eval").arg(glyphnet()).arg("--data").arg(&path), 1);
    assert!(message.contains("data_batch_1.bin") && message.contains("4000"), "{message}");
}

#[test]
fn a_network_agrees_with_itself() {
    let images = json(basisopt().arg("compare").arg(glyphnet()).arg(glyphnet()));
    assert_eq!(images["samples"].as_u64(), Some(100));
    let random = json(basisopt().arg("compare").arg(glyphnet()).arg(glyphnet()).arg("--random"));
    assert_eq!(random["samples"].as_u64(), Some(8));
    for report in [images, random] {
        let output = &report["outputs"][0];
        assert_eq!(output["max_abs"].as_f64(), Some(0.0));
        assert_eq!(output["max_rel"].as_f64(), Some(0.0));
        assert_eq!(output["top1_agreement"].as_f64(), Some(1.0));
        // A vector and itself: 1 up to the rounding of two sums.
        assert!((output["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-12);
    }
    basisopt().arg("compare").arg(glyphnet()).arg(glyphnet()).args(["--tolerance", "0"]).assert().success();
}

/// A one-layer network as text, with this value everywhere in its weight.
fn text_network(dir: &Path, name: &str, generator: &str) -> PathBuf {
    let path = dir.join(name);
    let text = format!(
        "graph @g(%x: f32[N,4]) -> (%y) {{\n  %w = f32[4,3] {generator}\n  %y: f32[N,3] = MatMul(%x, %w)\n}}\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn compare_measures_what_was_put_in() {
    let dir = tempfile::tempdir().unwrap();
    let a = text_network(dir.path(), "a.bir", "ones");
    let b = text_network(dir.path(), "b.bir", "full(1.5)");
    // Every output of b is 1.5 times that of a.
    let report = json(basisopt().arg("compare").arg(&a).arg(&b).args(["--samples", "20", "--batch", "5"]));
    let output = &report["outputs"][0];
    assert!((output["max_rel"].as_f64().unwrap() - 0.5).abs() < 1e-6, "{report}");
    assert!((output["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-6, "{report}");
    assert_eq!((report["samples"].as_u64(), report["batch"].as_u64()), (Some(20), Some(5)));

    let mut command = basisopt();
    let output = command.arg("compare").arg(&a).arg(&b).args(["--tolerance", "0.4"]).assert().code(1);
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(message.contains("b.bir") && message.contains("tolerance 4e-1"), "{message}");
    basisopt().arg("compare").arg(&a).arg(&b).args(["--tolerance", "0.6"]).assert().success();
}

#[test]
fn compare_refuses_networks_with_other_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let a = text_network(dir.path(), "a.bir", "ones");
    let message = error(basisopt().arg("compare").arg(glyphnet()).arg(&a).arg("--random"), 1);
    assert!(message.contains("glyphnet.onnx") && message.contains("a.bir"), "{message}");
}

#[test]
fn bench_gives_one_object_per_network() {
    let mut command = basisopt();
    command.arg("bench").arg(glyphnet()).arg(glyphnet());
    let report = json(command.args(["--runs", "5", "--seconds", "0", "--batch", "2", "--threads", "2"]));
    let rows = report.as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert!(row["file"].as_str().unwrap().ends_with("glyphnet.onnx"));
        assert!(row["engine"].as_str().unwrap().starts_with("tract"));
        assert_eq!((row["threads"].as_u64(), row["batch"].as_u64()), (Some(2), Some(2)));
        assert_eq!(row["n_runs"].as_u64(), Some(5));
        let ms = |key: &str| row[key].as_f64().unwrap();
        assert!(0.0 < ms("min_ms") && ms("min_ms") <= ms("p10_ms"));
        assert!(ms("p10_ms") <= ms("median_ms") && ms("median_ms") <= ms("p90_ms"));
        assert!(ms("iqr_ms") >= 0.0);
        let per_second = ms("images_per_second");
        assert!((per_second * ms("median_ms") / 2000.0 - 1.0).abs() < 1e-9, "two images per run");
    }
    assert_eq!(rows[0]["time_ratio"].as_f64(), Some(1.0));
}

#[cfg(unix)]
#[test]
fn an_interrupted_benchmark_prints_what_it_has() {
    let mut command = common::program::basisopt();
    command.arg("bench").arg(glyphnet()).args(["--seconds", "600", "--format", "json"]);
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    // The handler is there from the start; that a few rounds pass first is only likely.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(
        std::process::Command::new("kill")
            .arg("-INT")
            .arg(child.id().to_string())
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report[0]["complete"], false);
    assert!(report[0]["n_runs"].as_u64() > Some(0));
}

fn layer<'a>(report: &'a Value, name: &str) -> &'a Value {
    let layers = report["layers"].as_array().unwrap();
    layers.iter().find(|l| l["name"] == name).unwrap_or_else(|| panic!("no layer {name}"))
}

#[test]
fn inspect_counts_what_can_be_counted_by_hand() {
    let report = json(basisopt().arg("inspect").arg(glyphnet()));
    assert_eq!(report["params"].as_u64(), Some(100_574), "the sum over the initializers");
    assert_eq!(report["n_nodes"].as_u64(), Some(31));
    assert_eq!(report["operators"]["BatchNormalization"].as_u64(), Some(9));
    assert_eq!(report["inputs"][0]["type"], "f32[N,3,32,32]");

    // 24 filters of 3×5×5 at 16×16 positions: 32 pixels, stride 2.
    let stem = layer(&report, "/stem/conv/Conv");
    assert_eq!(stem["shape"], "5×5 3→24 s2");
    assert_eq!(stem["params"].as_u64(), Some(1800));
    assert_eq!(stem["macs"].as_u64(), Some(1800 * 256));
    assert_eq!(stem["matrix"]["full_rank"].as_u64(), Some(24));
    let total: u64 = report["layers"].as_array().unwrap().iter().map(|l| l["macs"].as_u64().unwrap()).sum();
    assert_eq!(report["macs"].as_u64(), Some(total));
}

#[test]
fn inspect_finds_the_ranks_that_numpy_finds() {
    let report = json(basisopt().arg("inspect").arg(glyphnet()).arg("--singular-values"));
    let expected = [
        ("/stem/conv/Conv", 6, 18.1818, 1.4089326, None),
        ("/conv2/conv/Conv", 14, 27.8710, 1.09663091, None),
        ("/down/conv/Conv", 20, 35.1220, 1.17111615, None),
        ("/pointwise/conv/Conv", 19, 24.6154, 0.99235787, None),
        ("/conv3/conv/Conv", 14, 57.6, 0.95076202, None),
        ("/classifier/Gemm", 12, 11.4872, 1.09375161, Some("past-break-even")),
    ];
    for (name, rank, break_even, largest, refusal) in expected {
        let layer = layer(&report, name);
        let matrix = &layer["matrix"];
        assert_eq!(matrix["energy_rank"].as_u64(), Some(rank), "{name}");
        assert!((matrix["break_even"].as_f64().unwrap() - break_even).abs() < 1e-4, "{name}");
        assert!((matrix["singular_values"][0][0].as_f64().unwrap() - largest).abs() < 1e-7, "{name}");
        assert_eq!(layer["refusal"]["code"].as_str(), refusal, "{name}");
        let bars = matrix["spectrum"].as_array().unwrap();
        assert_eq!((bars.len(), bars[0].as_f64()), (10, Some(1.0)), "{name}");
    }
    // One filter per group is its own basis.
    let depthwise = layer(&report, "/depthwise/conv/Conv");
    assert_eq!(depthwise["refusal"]["code"], "depthwise");
    assert_eq!(depthwise["shape"], "3×3 40→40 g40");
    // Four groups of 16 rows.
    let grouped = layer(&report, "/grouped/conv/Conv");
    assert_eq!(grouped["matrix"]["full_rank"].as_u64(), Some(16));
    assert_eq!(grouped["matrix"]["singular_values"].as_array().unwrap().len(), 4);
}

#[test]
fn inspect_prints_a_table_that_fits_a_terminal() {
    let text = stdout(basisopt().arg("inspect").arg(glyphnet()));
    assert!(text.lines().all(|l| l.chars().count() <= 120), "{text}");
    for expected in ["/stem/conv/Conv", "depthwise, 1 layer:", "rank@0.9", "6/24", "█"] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    let text =
        stdout(basisopt().arg("inspect").arg(glyphnet()).args(["--layers", "/res/*", "--energy", "0.5"]));
    assert!(text.contains("/res/a/conv/Conv") && !text.contains("/stem/conv/Conv"), "{text}");
    let message = error(basisopt().arg("inspect").arg(glyphnet()).args(["--layers", "nothing"]), 1);
    assert!(message.contains("10 layers"), "{message}");
}

#[test]
fn printed_networks_read_back_as_they_were_printed() {
    let text = stdout(basisopt().arg("print").arg(glyphnet()));
    assert!(text.contains("Conv") && text.contains("norm"), "{text}");
    let parsed = basisopt::ir::parse::parse(&text).unwrap();
    assert_eq!(basisopt::ir::print::print(&parsed), text);

    // The whole model as text is the whole model.
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.bir");
    std::fs::write(&whole, stdout(basisopt().arg("print").arg("--constants").arg(glyphnet()))).unwrap();
    basisopt().arg("compare").arg(glyphnet()).arg(&whole).args(["--tolerance", "0"]).assert().success();

    // From stdin, as a file or as text.
    let bytes = std::fs::read(glyphnet()).unwrap();
    assert_eq!(stdout(basisopt().args(["print", "-"]).write_stdin(bytes)), text);
    assert_eq!(stdout(basisopt().args(["print", "-"]).write_stdin(text.clone())), text);

    let printed = dir.path().join("printed.bir");
    std::fs::write(&printed, &text).unwrap();
    basisopt().arg("diff").arg(glyphnet()).arg(&printed).assert().success();
    // Without its weights it can be looked at, but not run.
    let message = error(basisopt().arg("bench").arg(&printed), 1);
    assert!(message.contains("printed.bir") && message.contains("holds no values"), "{message}");

    let dot = stdout(basisopt().args(["print", "--dot"]).arg(glyphnet()));
    assert!(dot.starts_with("digraph") && dot.matches("->").count() >= 31, "{dot}");
}

#[test]
fn diff_exits_like_diff() {
    let dir = tempfile::tempdir().unwrap();
    let a = text_network(dir.path(), "a.bir", "randn(seed=1)");
    let b = dir.path().join("b.bir");
    let text = std::fs::read_to_string(&a).unwrap();
    let longer = text
        .replace("%y: f32[N,3] = MatMul(%x, %w)", "%z: f32[N,3] = MatMul(%x, %w)\n  %y: f32[N,3] = Relu(%z)");
    std::fs::write(&b, longer).unwrap();

    let equal = basisopt().arg("diff").arg(&a).arg(&a).assert().code(0).get_output().stdout.clone();
    assert!(equal.is_empty());
    let output = basisopt().arg("diff").arg(&a).arg(&b).assert().code(1).get_output().stdout.clone();
    let output = String::from_utf8(output).unwrap();
    assert!(output.contains("\n+  %y: f32[N,3] = Relu(%z)\n"), "{output}");
    assert!(!output.contains('\x1b'), "no colours in a pipe");
    let relu: Vec<&str> =
        output.lines().find(|l| l.starts_with("Relu")).unwrap().split_whitespace().collect();
    assert_eq!(relu, ["Relu", "0", "1", "0", "1", "0"]);

    // Same norms, other values: print shows no difference, diff does.
    let (c, d) = (dir.path().join("c.bir"), dir.path().join("d.bir"));
    let values =
        |v: &str| text.replace("randn(seed=1)", v).replace("[4,3]", "[4,9]").replace("[N,3]", "[N,9]");
    let list = |first: f32| format!("[{first:?}{}]", ",1.0".repeat(35));
    std::fs::write(&c, values(&list(1.0))).unwrap();
    std::fs::write(&d, values(&list(-1.0))).unwrap();
    let output = basisopt().arg("diff").arg(&c).arg(&d).assert().code(1).get_output().stdout.clone();
    assert!(String::from_utf8(output).unwrap().contains('w'));

    basisopt().arg("diff").arg(&a).arg("missing.onnx").assert().code(1);
    basisopt().arg("diff").arg(&a).assert().code(2);
}

#[test]
fn files_that_are_no_networks_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let whole = std::fs::read(glyphnet()).unwrap();
    let files = [
        write("empty.onnx", b""),
        write("text.onnx", b"this is no network\n"),
        write("cut.onnx", &whole[..whole.len() / 2]),
        write("weights.pth", b"PK\x03\x04 something else"),
        write("broken.bir", b"graph @g(%x"),
        dir.path().join("missing.onnx"),
        dir.path().to_owned(),
    ];
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        for command in ["inspect", "print", "bench", "eval"] {
            let message = error(basisopt().arg(command).arg(&file), 1);
            assert!(message.contains(&name), "{command} {name}: {message}");
        }
    }
    let message = error(basisopt().arg("inspect").arg(dir.path().join("weights.pth")), 1);
    assert!(message.contains("torch.onnx.export"), "{message}");
}

#[test]
fn mistakes_in_the_command_line_exit_with_two() {
    let cases: [&[&str]; 8] = [
        &["bench"],
        &["bench", "m.onnx", "--threads", "0"],
        &["compare", "m.onnx"],
        &["compare", "m.onnx", "m.onnx", "--tolerance", "-1"],
        &["compare", "m.onnx", "m.onnx", "--dim", "H"],
        &["eval", "m.onnx", "--mean", "a,b"],
        &["inspect", "m.onnx", "--energy", "1.5"],
        &["inspect", "m.onnx", "--layers", "[a"],
    ];
    for args in cases {
        error(basisopt().args(args), 2);
    }
}

#[test]
fn help_teaches_with_examples() {
    for command in ["inspect", "print", "diff", "compare", "eval", "bench"] {
        let help = stdout(basisopt().args([command, "--help"]));
        assert!(help.contains("Examples:") && help.contains(&format!("basisopt {command} ")), "{help}");
    }
}

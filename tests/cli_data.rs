//! `compress` and `sweep` with images, as a user runs them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, outside of the test functions")]

mod common;

use basisopt::onnx::Model;
use common::program::Bench;
use serde_json::Value;

fn compress(bench: &Bench, args: &[&str]) -> Value {
    let fixed = ["compress", "glyphnet.onnx", "--no-bench", "--format", "json", "-q"];
    json(&bench.run(0, &[&fixed[..], args].concat()).0)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} of {value}"))
}

fn metadata(model: &[u8]) -> Vec<(String, String)> {
    Model::from_bytes("m", model.to_vec().into(), None).unwrap().source().metadata()
}

#[test]
fn a_budget_is_met_from_below_and_costs_less_accuracy_than_weights_alone() {
    let b = Bench::new();
    let by_data = compress(&b, &["--budget", "macs=0.4", "-o", "data.onnx", "--report", "report.json"]);
    let by_weights = compress(&b, &["--budget", "macs=0.4", "--method", "weights"]);
    for report in [&by_data, &by_weights] {
        let share = number(report, "/after/macs") / number(report, "/before/macs");
        assert!((0.395..=0.4).contains(&share), "{share}");
    }
    let accuracy = |r: &Value| number(r, "/measured/accuracy/after");
    assert!(accuracy(&by_data) > accuracy(&by_weights) + 0.02, "{by_data} {by_weights}");
    assert!(number(&by_data, "/measured/output_error") < number(&by_weights, "/measured/output_error"));
    // Images that are calibrated on are in a file of their own here: all the others are reported on.
    assert_eq!(number(&by_data, "/measured/accuracy/n"), 400.0);
    assert!(by_data["measured"]["calibration"].as_str().unwrap().contains("256 images"));
    assert_eq!(json(&String::from_utf8(b.read("report.json")).unwrap())["layers"], by_data["layers"]);
    let metadata = metadata(&b.read("data.onnx"));
    assert!(metadata.iter().any(|(_, v)| v.contains("allocate-ranks:target=macs:0.4,factorize-conv")));
    assert!(metadata.iter().all(|(k, _)| !k.starts_with("basisopt.rank.")), "{metadata:?}");
}

#[test]
fn two_runs_write_the_same_bytes() {
    let b = Bench::new();
    compress(&b, &["--budget", "params=0.5", "-o", "a.onnx"]);
    compress(&b, &["--budget", "params=0.5", "-o", "b.onnx"]);
    assert_eq!(b.read("a.onnx"), b.read("b.onnx"));
}

#[test]
fn ranks_that_were_saved_and_given_back_make_the_same_network() {
    let b = Bench::new();
    let first = compress(&b, &["--budget", "macs=0.5", "--save-ranks", "ranks.txt", "-o", "a.onnx"]);
    let second = compress(&b, &["--ranks", "ranks.txt", "-o", "b.onnx"]);
    let ranks = |r: &Value| -> Vec<Value> {
        let layers = r["layers"].as_array().unwrap();
        layers.iter().filter(|l| l["factored"] == true).map(|l| l["rank"].clone()).collect()
    };
    assert!(!ranks(&first).is_empty());
    assert_eq!(ranks(&first), ranks(&second));
    assert_eq!(first["after"]["macs"], second["after"]["macs"]);
    assert_eq!(first["measured"]["accuracy"], second["measured"]["accuracy"]);
}

#[test]
fn one_point_of_accuracy_is_the_default_and_the_images_that_choose_are_not_reported_on() {
    let b = Bench::new();
    let report = compress(&b, &[]);
    assert!(report["pipeline"].as_str().unwrap().contains("allocate-ranks:target=drop:1.0"));
    assert!(number(&report, "/after/macs") < 0.8 * number(&report, "/before/macs"));
    // Of 400 labelled images half chose.
    assert_eq!(number(&report, "/measured/accuracy/n"), 200.0);
    // One point was kept on the images that chose; on others no more than chance adds to that.
    let lost = number(&report, "/measured/accuracy/before") - number(&report, "/measured/accuracy/after");
    assert!(lost < 0.04, "{lost}");
}

#[test]
fn without_labels_agreement_is_what_counts() {
    let b = Bench::new();
    let report =
        compress(&b, &["--data", "glyphs_calibration.npz", "--budget", "drop=2", "--samples", "100"]);
    assert!(report["measured"]["accuracy"].is_null());
    assert!(number(&report, "/measured/agreement/share") > 0.9);
    // 256 images: 100 to calibrate on, half of the rest to choose by.
    assert_eq!(number(&report, "/measured/agreement/n"), 78.0);
}

#[test]
fn without_data_there_are_only_weights_and_that_is_said() {
    let b = Bench::new();
    std::fs::remove_file(b.dir.path().join("glyphnet.toml")).unwrap();
    let (stdout, _) = b.run(0, &["compress", "glyphnet.onnx", "--no-bench", "--budget", "macs=0.6"]);
    assert!(stdout.contains("there are no data") && stdout.contains("--data"), "{stdout}");
    let (_, stderr) =
        b.run(1, &["compress", "glyphnet.onnx", "--no-bench", "--budget", "drop=1", "-o", "o.onnx"]);
    assert!(stderr.contains("--data") && !b.has("o.onnx"), "{stderr}");
}

#[test]
fn slips_in_budgets_are_usage_errors_that_teach() {
    let b = Bench::new();
    for (budget, expected) in [
        ("mac=0.5", "macs:SHARE"),
        ("macs=1.5", "a share from 0 to 1"),
        ("drop=-1", "points of accuracy"),
        ("0.5", "macs:SHARE"),
    ] {
        let (_, stderr) = b.run(2, &["compress", "glyphnet.onnx", "--budget", budget]);
        assert!(stderr.contains(expected) && stderr.contains("--budget"), "{budget}: {stderr}");
    }
    let (_, stderr) = b.run(1, &["compress", "glyphnet.onnx", "--budget", "macs=0.001", "-o", "o.onnx"]);
    assert!(stderr.contains("the least is") && !b.has("o.onnx"), "{stderr}");
    let (_, stderr) = b.run(2, &["sweep", "glyphnet.onnx", "--budgets", "0.5,1.5"]);
    assert!(stderr.contains("shares are from 0 to 1"), "{stderr}");
}

#[test]
fn a_sweep_is_a_table_a_csv_and_a_page() {
    let b = Bench::new();
    std::fs::create_dir(b.dir.path().join("small")).unwrap();
    let args = [
        "sweep",
        "glyphnet.onnx",
        "--budgets",
        "0.4,0.7,0.001",
        "--html",
        "s.html",
        "--csv",
        "s.csv",
        "--save",
        "small",
        "--format",
        "json",
        "-q",
    ];
    let sweep = json(&b.run(0, &args).0);
    let points = sweep["points"].as_array().unwrap();
    assert_eq!(points.len(), 2, "{sweep}");
    assert!(sweep["notes"].to_string().contains("no ranks make the network so small"));
    for (point, budget) in points.iter().zip([0.4, 0.7]) {
        let share = number(point, "/macs") / number(&sweep, "/original/macs");
        assert!(share <= budget && share > budget - 0.01, "{share}");
        assert_eq!(point["ranks"].as_array().unwrap().len(), sweep["layers"].as_array().unwrap().len());
        // What was saved is what was measured.
        let saved = format!("small/glyphnet_macs_{budget}.onnx");
        let inspected = json(&b.run(0, &["inspect", &saved, "--format", "json"]).0);
        assert_eq!(inspected["macs"], point["macs"]);
    }
    assert!(number(&points[1], "/accuracy") >= number(&points[0], "/accuracy"));
    let csv = String::from_utf8(b.read("s.csv")).unwrap();
    assert_eq!(csv.lines().count(), 4);
    // The page holds the very data, and nothing that could end its script early.
    let page = String::from_utf8(b.read("s.html")).unwrap();
    let start = page.find("{\"file\"").unwrap();
    let end = start + page[start..].find(";\n").unwrap();
    let data = &page[start..end];
    assert!(!data.contains('<'));
    assert_eq!(json(data)["points"], sweep["points"]);
    assert!(!page.contains("/*SWEEP*/"));
}

/// tract's own threads and ours do not get in each other's way.
#[test]
fn threads_for_matrix_products_do_not_disturb_the_evaluation() {
    let report = compress(&Bench::new(), &["--budget", "macs=0.5", "--threads", "2"]);
    assert!(number(&report, "/measured/accuracy/after") > 0.9);
}

//! `bench --power` on made-up sensors, as a user runs it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, outside of the test functions")]

mod common;

use common::program::Bench;
use serde_json::Value;

const FIXED: [&str; 14] = [
    "bench",
    "glyphnet.onnx",
    "--no-memory",
    "--runs",
    "2",
    "--seconds",
    "0",
    "--power",
    "--power-seconds",
    "0.1",
    "--idle-seconds",
    "0.05",
    "--power-root",
    "sys",
];

/// A folder with the fixture network and a tree of sensors in it.
fn bench(files: &[(&str, &str)]) -> Bench {
    let bench = Bench::new();
    for (path, text) in files {
        let path = bench.dir.path().join("sys").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    bench
}

/// A Jetson's input of 5000 mV × 800 mA and a rail behind it of 1000 mV × 250 mA.
const JETSON: [(&str, &str); 6] = [
    ("bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_label", "VDD_IN\n"),
    ("bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_input", "5000\n"),
    ("bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr1_input", "800\n"),
    ("bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in2_label", "VDD_SOC\n"),
    ("bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in2_input", "1000\n"),
    ("bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr2_input", "250\n"),
];

#[test]
fn power_is_a_second_table_and_a_member() {
    let b = bench(&JETSON);
    let (stdout, stderr) = b.run(0, &[&FIXED[..], &["glyphnet.onnx"]].concat());
    assert_eq!(stderr, "");
    let (_, power) = stdout.split_once("\npower\n").unwrap();
    let rows: Vec<Vec<&str>> = power.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 1 + 2 * 2, "a heading, two networks, two rails");
    // 4 W at the input and 0.25 W behind it, idle or not.
    assert_eq!(rows[1][..6], ["glyphnet.onnx", "ina3221", "VDD_IN", "total", "4.000", "4.000"]);
    assert_eq!(rows[2][..6], ["glyphnet.onnx", "ina3221", "VDD_SOC", "part", "0.2500", "0.2500"]);

    let report: Value =
        serde_json::from_str(&b.run(0, &[&FIXED[..], &["--format", "json"]].concat()).0).unwrap();
    let power = &report[0]["power"];
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap();
    assert_eq!((number(power, "interval_ms"), number(power, "idle_seconds")), (10.0, 0.05));
    let rail = &power["rails"][0];
    assert_eq!((rail["name"].as_str(), rail["is_total"].as_bool()), (Some("ina3221 VDD_IN"), Some(true)));
    let joules = 4.0 * number(power, "seconds") / number(power, "inferences");
    assert!((number(rail, "joules_per_inference") / joules - 1.0).abs() < 1e-9);
    assert!(number(rail, "joules_per_inference_above_idle").abs() < 1e-9);
    assert!(report[0]["median_ms"].as_f64() > Some(0.0) && report[0].get("power_missing").is_none());
}

#[test]
fn without_a_sensor_the_benchmark_succeeds_and_says_why() {
    let b = bench(&[("class/hwmon/hwmon0/temp1_input", "40000\n")]);
    let (stdout, stderr) = b.run(0, &[&FIXED[..], &["--format", "json"]].concat());
    assert!(stderr.starts_with("note: power was not measured: no power sensor under sys"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert!(report[0]["power"].is_null() && report[0].as_object().unwrap().contains_key("power"));
    assert!(report[0]["power_missing"].as_str().unwrap().starts_with("no power sensor"));

    // One that is broken is named beside one that is not; `--quiet` keeps that for the JSON.
    let b =
        bench(&[("class/hwmon/hwmon0/power1_input", "1000000\n"), ("class/hwmon/hwmon1/power1_input", "\n")]);
    let (stdout, stderr) = b.run(0, &FIXED);
    assert!(
        stdout.contains("hwmon0 power1") && stderr.contains("hwmon1/power1_input holds"),
        "{stdout}{stderr}"
    );
    let (stdout, stderr) = b.run(0, &[&FIXED[..], &["--format", "json", "-q"]].concat());
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (stderr.as_str(), &report[0]["power"]["unmeasured"][0]["name"]),
        ("", &"hwmon1 power1".into())
    );
}

#[test]
fn power_is_measured_only_when_asked_for() {
    let b = bench(&JETSON);
    let (stdout, _) =
        b.run(0, &["bench", "glyphnet.onnx", "--runs", "1", "--seconds", "0", "--format", "json"]);
    assert!(!stdout.contains("power"), "{stdout}");
    let (_, stderr) = b.run(2, &["bench", "glyphnet.onnx", "--power-root", "sys"]);
    assert!(stderr.contains("--power"), "{stderr}");
}

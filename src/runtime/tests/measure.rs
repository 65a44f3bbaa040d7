//! Accuracy, agreement and benchmarks on networks whose answers are known.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use basisopt_runtime::{
    BenchOptions, BenchProgress, Dataset, DatasetOptions, Engine, LoadOptions, Outputs, PowerError,
    PowerOptions, PowerProgress, Preprocess, RuntimeError, Session, agreement, bench, evaluate,
    measure_power,
};
use common::*;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// CIFAR-10 records, each of one colour: 0 red, 1 green, 2 blue, under the given labels.
fn records(dir: &Path, name: &str, records: &[(u8, usize)]) -> PathBuf {
    let mut bytes = Vec::new();
    for &(label, colour) in records {
        bytes.push(label);
        for channel in 0..3 {
            bytes.extend(std::iter::repeat_n(if channel == colour { 200 } else { 20 }, 1024));
        }
    }
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn classifier(batch: usize, offset: i64) -> Session {
    let model = colour_classifier(Named("N"), 32, offset);
    let options = LoadOptions { batch: Some(batch), ..LoadOptions::default() };
    Session::load(&source("colours.onnx", &model), &options).unwrap()
}

#[test]
fn accuracy_counts_every_image_once_whatever_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    // Five right, two wrong.
    let images = [(0, 0), (1, 1), (2, 2), (2, 0), (0, 0), (1, 1), (0, 2)];
    let path = records(dir.path(), "images.bin", &images);
    let dataset = Dataset::open(&path, &DatasetOptions::default()).unwrap();
    assert_eq!(dataset.len(), 7);
    for batch in [1, 2, 3, 7, 10] {
        let mut done = Vec::new();
        let report = evaluate(
            &mut classifier(batch, 0),
            &dataset,
            &Preprocess::default(),
            None,
            &mut |n| done.push(n),
            &|| true,
        )
        .unwrap();
        assert_eq!((report.n, report.n_correct, report.n_classes), (7, 5, 3), "batch {batch}");
        assert_eq!((report.top5, report.complete, report.output.as_str()), (None, true, "scores"));
        assert_eq!(done.last(), Some(&7));
        assert_eq!(done.len(), 7usize.div_ceil(batch));
    }
}

#[test]
fn a_background_class_shifts_the_labels() {
    let dir = tempfile::tempdir().unwrap();
    let path = records(dir.path(), "images.bin", &[(0, 0), (1, 1), (2, 2), (1, 0)]);
    let dataset = Dataset::open(&path, &DatasetOptions::default()).unwrap();
    let preprocess = Preprocess { label_offset: 3, ..Preprocess::default() };
    let report =
        evaluate(&mut classifier(2, 3), &dataset, &preprocess, Some("scores"), &mut |_| {}, &|| true)
            .unwrap();
    assert_eq!((report.n, report.n_correct, report.n_classes), (4, 3, 6));
    // The wrong image scores 0 for its class 4, behind the red one and ahead of no more than four others.
    assert_eq!(report.top5, Some(1.0));
    assert_eq!(report.better_label_offset, None);
    // One too few: only the wrong image is right by accident, and what would be right is said.
    let near = Preprocess { label_offset: 2, ..Preprocess::default() };
    let report = evaluate(&mut classifier(2, 3), &dataset, &near, None, &mut |_| {}, &|| true).unwrap();
    assert_eq!((report.n_correct, report.better_label_offset), (1, Some(3)));

    let far = Preprocess { label_offset: 4, ..Preprocess::default() };
    let error = evaluate(&mut classifier(2, 3), &dataset, &far, None, &mut |_| {}, &|| true).unwrap_err();
    assert!(error.to_string().contains("label 2 with label-offset 4"), "{error}");
    let error = evaluate(&mut classifier(2, 3), &dataset, &preprocess, Some("logits"), &mut |_| {}, &|| true)
        .unwrap_err();
    assert!(
        error.to_string().contains("no output `logits`") && error.to_string().contains("`scores`"),
        "{error}"
    );
}

#[test]
fn agreement_needs_no_labels_and_stops_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = records(dir.path(), "images.bin", &[(9, 0), (9, 1), (9, 2), (9, 1), (9, 0)]);
    let dataset = Dataset::open(&path, &DatasetOptions::default()).unwrap();
    let preprocess = Preprocess::default();
    // The second network has lost its green: its scores for such images tie at the first class.
    let mut lossy = colour_classifier(Named("N"), 32, 0);
    let weights = &mut lossy.graph.as_mut().unwrap().initializer[0];
    *weights = tensor("w", &[3, 3], &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    let options = LoadOptions { batch: Some(2), ..LoadOptions::default() };
    let mut lossy = Session::load(&source("lossy.onnx", &lossy), &options).unwrap();
    let mut a = classifier(2, 0);
    let report = agreement(&mut a, &mut lossy, &dataset, &preprocess, None, &mut |_| {}, &|| true).unwrap();
    assert_eq!((report.n, report.n_agreeing, report.complete), (5, 3, true));

    let asked = std::cell::Cell::new(0);
    let keep_going = || asked.replace(asked.get() + 1) < 1;
    let report =
        agreement(&mut a, &mut lossy, &dataset, &preprocess, None, &mut |_| {}, &keep_going).unwrap();
    assert_eq!((report.n, report.complete), (2, false));

    let mut wider = classifier(2, 1);
    let error =
        agreement(&mut a, &mut wider, &dataset, &preprocess, None, &mut |_| {}, &|| true).unwrap_err();
    assert!(error.to_string().contains("3 classes, the other 4"), "{error}");
}

#[test]
fn a_benchmark_measures_each_network_each_round() {
    let sources = [
        source("a.onnx", &colour_classifier(Named("N"), 32, 0)),
        source("b.onnx", &colour_classifier(Named("N"), 32, 1)),
    ];
    let options = BenchOptions {
        batch: Some(2),
        threads: 2,
        runs: 5,
        min_seconds: 0.0,
        warmup: 1,
        ..BenchOptions::default()
    };
    let mut rounds = 0;
    let results = bench(&sources, &options, &mut |progress| {
        rounds += usize::from(matches!(progress, BenchProgress::Round(..)));
        true
    })
    .unwrap();
    assert_eq!(rounds, 5);
    assert_eq!(results.iter().map(|r| r.file.as_str()).collect::<Vec<_>>(), ["a.onnx", "b.onnx"]);
    for r in &results {
        assert_eq!((r.batch, r.threads, r.n_runs), (2, 2, 5));
        assert!(r.min_ms > 0.0 && r.min_ms <= r.p10_ms && r.p10_ms <= r.median_ms && r.median_ms <= r.p90_ms);
        assert!((r.images_per_second - 2000.0 / r.median_ms).abs() < 1e-6 * r.images_per_second);
        assert_eq!(r.peak_memory_bytes.is_some(), r.run_memory_bytes.is_some());
    }
    assert_eq!(results[0].time_ratio, 1.0);
    let stopped = bench(&sources, &options, &mut |_| false).unwrap();
    assert_eq!(stopped[0].n_runs, 1);
}

#[test]
fn outputs_that_are_kept_count_as_the_evaluation_does() {
    let dir = tempfile::tempdir().unwrap();
    let images = [(0, 0), (1, 1), (2, 2), (2, 0), (0, 0), (1, 1), (0, 2)];
    let path = records(dir.path(), "images.bin", &images);
    let dataset = Dataset::open(&path, &DatasetOptions::default()).unwrap();
    for batch in [1, 3] {
        let program = classifier(batch, 0).into_program().unwrap();
        let mut done = Vec::new();
        let outputs =
            Outputs::of(&program, &dataset, &Preprocess::default(), &mut |n| done.push(n), &|| true).unwrap();
        assert_eq!((outputs.n_images(), outputs.is_complete), (7, true));
        assert_eq!(done.last(), Some(&7));
        assert_eq!(outputs.classes().unwrap(), [0, 1, 2, 0, 0, 1, 2].map(Some));
        let hits = outputs.hits().unwrap().unwrap();
        assert_eq!(hits, [true, true, true, false, true, true, false]);
        assert_eq!(outputs.error(&outputs), Some(0.0));
    }
    let wrong = Preprocess { label_offset: 5, ..Preprocess::default() };
    let outputs =
        Outputs::of(&classifier(1, 0).into_program().unwrap(), &dataset, &wrong, &mut |_| {}, &|| true);
    assert!(outputs.unwrap().hits().unwrap_err().to_string().contains("no class of the network"));
}

#[test]
fn the_error_of_outputs_is_relative_to_what_varies() {
    let dir = tempfile::tempdir().unwrap();
    // Channel means of red, green and blue images, bytes over 255: 200/255 in one channel, 20/255 elsewhere.
    let path = records(dir.path(), "images.bin", &[(0, 0), (1, 1), (2, 2)]);
    let dataset = Dataset::open(&path, &DatasetOptions::default()).unwrap();
    let outputs = |w: [f32; 9]| {
        let mut model = colour_classifier(Named("N"), 32, 0);
        model.graph.as_mut().unwrap().initializer = vec![tensor("w", &[3, 3], &w)];
        let options = LoadOptions { batch: Some(1), ..LoadOptions::default() };
        let program = Session::load(&source("w.onnx", &model), &options).unwrap().into_program().unwrap();
        Outputs::of(&program, &dataset, &Preprocess::default(), &mut |_| {}, &|| true).unwrap()
    };
    let original = outputs([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    // Half the scores: every element is off by half of itself. Σx² = 3·(200² + 2·20²), Σ(x − x̄)² = 3·(2/3)·180².
    let half = outputs([0.5, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.5]);
    let wanted = 0.25 * 3.0 * (200.0f64.powi(2) + 2.0 * 20.0f64.powi(2)) / (2.0 * 180.0f64.powi(2));
    assert!((original.error(&half).unwrap() - wanted).abs() < 1e-5);
    // Scores that never vary have no scale to be relative to.
    assert_eq!(outputs([0.0; 9]).error(&original), None);
}

/// A chip that reports two watts whatever happens.
fn two_watts() -> (tempfile::TempDir, PowerOptions) {
    let root = tempfile::tempdir().unwrap();
    let chip = root.path().join("class/hwmon/hwmon0");
    std::fs::create_dir_all(&chip).unwrap();
    std::fs::write(chip.join("power1_input"), "2000000\n").unwrap();
    let options = PowerOptions {
        root: root.path().to_owned(),
        interval: Duration::from_millis(1),
        idle_seconds: 0.02,
        seconds: 0.04,
    };
    (root, options)
}

#[test]
fn power_is_measured_for_each_network_alone() {
    let sources = [
        source("a.onnx", &colour_classifier(Named("N"), 32, 0)),
        source("b.onnx", &colour_classifier(Named("N"), 32, 1)),
    ];
    let options = BenchOptions { batch: Some(3), ..BenchOptions::default() };
    let (_root, power) = two_watts();
    let mut order = Vec::new();
    let reports =
        measure_power(&sources.each_ref().map(|s| (s, Engine::Stock)), &options, &power, &mut |at| {
            if let PowerProgress::Loading(name) = at {
                order.push(name.to_owned());
            }
            true
        })
        .unwrap();
    assert_eq!(order, ["a.onnx", "b.onnx"]);
    assert_eq!(reports.len(), 2);
    for report in &reports {
        assert!(report.inferences >= 6 && report.inferences.is_multiple_of(3), "two blocks of runs of three");
        assert!(report.seconds >= 0.04);
        let [rail] = &report.rails[..] else { panic!("{:?}", report.rails) };
        // However long anything took: two watts, none of them above idle.
        let joules = 2.0 * report.seconds / report.inferences as f64;
        assert!((rail.idle_watts - 2.0).abs() < 1e-9 && (rail.watts - 2.0).abs() < 1e-9);
        assert!((rail.joules_per_inference - joules).abs() < 1e-9 * joules);
        assert!(rail.joules_per_inference_above_idle.abs() < 1e-9);
        assert!(rail.is_total && rail.n_samples >= 4, "before and after each of two blocks");
    }
}

#[test]
fn a_measurement_of_power_can_be_stopped() {
    let sources = [source("a.onnx", &colour_classifier(Named("N"), 32, 0))];
    let options = BenchOptions::default();
    let (_root, power) = two_watts();
    for stage in 0..2 {
        let error =
            measure_power(&sources.each_ref().map(|s| (s, Engine::Stock)), &options, &power, &mut |at| {
                match at {
                    PowerProgress::Loading(_) => stage > 0,
                    _ => false,
                }
            });
        assert!(matches!(error, Err(RuntimeError::Power(PowerError::Interrupted))), "{stage}: {error:?}");
    }
    let nowhere = PowerOptions { root: "/nowhere/at/all".into(), ..power };
    let error =
        measure_power(&sources.each_ref().map(|s| (s, Engine::Stock)), &options, &nowhere, &mut |_| true);
    assert!(matches!(error, Err(RuntimeError::Power(PowerError::NoSensor { .. }))), "{error:?}");
}

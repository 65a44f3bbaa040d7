//! The transforms by name, as tract looks them up.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of the test functions")]

mod common;

use basisopt_tract as _;
use common::{Single, convolutions, difference, run};
use tract_core::internal::*;
use tract_core::transform::{ModelTransform, get_transform, get_transform_with_params, split_spec};

/// As a program does with what a user writes.
fn by_spec(spec: &str) -> TractResult<Box<dyn ModelTransform>> {
    let (name, parameters) = split_spec(spec);
    if parameters.is_empty() {
        return get_transform(&name)?.context("not registered");
    }
    let mut parameters = ron::Deserializer::from_str(parameters)?;
    let mut parameters = <dyn erased_serde::Deserializer>::erase(&mut parameters);
    get_transform_with_params(&name, &mut parameters)?.context("not registered")
}

#[test]
fn linking_the_crate_is_enough() {
    for spec in [
        "factorize-conv",
        "factorize_conv",
        "factorize-conv()",
        "factorize-conv(energy: 0.9)",
        "factorize_conv(energy: 0.99, guard: true, multiple: 1, include: \"conv*|other\", exclude: \"head\")",
        "factorize-conv(rank: 3)",
        "factorize-conv(ratio: 0.2, fold: false)",
    ] {
        let model = Single::of_rank(3).model();
        let mut small = model.clone();
        by_spec(spec).unwrap().transform(&mut small).unwrap();
        assert_eq!(convolutions(&small), ["conv.basis", "conv"], "{spec}");
        // Not all of these keep everything, but all keep most.
        assert!(difference(&run(&model, 1, false), &run(&small, 1, true)) < 0.5, "{spec}");
    }
    for spec in ["factorize-linear", "factorize-linear(energy: 0.9)", "factorize_linear(rank: 2)"] {
        by_spec(spec).unwrap();
    }
}

#[test]
fn the_names_are_those_that_tract_calls_them_by() {
    assert_eq!(by_spec("factorize-conv(rank: 1)").unwrap().name(), "factorize_conv");
    assert_eq!(by_spec("factorize-linear(rank: 1)").unwrap().name(), "factorize_linear");
}

#[test]
fn what_is_wrong_is_named_before_a_model_is_touched() {
    for (spec, words) in [
        ("factorize-conv(enrgy: 0.9)", "enrgy"),
        ("factorize-conv(energy: 1.5)", "factorize-conv: energy=1.5: expected a number from 0 to 1"),
        ("factorize-conv(rank: 0)", "factorize-conv: rank=0: expected a whole number of at least 1"),
        (
            "factorize-conv(energy: 0.5, rank: 3)",
            "factorize-conv: give one of energy, ratio, rank, ranks, not several",
        ),
        ("factorize-conv(include: \"[\")", "factorize-conv: include=[: expected glob patterns joined by |"),
        ("factorize-linear(fold: true)", "fold"),
        ("factorize-linear(ratio: -1)", "factorize-linear: ratio=-1: expected a number from 0 to 1"),
    ] {
        let error = by_spec(spec).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(words), "{spec}: {text}");
    }
}

#[test]
fn a_filter_that_matches_nothing_is_an_error_and_leaves_the_model() {
    let model = Single::of_rank(3).model();
    let mut small = model.clone();
    let error = by_spec("factorize-conv(include: \"cnv\")").unwrap().transform(&mut small).unwrap_err();
    assert_eq!(error.to_string(), "factorize-conv: include= matches the name of no layer");
    assert_eq!(convolutions(&small), convolutions(&model));
}

#[test]
fn ranks_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.ranks");
    std::fs::write(&path, "2 conv\n").unwrap();
    let mut model = Single::of_rank(3).model();
    let options = basisopt_tract::FactorizeConv {
        ranks: Some(path.to_string_lossy().into_owned()),
        ..Default::default()
    };
    let report = options.apply(&mut model).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(report.ranks().collect::<Vec<_>>(), [("conv", 2)]);
    let error = options.apply(&mut model).unwrap_err().to_string();
    assert!(error.contains("ranks=") && error.contains("No such file"), "{error}");
}

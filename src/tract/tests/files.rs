//! Models from files: ONNX against the passes and the exporter of this workspace, NNEF and TensorFlow Lite there and
//! back through tract's own writers.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of the test functions")]

#[path = "common/agree.rs"]
mod agree;
mod common;

use basisopt_tract::FactorizeConv;
use common::{Single, convolutions, difference, dims, low_rank, run};
use std::path::Path;
use tract_core::internal::*;
use tract_core::ops::cnn::PaddingSpec;
use tract_core::ops::math::max;
use tract_core::ops::nn::DataFormat;

const GLYPHNET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/glyphnet.onnx");

#[test]
fn ranks_and_outputs_are_those_of_the_passes() {
    let path = Path::new(GLYPHNET);
    for energy in [0.5, 0.9] {
        let passes = agree::by_passes(path, energy).unwrap();
        assert_eq!(passes.ranks.len(), 8);
        // The factorisation changes the outputs, so that to agree on them says something.
        let moved = agree::difference(&agree::whole(path).unwrap(), &passes.outputs).unwrap();
        assert!(moved > 0.01, "{moved}");
        for declutter in [false, true] {
            let (transform, _) = agree::by_transform(path, energy, declutter).unwrap();
            assert_eq!(passes.ranks, transform.ranks, "decluttered: {declutter}");
            let found = agree::difference(&passes.outputs, &transform.outputs).unwrap();
            assert!(found <= 1e-5, "energy {energy}, decluttered: {declutter}: {found:e}");
        }
    }
}

#[test]
fn pairs_are_what_the_fused_operator_takes() {
    use tract_onnx::prelude::{Framework, InferenceModelExt};
    let mut model = tract_onnx::onnx().model_for_path(GLYPHNET).unwrap().into_typed().unwrap();
    let symbols = model.input_fact(0).unwrap().shape.iter().flat_map(|d| d.symbols()).collect::<Vec<_>>();
    model = model.set_symbols(&symbols.into_iter().map(|s| (s, 1.to_dim())).collect()).unwrap();
    FactorizeConv { energy: Some(0.9), ..FactorizeConv::default() }.apply(&mut model).unwrap();
    // On aarch64 tract has channels last around depthwise convolutions, where pairs are not found: they are fused before.
    let mut fused = model.clone();
    if !cfg!(target_arch = "aarch64") {
        fused = fused.into_decluttered().unwrap();
    }
    // All but the one with groups.
    assert_eq!(basisopt_runtime::fused::fuse(&mut fused).unwrap(), 7);
    let fused = fused.into_decluttered().unwrap();
    let fused = run(&fused.into_optimized().unwrap(), 1, false);
    assert!(difference(&run(&model, 1, false), &fused) <= 1e-5);
}

/// Two convolutions of ranks 3 and 2 with a ReLU between them.
fn two(format: DataFormat, input: &[usize], kernels: [[usize; 4]; 2]) -> TypedModel {
    let mut model = TypedModel::default();
    let mut value = model.add_source("x", f32::fact(input)).unwrap();
    for (i, shape) in kernels.into_iter().enumerate() {
        let single = Single {
            format,
            kernel: low_rank(&shape, 3 - i, 40 + i as u64),
            padding: PaddingSpec::SameUpper,
            bias: common::randn(&[shape[0]], 50 + i as u64),
            strides: tvec![1 + i, 1 + i],
            ..Single::of_rank(1)
        };
        value = single.wire(&mut model, &format!("conv{i}"), value);
        if i == 0 {
            let zero = model.add_const("zero", tensor0(0f32).into_shape(&[1; 4]).unwrap()).unwrap();
            value = model.wire_node("relu", max(), &[value, zero]).unwrap()[0];
        }
    }
    model.select_output_outlets(&[value]).unwrap();
    model
}

/// Transforms what was read, and holds it against what was written. Readers and writers have their own names.
fn check(written: &TypedModel, read: &TypedModel) -> TypedModel {
    let mut small = read.clone();
    let options = FactorizeConv { energy: Some(1.0 - 1e-9), ..FactorizeConv::default() };
    let report = options.apply(&mut small).unwrap();
    assert_eq!(report.ranks().map(|r| r.1).collect::<Vec<_>>(), [3, 2], "{report}");
    assert_eq!(convolutions(&small).len(), 4);
    for optimize in [false, true] {
        let found = difference(&run(written, 1, false), &run(&small, 1, optimize));
        assert!(found <= 1e-5, "outputs moved by {found:e}");
    }
    small
}

#[test]
fn nnef_is_read_transformed_and_written() {
    use tract_nnef::prelude::Framework;
    let model = two(DataFormat::NCHW, &[1, 6, 10, 12], [[16, 6, 3, 3], [12, 16, 3, 3]]);
    let nnef = tract_nnef::nnef();
    let there_and_back = |model: &TypedModel| {
        let tar = nnef.write_to_tar(model, vec![]).unwrap();
        nnef.model_for_read(&mut &tar[..]).unwrap()
    };
    let small = check(&model, &there_and_back(&model));
    // What was made of it can be written as well, and is left alone when it is read.
    let mut again = there_and_back(&small);
    assert!(difference(&run(&model, 1, false), &run(&again, 1, true)) <= 1e-5);
    let report = FactorizeConv { rank: Some(1), ..FactorizeConv::default() }.apply(&mut again).unwrap();
    let codes: Vec<&str> = report.refused().map(|r| r.1).collect();
    assert_eq!(codes, ["already-factored"; 4], "{report}");
}

#[test]
fn tensorflow_lite_is_read_and_transformed() {
    use tract_tflite::prelude::Framework;
    let model = two(DataFormat::NHWC, &[1, 10, 12, 6], [[16, 6, 3, 3], [12, 16, 3, 3]]);
    assert_eq!(model.output_fact(0).unwrap().shape.to_tvec(), dims(&[1, 5, 6, 12]));
    let tflite = tract_tflite::tflite();
    let mut bytes = vec![];
    tflite.write(&model, &mut bytes).unwrap();
    let read = tflite.model_for_read(&mut &bytes[..]).unwrap();
    check(&model, &read);
}

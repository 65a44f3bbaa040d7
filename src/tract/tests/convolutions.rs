//! Convolutions in every form that tract has, before and after.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of the test functions")]

mod common;

use basisopt_tract::{FactorizeConv, Report};
use common::{Single, convolutions, difference, dims, low_rank, randn, run};
use tract_core::internal::*;
use tract_core::ops::cast::cast;
use tract_core::ops::cnn::{Conv, Deconv, KernelFormat, PaddingSpec};
use tract_core::ops::einsum::EinSum;
use tract_core::ops::math::{add, div, mul, sub};
use tract_core::ops::nn::DataFormat;

/// Everything that there is to keep, which is as good as full rank where the weight has that rank.
fn exactly() -> FactorizeConv {
    FactorizeConv { energy: Some(1.0 - 1e-9), ..FactorizeConv::default() }
}

fn full_rank() -> FactorizeConv {
    FactorizeConv { ratio: Some(1.0), guard: Some(false), ..FactorizeConv::default() }
}

/// Transforms a copy and holds its outputs, plain and optimised, against those of the original.
fn transformed(model: &TypedModel, options: &FactorizeConv, tolerance: f32) -> (TypedModel, Report) {
    let mut small = model.clone();
    let report = options.apply(&mut small).unwrap();
    let expected = run(model, 1, false);
    for optimize in [false, true] {
        let found = difference(&expected, &run(&small, 1, optimize));
        assert!(found <= tolerance, "outputs moved by {found:e}\n{report}");
    }
    (small, report)
}

fn ranks(report: &Report) -> Vec<(&str, usize)> {
    report.ranks().collect()
}

fn refusals(report: &Report) -> Vec<(&str, &str)> {
    report.refused().collect()
}

/// The images of the last axis or of the second, batched or not.
fn inputs() -> [(DataFormat, TVec<TDim>); 4] {
    [
        (DataFormat::NCHW, dims(&[2, 6, 9, 11])),
        (DataFormat::NHWC, dims(&[2, 9, 11, 6])),
        (DataFormat::CHW, dims(&[6, 9, 11])),
        (DataFormat::HWC, dims(&[9, 11, 6])),
    ]
}

const KERNEL_FORMATS: [KernelFormat; 3] = [KernelFormat::OIHW, KernelFormat::HWIO, KernelFormat::OHWI];

#[test]
fn a_weight_of_low_rank_is_recovered_in_every_format() {
    for (format, input) in inputs() {
        for kernel_fmt in KERNEL_FORMATS {
            let single = Single { format, input: input.clone(), kernel_fmt, ..Single::of_rank(3) };
            let (small, report) = transformed(&single.model(), &exactly(), 1e-5);
            assert_eq!(ranks(&report), [("conv", 3)], "{format:?} {kernel_fmt:?}");
            assert_eq!(convolutions(&small), ["conv.basis", "conv"]);
        }
    }
}

#[test]
fn every_group_has_a_basis_of_its_own() {
    for (format, input) in inputs() {
        for kernel_fmt in KERNEL_FORMATS {
            // Eight filters per group, of three channels each; either half has rank 2.
            let halves = [low_rank(&[8, 3, 3, 3], 2, 5), low_rank(&[8, 3, 3, 3], 2, 6)];
            let kernel = Tensor::stack_tensors(0, &halves).unwrap();
            let single =
                Single { format, input: input.clone(), kernel, kernel_fmt, group: 2, ..Single::of_rank(1) };
            let (small, report) = transformed(&single.model(), &exactly(), 1e-5);
            assert_eq!(ranks(&report), [("conv", 2)], "{format:?} {kernel_fmt:?}");
            let groups: Vec<usize> =
                small.nodes().iter().filter_map(|n| n.op_as::<Conv>()).map(|c| c.group).collect();
            assert_eq!(groups, [2, 2]);
        }
    }
}

#[test]
fn at_full_rank_outputs_are_the_same() {
    let plain = Single { kernel: randn(&[16, 6, 3, 3], 7), ..Single::of_rank(1) };
    let singles = [
        plain.clone(),
        Single { strides: tvec![2, 3], ..plain.clone() },
        Single { dilations: tvec![2, 1], ..plain.clone() },
        Single { padding: PaddingSpec::Valid, ..plain.clone() },
        Single { padding: PaddingSpec::SameUpper, strides: tvec![2, 2], ..plain.clone() },
        Single { padding: PaddingSpec::SameLower, strides: tvec![2, 2], ..plain.clone() },
        Single { padding: PaddingSpec::Explicit(tvec![0, 2], tvec![2, 1]), ..plain.clone() },
        Single { bias: tensor0(0f32), ..plain.clone() },
        Single { bias: tensor0(1.5f32), ..plain.clone() },
        Single { kernel: randn(&[16, 6, 1, 1], 8), padding: PaddingSpec::Valid, ..plain.clone() },
        Single {
            kernel: randn(&[16, 6, 1, 1], 8),
            padding: PaddingSpec::Valid,
            strides: tvec![2, 2],
            ..plain.clone()
        },
    ];
    for single in singles {
        let full = single.kernel.len() / 16;
        let (_, report) = transformed(&single.model(), &full_rank(), 1e-5);
        assert_eq!(ranks(&report), [("conv", full.min(16))]);
    }
}

#[test]
fn one_axis_and_three_will_do() {
    let line = Single {
        input: dims(&[2, 6, 20]),
        kernel: low_rank(&[16, 6, 5], 2, 3),
        strides: tvec![2],
        dilations: tvec![1],
        padding: PaddingSpec::SameUpper,
        ..Single::of_rank(1)
    };
    let volume = Single {
        input: dims(&[1, 6, 5, 6, 7]),
        kernel: low_rank(&[16, 6, 3, 3, 3], 2, 3),
        strides: tvec![1, 2, 1],
        dilations: tvec![1; 3],
        padding: PaddingSpec::SameUpper,
        ..Single::of_rank(1)
    };
    for single in [line, volume] {
        let (_, report) = transformed(&single.model(), &exactly(), 1e-5);
        assert_eq!(ranks(&report), [("conv", 2)]);
    }
}

#[test]
fn sizes_may_be_symbols() {
    let mut model = TypedModel::default();
    let (n, h) = (model.symbols.sym("N"), model.symbols.sym("H"));
    let input = tvec![n.to_dim(), 6.to_dim(), h.to_dim(), 11.to_dim()];
    let x = model.add_source("x", f32::fact(&input)).unwrap();
    let y = Single::of_rank(3).wire(&mut model, "conv", x);
    model.select_output_outlets(&[y]).unwrap();
    let mut small = model.clone();
    let report = exactly().apply(&mut small).unwrap();
    assert_eq!(ranks(&report), [("conv", 3)]);
    assert_eq!(small.output_fact(0).unwrap().shape, model.output_fact(0).unwrap().shape);
    for size in [1, 5] {
        assert!(difference(&run(&model, size, false), &run(&small, size, true)) <= 1e-5);
    }
}

#[test]
fn what_stays_whole_is_said_to_and_why() {
    let depthwise =
        Single { kernel: randn(&[6, 1, 3, 3], 4), group: 6, bias: tensor0(0f32), ..Single::of_rank(1) };
    let random = Single { kernel: randn(&[16, 6, 3, 3], 4), ..Single::of_rank(1) };
    // Sixteen filters of six weights: break-even is at rank 96/22 = 4.4.
    let pointwise =
        Single { kernel: randn(&[16, 6, 1, 1], 4), padding: PaddingSpec::Valid, ..Single::of_rank(1) };
    let zero = Single { kernel: Tensor::zero::<f32>(&[16, 6, 3, 3]).unwrap(), ..Single::of_rank(1) };
    let cases = [
        (depthwise, 0.9, "depthwise"),
        (random, 0.999, "past-break-even"),
        (pointwise, 0.999, "past-break-even"),
        (zero, 0.9, "zero-weight"),
    ];
    for (single, energy, code) in cases {
        let model = single.model();
        let options = FactorizeConv { energy: Some(energy), ..FactorizeConv::default() };
        let (small, report) = transformed(&model, &options, 1e-6);
        assert_eq!(refusals(&report), [("conv", code)]);
        assert_eq!(convolutions(&small), ["conv"]);
    }
}

#[test]
fn a_weight_that_is_no_constant_stays() {
    let mut model = TypedModel::default();
    let x = model.add_source("x", f32::fact([1, 6, 9, 11])).unwrap();
    let w = model.add_source("w", f32::fact([16, 6, 3, 3])).unwrap();
    let b = model.add_const("b", tensor0(0f32)).unwrap();
    let template = Single::of_rank(1).model();
    let conv = template.nodes().iter().find_map(|n| n.op_as::<Conv>()).unwrap().clone();
    let y = model.wire_node("conv", conv, &[x, w, b]).unwrap();
    model.select_output_outlets(&y).unwrap();
    let (_, report) = transformed(&model, &exactly(), 0.0);
    assert_eq!(refusals(&report), [("conv", "weight-not-constant")]);
}

#[test]
fn what_is_quantised_or_transposed_stays() {
    let template = Single::of_rank(3).model();
    let plain = template.nodes().iter().find_map(|n| n.op_as::<Conv>()).unwrap().clone();
    let mut model = TypedModel::default();
    let x = model.add_source("x", i8::fact([1, 6, 9, 11])).unwrap();
    let w = model.add_const("w", Tensor::zero::<i8>(&[16, 6, 3, 3]).unwrap()).unwrap();
    let b = model.add_const("b", Tensor::zero::<i32>(&[16]).unwrap()).unwrap();
    let zero = model.add_const("zero", tensor0(0i32)).unwrap();
    let one = model.add_const("one", tensor0(1f32)).unwrap();
    let quantised = Conv { q_params: Some(i32::datum_type()), ..plain.clone() };
    let y = model.wire_node("quantised", quantised, &[x, w, b, zero, one, zero, one, zero, one]).unwrap()[0];

    let x = model.add_source("x2", f32::fact([1, 6, 9, 11])).unwrap();
    let w = model.add_const("w2", low_rank(&[16, 6, 3, 3], 3, 1)).unwrap();
    let b = model.add_const("b2", tensor0(0f32)).unwrap();
    let transposed = Deconv::new(plain.pool_spec.clone(), KernelFormat::OIHW, tvec![0, 0], 1);
    let y2 = model.wire_node("transposed", transposed, &[x, w, b]).unwrap()[0];
    model.select_output_outlets(&[y, y2]).unwrap();
    let report = exactly().apply(&mut model).unwrap();
    let mut found = refusals(&report);
    found.sort_unstable();
    assert_eq!(found, [("quantised", "quantised-weight"), ("transposed", "transposed")]);
}

#[test]
fn half_and_double_precision_keep_their_types() {
    for (datum_type, tolerance) in [(DatumType::F16, 2e-3), (DatumType::F64, 1e-6)] {
        let template = Single::of_rank(3).model();
        let conv = template.nodes().iter().find_map(|n| n.op_as::<Conv>()).unwrap().clone();
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([1, 6, 9, 11])).unwrap();
        let x = model.wire_node("cast", cast(datum_type), &[x]).unwrap()[0];
        let typed = |t: Tensor| t.cast_to_dt(datum_type).unwrap().into_owned();
        let w = model.add_const("w", typed(low_rank(&[16, 6, 3, 3], 3, 1))).unwrap();
        let b = model.add_const("b", typed(randn(&[16], 2))).unwrap();
        let y = model.wire_node("conv", conv, &[x, w, b]).unwrap()[0];
        let y = model.wire_node("back", cast(f32::datum_type()), &[y]).unwrap();
        model.select_output_outlets(&y).unwrap();
        // In half precision rounding itself is of full rank.
        let options = FactorizeConv { rank: Some(3), ..FactorizeConv::default() };
        let mut small = model.clone();
        let report = options.apply(&mut small).unwrap();
        assert_eq!(ranks(&report), [("conv", 3)]);
        let types: Vec<DatumType> = small
            .nodes()
            .iter()
            .filter(|n| n.op_is::<Conv>())
            .map(|n| n.outputs[0].fact.datum_type)
            .collect();
        assert_eq!(types, [datum_type; 2]);
        let found = difference(&run(&model, 1, false), &run(&small, 1, false));
        assert!(found <= tolerance, "{datum_type:?}: {found:e}");
    }
}

#[test]
fn a_product_that_drops_or_adds_the_batch_is_a_convolution_still() {
    for (axes, input, bias) in [
        ("nihw,oi->ohw", &[1, 6, 9, 11][..], &[16, 1, 1][..]),
        ("ihw,oi->nohw", &[6, 9, 11], &[1, 16, 1, 1]),
        ("nihw,io->nohw", &[2, 6, 9, 11], &[1, 16, 1, 1]),
    ] {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact(input)).unwrap();
        let weight = low_rank(&[16, 6], 2, 3);
        let weight = if axes.contains("io") { weight.permute_axes(&[1, 0]).unwrap() } else { weight };
        let w = model.add_const("w", weight).unwrap();
        let op = EinSum::new(axes.parse().unwrap(), f32::datum_type());
        let y = model.wire_node("conv.einsum", op, &[x, w]).unwrap()[0];
        let b = model.add_const("b", randn(bias, 4)).unwrap();
        let y = model.wire_node("conv", add(), &[y, b]).unwrap();
        model.select_output_outlets(&y).unwrap();
        let (small, report) = transformed(&model, &exactly(), 1e-5);
        assert_eq!(ranks(&report), [("conv", 2)], "{axes}");
        assert_eq!(small.node(small.outputs[0].node).name, "conv");
        let again = FactorizeConv { rank: Some(1), ..FactorizeConv::default() };
        let (_, report) = transformed(&small, &again, 1e-5);
        assert_eq!(report.refused().map(|r| r.1).collect::<Vec<_>>(), ["already-factored"; 2], "{axes}");
    }
}

#[test]
fn a_bias_that_is_computed_stays_an_input() {
    let mut model = TypedModel::default();
    let x = model.add_source("x", f32::fact([1, 6, 9, 11])).unwrap();
    let b = model.add_source("b", f32::fact([16])).unwrap();
    let template = Single::of_rank(3).model();
    let conv = template.nodes().iter().find_map(|n| n.op_as::<Conv>()).unwrap().clone();
    let w = model.add_const("w", low_rank(&[16, 6, 3, 3], 3, 1)).unwrap();
    let y = model.wire_node("conv", conv, &[x, w, b]).unwrap();
    // What follows cannot be folded into it, and is not.
    let scale = model.add_const("scale", randn(&[1, 16, 1, 1], 9)).unwrap();
    let z = model.wire_node("scaled", mul(), &[y[0], scale]).unwrap();
    model.select_output_outlets(&z).unwrap();
    let (_, report) = transformed(&model, &exactly(), 1e-5);
    assert_eq!(ranks(&report), [("conv", 3)]);
}

#[test]
fn a_shared_weight_has_shared_factors_unless_something_else_reads_it() {
    let single = Single::of_rank(3);
    let shared = |with_reader: bool| {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([1, 6, 9, 11])).unwrap();
        let x2 = model.add_source("x2", f32::fact([1, 6, 9, 11])).unwrap();
        let [a, b] = [("a", x), ("b", x2)].map(|(name, x)| single.wire(&mut model, name, x));
        let mut outputs = vec![a, b];
        if with_reader {
            outputs.push(model.node(a.node).inputs[1]);
        }
        model.select_output_outlets(&outputs).unwrap();
        model
    };
    let (small, report) = transformed(&shared(false), &exactly(), 1e-5);
    assert_eq!(ranks(&report), [("a", 3), ("b", 3)]);
    assert_eq!(convolutions(&small).len(), 4);
    let bases: Vec<OutletId> = small
        .nodes()
        .iter()
        .filter(|n| n.name.ends_with(".basis") && n.op_is::<Conv>())
        .map(|n| n.inputs[1])
        .collect();
    assert!(matches!(bases[..], [a, b] if a == b));

    let (_, report) = transformed(&shared(true), &exactly(), 1e-6);
    assert_eq!(refusals(&report), [("a", "shared-weight"), ("b", "shared-weight")]);
}

/// A convolution with arithmetic behind it that scales channels very differently.
fn with_arithmetic(group: usize) -> TypedModel {
    let single = Single { kernel: randn(&[16, 6 / group, 3, 3], 12), group, ..Single::of_rank(1) };
    let mut model = TypedModel::default();
    let x = model.add_source("x", f32::fact([1, 6, 9, 11])).unwrap();
    let mut y = single.wire(&mut model, "conv", x);
    let scale: Vec<f32> = (0..16).map(|i| 0.5f32.powi(i)).collect();
    let scale = tensor1(&scale).into_shape(&[1, 16, 1, 1]).unwrap();
    let constants = [
        scale,
        randn(&[1, 16, 1, 1], 10),
        randn(&[1, 16, 1, 1], 11),
        tensor0(2f32).into_shape(&[1; 4]).unwrap(),
    ];
    for (i, value) in constants.into_iter().enumerate() {
        let constant = model.add_const(format!("c{i}"), value).unwrap();
        let inputs = if i == 2 { [constant, y] } else { [y, constant] };
        let op = [mul(), add(), sub(), div()][i].clone();
        y = model.wire_node(["scaled", "shifted", "turned", "bn"][i], op, &inputs).unwrap()[0];
    }
    model.select_output_outlets(&[y]).unwrap();
    model
}

#[test]
fn what_scales_channels_counts_in_their_energy() {
    for group in [1, 2] {
        let model = with_arithmetic(group);
        let rank = |options: FactorizeConv| {
            let mut small = model.clone();
            let report = options.apply(&mut small).unwrap();
            small.check_consistency().unwrap();
            (ranks(&report).first().map(|r| r.1), small)
        };
        let energy = Some(0.9);
        let (folded, small) = rank(FactorizeConv { energy, ..FactorizeConv::default() });
        let (unfolded, _) =
            rank(FactorizeConv { energy, fold: Some(false), guard: Some(false), ..FactorizeConv::default() });
        // Of squared scales 1, 1/4, 1/16 … four hold 99.6 %; unscaled, all filters weigh the same.
        assert!(folded.unwrap() <= 4, "{folded:?}");
        assert!(unfolded.unwrap() > 4, "{unfolded:?}");
        // The value that the model gives keeps its name, and nothing is left behind the pair.
        assert_eq!(convolutions(&small), ["conv.basis", "bn"]);
        assert_eq!(small.node(small.outputs[0].node).name, "bn");

        let exact = FactorizeConv { fold: Some(true), ..full_rank() };
        transformed(&model, &exact, 1e-5);
    }
}

#[test]
fn a_pair_is_not_factorised_again() {
    for declutter in [false, true] {
        let mut model = Single::of_rank(3).model();
        exactly().apply(&mut model).unwrap();
        if declutter {
            model = model.into_decluttered().unwrap();
        }
        let again = FactorizeConv { rank: Some(1), ..FactorizeConv::default() };
        let (_, report) = transformed(&model, &again, 1e-6);
        assert_eq!(
            refusals(&report),
            [("conv.basis", "already-factored"), ("conv", "already-factored")],
            "decluttered: {declutter}"
        );
    }
}

#[test]
fn a_decluttered_1x1_convolution_is_one_still() {
    for (format, input) in [inputs()[0].clone(), inputs()[2].clone()] {
        let single = Single {
            format,
            input,
            kernel: low_rank(&[16, 6, 1, 1], 2, 3),
            padding: PaddingSpec::Valid,
            ..Single::of_rank(1)
        };
        let model = single.model().into_decluttered().unwrap();
        assert!(convolutions(&model).is_empty());
        let (_, report) = transformed(&model, &exactly(), 1e-5);
        assert_eq!(ranks(&report), [("conv", 2)]);
    }
    // With channels last it might be a linear layer.
    let single = Single {
        format: DataFormat::NHWC,
        input: dims(&[2, 9, 11, 6]),
        kernel: low_rank(&[16, 6, 1, 1], 2, 3),
        padding: PaddingSpec::Valid,
        ..Single::of_rank(1)
    };
    let model = single.model().into_decluttered().unwrap();
    let (_, report) = transformed(&model, &exactly(), 1e-6);
    assert_eq!(refusals(&report), [("conv", "doubtful-product")]);
}

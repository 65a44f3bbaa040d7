//! Products with a constant matrix, on either side and over any axis.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of the test functions")]

mod common;

use basisopt_tract::{FactorizeConv, FactorizeLinear};
use common::{difference, low_rank, randn, run};
use tract_core::internal::*;
use tract_core::ops::einsum::EinSum;
use tract_core::ops::math::add;

/// A product with a matrix of rank 2, whose rows give 12 outputs of 16 inputs, and a bias behind it.
fn product(axes: &str, input: &[usize], rows_first: bool, data_first: bool) -> TypedModel {
    let mut model = TypedModel::default();
    let x = model.add_source("x", f32::fact(input)).unwrap();
    let weight = low_rank(&[12, 16], 2, 1);
    let weight = if rows_first { weight } else { weight.permute_axes(&[1, 0]).unwrap() };
    let w = model.add_const("w", weight).unwrap();
    let op = EinSum::new(axes.parse().unwrap(), f32::datum_type());
    let y = model.wire_node("fc", op, &if data_first { [x, w] } else { [w, x] }).unwrap()[0];
    let shape = model.outlet_fact(y).unwrap().shape.as_concrete().unwrap().to_vec();
    let b = model.add_const("b", randn(&shape, 2)).unwrap();
    let z = model.wire_node("biased", add(), &[y, b]).unwrap();
    model.select_output_outlets(&z).unwrap();
    model
}

#[test]
fn a_matrix_of_low_rank_is_recovered_on_either_side() {
    for (axes, input, rows_first, data_first) in [
        ("mk,kn->mn", &[5, 16][..], false, true),
        ("mk,nk->mn", &[5, 16], true, true),
        ("nk,km->nm", &[16, 5], true, false),
        ("bmk,kn->bmn", &[3, 5, 16], false, true),
        ("abmk,nk->abmn", &[2, 3, 5, 16], true, true),
        ("kn,bmk->bmn", &[3, 5, 16], false, false),
        ("mk,kn->nm", &[5, 16], false, true),
        // Axes of size 1 come and go.
        ("mkhw,nk->mn", &[5, 16, 1, 1], true, true),
        ("mk,nk->mnhw", &[5, 16], true, true),
    ] {
        let model = product(axes, input, rows_first, data_first);
        for declutter in [false, true] {
            let model = if declutter { model.clone().into_decluttered().unwrap() } else { model.clone() };
            let mut small = model.clone();
            let options = FactorizeLinear { energy: Some(1.0 - 1e-9), ..FactorizeLinear::default() };
            let report = options.apply(&mut small).unwrap();
            assert_eq!(report.ranks().map(|r| r.1).collect::<Vec<_>>(), [2], "{axes} {declutter}\n{report}");
            let found = difference(&run(&model, 1, false), &run(&small, 1, true));
            assert!(found <= 1e-5, "{axes}: {found:e}");
            let products = small.nodes().iter().filter(|n| n.op_is::<EinSum>()).count();
            assert_eq!(products, 2);

            // Nor is the pair taken for two layers.
            let again = FactorizeLinear { rank: Some(1), ..FactorizeLinear::default() };
            let report = again.apply(&mut small).unwrap();
            let codes: Vec<&str> = report.refused().map(|r| r.1).collect();
            assert_eq!(codes, ["already-factored", "already-factored"], "{axes}");
        }
    }
}

#[test]
fn other_products_are_left_alone() {
    // Two values; a sum over two axes; a sum beside the product.
    let mut model = TypedModel::default();
    let x = model.add_source("x", f32::fact([5, 16])).unwrap();
    let x2 = model.add_source("x2", f32::fact([16, 7])).unwrap();
    let w = model.add_const("w", randn(&[16, 12], 1)).unwrap();
    let v = model.add_const("v", randn(&[5, 16], 2)).unwrap();
    let mut outputs = tvec![];
    for (name, axes, inputs) in
        [("values", "mk,kn->mn", [x, x2]), ("sum", "mk,mk->", [x, v]), ("beside", "mk,kn->n", [x, w])]
    {
        let op = EinSum::new(axes.parse().unwrap(), f32::datum_type());
        outputs.extend(model.wire_node(name, op, &inputs).unwrap());
    }
    model.select_output_outlets(&outputs).unwrap();
    let mut small = model.clone();
    let report = FactorizeLinear { rank: Some(1), ..FactorizeLinear::default() }.apply(&mut small).unwrap();
    assert_eq!(report.remarks, []);
    assert!(difference(&run(&model, 1, false), &run(&small, 1, false)) == 0.0);
}

#[test]
fn each_transform_keeps_to_its_kind() {
    let model = product("mk,kn->mn", &[5, 16], false, true);
    let mut small = model.clone();
    let report = FactorizeConv { rank: Some(1), ..FactorizeConv::default() }.apply(&mut small).unwrap();
    assert_eq!(report.remarks, []);
    // A product over the channels of an image is a convolution.
    let model = product("nk,bkhw->bnhw", &[1, 16, 3, 4], true, false);
    let report = FactorizeLinear::default().apply(&mut model.clone()).unwrap();
    assert_eq!(report.remarks, []);
    let report =
        FactorizeConv { rank: Some(2), ..FactorizeConv::default() }.apply(&mut model.clone()).unwrap();
    assert_eq!(report.ranks().collect::<Vec<_>>(), [("fc", 2)]);
}

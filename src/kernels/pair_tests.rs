//! The fused pair against the two convolutions, one after the other, in plain loops and double precision.

use crate::pair::{Pair, PairEpilogue, PairShape};
use crate::tests::{Rng, f32s};

fn shape(rng: &mut Rng) -> PairShape {
    let mut s = PairShape {
        n_in: 1 + rng.below(70),
        rank: 1 + rng.below(20),
        n_out: 1 + rng.below(20),
        input: [1 + rng.below(12), 1 + rng.below(40)],
        output: [1; 2],
        kernel: [1; 2],
        strides: [1; 2],
        dilations: [1; 2],
        pads: [0; 2],
    };
    let is_pointwise = rng.below(5) == 0;
    for a in 0..2 {
        if !is_pointwise {
            s.kernel[a] = 1 + rng.below(5);
            s.strides[a] = 1 + rng.below(3);
            s.dilations[a] = 1 + rng.below(3);
            // More than the kernel's reach too: whole rows of padding are legal in ONNX.
            s.pads[a] = rng.below(s.kernel[a] * s.dilations[a] + 1);
        }
        let extent = (s.kernel[a] - 1) * s.dilations[a] + 1;
        let padded = s.input[a] + s.pads[a] + rng.below(4);
        s.output[a] = if padded < extent { 1 } else { (padded - extent) / s.strides[a] + 1 };
    }
    s
}

struct Weights {
    basis: Vec<f32>,
    basis_bias: Vec<f32>,
    coefficients: Vec<f32>,
    bias: Vec<f32>,
}

/// One image, in double precision.
fn reference(s: &PairShape, w: &Weights, x: &[f32]) -> Vec<f64> {
    let at = |c: usize, i: Option<usize>, j: Option<usize>| match (i, j) {
        (Some(i), Some(j)) if i < s.input[0] && j < s.input[1] => {
            f64::from(x[(c * s.input[0] + i) * s.input[1] + j])
        }
        _ => 0.0,
    };
    let positions = s.output[0] * s.output[1];
    let mut y = vec![0.0; s.n_out * positions];
    for o in 0..positions {
        let (row, column) = (o / s.output[1], o % s.output[1]);
        let mut between: Vec<f64> = w.basis_bias.iter().map(|b| f64::from(*b)).collect();
        let mut k = 0;
        for value in &mut between {
            for c in 0..s.n_in {
                for a in 0..s.kernel[0] {
                    for b in 0..s.kernel[1] {
                        let i = (row * s.strides[0] + a * s.dilations[0]).checked_sub(s.pads[0]);
                        let j = (column * s.strides[1] + b * s.dilations[1]).checked_sub(s.pads[1]);
                        *value += f64::from(w.basis[k]) * at(c, i, j);
                        k += 1;
                    }
                }
            }
        }
        for p in 0..s.n_out {
            let sum = |(r, b): (usize, &f64)| f64::from(w.coefficients[p * s.rank + r]) * b;
            y[p * positions + o] = f64::from(w.bias[p]) + between.iter().enumerate().map(sum).sum::<f64>();
        }
    }
    y
}

#[test]
fn a_pair_is_its_two_convolutions() {
    let mut rng = Rng(7);
    for case in 0..150 {
        let s = shape(&mut rng);
        let n_images = 1 + rng.below(3);
        let w = Weights {
            basis: f32s(&rng.values(s.rank * s.n_in * s.kernel[0] * s.kernel[1])),
            basis_bias: f32s(&rng.values(s.rank)),
            coefficients: f32s(&rng.values(s.n_out * s.rank)),
            bias: f32s(&rng.values(s.n_out)),
        };
        let x = f32s(&rng.values(n_images * s.n_inputs()));
        let add = f32s(&rng.values(n_images * s.n_outputs()));
        let pair = Pair::new(s, &w.basis, Some(&w.basis_bias), &w.coefficients, Some(&w.bias)).unwrap();
        let expected: Vec<f64> = x.chunks(s.n_inputs()).flat_map(|x| reference(&s, &w, x)).collect();

        let mut y = vec![f32::NAN; expected.len()];
        pair.forward(n_images, &x, &mut y, &PairEpilogue::default(), 1);
        // Two sums of up to 1,750 and 20 products of numbers in ±1.
        let scale = ((s.n_in * s.kernel[0] * s.kernel[1]) as f64).sqrt() * (s.rank as f64).sqrt();
        for (found, expected) in y.iter().zip(&expected) {
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 1e-6 * (1.0 + scale), "case {case}, {s:?}: {found} for {expected}");
        }

        let mut z = vec![f32::NAN; expected.len()];
        let epilogue = PairEpilogue { add: Some(&add), clamp: Some((-0.5, 2.0)) };
        pair.forward(n_images, &x, &mut z, &epilogue, 1);
        for ((found, plain), add) in z.iter().zip(&y).zip(&add) {
            assert_eq!(*found, (plain + add).clamp(-0.5, 2.0), "case {case}, {s:?}");
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut rng = Rng(11);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for _ in 0..20 {
        let s = shape(&mut rng);
        let basis = f32s(&rng.values(s.rank * s.n_in * s.kernel[0] * s.kernel[1]));
        let coefficients = f32s(&rng.values(s.n_out * s.rank));
        let pair = Pair::new(s, &basis, None, &coefficients, None).unwrap();
        let x = f32s(&rng.values(2 * s.n_inputs()));
        let run = |n_threads| {
            let mut y = vec![f32::NAN; 2 * s.n_outputs()];
            pool.install(|| pair.forward(2, &x, &mut y, &PairEpilogue::default(), n_threads));
            y
        };
        assert_eq!(run(1), run(3), "{s:?}");
        assert_eq!(run(1), run(8), "{s:?}");
    }
}

#[test]
fn weights_of_the_wrong_length_are_refused() {
    let s = PairShape {
        n_in: 2,
        rank: 3,
        n_out: 4,
        input: [5, 5],
        output: [5, 5],
        kernel: [3, 3],
        strides: [1, 1],
        dilations: [1, 1],
        pads: [1, 1],
    };
    let (basis, coefficients) = ([0.0; 54], [0.0; 12]);
    assert!(Pair::new(s, &basis, None, &coefficients, None).is_some());
    assert!(Pair::new(s, &basis[1..], None, &coefficients, None).is_none());
    assert!(Pair::new(s, &basis, None, &coefficients[1..], None).is_none());
    assert!(Pair::new(s, &basis, Some(&[0.0; 2]), &coefficients, None).is_none());
    assert!(Pair::new(s, &basis, None, &coefficients, Some(&[0.0; 3])).is_none());
    let endless = PairShape { output: [1 << 31, 1 << 31], ..s };
    assert!(Pair::new(endless, &basis, None, &coefficients, None).is_none());
    assert!(Pair::new(PairShape { strides: [0, 1], ..s }, &basis, None, &coefficients, None).is_none());
}

//! The vector kernels against plain loops, and the plain loops against the definition of a gradient.

use crate::conv::{Add, Conv, ConvShape, Epilogue};
use crate::{LANES, reference};

/// A cheap generator of numbers in ±1.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next()).unwrap() % n
    }
    pub(crate) fn values(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.next() as f64 / (1u64 << 30) as f64 - 1.0).collect()
    }
}

/// A random convolution; every output reads at least one element of the input.
fn shape(rng: &mut Rng) -> ConvShape {
    let groups = [1, 1, 2, 3][rng.below(4)];
    let mut s = ConvShape {
        n_in: groups * (1 + rng.below(9)),
        n_out: groups * (1 + rng.below(14)),
        groups,
        input: [1, 1 + rng.below(7), 1 + rng.below(12)],
        output: [1; 3],
        kernel: [1; 3],
        strides: [1; 3],
        dilations: [1; 3],
        pads: [0; 3],
    };
    if rng.below(4) == 0 {
        s.input[0] = 1 + rng.below(3);
    }
    let pointwise = rng.below(4) == 0;
    for a in 0..3 {
        if !pointwise && (a > 0 || s.input[0] > 1) {
            s.kernel[a] = 1 + rng.below(4);
            s.strides[a] = 1 + rng.below(3);
            s.dilations[a] = 1 + rng.below(2);
            s.pads[a] = rng.below(s.kernel[a]);
        }
        let extent = (s.kernel[a] - 1) * s.dilations[a] + 1;
        let after = rng.below(s.kernel[a]);
        let padded = s.input[a] + s.pads[a] + after;
        s.output[a] = if padded < extent { 1 } else { (padded - extent) / s.strides[a] + 1 };
    }
    s
}

pub(crate) fn f32s(v: &[f64]) -> Vec<f32> {
    v.iter().map(|&v| v as f32).collect()
}

/// Sums of up to 14·64 products of numbers in ±1, in single precision.
fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    for (i, (&a, &b)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(a) - b).abs() < 2e-4, "{what} {i}: {a} for {b}");
    }
}

#[test]
fn vector_kernels_agree_with_plain_loops() {
    let mut rng = Rng(1);
    for case in 0..300 {
        let s = shape(&mut rng);
        let conv = Conv::new(s);
        let x = rng.values(s.n_in * s.n_inputs() * LANES);
        let w = rng.values(s.n_weights());
        let dy = rng.values(s.n_out * s.n_outputs() * LANES);
        let bias = rng.values(s.n_out);
        let other = rng.values(dy.len());

        let clamp = case % 3 == 0;
        let mut y = other.clone();
        let mut y32 = f32s(&y);
        let (bias32, other32) = (f32s(&bias), f32s(&other));
        let e = Epilogue {
            bias: (case % 2 == 0).then_some(&bias[..]),
            add: [Add::None, Add::Output, Add::Tensor(&other)][case % 3],
            clamp: clamp.then_some((0.0, 1.5)),
            mask: None,
        };
        let e32 = Epilogue {
            bias: (case % 2 == 0).then_some(&bias32[..]),
            add: [Add::None, Add::Output, Add::Tensor(&other32)][case % 3],
            clamp: clamp.then_some((0.0, 1.5)),
            mask: None,
        };
        conv.forward(&x, &w, &mut y, &e);
        conv.forward(&f32s(&x), &f32s(&w), &mut y32, &e32);
        assert_close(&y32, &y, &format!("forward {s:?}"));

        let mask = rng.values(x.len());
        let mask32 = f32s(&mask);
        let (mut dx, mut dx32) = (x.clone(), f32s(&x));
        let e = Epilogue { mask: Some((&mask, -0.5, 0.5)), ..Epilogue::default() };
        let e32 = Epilogue { mask: Some((&mask32, -0.5, 0.5)), ..Epilogue::default() };
        conv.input_grad(&dy, &w, &mut dx, &e);
        conv.input_grad(&f32s(&dy), &f32s(&w), &mut dx32, &e32);
        assert_close(&dx32, &dx, &format!("input grad {s:?}"));

        let (mut dw, mut dw32) = (w.clone(), f32s(&w));
        conv.weight_grad(&dy, &x, &mut dw);
        conv.weight_grad(&f32s(&dy), &f32s(&x), &mut dw32);
        // Sums over all positions and lanes.
        let scale = (s.n_outputs() as f64).sqrt();
        for (a, b) in dw32.iter().zip(&dw) {
            assert!((f64::from(*a) - b).abs() < 1e-4 * scale, "weight grad {s:?}: {a} for {b}");
        }
    }
}

/// Convolution is linear in x and in w, so its gradients are its adjoints: ⟨conv(x, w), dy⟩ = ⟨x, dx⟩ = ⟨w, dw⟩.
#[test]
fn gradients_are_adjoint_to_the_forward_kernel() {
    let mut rng = Rng(2);
    for _ in 0..200 {
        let s = shape(&mut rng);
        let conv = Conv::new(s);
        let x = rng.values(s.n_in * s.n_inputs() * LANES);
        let w = rng.values(s.n_weights());
        let dy = rng.values(s.n_out * s.n_outputs() * LANES);
        let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
        conv.forward(&x, &w, &mut y, &Epilogue::default());
        conv.input_grad(&dy, &w, &mut dx, &Epilogue::default());
        reference::weight_grad(&s, &dy, &x, &mut dw);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let expected = dot(&y, &dy);
        assert!((dot(&x, &dx) - expected).abs() < 1e-10 * (1.0 + y.len() as f64), "{s:?}");
        assert!((dot(&w, &dw) - expected).abs() < 1e-10 * (1.0 + y.len() as f64), "{s:?}");
    }
}

/// One channel, one image, by hand: x = 1 2 3 4, w = 1 10 100, padding 1, stride 1.
#[test]
fn a_convolution_by_hand() {
    let s = ConvShape {
        n_in: 1,
        n_out: 1,
        groups: 1,
        input: [1, 1, 4],
        output: [1, 1, 4],
        kernel: [1, 1, 3],
        strides: [1; 3],
        dilations: [1; 3],
        pads: [0, 0, 1],
    };
    let lanes = |v: &[f32]| v.iter().flat_map(|&v| [v; LANES]).collect::<Vec<f32>>();
    let mut y = vec![0.0; 4 * LANES];
    Conv::new(s).forward(&lanes(&[1.0, 2.0, 3.0, 4.0]), &[1.0, 10.0, 100.0], &mut y, &Epilogue::default());
    assert_eq!(y, lanes(&[210.0, 321.0, 432.0, 43.0]));
}

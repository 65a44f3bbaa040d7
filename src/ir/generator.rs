//! Constants made by rule: how fixtures have weights without binaries.

use crate::tensor::n_elements;

/// How the text format makes the values of a constant: the same ones on every machine.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are the parameters that the variants' lines name")]
pub enum Generator {
    /// Standard normal values.
    Randn { seed: u64 },
    /// Uniform values in `[low, high)`.
    Uniform { low: f64, high: f64, seed: u64 },
    /// A product of two standard normal factors: `[n_rows, rank] · [rank, n_columns]`, where
    /// `n_rows` is the first dimension.
    LowRank { rank: usize, seed: u64 },
    /// The integers 0, 1, 2, …
    Iota,
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough for test weights, and one fixed definition, so
/// that a fixture means the same numbers under every version of every dependency.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)` with 53 bits.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Sum of twelve uniforms less six: mean 0, variance 1, and free of `ln` and `cos`, whose last
    /// bits differ between platforms.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// The values of a tensor of this shape, row-major.
pub(crate) fn generate(generator: &Generator, shape: &[usize]) -> Vec<f64> {
    let n = n_elements(shape).unwrap_or(0);
    match *generator {
        Generator::Randn { seed } => {
            let mut rng = SplitMix64(seed);
            (0..n).map(|_| rng.normal()).collect()
        }
        Generator::Uniform { low, high, seed } => {
            let mut rng = SplitMix64(seed);
            (0..n).map(|_| low + (high - low) * rng.unit()).collect()
        }
        Generator::LowRank { rank, seed } => {
            let n_rows = shape.first().copied().unwrap_or(1);
            let n_columns = n.checked_div(n_rows).unwrap_or(0);
            let mut rng = SplitMix64(seed);
            let left: Vec<f64> = (0..n_rows * rank).map(|_| rng.normal()).collect();
            let right: Vec<f64> = (0..rank * n_columns).map(|_| rng.normal()).collect();
            (0..n)
                .map(|i| {
                    let (row, column) = (i / n_columns, i % n_columns);
                    (0..rank).map(|k| left[row * rank + k] * right[k * n_columns + column]).sum()
                })
                .collect()
        }
        Generator::Iota => (0..n).map(|i| i as f64).collect(),
    }
}

//! Inputs for networks nobody has data for.

use crate::InputInfo;
use basisopt_ir::{DType, Tensor};
use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Seeded random tensors that fit `inputs`, the same on every machine.
///
/// Floats are standard normal. `u8` covers its whole range and `i8` lies in −128…127, as images do; other
/// integers lie in 0…1, because they are lengths, indices or masks more often than not, and larger ones
/// might index beyond a table. Types tract has no tensors for come out as zeros.
pub fn random_inputs(inputs: &[InputInfo], seed: u64) -> Vec<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    inputs.iter().map(|info| random_tensor(info, &mut rng)).collect()
}

fn random_tensor(info: &InputInfo, rng: &mut ChaCha8Rng) -> Tensor {
    let n: usize = info.shape.iter().product();
    let bytes: Vec<u8> = match info.dtype {
        DType::F32 => (0..n).flat_map(|_| (normal(rng) as f32).to_le_bytes()).collect(),
        DType::F64 => (0..n).flat_map(|_| normal(rng).to_le_bytes()).collect(),
        DType::F16 => (0..n).flat_map(|_| f16::from_f64(normal(rng)).to_le_bytes()).collect(),
        DType::BF16 => (0..n).flat_map(|_| half::bf16::from_f64(normal(rng)).to_le_bytes()).collect(),
        DType::U8 | DType::I8 => (0..n).map(|_| rng.random::<u8>()).collect(),
        DType::Bool => (0..n).map(|_| u8::from(rng.random::<bool>())).collect(),
        DType::U16 | DType::I16 => {
            (0..n).flat_map(|_| u16::from(rng.random::<bool>()).to_le_bytes()).collect()
        }
        DType::U32 | DType::I32 => {
            (0..n).flat_map(|_| u32::from(rng.random::<bool>()).to_le_bytes()).collect()
        }
        DType::U64 | DType::I64 => {
            (0..n).flat_map(|_| u64::from(rng.random::<bool>()).to_le_bytes()).collect()
        }
        other => vec![0; other.n_bytes(n).unwrap_or(0)],
    };
    // The length fits by construction; strings, the one type without bytes, become an empty tensor.
    Tensor::from_bytes(info.dtype, info.shape.clone(), bytes.into())
        .unwrap_or_else(|_| Tensor::elided(info.dtype, info.shape.clone(), 0.0))
}

/// Box–Muller: two uniforms make one standard normal value here, the second is not worth keeping.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    // 1 − u lies in (0, 1], so the logarithm is finite.
    let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

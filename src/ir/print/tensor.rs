//! Constants: a type, then a generator, a repeated value, a list or a norm.

use crate::graph::ValueType;
use crate::print::is_numeric;
use crate::tensor::{DType, Generator, Tensor};
use half::{bf16, f16};
use std::fmt::Write as _;

/// Integer tensors up to this many elements print their values: they are shapes, axes, indices.
const MAX_INTEGERS: usize = 64;
/// Float tensors of rank 0 and 1 up to this many elements print their values: they are scales,
/// bounds and exponents. Weights of convolutions have more axes, whatever their size.
const MAX_FLOATS: usize = 4;

pub(super) fn write_tensor(out: &mut String, tensor: &Tensor, all_values: bool) {
    let _ = write!(out, "{} ", ValueType::fixed(tensor.dtype(), tensor.shape()));
    if let Some(generator) = tensor.generator() {
        write_generator(out, generator);
        return;
    }
    if !is_numeric(tensor.dtype()) {
        out.push_str("elided");
        return;
    }
    match values(tensor, all_values) {
        Some(text) => out.push_str(&text),
        None => write_norm(out, tensor),
    }
}

fn write_generator(out: &mut String, generator: &Generator) {
    let _ = match generator {
        Generator::Randn { seed } => write!(out, "randn(seed={seed})"),
        Generator::Uniform { low, high, seed } => write!(out, "uniform({low:?}, {high:?}, seed={seed})"),
        Generator::LowRank { rank, seed } => write!(out, "lowrank({rank}, seed={seed})"),
        Generator::Iota => write!(out, "iota"),
    };
}

/// Four significant digits: enough to see a change, few enough to agree between machines.
fn write_norm(out: &mut String, tensor: &Tensor) {
    match tensor.norm() {
        Some(norm) => {
            // Rounded twice, the second time to the same number: printing is canonical.
            let rounded = format!("{norm:.3e}").parse().unwrap_or(norm);
            let _ = write!(out, "norm {rounded:?}");
        }
        None => out.push_str("elided"),
    }
}

/// The values as text; `None` where the norm has to do.
fn values(tensor: &Tensor, all_values: bool) -> Option<String> {
    let (dtype, n) = (tensor.dtype(), tensor.len());
    if tensor.is_elided() {
        return None;
    }
    if n == 0 {
        return Some("[]".to_owned());
    }
    let width = dtype.n_bytes(1)?;
    let is_short =
        if dtype.is_integer() { n <= MAX_INTEGERS } else { n <= MAX_FLOATS && tensor.shape().len() < 2 };
    let listed = is_short || all_values;
    let (first, uniform) = match tensor.splat_element() {
        Some(element) => (element.clone(), true),
        None => {
            let bytes = tensor.to_bytes().ok()?;
            let first = bytes.slice(..width);
            // Any byte but 0 is true.
            let same = |c: &[u8]| c == first || (dtype == DType::Bool && (c == [0]) == (first[..] == [0]));
            let uniform = bytes.chunks_exact(width).all(same);
            (first, uniform)
        }
    };
    let text = element(dtype, &first);
    if uniform && !(n == 1 && is_short) {
        match text.as_str() {
            "0" | "0.0" | "false" => return Some("zeros".to_owned()),
            "1" | "1.0" | "true" => return Some("ones".to_owned()),
            // Equal floats that a pass computed one by one are equal by luck.
            _ if dtype.is_integer() || tensor.splat_element().is_some() => {
                return Some(format!("full({text})"));
            }
            _ => {}
        }
    }
    if !listed {
        return None;
    }
    let bytes = tensor.to_bytes().ok()?;
    let mut out = String::from("[");
    for (i, c) in bytes.chunks_exact(width).enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        out.push_str(&element(dtype, c));
    }
    out.push(']');
    Some(out)
}

/// One element, in the fewest digits that read back as the same number.
fn element(dtype: DType, bytes: &[u8]) -> String {
    fn le<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.first_chunk().copied().unwrap_or([0; N])
    }
    match dtype {
        DType::F32 => format!("{:?}", f32::from_le_bytes(le(bytes))),
        DType::F64 => format!("{:?}", f64::from_le_bytes(le(bytes))),
        DType::F16 => format!("{:?}", f16::from_le_bytes(le(bytes)).to_f32()),
        DType::BF16 => format!("{:?}", bf16::from_le_bytes(le(bytes)).to_f32()),
        DType::I64 => i64::from_le_bytes(le(bytes)).to_string(),
        DType::U64 => u64::from_le_bytes(le(bytes)).to_string(),
        DType::I32 => i32::from_le_bytes(le(bytes)).to_string(),
        DType::U32 => u32::from_le_bytes(le(bytes)).to_string(),
        DType::I16 => i16::from_le_bytes(le(bytes)).to_string(),
        DType::U16 => u16::from_le_bytes(le(bytes)).to_string(),
        DType::I8 => i8::from_le_bytes(le(bytes)).to_string(),
        DType::Bool => (bytes.first() != Some(&0)).to_string(),
        _ => bytes.first().copied().unwrap_or(0).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(tensor: &Tensor) -> String {
        tensor.to_string()
    }

    #[test]
    fn what_prints_depends_on_type_rank_and_size() {
        let f = |shape: Vec<usize>, v: &[f32]| text(&Tensor::from_f32s(shape, v).unwrap());
        assert_eq!(f(vec![], &[0.5]), "f32[] [0.5]");
        assert_eq!(f(vec![1], &[0.0]), "f32[1] [0.0]");
        assert_eq!(f(vec![4], &[1.0, 1.0, 2.0, 2.0]), "f32[4] [1.0, 1.0, 2.0, 2.0]");
        assert_eq!(f(vec![4], &[1.0; 4]), "f32[4] ones");
        // 3² + 4² = 5², and a weight with two axes never shows its values.
        assert_eq!(f(vec![1, 2], &[3.0, -4.0]), "f32[1,2] norm 5.0");
        assert_eq!(f(vec![5], &[3.0; 5]), "f32[5] norm 6.708");
        assert_eq!(f(vec![0], &[]), "f32[0] []");
        assert_eq!(f(vec![2, 2], &[-0.0; 4]), "f32[2,2] norm 0.0");
        assert_eq!(text(&Tensor::from_i64s(vec![2], &[1, -1]).unwrap()), "i64[2] [1, -1]");
        assert_eq!(text(&Tensor::from_i64s(vec![70], &[7; 70]).unwrap()), "i64[70] full(7)");
        let count: Vec<i64> = (0..65).collect();
        assert_eq!(text(&Tensor::from_i64s(vec![65], &count).unwrap()), "i64[65] norm 299.1");
        assert_eq!(text(&Tensor::full(DType::F32, vec![9], 0.1).unwrap()), "f32[9] full(0.1)");
        let flags = Tensor::from_f64s(DType::Bool, vec![2], &[1.0, 0.0]).unwrap();
        assert_eq!(text(&flags), "bool[2] [true, false]");
    }

    #[test]
    fn a_terabyte_prints_its_generator() {
        let t = Tensor::generated(DType::F32, vec![1 << 40], Generator::Randn { seed: 1 }).unwrap();
        assert_eq!(text(&t), "f32[1099511627776] randn(seed=1)");
        let t = Tensor::full(DType::F32, vec![1 << 40], 2.0).unwrap();
        assert_eq!(text(&t), "f32[1099511627776] full(2.0)");
    }
}

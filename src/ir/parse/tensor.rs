//! Constants: a type with a fixed shape, then how the values come about.

use super::error::{Fault, Parsed, shorten};
use super::lexer::Kind;
use super::parser::Parser;
use crate::print::is_numeric;
use crate::tensor::{DType, Generator, Tensor, TensorError, n_elements};
use bytes::Bytes;
use half::{bf16, f16};
use std::ops::Range;

const FORMS: &str = "values such as `[1, 2]`, randn, uniform, lowrank, iota, zeros, ones, full or norm";

impl Parser<'_> {
    /// `f32[16,3,3,3] randn(seed=1)`; the next token is the element type.
    pub(super) fn tensor(&mut self) -> Parsed<Tensor> {
        let start = self.token.span.start;
        let dtype = self.dtype()?;
        self.bump()?;
        let end = self.token.span.end;
        let Some(dims) = self.shape()? else {
            return Err(Fault::new(start..end, "a constant has a fixed shape, found an unknown rank"));
        };
        let mut shape = Vec::with_capacity(dims.len());
        for (dim, span) in dims {
            shape.push(dim.known().ok_or_else(|| {
                Fault::new(span, format!("a constant has a fixed shape, found the dimension `{dim}`"))
            })?);
        }

        let span = self.token.span.clone();
        let fail = |span: Range<usize>| move |e: TensorError| Fault::new(span, e.to_string());
        if self.eat("[")? {
            let mut bytes = Vec::new();
            let n = self.list("]", |p| p.element(dtype, &mut bytes))?.len();
            let expected = n_elements(&shape);
            if expected != Some(n) {
                let expected = expected.map_or("too many".to_owned(), |n| n.to_string());
                let message = format!("{dtype}{shape:?} has {expected} values, found {n}");
                return Err(Fault::new(span, message).help("`full(v)` repeats one value"));
            }
            return Tensor::from_bytes(dtype, shape, Bytes::from(bytes)).map_err(fail(span));
        }
        let Kind::Word(word) = self.token.kind else { return Err(self.unexpected(FORMS)) };
        if !is_numeric(dtype) && word != "elided" {
            return Err(self
                .unexpected("`elided`")
                .help(format!("values of type {dtype} are carried by files only")));
        }
        let tensor = match word {
            "zeros" | "ones" => {
                self.bump()?;
                Tensor::full(dtype, shape, f64::from(u8::from(word == "ones")))
            }
            "full" => {
                self.bump()?;
                self.expect("(")?;
                let mut bytes = Vec::new();
                self.element(dtype, &mut bytes)?;
                self.expect(")")?;
                Tensor::splat(dtype, shape, Bytes::from(bytes))
            }
            "norm" => {
                self.bump()?;
                let norm = self.f64()?;
                Ok(Tensor::elided(dtype, shape, norm))
            }
            "elided" => {
                self.bump()?;
                Ok(Tensor::elided(dtype, shape, f64::NAN))
            }
            _ => {
                let generator = self.generator(&shape)?;
                Tensor::generated(dtype, shape, generator)
            }
        };
        tensor.map_err(fail(span))
    }

    fn generator(&mut self, shape: &[usize]) -> Parsed<Generator> {
        match self.token.kind {
            Kind::Word("iota") => {
                self.bump()?;
                Ok(Generator::Iota)
            }
            Kind::Word("randn") => {
                self.bump()?;
                self.expect("(")?;
                Ok(Generator::Randn { seed: self.seed()? })
            }
            Kind::Word("uniform") => {
                self.bump()?;
                self.expect("(")?;
                let low = self.f64()?;
                self.expect(",")?;
                let high = self.f64()?;
                self.expect(",")?;
                Ok(Generator::Uniform { low, high, seed: self.seed()? })
            }
            Kind::Word("lowrank") => {
                self.bump()?;
                self.expect("(")?;
                let span = self.token.span.clone();
                let rank = self.integer("a rank")?;
                // The factors would be larger than the tensor, by any factor.
                let n_rows = shape.first().copied().unwrap_or(1);
                let n_columns = n_elements(shape.get(1..).unwrap_or(&[])).unwrap_or(usize::MAX);
                let most = n_rows.min(n_columns);
                if rank > most {
                    let message =
                        format!("a matrix of {n_rows}×{n_columns} has at most rank {most}, found {rank}");
                    return Err(Fault::new(span, message));
                }
                self.expect(",")?;
                Ok(Generator::LowRank { rank, seed: self.seed()? })
            }
            _ => Err(self.unexpected(FORMS)),
        }
    }

    /// `seed=1)`
    fn seed(&mut self) -> Parsed<u64> {
        if !self.token.is_word("seed") {
            return Err(self.unexpected("`seed=` and a number"));
        }
        self.bump()?;
        self.expect("=")?;
        let seed = self.integer("a seed from 0 to 2⁶⁴-1")?;
        self.expect(")")?;
        Ok(seed)
    }

    fn f64(&mut self) -> Parsed<f64> {
        let value = match self.token.kind {
            Kind::Number(text) | Kind::Word(text @ ("NaN" | "inf")) => text.parse().ok(),
            _ => None,
        };
        let value = value.ok_or_else(|| self.unexpected("a number"))?;
        self.bump()?;
        Ok(value)
    }

    /// One value, appended to `bytes` in little-endian order.
    fn element(&mut self, dtype: DType, bytes: &mut Vec<u8>) -> Parsed<()> {
        let text = match self.token.kind {
            Kind::Number(text) | Kind::Word(text @ ("NaN" | "inf" | "true" | "false")) => text,
            _ => return Err(self.unexpected(&format!("a value of type {dtype}"))),
        };
        if !encode(dtype, text, bytes) {
            let message = format!("`{}` is not a value of type {dtype}", shorten(text));
            return Err(Fault::new(self.token.span.clone(), message));
        }
        self.bump()?;
        Ok(())
    }
}

/// Appends the value that `text` writes; `false` if the type has no such value. Floats are rounded
/// to nearest once, from the text.
fn encode(dtype: DType, text: &str, out: &mut Vec<u8>) -> bool {
    macro_rules! number {
        ($ty:ty) => {
            text.parse::<$ty>().map(|v| out.extend_from_slice(&v.to_le_bytes())).is_ok()
        };
    }
    // Only what is written as an infinity is one.
    let fits = |is_finite: bool| is_finite || matches!(text, "NaN" | "inf" | "-inf");
    match dtype {
        DType::F32 => text.parse::<f32>().is_ok_and(|v| fits(v.is_finite())) && number!(f32),
        DType::F64 => text.parse::<f64>().is_ok_and(|v| fits(v.is_finite())) && number!(f64),
        DType::F16 => text.parse().map(f16::from_f64).is_ok_and(|v| {
            out.extend_from_slice(&v.to_le_bytes());
            fits(v.is_finite())
        }),
        DType::BF16 => text.parse().map(bf16::from_f64).is_ok_and(|v| {
            out.extend_from_slice(&v.to_le_bytes());
            fits(v.is_finite())
        }),
        DType::I64 => number!(i64),
        DType::U64 => number!(u64),
        DType::I32 => number!(i32),
        DType::U32 => number!(u32),
        DType::I16 => number!(i16),
        DType::U16 => number!(u16),
        DType::I8 => number!(i8),
        DType::U8 => number!(u8),
        DType::Bool => match text {
            "true" | "1" => {
                out.push(1);
                true
            }
            "false" | "0" => {
                out.push(0);
                true
            }
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_exact_or_refused() {
        let encoded = |dtype, text: &str| {
            let mut out = Vec::new();
            encode(dtype, text, &mut out).then_some(out)
        };
        assert_eq!(encoded(DType::I64, "9007199254740993").unwrap(), 9_007_199_254_740_993i64.to_le_bytes());
        assert_eq!(encoded(DType::U64, "18446744073709551615").unwrap(), [0xff; 8]);
        assert_eq!(encoded(DType::F16, "0.1").unwrap(), [0x66, 0x2e]);
        assert_eq!(encoded(DType::F32, "-inf").unwrap(), f32::NEG_INFINITY.to_le_bytes());
        for (dtype, text) in [
            (DType::U8, "300"),
            (DType::U8, "-1"),
            (DType::I8, "1.0"),
            (DType::F32, "1e39"),
            (DType::F16, "70000"),
            (DType::Bool, "2"),
            (DType::I32, "true"),
        ] {
            assert_eq!(encoded(dtype, text), None, "{dtype} {text}");
        }
    }
}

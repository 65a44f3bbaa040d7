//! The element types that kernels come in.

use std::fmt::{Debug, Display};
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// `f32`, in which networks are trained, or `f64`, in which gradient rules are checked.
pub trait Real:
    Copy
    + Debug
    + Default
    + Display
    + PartialOrd
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;

    /// The nearest value of this type.
    fn from_f64(value: f64) -> Self;
    /// The same value.
    fn to_f64(self) -> f64;
    /// `eˣ`.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Power.
    fn powf(self, exponent: Self) -> Self;
    /// Magnitude.
    fn abs(self) -> Self;
    /// Largest integer not above.
    fn floor(self) -> Self;
    /// The larger of two; NaN if the first is.
    fn at_least(self, bound: Self) -> Self {
        if self < bound { bound } else { self }
    }
    /// The smaller of two; NaN if the first is.
    fn at_most(self, bound: Self) -> Self {
        if self > bound { bound } else { self }
    }
}

macro_rules! real {
    ($ty:ty) => {
        impl Real for $ty {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[allow(clippy::cast_possible_truncation, clippy::cast_lossless, reason = "the point of it")]
            fn from_f64(value: f64) -> Self {
                value as $ty
            }
            #[allow(clippy::cast_lossless, reason = "f64 to f64")]
            fn to_f64(self) -> f64 {
                self as f64
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn tanh(self) -> Self {
                self.tanh()
            }
            fn powf(self, exponent: Self) -> Self {
                self.powf(exponent)
            }
            fn abs(self) -> Self {
                self.abs()
            }
            fn floor(self) -> Self {
                self.floor()
            }
        }
    };
}

real!(f32);
real!(f64);

//! Dimensions and shapes, known or symbolic.
//!
//! A network with a dynamic batch or a dynamic height keeps them: `H` stays `H` through a padded
//! convolution and becomes `(H-1)/2+1` behind one with stride 2. A symbolic dimension is an affine
//! combination, with integer coefficients, of names and of floor divisions of such combinations.

use std::collections::BTreeMap;
use std::fmt;

/// One dimension of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dim {
    /// A number.
    Known(usize),
    /// An expression over named dimensions.
    Symbolic(Affine),
    /// Nothing is known. Two unknown dimensions are not thereby equal.
    Unknown,
}

/// `constant + Σ coefficient · atom`, with no zero coefficient and at least one atom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Affine {
    terms: BTreeMap<Atom, i64>,
    constant: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Atom {
    Name(String),
    /// `floor(value / divisor)` with `divisor > 1`.
    FloorDiv(Affine, i64),
}

impl Dim {
    /// A named dimension.
    pub fn symbol(name: impl Into<String>) -> Self {
        let terms = BTreeMap::from([(Atom::Name(name.into()), 1)]);
        Self::Symbolic(Affine { terms, constant: 0 })
    }

    /// The number, where there is one.
    pub fn known(&self) -> Option<usize> {
        match self {
            Self::Known(n) => Some(*n),
            _ => None,
        }
    }

    /// The bare name, if the dimension is just that.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Symbolic(a) if a.constant == 0 && a.terms.len() == 1 => match a.terms.iter().next() {
                Some((Atom::Name(n), 1)) => Some(n),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether both are known for certain to be the same number.
    pub fn equals(&self, other: &Self) -> bool {
        *self != Self::Unknown && self == other
    }

    /// Whether both are known numbers that differ.
    pub fn differs(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Known(a), Self::Known(b)) if a != b)
    }

    fn affine(&self) -> Option<Affine> {
        match self {
            Self::Known(n) => Some(Affine { terms: BTreeMap::new(), constant: i64::try_from(*n).ok()? }),
            Self::Symbolic(a) => Some(a.clone()),
            Self::Unknown => None,
        }
    }

    /// Normal form; negative numbers, overflow and expressions that nobody would want to read
    /// become [`Dim::Unknown`]. The last also bounds the depth of every recursion over one.
    fn from_affine(a: Option<Affine>) -> Self {
        match a {
            None => Self::Unknown,
            Some(a) if a.n_atoms() > MAX_ATOMS => Self::Unknown,
            Some(a) if a.terms.is_empty() => usize::try_from(a.constant).map_or(Self::Unknown, Self::Known),
            Some(a) => Self::Symbolic(a),
        }
    }

    /// `self + other`.
    pub fn add(&self, other: &Self) -> Self {
        let sum = || {
            let (mut a, b) = (self.affine()?, other.affine()?);
            a.constant = a.constant.checked_add(b.constant)?;
            for (atom, k) in b.terms {
                let sum = a.terms.get(&atom).copied().unwrap_or(0).checked_add(k)?;
                if sum == 0 {
                    a.terms.remove(&atom);
                } else {
                    a.terms.insert(atom, sum);
                }
            }
            Some(a)
        };
        Self::from_affine(sum())
    }

    /// `self + n`.
    pub fn add_int(&self, n: i64) -> Self {
        let sum = || {
            let mut a = self.affine()?;
            a.constant = a.constant.checked_add(n)?;
            Some(a)
        };
        Self::from_affine(sum())
    }

    /// `self - other`.
    pub fn sub(&self, other: &Self) -> Self {
        let negated = || Affine::scaled(other.affine()?, -1);
        match negated() {
            Some(n) if n.terms.is_empty() => self.add_int(n.constant),
            Some(n) => self.add(&Self::Symbolic(n)),
            None => Self::Unknown,
        }
    }

    /// `self * n`.
    pub fn mul_int(&self, n: i64) -> Self {
        Self::from_affine(self.affine().and_then(|a| a.scaled(n)))
    }

    /// `self * other`; unknown if both are symbolic.
    pub fn mul(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Known(0), _) | (_, Self::Known(0)) => Self::Known(0),
            (Self::Known(n), d) | (d, Self::Known(n)) => {
                i64::try_from(*n).map_or(Self::Unknown, |n| d.mul_int(n))
            }
            _ => Self::Unknown,
        }
    }

    /// `floor(self / n)`; unknown for `n < 1`.
    pub fn floor_div(&self, n: i64) -> Self {
        if n < 1 {
            return Self::Unknown;
        }
        if n == 1 {
            return self.clone();
        }
        let quotient = || {
            let mut a = self.affine()?;
            // What is divisible leaves the floor: (2·H + 3)/2 = H + 1 + floor(1/2).
            let mut out = Affine { terms: BTreeMap::new(), constant: a.constant.div_euclid(n) };
            a.constant = a.constant.rem_euclid(n);
            let divisible: Vec<Atom> =
                a.terms.iter().filter(|(_, k)| *k % n == 0).map(|(t, _)| t.clone()).collect();
            for atom in divisible {
                let k = a.terms.remove(&atom)?;
                out.terms.insert(atom, k / n);
            }
            if !a.terms.is_empty() {
                let atom = a.nested_floor(n).unwrap_or(Atom::FloorDiv(a, n));
                match out.terms.get(&atom).copied().unwrap_or(0).checked_add(1)? {
                    0 => out.terms.remove(&atom),
                    k => out.terms.insert(atom, k),
                };
            }
            Some(out)
        };
        Self::from_affine(quotient())
    }

    /// `ceil(self / n)`.
    pub fn ceil_div(&self, n: i64) -> Self {
        self.add_int(n.saturating_sub(1)).floor_div(n)
    }

    /// The dimension with every name replaced by what `value` gives for it.
    pub fn substitute(&self, value: &dyn Fn(&str) -> Option<Dim>) -> Self {
        let Self::Symbolic(a) = self else { return self.clone() };
        let constant =
            Self::from_affine(Some(Affine { terms: BTreeMap::new(), constant: 0 })).add_int(a.constant);
        // A negative constant has no dimension of its own, so start from the affine form.
        let mut sum = if a.constant < 0 { Self::Known(0) } else { constant };
        for (atom, k) in &a.terms {
            let atom = match atom {
                Atom::Name(n) => value(n).unwrap_or_else(|| Self::symbol(n.clone())),
                Atom::FloorDiv(inner, d) => Self::Symbolic(inner.clone()).substitute(value).floor_div(*d),
            };
            sum = sum.add(&atom.mul_int(*k));
        }
        if a.constant < 0 { sum.add_int(a.constant) } else { sum }
    }

    /// Parses what [`fmt::Display`] prints: numbers, names, `?`, `+ - *` and `/` with parentheses.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text == "?" {
            return Some(Self::Unknown);
        }
        let mut p = DimParser { rest: text };
        let dim = p.sum()?;
        p.rest.trim().is_empty().then_some(dim)
    }
}

/// Most names and floor divisions in one expression.
const MAX_ATOMS: usize = 64;

impl Affine {
    fn n_atoms(&self) -> usize {
        let within = |atom: &Atom| match atom {
            Atom::Name(_) => 0,
            Atom::FloorDiv(inner, _) => inner.n_atoms(),
        };
        self.terms.keys().map(|t| within(t).saturating_add(1)).fold(0, usize::saturating_add)
    }

    /// `floor(self / n)` for `self = floor(x / d) + c`, which is `floor((x + c·d) / (d·n))`: two
    /// stride-2 layers make one division by 4. `None` for anything else.
    fn nested_floor(&self, n: i64) -> Option<Atom> {
        let (Atom::FloorDiv(inner, d), 1) = self.terms.first_key_value()? else { return None };
        if self.terms.len() != 1 {
            return None;
        }
        let mut inner = inner.clone();
        inner.constant = self.constant.checked_mul(*d)?.checked_add(inner.constant)?;
        Some(Atom::FloorDiv(inner, d.checked_mul(n)?))
    }

    fn scaled(mut self, n: i64) -> Option<Self> {
        if n == 0 {
            return Some(Self { terms: BTreeMap::new(), constant: 0 });
        }
        self.constant = self.constant.checked_mul(n)?;
        for k in self.terms.values_mut() {
            *k = k.checked_mul(n)?;
        }
        Some(self)
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Self::Known(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(n) => write!(f, "{n}"),
            Self::Symbolic(a) => write!(f, "{a}"),
            Self::Unknown => f.write_str("?"),
        }
    }
}

impl fmt::Display for Affine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (atom, k)) in self.terms.iter().enumerate() {
            match (i, *k) {
                (0, 1) => {}
                (0, -1) => f.write_str("-")?,
                (0, k) => write!(f, "{k}*")?,
                (_, 1) => f.write_str("+")?,
                (_, -1) => f.write_str("-")?,
                (_, k) => write!(f, "{k:+}*")?,
            }
            match atom {
                Atom::Name(n) => f.write_str(n)?,
                // `2*H/3` would be the floor of the product.
                Atom::FloorDiv(a, d) if k.unsigned_abs() != 1 => {
                    write!(
                        f,
                        "({})",
                        Affine { terms: BTreeMap::from([(Atom::FloorDiv(a.clone(), *d), 1)]), constant: 0 }
                    )?;
                }
                Atom::FloorDiv(a, d)
                    if a.terms.len() == 1 && a.constant == 0 && a.terms.values().all(|k| *k == 1) =>
                {
                    write!(f, "{a}/{d}")?;
                }
                Atom::FloorDiv(a, d) => write!(f, "({a})/{d}")?,
            }
        }
        if self.constant != 0 {
            write!(f, "{:+}", self.constant)?;
        }
        Ok(())
    }
}

/// sum := term (("+"|"-") term)*; term := factor (("*"|"/") integer)*; the text is short.
struct DimParser<'a> {
    rest: &'a str,
}

impl DimParser<'_> {
    fn eat(&mut self, c: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn sum(&mut self) -> Option<Dim> {
        let negative = self.eat('-');
        let first = self.term(0)?;
        let mut sum = if negative { Dim::Known(0).sub(&first) } else { first };
        loop {
            if self.eat('+') {
                sum = sum.add(&self.term(0)?);
            } else if self.eat('-') {
                sum = sum.sub(&self.term(0)?);
            } else {
                return Some(sum);
            }
        }
    }

    fn term(&mut self, depth: usize) -> Option<Dim> {
        let mut value = self.factor(depth)?;
        loop {
            if self.eat('*') {
                value = value.mul(&self.factor(depth)?);
            } else if self.eat('/') {
                let divisor = self.factor(depth)?.known()?;
                value = value.floor_div(i64::try_from(divisor).ok()?);
            } else {
                return Some(value);
            }
        }
    }

    fn factor(&mut self, depth: usize) -> Option<Dim> {
        if depth > 2 * MAX_ATOMS {
            return None;
        }
        if self.eat('(') {
            let negative = self.eat('-');
            let first = self.term(depth + 1)?;
            let mut sum = if negative { Dim::Known(0).sub(&first) } else { first };
            while !self.eat(')') {
                if self.eat('+') {
                    sum = sum.add(&self.term(depth + 1)?);
                } else if self.eat('-') {
                    sum = sum.sub(&self.term(depth + 1)?);
                } else {
                    return None;
                }
            }
            return Some(sum);
        }
        self.rest = self.rest.trim_start();
        let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | ':' | '#');
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if word.is_empty() {
            return None;
        }
        self.rest = rest;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse().ok().map(Dim::Known);
        }
        Some(Dim::symbol(word))
    }
}

/// The dimensions of a value, outermost first.
pub type Shape = Vec<Dim>;

/// The static dimensions, if all are known.
pub fn static_shape(shape: &[Dim]) -> Option<Vec<usize>> {
    shape.iter().map(Dim::known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stride_two_convolution_keeps_its_height_symbolic() {
        let h = Dim::symbol("H");
        // 3×3, pad 1, stride 2: floor((H + 2 - 3)/2) + 1.
        let out = h.add_int(-1).floor_div(2).add_int(1);
        assert_eq!(out.to_string(), "(H+1)/2");
        assert_eq!(out.substitute(&|_| Some(Dim::Known(224))), Dim::Known(112));
        assert_eq!(out.substitute(&|_| Some(Dim::Known(7))), Dim::Known(4));
    }

    #[test]
    fn doubling_undoes_halving_only_where_that_is_true() {
        let h = Dim::symbol("H");
        assert_eq!(h.mul_int(2).floor_div(2), h);
        assert_ne!(h.floor_div(2).mul_int(2), h);
    }

    #[test]
    fn floors_of_floors_are_one_floor() {
        let halved = |d: &Dim| d.add_int(1).floor_div(2);
        let h = Dim::symbol("H");
        let eighth = halved(&halved(&halved(&h)));
        assert_eq!(eighth.to_string(), "(H+7)/8");
        for n in 1..40usize {
            let step = |n: usize| n.div_ceil(2);
            assert_eq!(eighth.substitute(&|_| Some(Dim::Known(n))), Dim::Known(step(step(step(n)))));
        }
        // 3·floor(H/2) is no floor of a sum, so it stays nested.
        assert_eq!(h.floor_div(2).mul_int(3).floor_div(2).to_string(), "(3*(H/2))/2");
    }

    #[test]
    fn what_cancels_leaves_no_trace() {
        let h = Dim::symbol("H");
        let odd = h.sub(&h.floor_div(2).mul_int(2));
        assert_eq!(odd.floor_div(2), Dim::Known(0));
    }

    #[test]
    fn expressions_do_not_grow_without_bound() {
        let mut dim = Dim::symbol("H");
        for _ in 0..200 {
            dim = dim.mul_int(3).floor_div(2).add(&dim);
        }
        assert_eq!(dim, Dim::Unknown);
    }

    #[test]
    fn text_and_value_agree() {
        for text in ["7", "N", "?", "(H+1)/2", "2*N+3", "N-1", "(2*H/3+W)/4-5", "-N+8"] {
            let dim = Dim::parse(text).unwrap();
            assert_eq!(Dim::parse(&dim.to_string()), Some(dim), "{text}");
        }
        let mut nested = Dim::symbol("H");
        while let Dim::Symbolic(_) = nested {
            assert_eq!(Dim::parse(&nested.to_string()), Some(nested.clone()));
            nested = nested.mul_int(3).floor_div(2);
        }
        for text in ["", "+", "(", "N N", "N/0x", "2**N"] {
            assert_eq!(Dim::parse(text), None, "{text}");
        }
    }

    #[test]
    fn overflow_is_unknown_not_wrong() {
        assert_eq!(Dim::Known(usize::MAX).mul_int(2), Dim::Unknown);
        assert_eq!(Dim::symbol("N").mul(&Dim::symbol("M")), Dim::Unknown);
        assert_eq!(Dim::Known(1).add_int(-2), Dim::Unknown);
    }
}

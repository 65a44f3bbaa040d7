//! Attributes, and the check that a modelled operator knows them.

use super::error::{Fault, Parsed, closest, shorten};
use super::lexer::{Kind, utf8};
use super::parser::Parser;
use crate::attr::{Attr, Attrs};
use crate::op::Op;
use crate::tensor::{DType, Tensor};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::ops::Range;

/// More attributes than any operator has: each is compared with all others of its node.
const MAX_ATTRS: usize = 4096;

/// An attribute with the place of its name.
pub(super) type Written = (String, Range<usize>, Attr);

impl Parser<'_> {
    /// `pads=[1,1,1,1], group=2>`
    pub(super) fn attributes(&mut self) -> Parsed<Vec<Written>> {
        let mut names = BTreeSet::new();
        self.list(">", |p| {
            let span = p.token.span.clone();
            let name = match &p.token.kind {
                Kind::Word(word) => (*word).to_owned(),
                Kind::Str(bytes) => utf8(bytes.clone(), span.clone())?,
                _ => return Err(p.unexpected("an attribute's name")),
            };
            if !names.insert(name.clone()) {
                return Err(Fault::new(span, format!("attribute `{}` is set twice", shorten(&name))));
            }
            if names.len() > MAX_ATTRS {
                return Err(Fault::new(span, format!("an operator has at most {MAX_ATTRS} attributes")));
            }
            p.bump()?;
            p.expect("=")?;
            let value = p.attribute()?;
            Ok((name, span, value))
        })
    }

    fn attribute(&mut self) -> Parsed<Attr> {
        let value = match &self.token.kind {
            Kind::At(name) => Attr::Ref(name.clone()),
            Kind::Str(bytes) => Attr::Str(Bytes::copy_from_slice(bytes)),
            Kind::Number(_) => self.number()?,
            Kind::Word("NaN" | "inf") => Attr::Float(self.float()?),
            Kind::Word("elided") => return self.elided(),
            Kind::Word("floats") if self.is_type() => return self.empty(Attr::Floats(vec![])),
            Kind::Word("strs") if self.is_type() => return self.empty(Attr::Strs(vec![])),
            Kind::Word(_) if self.is_type() => return self.tensor().map(Attr::Tensor),
            // An element type stands for its ONNX number.
            Kind::Word(word) => match DType::from_name(word) {
                Some(dtype) => Attr::Int(dtype as i64),
                None => return Err(self.unexpected("an attribute's value").help("strings are quoted")),
            },
            Kind::Punct("[") => return self.items(),
            _ => return Err(self.unexpected("an attribute's value")),
        };
        self.bump()?;
        Ok(value)
    }

    /// The number that the next token is: an integer unless it has a point or an exponent.
    fn number(&self) -> Parsed<Attr> {
        let Kind::Number(text) = self.token.kind else { return Err(self.unexpected("a number")) };
        if text.contains(['.', 'e', 'E', 'i', 'N']) {
            return self.float().map(Attr::Float);
        }
        let too_large = || {
            let message = format!("`{}` does not fit a 64-bit integer", shorten(text));
            Fault::new(self.token.span.clone(), message)
        };
        text.parse().map(Attr::Int).map_err(|_| too_large())
    }

    fn float(&self) -> Parsed<f32> {
        let (Kind::Number(text) | Kind::Word(text)) = self.token.kind else {
            return Err(self.unexpected("a float"));
        };
        match text.parse::<f32>() {
            Ok(v) if v.is_finite() || matches!(text, "NaN" | "inf" | "-inf") => Ok(v),
            Ok(_) => {
                let message = format!("`{}` does not fit a 32-bit float", shorten(text));
                Err(Fault::new(self.token.span.clone(), message))
            }
            Err(_) => Err(self.unexpected("a float")),
        }
    }

    /// `elided(123 bytes)`
    fn elided(&mut self) -> Parsed<Attr> {
        self.bump()?;
        self.expect("(")?;
        let n = self.integer("a number of bytes")?;
        if !self.token.is_word("bytes") {
            return Err(self.unexpected("`bytes`"));
        }
        self.bump()?;
        self.expect(")")?;
        Ok(Attr::Elided(n))
    }

    /// `floats[]` and `strs[]`, which `[]` alone, the empty list of integers, could not tell apart.
    fn empty(&mut self, list: Attr) -> Parsed<Attr> {
        self.bump()?;
        self.expect("[")?;
        self.expect("]")?;
        Ok(list)
    }

    /// A list; one float among integers makes it a list of floats.
    fn items(&mut self) -> Parsed<Attr> {
        self.bump()?;
        if matches!(self.token.kind, Kind::Str(_)) {
            let strings = self.list("]", |p| {
                let Kind::Str(bytes) = &p.token.kind else { return Err(p.unexpected("a string")) };
                let bytes = Bytes::copy_from_slice(bytes);
                p.bump()?;
                Ok(bytes)
            })?;
            return Ok(Attr::Strs(strings));
        }
        let mut ints = Vec::new();
        let mut floats = Vec::new();
        self.list("]", |p| {
            if !matches!(p.token.kind, Kind::Number(_) | Kind::Word("NaN" | "inf")) {
                return Err(p.unexpected("a number or a string"));
            }
            floats.push(p.float()?);
            if matches!(p.token.kind, Kind::Number(_))
                && let Attr::Int(v) = p.number()?
            {
                ints.push(v);
            }
            p.bump()
        })?;
        Ok(if ints.len() == floats.len() { Attr::Ints(ints) } else { Attr::Floats(floats) })
    }
}

/// The modelled operator with these attributes. Written by hand, an attribute that the operator
/// does not know is a slip; in a file it makes the operator opaque, and the text says so.
pub(super) fn typed_op(op_type: &str, attrs: Vec<Written>) -> Parsed<Op> {
    let all: Attrs = attrs.iter().map(|(name, _, value)| (name.clone(), value.clone())).collect();
    let op = Op::from_attrs(op_type, all);
    if !matches!(op, Op::Opaque(_)) {
        return Ok(op);
    }
    let accepts = |name: &str, value: &Attr| {
        let one = Attrs::from_iter([(name.to_owned(), value.clone())]);
        !matches!(Op::from_attrs(op_type, one), Op::Opaque(_))
    };
    let known = Op::attr_names(op_type).unwrap_or(&[]);
    for (name, span, value) in attrs {
        if accepts(&name, &value) {
            continue;
        }
        if !known.contains(&name.as_str()) {
            let fault = Fault::new(span, format!("`{op_type}` has no attribute `{}`", shorten(&name)));
            return Err(fault.help(match closest(&name, known.iter().copied()) {
                Some(other) => format!("there is `{other}`"),
                None if known.is_empty() => "it has none".to_owned(),
                None => format!("it has {}", known.join(", ")),
            }));
        }
        let found = kind(&value);
        let kinds = samples();
        let expected = kinds.iter().find(|sample| accepts(&name, sample)).map_or("another value", kind);
        return Err(if expected == found {
            Fault::new(span, format!("`{name}` of `{op_type}` cannot have this value"))
        } else {
            Fault::new(span, format!("`{name}` of `{op_type}` is {expected}, found {found}"))
        });
    }
    Ok(op)
}

/// A value of every kind that a modelled operator may ask for.
fn samples() -> Vec<Attr> {
    vec![
        Attr::Int(1),
        Attr::Float(1.0),
        Attr::Str(Bytes::from_static(b"VALID")),
        Attr::Ints(vec![]),
        Attr::Floats(vec![]),
        Attr::Tensor(Tensor::elided(DType::F32, vec![], 0.0)),
    ]
}

fn kind(value: &Attr) -> &'static str {
    match value {
        Attr::Int(_) => "an integer",
        Attr::Float(_) => "a float",
        Attr::Str(_) => "a string",
        Attr::Ints(_) => "a list of integers",
        Attr::Floats(_) => "a list of floats",
        Attr::Strs(_) => "a list of strings",
        Attr::Tensor(_) => "a tensor",
        Attr::Ref(_) => "a reference",
        Attr::Encoded(_) | Attr::Elided(_) => "an elided value",
    }
}

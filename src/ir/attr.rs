//! Attribute values: the common currency of ONNX files, the text format and the typed operators.

use crate::tensor::Tensor;
use bytes::Bytes;

/// One attribute value.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Attr {
    /// A 64-bit integer (ONNX `INT`); booleans are 0 and 1.
    Int(i64),
    /// A single-precision float (ONNX `FLOAT`).
    Float(f32),
    /// A byte string (ONNX `STRING`), almost always UTF-8.
    Str(Bytes),
    /// Integers (ONNX `INTS`).
    Ints(Vec<i64>),
    /// Floats (ONNX `FLOATS`).
    Floats(Vec<f32>),
    /// Strings (ONNX `STRINGS`).
    Strs(Vec<Bytes>),
    /// A tensor (ONNX `TENSOR`).
    Tensor(Tensor),
    /// A reference to an attribute of the enclosing function (ONNX `ref_attr_name`).
    Ref(String),
    /// Anything else (graphs, sparse tensors, types): the encoded `AttributeProto`, carried whole.
    Encoded(Bytes),
    /// An [`Attr::Encoded`] of a printed graph: only its length is known.
    Elided(usize),
}

/// Attributes by name, in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attrs(Vec<(String, Attr)>);

impl Attrs {
    /// No attributes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an attribute; an earlier one of the same name is replaced in its place.
    pub fn set(&mut self, name: impl Into<String>, value: Attr) {
        let name = name.into();
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// The attribute of this name.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// Removes and returns the attribute of this name.
    pub fn take(&mut self, name: &str) -> Option<Attr> {
        let i = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.remove(i).1)
    }

    /// Name and value pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Attr)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of attributes.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<(String, Attr)> for Attrs {
    fn from_iter<T: IntoIterator<Item = (String, Attr)>>(iter: T) -> Self {
        let mut attrs = Self::new();
        for (name, value) in iter {
            attrs.set(name, value);
        }
        attrs
    }
}

/// A Rust type that stands for an attribute in the typed operators.
pub(crate) trait AttrField: Sized {
    /// Reads a present attribute; `None` if it has another type.
    fn from_attr(attr: Attr) -> Option<Self>;
    /// The attribute to write; `None` for "absent".
    fn to_attr(&self) -> Option<Attr>;
}

impl AttrField for i64 {
    fn from_attr(attr: Attr) -> Option<Self> {
        if let Attr::Int(v) = attr { Some(v) } else { None }
    }
    fn to_attr(&self) -> Option<Attr> {
        Some(Attr::Int(*self))
    }
}

impl AttrField for f32 {
    fn from_attr(attr: Attr) -> Option<Self> {
        if let Attr::Float(v) = attr { Some(v) } else { None }
    }
    fn to_attr(&self) -> Option<Attr> {
        Some(Attr::Float(*self))
    }
}

impl AttrField for String {
    fn from_attr(attr: Attr) -> Option<Self> {
        if let Attr::Str(v) = attr { String::from_utf8(v.to_vec()).ok() } else { None }
    }
    fn to_attr(&self) -> Option<Attr> {
        Some(Attr::Str(Bytes::copy_from_slice(self.as_bytes())))
    }
}

impl AttrField for Vec<i64> {
    fn from_attr(attr: Attr) -> Option<Self> {
        if let Attr::Ints(v) = attr { Some(v) } else { None }
    }
    fn to_attr(&self) -> Option<Attr> {
        Some(Attr::Ints(self.clone()))
    }
}

impl AttrField for Vec<f32> {
    fn from_attr(attr: Attr) -> Option<Self> {
        if let Attr::Floats(v) = attr { Some(v) } else { None }
    }
    fn to_attr(&self) -> Option<Attr> {
        Some(Attr::Floats(self.clone()))
    }
}

impl AttrField for Tensor {
    fn from_attr(attr: Attr) -> Option<Self> {
        if let Attr::Tensor(v) = attr { Some(v) } else { None }
    }
    fn to_attr(&self) -> Option<Attr> {
        Some(Attr::Tensor(self.clone()))
    }
}

impl<T: AttrField> AttrField for Option<T> {
    fn from_attr(attr: Attr) -> Option<Self> {
        T::from_attr(attr).map(Some)
    }
    fn to_attr(&self) -> Option<Attr> {
        self.as_ref().and_then(T::to_attr)
    }
}

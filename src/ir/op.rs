//! The closed table of operators.
//!
//! One struct with typed attributes per operator that a pass, shape inference or the autodiff has
//! something to say about. Everything else (custom domains, control flow, quantised operators) is
//! [`Op::Opaque`]: carried from import to export and never moved. A known operator whose attributes
//! do not fit the table below becomes opaque too.
//!
//! Where ONNX moved an attribute to an input between opsets (`Squeeze.axes`, `Clip.min`, …), the
//! struct has the attribute as an `Option`; [`crate::infer`] reads whichever is there.

use crate::attr::{Attr, AttrField, Attrs};
use crate::tensor::{DType, Tensor};
use bytes::Bytes;

/// Domain of the operators that differentiation makes and ONNX has no name for.
pub const GRADIENT_DOMAIN: &str = "basisopt.gradient";

/// How a convolution or pooling window is padded when `pads` does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoPad {
    /// `pads` says.
    #[default]
    NotSet,
    /// Output size is `ceil(input / stride)`; the odd element of padding goes to the end.
    SameUpper,
    /// As [`AutoPad::SameUpper`], with the odd element at the beginning.
    SameLower,
    /// No padding.
    Valid,
}

const AUTO_PADS: [(AutoPad, &str); 4] = [
    (AutoPad::NotSet, "NOTSET"),
    (AutoPad::SameUpper, "SAME_UPPER"),
    (AutoPad::SameLower, "SAME_LOWER"),
    (AutoPad::Valid, "VALID"),
];

impl AttrField for AutoPad {
    fn from_attr(attr: Attr) -> Option<Self> {
        let name = String::from_attr(attr)?;
        AUTO_PADS.iter().find(|(_, n)| *n == name).map(|(p, _)| *p)
    }
    fn to_attr(&self) -> Option<Attr> {
        let (_, name) = AUTO_PADS.iter().find(|(p, _)| p == self)?;
        Some(Attr::Str(Bytes::from_static(name.as_bytes())))
    }
}

impl AttrField for DType {
    fn from_attr(attr: Attr) -> Option<Self> {
        let code = i64::from_attr(attr)?;
        Self::from_onnx(i32::try_from(code).ok()?)
    }
    fn to_attr(&self) -> Option<Attr> {
        Some(Attr::Int(*self as i64))
    }
}

/// An operator that is not modelled: known by name, attributes carried as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Opaque {
    /// Operator domain; empty for the standard one.
    pub domain: String,
    /// Operator name.
    pub op_type: String,
    /// Attributes; bodies of control flow are [`Attr::Encoded`].
    pub attrs: Attrs,
    /// How many of the node's last inputs are not formal inputs but values that a body refers to
    /// by name.
    pub n_captures: usize,
}

macro_rules! ops {
    ($( $(#[$doc:meta])* $name:ident { $( $(#[$fdoc:meta])* $field:ident: $ty:ty = $default:expr ),* $(,)? } )*) => {
        /// What a node does.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Op {
            /// A graph input.
            Input,
            /// A constant tensor: an initializer or a `Constant` node.
            Constant(Tensor),
            $( $(#[$doc])* $name($name), )*
            /// An operator that is not modelled.
            Opaque(Opaque),
        }

        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq)]
            #[allow(missing_docs, non_snake_case, reason = "attributes have the names and meaning ONNX gives them")]
            pub struct $name { $( $(#[$fdoc])* pub $field: $ty, )* }

            impl Default for $name {
                fn default() -> Self {
                    Self { $( $field: $default, )* }
                }
            }

            impl From<$name> for Op {
                fn from(op: $name) -> Op {
                    Op::$name(op)
                }
            }
        )*

        impl Op {
            /// The names of all modelled operators, in the order of the table.
            pub const MODELLED: &[&str] = &[$( stringify!($name), )*];

            /// The ONNX operator name.
            pub fn op_type(&self) -> &str {
                match self {
                    Op::Input => "Input",
                    Op::Constant(_) => "Constant",
                    $( Op::$name(_) => stringify!($name), )*
                    Op::Opaque(op) => &op.op_type,
                }
            }

            /// The attributes that differ from their defaults, in the order of the table.
            pub fn attrs(&self) -> Attrs {
                match self {
                    Op::Input => Attrs::new(),
                    Op::Constant(t) => Attrs::from_iter([("value".to_owned(), Attr::Tensor(t.clone()))]),
                    $( Op::$name(_op) => {
                        #[allow(unused_mut, reason = "operators without attributes")]
                        let mut attrs = Attrs::new();
                        $(
                            let default: $ty = $default;
                            if _op.$field != default && let Some(value) = _op.$field.to_attr() {
                                attrs.set(stringify!($field), value);
                            }
                        )*
                        attrs
                    } )*
                    Op::Opaque(op) => op.attrs.clone(),
                }
            }

            /// The attributes of a modelled operator, in the order of the table; `None` for others.
            pub fn attr_names(op_type: &str) -> Option<&'static [&'static str]> {
                match op_type {
                    $( stringify!($name) => Some(&[$( stringify!($field), )*]), )*
                    _ => None,
                }
            }

            /// The operator of this name in the standard domain with these attributes.
            /// [`Op::Opaque`] where the operator is not in the table, or has an attribute that the
            /// table does not know or knows with another type.
            #[allow(non_snake_case, reason = "attributes have the names ONNX gives them")]
            pub fn from_attrs(op_type: &str, attrs: Attrs) -> Op {
                let opaque = |attrs: &Attrs| {
                    Op::Opaque(Opaque { domain: String::new(), op_type: op_type.to_owned(), attrs: attrs.clone(), n_captures: 0 })
                };
                match op_type {
                    $( stringify!($name) => {
                        #[allow(unused_mut, reason = "operators without attributes")]
                        let mut rest = attrs.clone();
                        $(
                            let $field = match rest.take(stringify!($field)) {
                                None => $default,
                                Some(attr) => match <$ty as AttrField>::from_attr(attr) {
                                    Some(value) => value,
                                    None => return opaque(&attrs),
                                },
                            };
                        )*
                        if !rest.is_empty() {
                            return opaque(&attrs);
                        }
                        Op::$name($name { $( $field, )* })
                    } )*
                    _ => opaque(&attrs),
                }
            }
        }
    };
}

ops! {
    /// Convolution, 1D to 3D, grouped or not. Inputs: x `[N,C,…]`, w `[P,C/group,k…]`, bias `[P]`.
    Conv {
        auto_pad: AutoPad = AutoPad::NotSet,
        dilations: Vec<i64> = vec![],
        group: i64 = 1,
        kernel_shape: Vec<i64> = vec![],
        pads: Vec<i64> = vec![],
        strides: Vec<i64> = vec![],
    }
    /// Transposed convolution. Inputs: x `[N,C,…]`, w `[C,P/group,k…]`, bias `[P]`.
    ConvTranspose {
        auto_pad: AutoPad = AutoPad::NotSet,
        dilations: Vec<i64> = vec![],
        group: i64 = 1,
        kernel_shape: Vec<i64> = vec![],
        output_padding: Vec<i64> = vec![],
        output_shape: Vec<i64> = vec![],
        pads: Vec<i64> = vec![],
        strides: Vec<i64> = vec![],
    }
    /// `y = scale·(x - mean)/√(var + ε) + bias` per channel (axis 1).
    BatchNormalization {
        epsilon: f32 = 1e-5,
        momentum: f32 = 0.9,
        spatial: i64 = 1,
        is_test: Option<i64> = None,
        consumed_inputs: Option<Vec<i64>> = None,
        training_mode: i64 = 0,
    }
    /// `y = alpha·op(A)·op(B) + beta·C`.
    Gemm {
        alpha: f32 = 1.0,
        beta: f32 = 1.0,
        broadcast: Option<i64> = None,
        transA: i64 = 0,
        transB: i64 = 0,
    }
    /// Matrix product with NumPy broadcasting.
    MatMul {}
    /// `max(x, 0)`.
    Relu {}
    /// `x` for x ≥ 0, else `alpha·x`.
    LeakyRelu { alpha: f32 = 0.01 }
    /// `x` for x ≥ 0, else `slope·x`.
    PRelu {}
    /// `min(max(x, min), max)`; the bounds are attributes before opset 11, inputs since.
    Clip { min: Option<f32> = None, max: Option<f32> = None }
    /// Logistic function.
    Sigmoid {}
    /// Hyperbolic tangent.
    Tanh {}
    /// `x · max(0, min(1, x/6 + 1/2))`.
    HardSwish {}
    /// `max(0, min(1, alpha·x + beta))`.
    HardSigmoid { alpha: f32 = 0.2, beta: f32 = 0.5 }
    /// Exponential linear unit.
    Elu { alpha: f32 = 1.0 }
    /// `ln(1 + eˣ)`.
    Softplus {}
    /// Gaussian error linear unit.
    Gelu { approximate: String = "none".to_owned() }
    /// Error function.
    Erf {}
    /// Maximum over a window.
    MaxPool {
        auto_pad: AutoPad = AutoPad::NotSet,
        ceil_mode: i64 = 0,
        dilations: Vec<i64> = vec![],
        kernel_shape: Vec<i64> = vec![],
        pads: Vec<i64> = vec![],
        storage_order: i64 = 0,
        strides: Vec<i64> = vec![],
    }
    /// Mean over a window.
    AveragePool {
        auto_pad: AutoPad = AutoPad::NotSet,
        ceil_mode: i64 = 0,
        count_include_pad: i64 = 0,
        dilations: Vec<i64> = vec![],
        kernel_shape: Vec<i64> = vec![],
        pads: Vec<i64> = vec![],
        strides: Vec<i64> = vec![],
    }
    /// Mean over all spatial positions, kept as size 1.
    GlobalAveragePool {}
    /// Maximum over all spatial positions, kept as size 1.
    GlobalMaxPool {}
    /// Local response normalisation across channels.
    LRN { alpha: f32 = 1e-4, beta: f32 = 0.75, bias: f32 = 1.0, size: i64 = 0 }
    /// Normalisation of every channel of every image by its own statistics.
    InstanceNormalization { epsilon: f32 = 1e-5, consumed_inputs: Option<Vec<i64>> = None }
    /// Broadcasting sum.
    Add { axis: Option<i64> = None, broadcast: Option<i64> = None }
    /// Broadcasting difference.
    Sub { axis: Option<i64> = None, broadcast: Option<i64> = None }
    /// Broadcasting product.
    Mul { axis: Option<i64> = None, broadcast: Option<i64> = None }
    /// Broadcasting quotient.
    Div { axis: Option<i64> = None, broadcast: Option<i64> = None }
    /// Broadcasting power.
    Pow { axis: Option<i64> = None, broadcast: Option<i64> = None }
    /// Element-wise minimum of any number of inputs.
    Min {}
    /// Element-wise maximum of any number of inputs.
    Max {}
    /// Element-wise sum of any number of inputs.
    Sum {}
    /// Element-wise mean of any number of inputs.
    Mean {}
    /// `-x`.
    Neg {}
    /// `|x|`.
    Abs {}
    /// `eˣ`.
    Exp {}
    /// Natural logarithm.
    Log {}
    /// Square root.
    Sqrt {}
    /// `1/x`.
    Reciprocal {}
    /// Largest integer not above x.
    Floor {}
    /// Smallest integer not below x.
    Ceil {}
    /// Joins tensors along an axis.
    Concat { axis: i64 = 1 }
    /// Cuts a tensor along an axis.
    Split { axis: i64 = 0, split: Option<Vec<i64>> = None, num_outputs: Option<i64> = None }
    /// Strided sub-tensor.
    Slice { axes: Option<Vec<i64>> = None, ends: Option<Vec<i64>> = None, starts: Option<Vec<i64>> = None }
    /// Padding at both ends of every axis.
    Pad {
        mode: String = "constant".to_owned(),
        pads: Option<Vec<i64>> = None,
        paddings: Option<Vec<i64>> = None,
        value: f32 = 0.0,
    }
    /// The same elements under another shape.
    Reshape { allowzero: i64 = 0, shape: Option<Vec<i64>> = None, consumed_inputs: Option<Vec<i64>> = None }
    /// Reshape to a matrix.
    Flatten { axis: i64 = 1 }
    /// Permutes the axes; reverses them by default.
    Transpose { perm: Option<Vec<i64>> = None }
    /// Removes axes of size 1.
    Squeeze { axes: Option<Vec<i64>> = None }
    /// Inserts axes of size 1.
    Unsqueeze { axes: Option<Vec<i64>> = None }
    /// Broadcasts to a shape.
    Expand {}
    /// Repeats along every axis.
    Tile {}
    /// Picks slices by index.
    Gather { axis: i64 = 0 }
    /// The shape as a tensor.
    Shape { start: i64 = 0, end: Option<i64> = None }
    /// A tensor of a given shape filled with one value.
    ConstantOfShape { value: Option<Tensor> = None }
    /// Interpolates to another size.
    Resize {
        antialias: i64 = 0,
        axes: Option<Vec<i64>> = None,
        coordinate_transformation_mode: String = "half_pixel".to_owned(),
        cubic_coeff_a: f32 = -0.75,
        exclude_outside: i64 = 0,
        extrapolation_value: f32 = 0.0,
        keep_aspect_ratio_policy: String = "stretch".to_owned(),
        mode: String = "nearest".to_owned(),
        nearest_mode: String = "round_prefer_floor".to_owned(),
    }
    /// Interpolates by scale factors (replaced by [`Resize`] in opset 10).
    Upsample { mode: String = "nearest".to_owned(), scales: Option<Vec<f32>> = None }
    /// Moves channels into blocks of space.
    DepthToSpace { blocksize: i64 = 1, mode: String = "DCR".to_owned() }
    /// Moves blocks of space into channels.
    SpaceToDepth { blocksize: i64 = 1 }
    /// Mean along axes.
    ReduceMean { axes: Option<Vec<i64>> = None, keepdims: i64 = 1, noop_with_empty_axes: i64 = 0 }
    /// Sum along axes.
    ReduceSum { axes: Option<Vec<i64>> = None, keepdims: i64 = 1, noop_with_empty_axes: i64 = 0 }
    /// Maximum along axes.
    ReduceMax { axes: Option<Vec<i64>> = None, keepdims: i64 = 1, noop_with_empty_axes: i64 = 0 }
    /// Minimum along axes.
    ReduceMin { axes: Option<Vec<i64>> = None, keepdims: i64 = 1, noop_with_empty_axes: i64 = 0 }
    /// Product along axes.
    ReduceProd { axes: Option<Vec<i64>> = None, keepdims: i64 = 1, noop_with_empty_axes: i64 = 0 }
    /// Euclidean norm along axes.
    ReduceL2 { axes: Option<Vec<i64>> = None, keepdims: i64 = 1, noop_with_empty_axes: i64 = 0 }
    /// Normalised exponentials; the default axis is 1 before opset 13, -1 since.
    Softmax { axis: Option<i64> = None }
    /// Logarithm of [`Softmax`].
    LogSoftmax { axis: Option<i64> = None }
    /// Index of the largest element along an axis.
    ArgMax { axis: i64 = 0, keepdims: i64 = 1, select_last_index: i64 = 0 }
    /// Conversion to another element type.
    Cast { saturate: i64 = 1, to: DType = DType::F32 }
    /// The input itself.
    Identity {}
    /// The input itself, outside training.
    Dropout {
        is_test: Option<i64> = None,
        ratio: Option<f32> = None,
        seed: Option<i64> = None,
    }
    /// Element-wise equality.
    Equal { axis: Option<i64> = None, broadcast: Option<i64> = None }
    /// Element-wise `a > b`.
    Greater { axis: Option<i64> = None, broadcast: Option<i64> = None }
    /// Element-wise `a < b`.
    Less { axis: Option<i64> = None, broadcast: Option<i64> = None }
    /// Element-wise choice.
    Where {}
    /// Gradient of a [`Conv`] with these attributes for its input. Inputs: dy, the weight, and the
    /// convolution's input, of which only the shape matters.
    ConvInputGrad {
        auto_pad: AutoPad = AutoPad::NotSet,
        dilations: Vec<i64> = vec![],
        group: i64 = 1,
        kernel_shape: Vec<i64> = vec![],
        pads: Vec<i64> = vec![],
        strides: Vec<i64> = vec![],
    }
    /// Gradient of a [`Conv`] with these attributes for its weight, summed over the batch. Inputs: dy,
    /// the convolution's input, and the weight, of which only the shape matters.
    ConvWeightGrad {
        auto_pad: AutoPad = AutoPad::NotSet,
        dilations: Vec<i64> = vec![],
        group: i64 = 1,
        kernel_shape: Vec<i64> = vec![],
        pads: Vec<i64> = vec![],
        strides: Vec<i64> = vec![],
    }
    /// Gradient of a [`MaxPool`] with these attributes. Inputs: dy, x, y. Of equal maxima in a window the
    /// first has the gradient.
    MaxPoolGrad {
        auto_pad: AutoPad = AutoPad::NotSet,
        ceil_mode: i64 = 0,
        dilations: Vec<i64> = vec![],
        kernel_shape: Vec<i64> = vec![],
        pads: Vec<i64> = vec![],
        storage_order: i64 = 0,
        strides: Vec<i64> = vec![],
    }
    /// Gradient of an [`AveragePool`] with these attributes. Inputs: dy, and x, of which only the shape
    /// matters.
    AveragePoolGrad {
        auto_pad: AutoPad = AutoPad::NotSet,
        ceil_mode: i64 = 0,
        count_include_pad: i64 = 0,
        dilations: Vec<i64> = vec![],
        kernel_shape: Vec<i64> = vec![],
        pads: Vec<i64> = vec![],
        strides: Vec<i64> = vec![],
    }
    /// Gradient of a [`Resize`] (nearest or linear) with these attributes. Inputs: dy, then those of the
    /// `Resize`: x, of which only the shape matters, roi, scales, sizes.
    ResizeGrad {
        antialias: i64 = 0,
        axes: Option<Vec<i64>> = None,
        coordinate_transformation_mode: String = "half_pixel".to_owned(),
        cubic_coeff_a: f32 = -0.75,
        exclude_outside: i64 = 0,
        extrapolation_value: f32 = 0.0,
        keep_aspect_ratio_policy: String = "stretch".to_owned(),
        mode: String = "nearest".to_owned(),
        nearest_mode: String = "round_prefer_floor".to_owned(),
    }
    /// Gradient of a [`Slice`] with these attributes: its elements back where they were, zeros elsewhere. Inputs:
    /// dy, then those of the `Slice`: x, of which only the shape matters, starts, ends, axes, steps.
    SliceGrad { axes: Option<Vec<i64>> = None, ends: Option<Vec<i64>> = None, starts: Option<Vec<i64>> = None }
    /// Gradient of a [`Gather`] with these attributes: each element added to where it came from. Inputs: dy, x, of which
    /// only the shape matters, indices.
    GatherGrad { axis: i64 = 0 }
    /// Gradient of an [`LRN`] with these attributes. Inputs: dy, x.
    LRNGrad { alpha: f32 = 1e-4, beta: f32 = 0.75, bias: f32 = 1.0, size: i64 = 0 }
    /// `dy` where `min < x < max`, else 0: the gradient of [`Relu`] and [`Clip`], for which x may be the
    /// input or the output. Inputs: dy, x.
    ClipGrad { min: Option<f32> = None, max: Option<f32> = None }
    /// Gradient of a [`BatchNormalization`] in training form. Inputs: dy, x, scale. Outputs: dx, and summed
    /// over the batch dscale and dbias.
    BatchNormalizationGrad { epsilon: f32 = 1e-5 }
}

impl Op {
    /// The operator domain; empty for the standard one.
    pub fn domain(&self) -> &str {
        match self {
            Op::Opaque(op) => &op.domain,
            op if op.is_gradient() => GRADIENT_DOMAIN,
            _ => "",
        }
    }

    /// Whether this is one of the gradient operators, which ONNX does not have.
    pub fn is_gradient(&self) -> bool {
        matches!(
            self,
            Op::ConvInputGrad(_)
                | Op::ConvWeightGrad(_)
                | Op::MaxPoolGrad(_)
                | Op::AveragePoolGrad(_)
                | Op::ResizeGrad(_)
                | Op::SliceGrad(_)
                | Op::GatherGrad(_)
                | Op::LRNGrad(_)
                | Op::ClipGrad(_)
                | Op::BatchNormalizationGrad(_)
        )
    }

    /// Whether the operator stands for no ONNX node by itself (an input or a constant).
    pub fn is_source(&self) -> bool {
        matches!(self, Op::Input | Op::Constant(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip_through_every_operator_with_defaults() {
        for name in Op::MODELLED {
            let op = Op::from_attrs(name, Attrs::new());
            assert_eq!(op.op_type(), *name);
            assert!(!matches!(op, Op::Opaque(_)), "{name}");
            assert!(op.attrs().is_empty(), "{name}: defaults are not printed");
        }
    }

    #[test]
    fn an_attribute_nobody_knows_makes_the_operator_opaque() {
        let attrs = Attrs::from_iter([("fancy".to_owned(), Attr::Int(1))]);
        assert!(matches!(Op::from_attrs("Conv", attrs), Op::Opaque(_)));
        let wrong_type = Attrs::from_iter([("group".to_owned(), Attr::Float(1.0))]);
        assert!(matches!(Op::from_attrs("Conv", wrong_type), Op::Opaque(_)));
    }

    #[test]
    fn typed_attributes_come_back() {
        let conv = Conv { group: 2, auto_pad: AutoPad::SameUpper, strides: vec![2, 1], ..Conv::default() };
        let op = Op::from(conv);
        assert_eq!(Op::from_attrs("Conv", op.attrs()), op);
    }
}

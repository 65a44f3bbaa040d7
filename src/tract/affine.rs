//! What scales and shifts the channels of a layer's result: biases, and batch normalisations as tract reads them.

use crate::convert::floats;
use tract_core::internal::{OutletId, TractResult, TypedModel};
use tract_core::ops::binary::TypedBinOp;

/// `y = scale·x + shift`, one of each per channel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Affine {
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
}

/// The nodes behind a value that do nothing but scale and shift its channels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tail {
    /// What they do together.
    pub affine: Affine,
    /// What the last of them gives.
    pub end: OutletId,
}

impl Tail {
    /// The nodes behind a value with so many channels on this axis; `None` if there are none.
    pub fn of(
        model: &TypedModel,
        value: OutletId,
        channel_axis: usize,
        n_channels: usize,
    ) -> TractResult<Option<Self>> {
        let affine = Affine { scale: vec![1.0; n_channels], shift: vec![0.0; n_channels] };
        let mut tail = Self { affine, end: value };
        while tail.extend(model, channel_axis)? {}
        Ok(Some(tail).filter(|tail| tail.end != value))
    }

    /// Takes in the next node, if it is of this kind.
    fn extend(&mut self, model: &TypedModel, channel_axis: usize) -> TractResult<bool> {
        let Some(next) = only_reader(model, self.end) else { return Ok(false) };
        let node = model.node(next);
        let Some(op) = node.op_as::<TypedBinOp>().filter(|op| op.1.is_none()) else { return Ok(false) };
        let [a, b] = node.inputs[..] else { return Ok(false) };
        let is_first = a == self.end;
        let other = if is_first { b } else { a };
        let (before, after) = (model.outlet_fact(self.end)?, model.outlet_fact(next.into())?);
        if other == self.end || before.shape != after.shape || before.datum_type != after.datum_type {
            return Ok(false);
        }
        let Some(values) = self.by_channel(model, other, channel_axis)? else { return Ok(false) };
        let step: fn(&mut f64, &mut f64, f64) = match (op.0.name(), is_first) {
            ("Add", _) => |_, shift, v| *shift += v,
            ("Sub", true) => |_, shift, v| *shift -= v,
            ("Sub", false) => |scale, shift, v| (*scale, *shift) = (-*scale, v - *shift),
            ("Mul", _) => |scale, shift, v| (*scale, *shift) = (*scale * v, *shift * v),
            ("Div", true) => |scale, shift, v| (*scale, *shift) = (*scale / v, *shift / v),
            _ => return Ok(false),
        };
        let mut affine = self.affine.clone();
        for ((scale, shift), v) in affine.scale.iter_mut().zip(&mut affine.shift).zip(values) {
            step(scale, shift, v);
        }
        if !affine.scale.iter().chain(&affine.shift).all(|v| v.is_finite()) {
            return Ok(false);
        }
        (self.affine, self.end) = (affine, next.into());
        Ok(true)
    }

    /// The values of a constant, one per channel.
    fn by_channel(
        &self,
        model: &TypedModel,
        value: OutletId,
        channel_axis: usize,
    ) -> TractResult<Option<Vec<f64>>> {
        let n = self.affine.scale.len();
        let Some(values) = floats(model, value)? else { return Ok(None) };
        let shape = &model.outlet_fact(value)?.shape;
        let is_by_channel =
            values.len() == n && shape.iter().enumerate().all(|(axis, d)| axis == channel_axis || d.is_one());
        Ok(match values[..] {
            [value] => Some(vec![value; n]),
            _ => Some(values).filter(|_| is_by_channel),
        })
    }
}

/// The one node that reads a value, if the value is no output of the model.
fn only_reader(model: &TypedModel, value: OutletId) -> Option<usize> {
    let [reader] = model.node(value.node).outputs.get(value.slot)?.successors[..] else { return None };
    (!model.outputs.contains(&value)).then_some(reader.node)
}

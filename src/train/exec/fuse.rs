//! Fusion: what follows a convolution is done while its result is in registers.
//!
//! ```text
//! forward    Conv → Add(shortcut) → Relu
//! backward   ConvInputGrad → Add(what came another way) → ClipGrad
//! ```
//! A chain runs where its last node stands, when all it reads is there.

use super::units::{ADD, MASK, Unit, UnitKind, shape_of};
use basisopt_ir::op::Op;
use basisopt_ir::{Graph, ValueId};
use std::collections::BTreeMap;

/// Joins units, in topological order, into their producers where these are convolutions that nobody else reads.
///
/// `n_reads` says how often a value is read, outputs of the graph counted; `is_lane` which values differ from
/// image to image.
pub(super) fn fuse(
    graph: &Graph,
    units: Vec<Unit>,
    n_reads: &dyn Fn(ValueId) -> usize,
    is_lane: &dyn Fn(ValueId) -> bool,
) -> Vec<Unit> {
    let mut done: Vec<Option<Unit>> = Vec::with_capacity(units.len());
    // Which unit, still open to fusion, makes a value.
    let mut open: BTreeMap<ValueId, usize> = BTreeMap::new();
    for unit in units {
        let joined = join(graph, &unit, n_reads, is_lane, &open, &mut done);
        let unit = joined.unwrap_or(unit);
        if let (UnitKind::Conv { .. }, &[out]) = (&unit.kind, &unit.writes[..])
            && n_reads(out) == 1
        {
            open.insert(out, done.len());
        }
        done.push(Some(unit));
    }
    done.into_iter().flatten().collect()
}

/// What is done to a unit that takes over another node.
type Change = Box<dyn Fn(&mut Unit)>;

/// The unit with its producer in it.
fn join(
    graph: &Graph,
    unit: &Unit,
    n_reads: &dyn Fn(ValueId) -> usize,
    is_lane: &dyn Fn(ValueId) -> bool,
    open: &BTreeMap<ValueId, usize>,
    done: &mut [Option<Unit>],
) -> Option<Unit> {
    let &[out] = &unit.writes[..] else { return None };
    let producer = |v: ValueId| open.get(&v).copied().filter(|_| n_reads(v) == 1);
    let same_shape = |v: ValueId| shape_of(graph, v) == shape_of(graph, out);
    let node = graph.node(unit.node);
    if !matches!(unit.kind, UnitKind::Node) {
        return None;
    }
    let (from, change): (usize, Change) = match (&node.op, &unit.reads[..]) {
        (Op::Add(_) | Op::Sum(_), &[Some(a), Some(b)]) => {
            if a == b || !is_lane(a) || !is_lane(b) || !same_shape(a) || !same_shape(b) {
                return None;
            }
            // Of two convolutions the later: the other is there by then.
            let open_for_add = |v: ValueId| {
                let i = producer(v)?;
                let free = done.get(i)?.as_ref()?.reads.iter().skip(ADD).all(Option::is_none);
                (free && no_clamp(done.get(i)?.as_ref()?)).then_some(i)
            };
            let (from, other) = match (open_for_add(a), open_for_add(b)) {
                (Some(i), Some(j)) if i > j => (i, b),
                (_, Some(j)) => (j, a),
                (Some(i), None) => (i, b),
                (None, None) => return None,
            };
            (from, Box::new(move |unit| unit.reads[ADD] = Some(other)))
        }
        (Op::Relu(_), &[Some(x)]) => (producer(x)?, Box::new(|unit| set_clamp(unit, 0.0, f64::INFINITY))),
        (Op::Clip(_), [Some(x), ..]) => {
            let (low, high) = clip_bounds(graph, unit)?;
            (producer(*x)?, Box::new(move |unit| set_clamp(unit, low, high)))
        }
        (Op::ClipGrad(op), &[Some(dy), Some(x)]) => {
            if !is_lane(x) || !same_shape(x) {
                return None;
            }
            let low = op.min.map_or(f64::NEG_INFINITY, f64::from);
            let high = op.max.map_or(f64::INFINITY, f64::from);
            let change = move |unit: &mut Unit| {
                unit.reads[MASK] = Some(x);
                if let UnitKind::Conv { fused, .. } = &mut unit.kind {
                    fused.mask = Some((low, high));
                }
            };
            (producer(dy)?, Box::new(change))
        }
        _ => return None,
    };
    let candidate = done.get(from)?.as_ref()?;
    // After a mask or a clamp nothing more fits.
    if candidate.reads.get(MASK)?.is_some() || !no_clamp(candidate) {
        return None;
    }
    let mut fused = done.get_mut(from)?.take()?;
    change(&mut fused);
    fused.node = unit.node;
    fused.writes = vec![out];
    Some(fused)
}

fn no_clamp(unit: &Unit) -> bool {
    matches!(&unit.kind, UnitKind::Conv { fused, .. } if fused.clamp.is_none())
}

fn set_clamp(unit: &mut Unit, low: f64, high: f64) {
    if let UnitKind::Conv { fused, .. } = &mut unit.kind {
        fused.clamp = Some((low, high));
    }
}

/// The bounds of a clip, from its attributes or from constant inputs.
fn clip_bounds(graph: &Graph, unit: &Unit) -> Option<(f64, f64)> {
    let Op::Clip(op) = &graph.node(unit.node).op else { return None };
    let bound = |attr: Option<f32>, slot: usize, default: f64| match unit.reads.get(slot).copied().flatten() {
        None => Some(attr.map_or(default, f64::from)),
        Some(v) => graph.constant_value(v)?.to_f64s().ok()?.first().copied(),
    };
    Some((bound(op.min, 1, f64::NEG_INFINITY)?, bound(op.max, 2, f64::INFINITY)?))
}

//! Convolutions, and [`conv_geometry`]: all numbers of one in one place.

use super::rules::{At, Fail, Types, one};
use super::window::{Window, WindowAttrs, per_axis, spatial, split_pads};
use super::{merge_dims, shape_words};
use crate::dim::{Dim, Shape};
use crate::graph::{Graph, NodeId};
use crate::op::{AutoPad, Op};
use crate::tensor::DType;
use std::collections::BTreeMap;

/// The numbers of a `Conv` or `ConvTranspose` whose weight has a static shape.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ConvGeometry {
    /// Whether it is a `ConvTranspose`; its weight is `[c_in, c_out/group, kernel…]`.
    pub transposed: bool,
    /// Number of spatial axes: 2 for images.
    pub n_spatial: usize,
    /// Input channels C, over all groups.
    pub c_in: usize,
    /// Output channels P, over all groups.
    pub c_out: usize,
    /// Number of groups.
    pub group: usize,
    /// Kernel size per spatial axis.
    pub kernel: Vec<usize>,
    /// Stride per spatial axis.
    pub strides: Vec<usize>,
    /// Dilation per spatial axis.
    pub dilations: Vec<usize>,
    /// Padding before and after each spatial axis, with `auto_pad` (and `output_shape`) resolved;
    /// `None` if that needs an input size that is not known.
    pub pads: Option<Vec<(usize, usize)>>,
    /// Element type of the input.
    pub dtype: Option<DType>,
    /// Batch dimension.
    pub batch: Dim,
    /// Input size per spatial axis.
    pub input: Vec<Dim>,
    /// Output size per spatial axis.
    pub output: Vec<Dim>,
    /// Whether there is a bias.
    pub has_bias: bool,
    /// Number of elements of weight and bias.
    pub n_params: u64,
    /// Multiply-adds per image, padding counted, bias not: positions · P · C/group · Π kernel. The
    /// positions are those of the output, or of the input if transposed. `None` if their number is
    /// not known.
    pub macs: Option<u64>,
}

impl ConvGeometry {
    /// Whether the kernel is 1 along every axis.
    pub fn is_pointwise(&self) -> bool {
        self.kernel.iter().all(|&k| k == 1)
    }
}

/// The geometry of a convolution, from the types noted in the graph. `None` for other nodes, where
/// the shape of the weight is not known, and where shapes and attributes contradict each other.
pub fn conv_geometry(graph: &Graph, node: NodeId) -> Option<ConvGeometry> {
    let op = &graph.get(node)?.op;
    let attrs = ConvAttrs::of(op)?;
    let types: BTreeMap<_, _> = graph
        .node_inputs(node)
        .into_iter()
        .flatten()
        .filter_map(|v| Some((v, graph.get(v.node)?.outputs.get(v.port as usize)?.ty.clone())))
        .collect();
    let contents = BTreeMap::new();
    let at = At::new(graph, node, &types, &contents);
    let plan = plan(&at, &attrs).ok()??;

    let weight: Vec<usize> = crate::dim::static_shape(at.shape(1)?)?;
    let group = usize::try_from(attrs.group).ok()?;
    let (&w0, &w1) = (weight.first()?, weight.get(1)?);
    let (c_in, c_out) =
        if attrs.transposed { (w0, w1.checked_mul(group)?) } else { (w1.checked_mul(group)?, w0) };
    let n = plan.windows.len();
    let unsigned = |f: fn(&Window) -> i64| {
        plan.windows.iter().map(|w| usize::try_from(f(w)).ok()).collect::<Option<Vec<usize>>>()
    };
    let as_u64 = |n: usize| u64::try_from(n).ok();
    let product = |dims: &[usize]| dims.iter().try_fold(1u64, |p, &d| p.checked_mul(as_u64(d)?));

    let n_weights = product(&weight)?;
    let has_bias = at.has(2);
    let positions = if attrs.transposed { &plan.input } else { &plan.output };
    // One weight is used once per position.
    let macs = crate::dim::static_shape(positions).and_then(|p| product(&p)?.checked_mul(n_weights));
    let pads: Option<Vec<(usize, usize)>> = plan
        .pads
        .iter()
        .map(|p| p.and_then(|(b, e)| Some((usize::try_from(b).ok()?, usize::try_from(e).ok()?))))
        .collect();
    Some(ConvGeometry {
        transposed: attrs.transposed,
        n_spatial: n,
        c_in,
        c_out,
        group,
        kernel: unsigned(|w| w.kernel)?,
        strides: unsigned(|w| w.stride)?,
        dilations: unsigned(|w| w.dilation)?,
        pads,
        dtype: at.dtype(0),
        batch: at.shape(0).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown),
        input: plan.input,
        output: plan.output,
        has_bias,
        n_params: n_weights.checked_add(if has_bias { as_u64(c_out)? } else { 0 })?,
        macs,
    })
}

/// The attributes of both convolutions.
struct ConvAttrs<'a> {
    transposed: bool,
    group: i64,
    window: WindowAttrs<'a>,
    output_padding: &'a [i64],
    output_shape: &'a [i64],
}

impl<'a> ConvAttrs<'a> {
    fn of(op: &'a Op) -> Option<Self> {
        match op {
            Op::Conv(c) => Some(Self {
                transposed: false,
                group: c.group,
                window: WindowAttrs {
                    auto_pad: c.auto_pad,
                    dilations: &c.dilations,
                    kernel_shape: &c.kernel_shape,
                    pads: &c.pads,
                    strides: &c.strides,
                },
                output_padding: &[],
                output_shape: &[],
            }),
            Op::ConvTranspose(c) => Some(Self {
                transposed: true,
                group: c.group,
                window: WindowAttrs {
                    auto_pad: c.auto_pad,
                    dilations: &c.dilations,
                    kernel_shape: &c.kernel_shape,
                    pads: &c.pads,
                    strides: &c.strides,
                },
                output_padding: &c.output_padding,
                output_shape: &c.output_shape,
            }),
            _ => None,
        }
    }
}

/// The spatial half of a convolution. One entry per spatial axis in every list.
struct Plan {
    windows: Vec<Window>,
    /// Resolved padding; `None` where it depends on an unknown size.
    pads: Vec<Option<(i64, i64)>>,
    input: Vec<Dim>,
    output: Vec<Dim>,
}

pub(super) fn types(at: &At<'_>) -> Types {
    let dtype = at.same_dtype(0..3)?;
    let Some(attrs) = ConvAttrs::of(at.op) else { return one(dtype, None) };
    let c_out = channels(at, &attrs)?;
    let plan = plan(at, &attrs)?;
    let rank = at.shape(0).or_else(|| at.shape(1)).map(<[Dim]>::len);
    let Some(rank) = rank else { return one(dtype, None) };
    let mut out = vec![at.shape(0).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown), c_out];
    match plan {
        Some(plan) => out.extend(plan.output),
        None => out.resize(rank, Dim::Unknown),
    }
    one(dtype, Some(out))
}

/// Checks channels, groups and the bias; returns the output channels.
fn channels(at: &At<'_>, attrs: &ConvAttrs<'_>) -> Result<Dim, Fail> {
    let group = attrs.group;
    if group < 1 {
        return Err(Fail::shape(format!("attribute `group` must be positive, found {group}")));
    }
    if let (Some(x), Some(w)) = (at.shape(0), at.shape(1))
        && x.len() != w.len()
    {
        let (x, w) = (shape_words(x), shape_words(w));
        return Err(Fail::shape(format!("input and weight must have the same rank, found {x} and {w}")));
    }
    let mut c_out = Dim::Unknown;
    if let Some(w) = at.shape(1) {
        let [w0, w1, ..] = w else {
            return Err(Fail::shape(format!(
                "the weight must have rank 3 or more, found {}",
                shape_words(w)
            )));
        };
        let c_in = if attrs.transposed { w0.clone() } else { w1.mul_int(group) };
        let (grouped, role) = if attrs.transposed { (w0, "input") } else { (w0, "output") };
        if let Dim::Known(n) = grouped
            && i64::try_from(*n).is_ok_and(|n| n % group != 0)
        {
            return Err(Fail::shape(format!("{n} {role} channels do not divide into {group} groups")));
        }
        c_out = if attrs.transposed { w1.mul_int(group) } else { w0.clone() };
        if let Some(c) = at.shape(0).and_then(|x| x.get(1))
            && c.differs(&c_in)
        {
            let w = shape_words(w);
            let message =
                format!("the weight {w} with group {group} takes {c_in} channels, but the input has {c}");
            return Err(Fail::shape(message));
        }
    }
    if let Some(bias) = at.shape(2) {
        let merged = match bias {
            [n] => merge_dims(&c_out, n),
            _ => None,
        };
        c_out = merged.ok_or_else(|| {
            let bias = shape_words(bias);
            Fail::shape(format!(
                "the bias must have one element for each of {c_out} output channels, found {bias}"
            ))
        })?;
    }
    Ok(c_out)
}

/// `None` if the kernel is not known.
fn plan(at: &At<'_>, attrs: &ConvAttrs<'_>) -> Result<Option<Plan>, Fail> {
    let x = at.shape(0).map(spatial).transpose()?;
    let w = at.shape(1).map(spatial).transpose()?;
    let n = x.or(w).map(<[Dim]>::len).or_else(|| attrs.window.n_axes());
    let Some(n) = n else { return Ok(None) };
    let declared = per_axis("kernel_shape", attrs.window.kernel_shape, n, 0, 1)?;
    let mut kernel = Vec::with_capacity(n);
    for (axis, &declared) in declared.iter().enumerate() {
        let held = w.and_then(|w| w.get(axis)?.known()).and_then(|k| i64::try_from(k).ok());
        kernel.push(match (declared, held) {
            (0, Some(k)) => k,
            (k, None) => k,
            (a, Some(b)) if a == b => a,
            (..) => {
                let (found, w) = (attrs.window.kernel_shape, w.unwrap_or_default());
                let message = format!(
                    "attribute `kernel_shape` is {found:?}, but the weight's kernel is {}",
                    shape_words(w)
                );
                return Err(Fail::shape(message));
            }
        });
    }
    let windows = attrs.window.windows(&kernel, n, false)?;
    if kernel.contains(&0) {
        return Ok(None);
    }
    let input: Vec<Dim> = x.map_or_else(|| vec![Dim::Unknown; n], <[Dim]>::to_vec);
    if attrs.transposed {
        let (output, pads) = transposed(attrs, &windows, &input)?;
        return Ok(Some(Plan { windows, pads, input, output }));
    }
    let output = windows.iter().zip(&input).map(|(w, d)| w.output(d)).collect::<Result<_, _>>()?;
    let pads = windows.iter().zip(&input).map(|(w, d)| w.resolved_pads(d)).collect();
    Ok(Some(Plan { windows, pads, input, output }))
}

type Sizes = (Shape, Vec<Option<(i64, i64)>>);

/// Output sizes and padding of a transposed convolution.
fn transposed(attrs: &ConvAttrs<'_>, windows: &[Window], input: &[Dim]) -> Result<Sizes, Fail> {
    let n = windows.len();
    let extra = per_axis("output_padding", attrs.output_padding, n, 0, 0)?;
    // Old exporters wrote batch and channels into `output_shape` as well.
    let fixed = match attrs.output_shape.len() {
        len if len == n + 2 => attrs.output_shape.get(2..).unwrap_or_default(),
        _ => attrs.output_shape,
    };
    let fixed = per_axis("output_shape", fixed, n, 0, 1)?;
    let upper = attrs.window.auto_pad == AutoPad::SameUpper;
    let mut sizes = Sizes::default();
    for (((window, input), extra), fixed) in windows.iter().zip(input).zip(extra).zip(fixed) {
        // What one input element more adds, and what the last one leaves behind.
        let tail = window.extent().saturating_add(extra).saturating_sub(window.stride);
        let whole = input.mul_int(window.stride).add_int(tail);
        let (output, pads) = if fixed > 0 {
            let total = whole.known().and_then(|whole| i64::try_from(whole).ok());
            let pads = total.map(|t| split_pads(t.saturating_sub(fixed).max(0), upper));
            (usize::try_from(fixed).map_or(Dim::Unknown, Dim::Known), pads)
        } else if matches!(attrs.window.auto_pad, AutoPad::SameUpper | AutoPad::SameLower) {
            // Cut down to input · stride; never filled up to it.
            let total = tail.max(0);
            (whole.add_int(-total), Some(split_pads(total, upper)))
        } else {
            let (begin, end) = window.pads;
            let output = whole.add_int(begin.saturating_add(end).saturating_neg());
            if let (Dim::Known(n), Dim::Unknown) = (input, &output)
                && *n > 0
            {
                let message =
                    format!("padding of {begin} and {end} leaves nothing of {whole} output elements");
                return Err(Fail::shape(message));
            }
            (output, Some(window.pads))
        };
        sizes.0.push(output);
        sizes.1.push(pads);
    }
    Ok(sizes)
}

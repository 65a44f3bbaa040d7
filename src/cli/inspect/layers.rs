//! One report per layer: what it is, what it costs, and what is in its weight.

use basisopt_ir::infer::{conv_geometry, linear_geometry};
use basisopt_ir::{DType, Graph, NodeId, Op, Tensor};
use basisopt_passes::cost::Cost;
use basisopt_passes::factor::singular_values;
use basisopt_passes::layer::Layer;
use basisopt_passes::ranks::{break_even, energy_rank};
use basisopt_passes::{Globs, Refusal};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

/// How many bars a spectrum has at most.
const N_BARS: usize = 10;

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct LayerReport {
    pub name: String,
    pub op: String,
    /// For people: `3×3 16→32 s2 g4`.
    pub shape: String,
    #[serde(flatten)]
    pub geometry: Geometry,
    /// Elements of weight and bias.
    pub params: Option<u64>,
    /// Multiply-adds per image.
    pub macs: Option<u64>,
    pub dtype: Option<String>,
    /// The matrix behind the weight, if there is one that could be factored.
    pub matrix: Option<Matrix>,
    /// Why the layer cannot be factored, or does not pay at this energy.
    pub refusal: Option<Reason>,
}

/// Channels and window; what a linear layer does not have is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Geometry {
    pub c_in: Option<usize>,
    pub c_out: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub strides: Vec<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dilations: Vec<usize>,
    pub groups: usize,
}

/// The matrix behind a weight; one per group, all of the same size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Matrix {
    pub n_rows: usize,
    pub n_columns: usize,
    pub full_rank: usize,
    /// Factoring pays strictly below this rank.
    pub break_even: f64,
    /// The smallest rank that keeps the energy asked for, in every group; `None` if the values were
    /// not decomposed (Ctrl-C, or the weight cannot be factored for other reasons).
    pub energy_rank: Option<usize>,
    /// Multiply-adds of the factors at that rank, as a share of those of the layer.
    pub cost: Option<f64>,
    /// Heights of the bars, 0…1: the energy of consecutive parts of the spectrum, relative to the
    /// part that has most.
    pub spectrum: Vec<f64>,
    /// Singular values of each group, largest first; only if asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub singular_values: Vec<Vec<f64>>,
}

/// A [`Refusal`] as it is reported.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Reason {
    pub code: &'static str,
    pub message: String,
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        Self { code: refusal.code, message: refusal.message }
    }
}

/// What to look at.
pub(super) struct Request<'a> {
    pub energy: f64,
    pub only: Option<&'a Globs>,
    pub keep_values: bool,
}

/// Reports every layer in the order in which they run, and the number of them that the request
/// leaves out. `graph` has its types inferred. `go_on` is told how many decompositions of how many
/// are done and which layer was last; once it says no, the rest have no spectrum.
pub(super) fn report(
    graph: &Graph,
    cost: &Cost,
    request: &Request<'_>,
    go_on: &mut dyn FnMut(usize, usize, &str) -> bool,
) -> (Vec<LayerReport>, usize) {
    let costs: BTreeMap<NodeId, _> = cost.layers.iter().map(|l| (l.node, l)).collect();
    let mut layers = Vec::new();
    let mut found = Vec::new();
    let mut n_left_out = 0;
    for id in graph.topological().into_iter().filter(|&id| is_layer(graph, id)) {
        let node = graph.node(id);
        if request.only.is_some_and(|globs| !globs.matches(node.label())) {
            n_left_out += 1;
            continue;
        }
        let layer = match Layer::conv(graph, id) {
            Ok(None) => Layer::linear(graph, id),
            layer => layer,
        };
        let (layer, refusal) = match layer {
            Ok(layer) => (layer, None),
            Err(refusal) => (None, Some(refusal)),
        };
        let (geometry, shape) = geometry(graph, id, layer.as_ref());
        layers.push(LayerReport {
            name: node.label().to_owned(),
            op: node.op.op_type().to_owned(),
            shape,
            geometry,
            params: costs.get(&id).map(|c| c.params),
            macs: costs.get(&id).and_then(|c| c.macs),
            dtype: weight_type(graph, id).map(|t| t.to_string()),
            matrix: None,
            refusal: refusal.map(Reason::from),
        });
        found.push(layer);
    }
    for i in 0..layers.len() {
        if let Some(layer) = &found[i]
            && let Some(refusal) = shared(graph, layer, &found)
        {
            layers[i].refusal = Some(refusal.into());
        }
    }
    decompose(graph, request, &found, &mut layers, go_on);
    (layers, n_left_out)
}

/// Whether a node is a layer: every convolution and `Gemm`, and products with a constant.
pub(super) fn is_layer(graph: &Graph, id: NodeId) -> bool {
    let is_constant = |slot| graph.node_input(id, slot).is_some_and(|v| graph.constant_value(v).is_some());
    match graph.node(id).op {
        Op::Conv(_) | Op::ConvTranspose(_) | Op::Gemm(_) => true,
        Op::MatMul(_) => is_constant(0) != is_constant(1),
        _ => false,
    }
}

/// A weight that something else reads, which would still need it whole.
fn shared(graph: &Graph, layer: &Layer, all: &[Option<Layer>]) -> Option<Refusal> {
    let key = |l: &Layer| (l.weight, l.kind, l.groups);
    let n = all.iter().flatten().filter(|l| key(l) == key(layer)).count();
    (graph.n_readers(layer.weight) > n).then(|| {
        let name = &graph.value(layer.weight).name;
        Refusal::new(
            "shared-weight",
            format!("its weight {name} is also read by something that would still need it whole"),
        )
    })
}

/// Decomposes what can be, in parallel, and fills in what follows from it.
fn decompose(
    graph: &Graph,
    request: &Request<'_>,
    found: &[Option<Layer>],
    layers: &mut [LayerReport],
    go_on: &mut dyn FnMut(usize, usize, &str) -> bool,
) {
    let jobs: Vec<(usize, &Layer, Tensor)> = found
        .iter()
        .enumerate()
        .filter_map(|(i, layer)| Some((i, layer.as_ref()?, graph.constant_value(layer.as_ref()?.weight)?)))
        .collect();
    let stop = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    // Progress belongs to this thread, the work to rayon's.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let sender = sender;
            jobs.par_iter().for_each_with(sender, |sender, (i, layer, weight)| {
                let spectra = match stop.load(Ordering::Relaxed) {
                    true => Ok(Vec::new()),
                    false => spectra(layer, weight),
                };
                // The receiver listens to the end.
                let _ = sender.send((*i, spectra));
            });
        });
        let mut done = 0;
        while let Ok((i, spectra)) = receiver.recv() {
            done += 1;
            if !go_on(done, jobs.len(), &layers[i].name) {
                stop.store(true, Ordering::Relaxed);
            }
            let (Some(layer), report) = (&found[i], &mut layers[i]) else { continue };
            match spectra {
                Ok(spectra) => {
                    let matrix = matrix(layer, spectra, request);
                    if report.refusal.is_none() {
                        report.refusal = past_break_even(layer, &matrix);
                    }
                    report.matrix = Some(matrix);
                }
                Err(refusal) => report.refusal = report.refusal.take().or(Some(refusal.into())),
            }
        }
    });
}

/// Singular values of each group.
fn spectra(layer: &Layer, weight: &Tensor) -> Result<Vec<Vec<f64>>, Refusal> {
    let non_finite = || Refusal::new("non-finite-weight", "its weight contains NaN or infinity");
    let zero = || Refusal::new("zero-weight", "its weight is all zero: there is nothing to keep");
    let unreadable = |e: basisopt_ir::tensor::TensorError| Refusal::new("unreadable", e.to_string());
    // One value everywhere has rank 1; no need to ask a decomposition.
    if let Some(element) = weight.splat_element() {
        let one = Tensor::from_bytes(weight.dtype(), vec![1], element.clone()).and_then(|t| t.to_f64s());
        let value = one.map_err(unreadable)?.first().copied().unwrap_or(0.0);
        if !value.is_finite() {
            return Err(non_finite());
        }
        if value == 0.0 {
            return Err(zero());
        }
        let mut spectrum = vec![0.0; layer.full_rank()];
        spectrum[0] = value.abs() * ((layer.n_rows * layer.n_columns) as f64).sqrt();
        return Ok(vec![spectrum; layer.groups]);
    }
    let matrices = layer.matrices(weight).map_err(unreadable)?;
    if matrices.iter().flatten().any(|v| !v.is_finite()) {
        return Err(non_finite());
    }
    if matrices.iter().flatten().all(|&v| v == 0.0) {
        return Err(zero());
    }
    matrices
        .iter()
        .map(|m| singular_values(m, layer.n_rows, layer.n_columns))
        .collect::<Result<_, _>>()
        .map_err(|e| Refusal::new("no-convergence", e.to_string()))
}

/// What follows from the spectra; none at all if the work was interrupted.
fn matrix(layer: &Layer, spectra: Vec<Vec<f64>>, request: &Request<'_>) -> Matrix {
    let (n_rows, n_columns) = (layer.n_rows, layer.n_columns);
    let rank = spectra
        .iter()
        .map(|s| energy_rank(&s.iter().map(|v| v * v).collect::<Vec<_>>(), request.energy))
        .max();
    let cost = rank.map(|q| (q * (n_rows + n_columns)) as f64 / (n_rows * n_columns) as f64);
    Matrix {
        n_rows,
        n_columns,
        full_rank: layer.full_rank(),
        break_even: break_even(n_rows, n_columns),
        energy_rank: rank,
        cost,
        spectrum: if spectra.is_empty() { vec![] } else { bars(&spectra, layer.full_rank()) },
        singular_values: if request.keep_values { spectra } else { vec![] },
    }
}

fn past_break_even(layer: &Layer, matrix: &Matrix) -> Option<Reason> {
    let rank = matrix.energy_rank?;
    (rank * (layer.n_rows + layer.n_columns) >= layer.n_rows * layer.n_columns).then(|| Reason {
        code: "past-break-even",
        message: "the rank that keeps this energy would not save multiply-adds".to_owned(),
    })
}

/// Mean energy of consecutive parts of the spectrum, over all groups, relative to the largest.
fn bars(spectra: &[Vec<f64>], full_rank: usize) -> Vec<f64> {
    let n = full_rank.clamp(1, N_BARS);
    let means: Vec<f64> = (0..n)
        .map(|i| {
            let (from, to) = (i * full_rank / n, (i + 1) * full_rank / n);
            let energy = |s: &Vec<f64>| s.iter().take(to).skip(from).map(|v| v * v).sum::<f64>();
            spectra.iter().map(energy).sum::<f64>() / (to - from).max(1) as f64
        })
        .collect();
    let largest = means.iter().fold(0.0f64, |m, v| m.max(*v));
    means.iter().map(|m| if largest > 0.0 { m / largest } else { 0.0 }).collect()
}

/// The weight's element type.
fn weight_type(graph: &Graph, id: NodeId) -> Option<DType> {
    let constant = |slot| graph.constant_value(graph.node_input(id, slot)?).map(|t| t.dtype());
    constant(1).or_else(|| constant(0))
}

/// Channels and window, and the same for people.
fn geometry(graph: &Graph, id: NodeId, layer: Option<&Layer>) -> (Geometry, String) {
    if let Some(g) = conv_geometry(graph, id) {
        let times = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
        // `s2` for strides 2 and 2, `s2×1` where they differ.
        let brief = |letter: char, sizes: &[usize]| match sizes {
            [first, rest @ ..] if rest.iter().all(|s| s == first) => match first {
                1 => String::new(),
                s => format!(" {letter}{s}"),
            },
            sizes => format!(" {letter}{}", times(sizes)),
        };
        let mut shape = format!("{} {}→{}", times(&g.kernel), g.c_in, g.c_out);
        shape += &brief('s', &g.strides);
        shape += &brief('d', &g.dilations);
        if g.group > 1 {
            shape += &format!(" g{}", g.group);
        }
        let geometry = Geometry {
            c_in: Some(g.c_in),
            c_out: Some(g.c_out),
            kernel: g.kernel,
            strides: g.strides,
            dilations: g.dilations,
            groups: g.group,
        };
        return (geometry, shape);
    }
    let linear = linear_geometry(graph, id).map(|g| (g.n_in, g.n_out));
    match linear.or(layer.map(|l| (l.n_columns, l.n_rows))) {
        Some((n_in, n_out)) => {
            let geometry =
                Geometry { c_in: Some(n_in), c_out: Some(n_out), groups: 1, ..Geometry::default() };
            (geometry, format!("{n_in}→{n_out}"))
        }
        None => {
            let slot = usize::from(graph.node_input(id, 1).is_some());
            let ty = graph.node_input(id, slot).map(|v| graph.value(v).ty.to_string());
            (Geometry { groups: 1, ..Geometry::default() }, ty.unwrap_or_else(|| "?".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_show_mean_energies_relative_to_the_first() {
        assert_eq!(bars(&[vec![2.0, 1.0, 0.0]], 3), [1.0, 0.25, 0.0]);
        // Twenty values, two per bar: energies 4, 4, then 1.
        let mut s = vec![1.0; 20];
        s[..2].fill(2.0);
        let bars = bars(&[s], 20);
        assert_eq!((bars.len(), bars[0], bars[1]), (10, 1.0, 0.25));
    }

    #[test]
    fn a_constant_weight_has_rank_one_without_a_decomposition() {
        let graph = basisopt_ir::parse::parse(
            "graph @g(%x: f32[1,3,8,8]) -> (%y) {
               %w = f32[16,3,3,3] ones
               %y = Conv(%x, %w)
             }",
        )
        .unwrap();
        let id = graph.node_ids().find(|&id| is_layer(&graph, id)).unwrap();
        let layer = Layer::conv(&graph, id).unwrap().unwrap();
        let splat = Tensor::full(DType::F32, vec![16, 3, 3, 3], -2.0).unwrap();
        let fast = spectra(&layer, &splat).unwrap();
        let bytes = Tensor::from_f64s(DType::F32, vec![16, 3, 3, 3], &[-2.0; 432]).unwrap();
        let slow = spectra(&layer, &bytes).unwrap();
        assert_eq!(fast[0].len(), 16);
        assert!(fast[0].iter().zip(&slow[0]).all(|(a, b)| (a - b).abs() < 1e-12 * fast[0][0]));
    }
}

//! Learning from data at the edges: networks of odd form, data of odd kind, executors that fail.
//! What theory says of plain networks is in `data_aware.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, outside of the test functions")]

mod common;

use basisopt::ir::{DType, Generator, Graph, Tensor, ValueId, parse, print};
use basisopt::passes::{
    Calibration, Executor, ExecutorError, Inputs, Judge, Manager, ManagerError, NoObserver, PassError,
    Pipeline, Program, Registry, Report, Samples, cost, factor,
};
use common::FreshExecutor;

/// Seeded inputs of any number of tensors: smooth, and not about zero.
struct Batches(Vec<Inputs>);

impl Batches {
    fn new(shapes: &[&[usize]], n: usize) -> Self {
        let one = |batch: usize, k: usize, shape: &[usize]| {
            let size: usize = shape.iter().product();
            let seed = 7000 + 10 * batch as u64 + k as u64;
            let noise = Tensor::generated(DType::F64, vec![size], Generator::Randn { seed }).unwrap();
            let mut values = noise.to_f64s().unwrap();
            for i in 1..size {
                values[i] = 0.5 * values[i - 1] + 0.5 * values[i] + 0.1;
            }
            Tensor::from_f64s(DType::F32, shape.to_vec(), &values).unwrap()
        };
        Self((0..n).map(|b| shapes.iter().enumerate().map(|(k, s)| one(b, k, s)).collect()).collect())
    }

    /// Every value is the same.
    fn constant(shape: &[usize], value: f64, n: usize) -> Self {
        Self(vec![vec![Tensor::full(DType::F32, shape.to_vec(), value).unwrap()]; n])
    }
}

impl Samples for Batches {
    fn n_batches(&self) -> usize {
        self.0.len()
    }
    fn batch_size(&self) -> usize {
        1
    }
    fn batches<'a>(&'a self, first: usize) -> Box<dyn Iterator<Item = Result<Inputs, ExecutorError>> + 'a> {
        Box::new(self.0.iter().skip(first).map(|b| Ok(b.clone())))
    }
    fn describe(&self) -> String {
        "seeded".to_owned()
    }
}

fn graph(text: &str) -> Graph {
    parse::parse(text).unwrap_or_else(|e| panic!("{e}"))
}

fn try_with(
    text: &str,
    pipeline: &str,
    data: Option<&Batches>,
    executor: &mut dyn Executor,
    judge: Option<&mut dyn Judge>,
) -> Result<(Graph, Report), ManagerError> {
    let mut graph = graph(text);
    let pipeline = Pipeline::parse(pipeline, &Registry::builtin()).unwrap();
    let calibration = data.map(|samples| Calibration { samples, memory: usize::MAX });
    let mut manager =
        Manager { executor: Some(executor), is_checked: false, calibration, ..Manager::default() };
    if let Some(judge) = judge {
        manager.judge = Some(judge);
    }
    let report = manager.run(&mut graph, &pipeline, &mut NoObserver)?;
    Ok((graph, report))
}

fn run(text: &str, pipeline: &str, data: &Batches) -> (Graph, Report) {
    try_with(text, pipeline, Some(data), &mut FreshExecutor, None).unwrap()
}

/// Every output of every batch.
fn outputs(graph: &Graph, data: &Batches) -> Vec<Vec<Tensor>> {
    let program = FreshExecutor.load(graph).unwrap();
    data.0.iter().map(|b| program.run(b).unwrap()).collect()
}

/// `Σ(a − b)² / Σ(a − ā)²` of one output over all batches.
fn error(original: &Graph, changed: &Graph, data: &Batches, k: usize) -> f64 {
    let all = |g| -> Vec<f64> { outputs(g, data).iter().flat_map(|o| o[k].to_f64s().unwrap()).collect() };
    let (a, b) = (all(original), all(changed));
    let mean = a.iter().sum::<f64>() / a.len() as f64;
    let spread: f64 = a.iter().map(|x| (x - mean).powi(2)).sum();
    a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum::<f64>() / spread
}

fn has(report: &Report, code: &str, node: &str) -> bool {
    report.remarks().any(|r| r.code == code && r.node == node)
}

fn bytes(graph: &Graph, name: &str) -> Vec<u8> {
    let value = graph.find_value(name).unwrap_or_else(|| panic!("no {name}"));
    graph.constant(value).unwrap().to_bytes().unwrap().to_vec()
}

fn all_finite(graph: &Graph) -> bool {
    graph.node_ids().all(|id| graph.constant(ValueId::of(id)).is_none_or(Tensor::is_finite))
}

fn at_full_rank_nothing_is_lost(what: &str, text: &str, data: &Batches) {
    for method in ["output", "sequential"] {
        let options = format!(":ratio=1:guard=off:method={method}");
        let (changed, report) =
            run(text, &format!("factorize-conv{options},factorize-linear{options}"), data);
        assert!(report.remarks().any(|r| r.code == "factored"), "{what}, {method}: {report:?}");
        for k in 0..graph(text).outputs().len() {
            let error = error(&graph(text), &changed, data, k);
            assert!(error < 1e-8, "{what}, {method}, output {k}: {error:e}");
        }
    }
}

#[test]
fn at_full_rank_networks_of_odd_form_keep_all_their_outputs() {
    at_full_rank_nothing_is_lost(
        "two inputs, of which one comes late; an output in the middle",
        "graph @g(%x: f32[1,4,6,6], %z: f32[1,5,6,6]) -> (%y, %a, %s) {
           %u = f32[5,4,3,3] randn(seed=1)
           %a = Conv@first<pads=[1,1,1,1]>(%x, %u)
           %s = Add(%a, %z)
           %v = f32[6,5,1,1] randn(seed=2)
           %y = Conv@second(%s, %v)
         }",
        &Batches::new(&[&[1, 4, 6, 6], &[1, 5, 6, 6]], 20),
    );
    at_full_rank_nothing_is_lost(
        "two layers of one bias",
        "graph @g(%x: f32[1,4,6,6]) -> (%y) {
           %u = f32[4,4,3,3] randn(seed=1)
           %b = f32[4] randn(seed=2)
           %a = Conv@first<pads=[1,1,1,1]>(%x, %u, %b)
           %v = f32[4,4,3,3] randn(seed=3)
           %y = Conv@second<pads=[1,1,1,1]>(%a, %v, %b)
         }",
        &Batches::new(&[&[1, 4, 6, 6]], 20),
    );
    at_full_rank_nothing_is_lost(
        "one weight twice, with different biases",
        "graph @g(%x: f32[1,4,6,6]) -> (%y) {
           %w = f32[4,4,3,3] randn(seed=1)
           %b = f32[4] randn(seed=2)
           %a = Conv@first<pads=[1,1,1,1]>(%x, %w, %b)
           %y = Conv@second<pads=[1,1,1,1]>(%a, %w)
         }",
        &Batches::new(&[&[1, 4, 6, 6]], 20),
    );
    at_full_rank_nothing_is_lost(
        "a batch of three, clipped, with a transposed convolution",
        "graph @g(%x: f32[3,4,6,6]) -> (%y) {
           %w = f32[6,4,3,3] randn(seed=1)
           %a = Conv@first<auto_pad=\"SAME_LOWER\">(%x, %w)
           %low = f32[] [0.0]
           %high = f32[] [1.5]
           %r = Clip(%a, %low, %high)
           %v = f32[6,4,2,2] randn(seed=2)
           %y = ConvTranspose@up<strides=[2,2]>(%r, %v)
         }",
        &Batches::new(&[&[3, 4, 6, 6]], 20),
    );
    at_full_rank_nothing_is_lost(
        "a matrix times a vector",
        "graph @g(%x: f32[12]) -> (%y) {\n %w = f32[7,12] randn(seed=1)\n %y = MatMul@c(%w, %x)\n}",
        &Batches::new(&[&[12]], 60),
    );
    at_full_rank_nothing_is_lost(
        "a vector times a matrix",
        "graph @g(%x: f32[12]) -> (%y) {\n %w = f32[12,7] randn(seed=1)\n %y = MatMul@c(%x, %w)\n}",
        &Batches::new(&[&[12]], 60),
    );
    at_full_rank_nothing_is_lost(
        "a Gemm whose bias is one number",
        "graph @g(%x: f32[5,10]) -> (%y) {
           %w = f32[10,7] randn(seed=1)
           %b = f32[1] [3.0]
           %y = Gemm@c<alpha=2.0, beta=0.5>(%x, %w, %b)
         }",
        &Batches::new(&[&[5, 10]], 30),
    );
}

/// The mean of outputs is met exactly whatever the rank, if the bias does what it should.
#[test]
fn whatever_the_rank_the_mean_of_every_output_stays_if_there_is_a_bias_or_room_for_one() {
    for (attributes, bias) in
        [("alpha=0.5, beta=2.0, transB=1", ", %b"), ("transB=1", ""), ("alpha=2.0, beta=0.5, transB=1", "")]
    {
        let text = format!(
            "graph @g(%x: f32[8,10]) -> (%y) {{\n %w = f32[9,10] randn(seed=1)\n %b = f32[9] randn(seed=2)\n %y = Gemm@c<{attributes}>(%x, %w{bias})\n}}"
        );
        let data = Batches::new(&[&[8, 10]], 40);
        for method in ["output", "sequential"] {
            let (changed, _) = run(&text, &format!("factorize-linear:rank=2:method={method}"), &data);
            let means = |g: &Graph| -> Vec<f64> {
                let all: Vec<f64> = outputs(g, &data).iter().flat_map(|o| o[0].to_f64s().unwrap()).collect();
                (0..9).map(|c| all.iter().skip(c).step_by(9).sum::<f64>() / 320.0).collect()
            };
            for (a, b) in means(&graph(&text)).iter().zip(means(&changed)) {
                assert!((a - b).abs() < 1e-4 * a.abs().max(1.0), "{attributes}, {method}: {a} {b}");
            }
        }
    }
}

/// Exporters of `mm` write `beta=0` and no third input: a bias put there would be multiplied by nothing.
#[test]
fn a_gemm_that_ignores_its_bias_is_fitted_without_one() {
    let text = "graph @g(%x: f32[8,10]) -> (%y) {\n %w = f32[9,10] randn(seed=1)\n %y = Gemm@c<beta=0.0, transB=1>(%x, %w)\n}";
    let mut data = Batches::new(&[&[8, 10]], 400);
    // So many rows that moments are hardly shrunk, far from zero: what a lost bias costs is plain.
    for x in data.0.iter_mut().flatten() {
        let moved: Vec<f64> =
            x.to_f64s().unwrap().iter().enumerate().map(|(i, v)| v + (i % 10) as f64).collect();
        *x = Tensor::from_f64s(DType::F32, vec![8, 10], &moved).unwrap();
    }
    for method in ["output", "sequential"] {
        let pipeline = format!("factorize-linear:rank=3:method={method}");
        let (changed, report) = run(text, &pipeline, &data);
        // The best of rank 3 about zero: by theory, from the outputs themselves.
        let y: Vec<f64> = outputs(&graph(text), &data).iter().flat_map(|o| o[0].to_f64s().unwrap()).collect();
        let moment = |i: usize, j: usize| y.chunks_exact(9).map(|r| r[i] * r[j]).sum::<f64>() / 3200.0;
        let square: Vec<f64> = (0..81).map(|k| moment(k / 9, k % 9)).collect();
        let best: f64 = factor::singular_values(&square, 9, 9).unwrap()[3..].iter().sum();
        let z: Vec<f64> = outputs(&changed, &data).iter().flat_map(|o| o[0].to_f64s().unwrap()).collect();
        let found = y.iter().zip(&z).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / 3200.0;
        assert!(found < 1.05 * best && found > 0.999 * best, "{method}: {found} {best} {report:?}");
    }
}

#[test]
fn a_layer_behind_a_shortcut_makes_up_for_what_the_shortcut_lost() {
    let text = "graph @g(%x: f32[1,8,8,8]) -> (%y) {
       %u = f32[8,8,3,3] randn(seed=1)
       %a = Conv@first<pads=[1,1,1,1]>(%x, %u)
       %v = f32[8,8,3,3] randn(seed=2)
       %b = Conv@second<pads=[1,1,1,1]>(%x, %v)
       %y = Add(%a, %b)
     }";
    let data = Batches::new(&[&[1, 8, 8, 8]], 40);
    let original = graph(text);
    // The second sees all that the first does: at full rank it mends what rank 2 lost, all of it.
    let only =
        |name: &str, method: &str| format!("factorize-conv:rank=2:include={name}:method={method}:refit=on");
    let (mended, report) = run(text, &only("first", "sequential"), &data);
    let (left, _) = run(text, &only("first", "output"), &data);
    assert!(has(&report, "factored", "first"));
    // Its inputs do not differ, so nothing is refitted there: the error is that of the first alone.
    let (lost, kept) = (error(&original, &left, &data, 0), error(&original, &mended, &data, 0));
    assert!(kept <= 1.05 * lost, "{kept} {lost}");
    // Both factored: the second takes over what the first lost, which factors fitted apart cannot.
    let both = |method: &str| {
        let pipeline = format!("factorize-conv:rank=5:guard=off:method={method}");
        error(&original, &run(text, &pipeline, &data).0, &data, 0)
    };
    let (together, apart) = (both("sequential"), both("output"));
    assert!(together < 0.8 * apart, "{together} {apart}");
}

#[test]
fn a_normalisation_that_cannot_be_folded_keeps_mean_and_variance_of_every_channel() {
    let text = "graph @g(%x: f32[1,6,8,8]) -> (%n) {
       %w1 = f32[8,6,3,3] randn(seed=1)
       %a = Conv@first<pads=[1,1,1,1]>(%x, %w1)
       %e = Concat<axis=1>(%a, %x)
       %s = f32[14] uniform(0.5, 1.5, seed=3)
       %m = f32[14] randn(seed=4)
       %v = f32[14] uniform(0.5, 1.5, seed=5)
       %n = BatchNormalization@norm(%e, %s, %m, %m, %v)
     }";
    let data = Batches::new(&[&[1, 6, 8, 8]], 24);
    let statistics = |g: &Graph| -> Vec<(f64, f64)> {
        let all: Vec<Vec<f64>> = outputs(g, &data).iter().map(|o| o[0].to_f64s().unwrap()).collect();
        let n = (24 * 64) as f64;
        let of = |c: usize| {
            let values = || all.iter().flat_map(|y| &y[c * 64..(c + 1) * 64]);
            let mean = values().sum::<f64>() / n;
            (mean, values().map(|v| (v - mean).powi(2)).sum::<f64>() / n)
        };
        (0..14).map(of).collect()
    };
    let (with, report) = run(text, "factorize-conv:rank=2", &data);
    assert!(has(&report, "statistics", "norm"));
    let (without, _) = run(text, "factorize-conv:rank=2:refit=off", &data);
    let (wanted, found, left) = (statistics(&graph(text)), statistics(&with), statistics(&without));
    for (c, (w, f)) in wanted.iter().zip(&found).enumerate() {
        assert!((w.0 - f.0).abs() < 1e-3 * w.1.sqrt() && (w.1 - f.1).abs() < 1e-3 * w.1, "{c}: {w:?} {f:?}");
    }
    assert!(wanted.iter().zip(&left).any(|(w, l)| (w.1 - l.1).abs() > 0.05 * w.1));
    for name in ["s", "m", "v"] {
        assert_eq!(bytes(&without, name), bytes(&graph(text), name));
    }
}

#[test]
fn layers_of_one_weight_that_stay_whole_go_on_sharing_it() {
    let text = "graph @g(%x: f32[1,8,8,8]) -> (%y) {
       %u = f32[8,8,3,3] randn(seed=1)
       %a = Conv@first<pads=[1,1,1,1]>(%x, %u)
       %w = f32[8,8,1,1] randn(seed=2)
       %b = Conv@left(%a, %w)
       %c = Conv@right(%b, %w)
       %y = Relu(%c)
     }";
    let data = Batches::new(&[&[1, 8, 8, 8]], 24);
    // Rank 4 of an 8×8 matrix saves nothing: the guard keeps the pair whole.
    let (changed, report) = run(text, "factorize-conv:rank=4", &data);
    assert!(has(&report, "past-break-even", "left") && has(&report, "factored", "first"), "{report:?}");
    let weights = |g: &Graph| -> usize {
        let constants = g.node_ids().filter_map(|id| g.constant(ValueId::of(id)));
        constants.filter(|t| t.shape() == [8, 8, 1, 1]).count()
    };
    assert_eq!(weights(&changed), weights(&graph(text)), "{}", print::print(&changed));
    assert_eq!(bytes(&changed, "w"), bytes(&graph(text), "w"));
}

#[test]
fn constant_inputs_and_a_single_batch_give_finite_weights_and_the_same_outputs() {
    let text = "graph @g(%x: f32[1,6,8,8]) -> (%y) {
       %u = f32[12,6,3,3] randn(seed=1)
       %b = f32[12] randn(seed=2)
       %a = Conv@first(%x, %u, %b)
       %r = Relu(%a)
       %w = f32[12,12,3,3] randn(seed=3)
       %y = Conv@second(%r, %w)
     }";
    for value in [0.0, 0.3] {
        let data = Batches::constant(&[1, 6, 8, 8], value, 9);
        for method in ["output", "sequential"] {
            let (changed, _) = run(text, &format!("factorize-conv:rank=3:method={method}"), &data);
            assert!(all_finite(&changed), "{value}, {method}");
            // A constant is a bias: nothing is lost.
            let (a, b) = (outputs(&graph(text), &data), outputs(&changed, &data));
            let (a, b) = (a[0][0].to_f64s().unwrap(), b[0][0].to_f64s().unwrap());
            let largest = a.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-3 * largest, "{value}, {method}: {off} of {largest}");
        }
        let (changed, _) = run(text, "allocate-ranks:target=macs:0.6,factorize-conv", &data);
        assert!(all_finite(&changed));
    }
    let one = Batches::new(&[&[1, 6, 8, 8]], 1);
    let (changed, report) = run(text, "allocate-ranks:target=macs:0.6,factorize-conv", &one);
    assert!(all_finite(&changed));
    assert!(report.remarks().any(|r| r.code == "few-samples"), "{report:?}");
}

#[test]
fn bases_of_every_group_are_orthonormal() {
    let text = "graph @g(%x: f32[1,8,8,8]) -> (%y) {\n %w = f32[18,4,3,3] randn(seed=1)\n %y = Conv@c<group=2>(%x, %w)\n}";
    let data = Batches::new(&[&[1, 8, 8, 8]], 24);
    for method in ["output", "sequential"] {
        let (changed, _) = run(text, &format!("factorize-conv:rank=3:method={method}"), &data);
        let basis = changed.constant(changed.find_value("w.basis").unwrap()).unwrap();
        assert_eq!(basis.shape(), [6, 4, 3, 3]);
        for group in basis.to_f64s().unwrap().chunks_exact(3 * 36) {
            for (i, j) in (0..3).flat_map(|i| (0..3).map(move |j| (i, j))) {
                let dot: f64 = (0..36).map(|k| group[i * 36 + k] * group[j * 36 + k]).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-5, "{method}: {i} {j} {dot}");
            }
        }
    }
}

const MIXED: &str = "graph @g(%x: f32[1,8,12,12]) -> (%y) {
   %w0 = f32[24,8,3,3] randn(seed=1)
   %a = Conv@stem<pads=[1,1,1,1]>(%x, %w0)
   %r = Relu(%a)
   %w1 = f32[24,24,3,3] randn(seed=2)
   %b = Conv@body<pads=[1,1,1,1]>(%r, %w1)
   %s = Relu(%b)
   %p = GlobalAveragePool(%s)
   %f = Flatten(%p)
   %w2 = f32[20,24] randn(seed=3)
   %y = Gemm@head<transB=1>(%f, %w2)
 }";

fn ranks(report: &Report) -> Vec<(String, f64)> {
    let allotted = report.remarks().filter(|r| r.code == "allotted");
    allotted.map(|r| (r.node.clone(), r.values["rank"])).collect()
}

#[test]
fn ranks_are_multiples_for_wanted_layers_only_and_leave_no_notes() {
    let data = Batches::new(&[&[1, 8, 12, 12]], 24);
    let (_, report) = run(MIXED, "allocate-ranks:target=macs:0.6:multiple=4", &data);
    let found = ranks(&report);
    assert!(!found.is_empty() && found.iter().all(|(_, r)| r % 4.0 == 0.0), "{found:?}");
    let (noted, report) = run(MIXED, "allocate-ranks:target=macs:0.7:exclude=stem:linear=off", &data);
    assert_eq!(ranks(&report).len(), 1);
    assert!(has(&report, "excluded", "stem"));
    assert!(noted.metadata.contains_key("basisopt.rank.body"));
    // Notes survive the text, and are followed by a later run.
    let (whole, _) = run(MIXED, "allocate-ranks:target=energy:0.8,factorize-conv,factorize-linear", &data);
    assert!(whole.metadata.keys().all(|k| !k.starts_with("basisopt.rank.")), "{:?}", whole.metadata);
    let (excluded, _) =
        run(MIXED, "allocate-ranks:target=macs:0.6,factorize-conv:exclude=stem,factorize-linear", &data);
    assert!(excluded.metadata.keys().all(|k| !k.starts_with("basisopt.rank.")), "{:?}", excluded.metadata);
}

#[test]
fn every_layer_keeps_the_energy_that_is_asked_for() {
    let data = Batches::new(&[&[1, 8, 12, 12]], 24);
    for energy in [0.5, 0.9] {
        let pipeline = format!("allocate-ranks:target=energy:{energy}");
        let (_, report) = run(MIXED, &pipeline, &data);
        for remark in report.remarks().filter(|r| r.code == "allotted") {
            assert!(remark.values["energy"] >= energy - 1e-9, "{remark:?}");
        }
    }
    let (lower, _) = run(MIXED, "allocate-ranks:target=energy:0.5,factorize-conv", &data);
    let (higher, _) = run(MIXED, "allocate-ranks:target=energy:0.9,factorize-conv", &data);
    assert!(cost::of(&lower).macs < cost::of(&higher).macs);
    let (_, report) =
        try_with(MIXED, "allocate-ranks:target=macs:0.6", None, &mut FreshExecutor, None).unwrap();
    assert!(has(&report, "no-data", "") && !ranks(&report).is_empty());
}

/// Gives up at some of the graphs that it should load, or gives outputs of the wrong number.
struct Failing {
    loads_left: usize,
    outputs_kept: usize,
}

struct Short(Box<dyn Program>, usize);

impl Program for Short {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError> {
        Ok(self.0.run(inputs)?.into_iter().take(self.1).collect())
    }
}

impl Executor for Failing {
    fn example_inputs(&mut self, graph: &Graph, seed: u64) -> Result<Vec<Tensor>, ExecutorError> {
        FreshExecutor.example_inputs(graph, seed)
    }
    fn run(&mut self, graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError> {
        FreshExecutor.run(graph, inputs)
    }
    fn load(&mut self, graph: &Graph) -> Result<Box<dyn Program>, ExecutorError> {
        if self.loads_left == 0 {
            return Err(ExecutorError("no engine for this".to_owned()));
        }
        self.loads_left -= 1;
        Ok(Box::new(Short(FreshExecutor.load(graph)?, self.outputs_kept)))
    }
}

#[test]
fn engines_that_fail_and_data_of_the_wrong_form_are_errors_and_never_panics() {
    let good = Batches::new(&[&[1, 8, 12, 12]], 9);
    let pipelines =
        ["factorize-conv:rank=3", "factorize-conv:rank=3:method=output", "allocate-ranks:target=macs:0.6"];
    let is_calibration =
        |e: &ManagerError| matches!(e, ManagerError::Pass { source: PassError::Calibration(_), .. });
    for pipeline in pipelines {
        for loads_left in [0, 1, 3] {
            let mut engine = Failing { loads_left, outputs_kept: 9 };
            if let Err(e) = try_with(MIXED, pipeline, Some(&good), &mut engine, None) {
                assert!(
                    is_calibration(&e) && e.to_string().contains("no engine for this"),
                    "{pipeline}: {e}"
                );
            } else {
                assert!(loads_left > 0, "{pipeline}");
            }
        }
        let mut silent = Failing { loads_left: 99, outputs_kept: 0 };
        let wrong = try_with(MIXED, pipeline, Some(&good), &mut silent, None);
        assert!(wrong.as_ref().is_err_and(is_calibration), "{pipeline}: {wrong:?}");

        let mut late = Batches::new(&[&[1, 8, 12, 12]], 9);
        late.0[6] = Batches::new(&[&[1, 8, 6, 12]], 1).0.remove(0);
        let mut batched = Batches::new(&[&[2, 8, 12, 12]], 9);
        batched.0[8] = Batches::new(&[&[1, 8, 12, 12]], 1).0.remove(0);
        let mut fewer = Batches::new(&[&[1, 8, 12, 12]], 9);
        fewer.0[4] = vec![];
        let more = Batches::new(&[&[1, 8, 12, 12], &[1]], 9);
        for (what, data) in [("late", late), ("batch", batched), ("fewer", fewer), ("more", more)] {
            let wrong = try_with(MIXED, pipeline, Some(&data), &mut FreshExecutor, None);
            assert!(wrong.as_ref().is_err_and(is_calibration), "{what}, {pipeline}: {wrong:?}");
        }
    }
}

/// Each layer that is factored costs what its name says.
struct ByLayer;

impl Judge for ByLayer {
    fn score(&mut self, graph: &Graph) -> Result<f64, ExecutorError> {
        let is_there = |name: &str| graph.n_nodes_named(&format!("{name}.basis")) > 0;
        Ok(0.9 - if is_there("stem") { 0.3 } else { 0.0 } - if is_there("body") { 0.01 } else { 0.0 })
    }
    fn n_samples(&self) -> usize {
        100
    }
    fn measure(&self) -> &'static str {
        "agreement"
    }
}

#[test]
fn by_greed_layers_that_cost_more_than_the_drop_stay_whole() {
    let data = Batches::new(&[&[1, 8, 12, 12]], 9);
    let pipeline = "allocate-ranks:target=drop:2:by=greedy";
    let (_, report) = try_with(MIXED, pipeline, Some(&data), &mut FreshExecutor, Some(&mut ByLayer)).unwrap();
    assert!(has(&report, "whole", "stem") && has(&report, "allotted", "body"), "{report:?}");
    let wrong = "allocate-ranks:target=energy:0.9:by=greedy";
    let wrong = try_with(MIXED, wrong, Some(&data), &mut FreshExecutor, Some(&mut ByLayer)).unwrap_err();
    assert!(wrong.to_string().contains("greedy"), "{wrong}");
}

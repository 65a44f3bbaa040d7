//! Passes that learn from data, against what theory says they should find.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, outside of the test functions")]

mod common;

use basisopt::ir::{DType, Generator, Graph, Tensor, ValueId, parse, print};
use basisopt::passes::{
    Calibration, Executor, ExecutorError, Host, Inputs, Judge, Manager, ManagerError, NoObserver, PassError,
    Pipeline, Registry, Report, Samples, cost,
};
use common::FreshExecutor;

/// Seeded images: smooth, correlated over channels, none of them like the others.
struct Images {
    shape: Vec<usize>,
    n: usize,
    /// Channels that are always zero.
    dead: Vec<usize>,
    /// The batch at which reading fails.
    broken_at: Option<usize>,
}

impl Images {
    fn new(shape: &[usize], n: usize) -> Self {
        Self { shape: shape.to_vec(), n, dead: vec![], broken_at: None }
    }

    fn image(&self, seed: usize) -> Tensor {
        let n: usize = self.shape.iter().product();
        let noise = Tensor::generated(DType::F64, vec![n], Generator::Randn { seed: 1000 + seed as u64 });
        let mut values = noise.unwrap().to_f64s().unwrap();
        for i in 1..n {
            values[i] = 0.6 * values[i - 1] + 0.4 * values[i] + 0.05 * (seed % 3) as f64;
        }
        let per_channel: usize = self.shape.iter().skip(2).product();
        for channel in &self.dead {
            values[channel * per_channel..(channel + 1) * per_channel].fill(0.0);
        }
        Tensor::from_f64s(DType::F32, self.shape.clone(), &values).unwrap()
    }
}

impl Samples for Images {
    fn n_batches(&self) -> usize {
        self.n
    }
    fn batch_size(&self) -> usize {
        1
    }
    fn batches<'a>(&'a self, first: usize) -> Box<dyn Iterator<Item = Result<Inputs, ExecutorError>> + 'a> {
        Box::new((first..self.n).map(|i| match self.broken_at {
            Some(at) if i >= at => Err(ExecutorError("image 7.jpg is damaged".to_owned())),
            _ => Ok(vec![self.image(i)]),
        }))
    }
    fn describe(&self) -> String {
        format!("{} seeded images", self.n)
    }
}

/// Judges by the multiply-adds alone: everything below a half costs two points per tenth.
struct ByMacs {
    whole: u64,
    n_scored: usize,
}

impl Judge for ByMacs {
    fn score(&mut self, graph: &Graph) -> Result<f64, ExecutorError> {
        self.n_scored += 1;
        let share = cost::of_pinned(graph, &[]).macs.unwrap() as f64 / self.whole as f64;
        Ok(0.9 - 0.2 * (0.5 - share).max(0.0))
    }
    fn n_samples(&self) -> usize {
        100
    }
    fn measure(&self) -> &'static str {
        "accuracy"
    }
}

struct Stopped;

impl Host for Stopped {
    fn read_text(&self, _: &str) -> Result<String, String> {
        Err("no files".to_owned())
    }
    fn progress(&self, _: usize, _: usize, _: &str) {}
    fn interrupted(&self) -> bool {
        true
    }
}

fn graph(text: &str) -> Graph {
    parse::parse(text).unwrap_or_else(|e| panic!("{e}"))
}

fn try_run(
    graph: &mut Graph,
    pipeline: &str,
    images: &Images,
    memory: usize,
    judge: Option<&mut dyn Judge>,
) -> Result<Report, ManagerError> {
    let pipeline = Pipeline::parse(pipeline, &Registry::builtin()).unwrap();
    let mut executor = FreshExecutor;
    let mut manager = Manager {
        executor: Some(&mut executor),
        is_checked: false,
        calibration: Some(Calibration { samples: images, memory }),
        ..Manager::default()
    };
    if let Some(judge) = judge {
        manager.judge = Some(judge);
    }
    manager.run(graph, &pipeline, &mut NoObserver)
}

fn run(text: &str, pipeline: &str, images: &Images) -> (Graph, Report) {
    let mut graph = graph(text);
    let report = try_run(&mut graph, pipeline, images, usize::MAX, None).unwrap();
    (graph, report)
}

/// `Σ(a − b)² / Σ(a − ā)²` of the first output over all images.
fn error(original: &Graph, changed: &Graph, images: &Images) -> f64 {
    let outputs = |g: &Graph| -> Vec<Vec<f64>> {
        let program = FreshExecutor.load(g).unwrap();
        let of = |b: Result<Inputs, _>| program.run(&b.unwrap()).unwrap()[0].to_f64s().unwrap();
        images.batches(0).map(of).collect()
    };
    let (a, b) = (outputs(original), outputs(changed));
    let mean = a.iter().flatten().sum::<f64>() / a.iter().map(Vec::len).sum::<usize>() as f64;
    let squares = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        a.iter().flatten().zip(b.iter().flatten()).map(|(x, y)| f(*x, *y).powi(2)).sum()
    };
    squares(&|x, y| x - y) / squares(&|x, _| x - mean)
}

fn codes(report: &Report) -> Vec<&str> {
    report.remarks().map(|r| r.code.as_str()).collect()
}

fn value(report: &Report, node: &str, key: &str) -> f64 {
    let remark = report.remarks().find(|r| r.node == node && r.values.contains_key(key));
    remark.unwrap_or_else(|| panic!("no {key} for {node}")).values[key]
}

#[test]
fn at_full_rank_nothing_is_lost_whatever_the_layer() {
    let cases = [
        (
            "strided, dilated, padded on one side, biased",
            "graph @g(%x: f32[1,4,9,8]) -> (%y) {\n %w = f32[6,4,3,2] randn(seed=1)\n %b = f32[6] randn(seed=2)\n %y = Conv@c<strides=[2,1], dilations=[1,2], pads=[1,0,2,1]>(%x, %w, %b)\n}",
            vec![1, 4, 9, 8],
        ),
        (
            "padded by name, grouped, no bias",
            "graph @g(%x: f32[1,4,9,8]) -> (%y) {\n %w = f32[6,2,3,3] randn(seed=1)\n %y = Conv@c<group=2, auto_pad=\"SAME_UPPER\", strides=[2,2]>(%x, %w)\n}",
            vec![1, 4, 9, 8],
        ),
        (
            "one-dimensional",
            "graph @g(%x: f32[1,5,30]) -> (%y) {\n %w = f32[7,5,3] randn(seed=1)\n %y = Conv@c<pads=[1,1]>(%x, %w)\n}",
            vec![1, 5, 30],
        ),
        (
            "three-dimensional",
            "graph @g(%x: f32[1,2,5,6,4]) -> (%y) {\n %w = f32[5,2,2,3,2] randn(seed=1)\n %y = Conv@c<pads=[0,1,0,1,1,1]>(%x, %w)\n}",
            vec![1, 2, 5, 6, 4],
        ),
        (
            "Gemm with factors, transposed",
            "graph @g(%x: f32[12,10]) -> (%y) {\n %w = f32[8,12] randn(seed=1)\n %b = f32[8] randn(seed=2)\n %y = Gemm@c<transA=1, transB=1, alpha=0.5, beta=2.0>(%x, %w, %b)\n}",
            vec![12, 10],
        ),
        (
            "MatMul of stacks",
            "graph @g(%x: f32[3,10,12]) -> (%y) {\n %w = f32[12,7] randn(seed=1)\n %y = MatMul@c(%x, %w)\n}",
            vec![3, 10, 12],
        ),
        (
            "MatMul with the weight first",
            "graph @g(%x: f32[3,12,10]) -> (%y) {\n %w = f32[7,12] randn(seed=1)\n %y = MatMul@c(%w, %x)\n}",
            vec![3, 12, 10],
        ),
    ];
    for (what, text, shape) in cases {
        let images = Images::new(&shape, 24);
        for method in ["output", "sequential"] {
            let options = format!(":ratio=1:guard=off:method={method}");
            let (changed, report) =
                run(text, &format!("factorize-conv{options},factorize-linear{options}"), &images);
            assert!(codes(&report).contains(&"factored"), "{what}: {report:?}");
            let error = error(&graph(text), &changed, &images);
            assert!(error < 1e-8, "{what}, {method}: {error:e}");
        }
    }
}

const ONE: &str = "graph @g(%x: f32[1,6,10,10]) -> (%y) {
   %w = f32[12,6,3,3] randn(seed=1)
   %b = f32[12] randn(seed=2)
   %y = Conv@c<pads=[1,1,1,1]>(%x, %w, %b)
 }";

#[test]
fn the_error_of_principal_components_is_the_variance_that_they_leave_out() {
    // 20 images of 100 positions: all of them are used.
    let images = Images::new(&[1, 6, 10, 10], 20);
    let (changed, report) = run(ONE, "factorize-conv:rank=4:method=output", &images);
    // The covariance of the outputs by its definition, from the network itself.
    let program = FreshExecutor.load(&graph(ONE)).unwrap();
    let outputs: Vec<Vec<f64>> =
        images.batches(0).map(|b| program.run(&b.unwrap()).unwrap()[0].to_f64s().unwrap()).collect();
    let mean: Vec<f64> = (0..12)
        .map(|p| outputs.iter().map(|y| y[p * 100..(p + 1) * 100].iter().sum::<f64>()).sum::<f64>() / 2000.0)
        .collect();
    let mut covariance = vec![0.0; 144];
    for y in &outputs {
        for (i, j) in (0..12).flat_map(|i| (0..12).map(move |j| (i, j))) {
            covariance[i * 12 + j] +=
                (0..100).map(|k| (y[i * 100 + k] - mean[i]) * (y[j * 100 + k] - mean[j])).sum::<f64>()
                    / 2000.0;
        }
    }
    let eigenvalues = basisopt::passes::factor::singular_values(&covariance, 12, 12).unwrap();
    let total: f64 = eigenvalues.iter().sum();
    // A little is moved by the shrinkage of moments from few rows: 54 inputs, 2,000 rows.
    let left: f64 = eigenvalues[4..].iter().sum::<f64>() / total;
    let program = FreshExecutor.load(&changed).unwrap();
    let (mut lost, mut spread) = (0.0, 0.0);
    for (b, y) in images.batches(0).zip(&outputs) {
        let found = program.run(&b.unwrap()).unwrap()[0].to_f64s().unwrap();
        lost += found.iter().zip(y).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        spread += y.iter().enumerate().map(|(i, v)| (v - mean[i / 100]).powi(2)).sum::<f64>();
    }
    assert!((lost / spread - left).abs() < 0.02 * left, "{} {left}", lost / spread);
    assert!(lost / spread > left * (1.0 - 1e-6), "nothing of this rank can do better");
    assert!((value(&report, "c", "output_error") - left).abs() < 0.06 * left);
}

const RESIDUAL: &str = "graph @g(%x: f32[1,8,10,10]) -> (%y) {
   %w1 = f32[8,8,3,3] randn(seed=1)
   %a = Conv@first<pads=[1,1,1,1]>(%x, %w1)
   %r = Relu(%a)
   %w2 = f32[8,8,3,3] randn(seed=2)
   %b = Conv@second<pads=[1,1,1,1]>(%r, %w2)
   %s = Add(%b, %r)
   %t = Relu(%s)
   %w3 = f32[8,8,3,3] randn(seed=3)
   %c = Conv@third<pads=[1,1,1,1]>(%t, %w3)
   %y = Add(%c, %t)
 }";

#[test]
fn data_do_better_than_weights_and_following_the_prefix_better_than_outputs_alone() {
    let images = Images::new(&[1, 8, 10, 10], 60);
    let errors: Vec<f64> = ["weights", "output", "sequential"]
        .iter()
        .map(|method| {
            let (changed, _) = run(RESIDUAL, &format!("factorize-conv:rank=4:method={method}"), &images);
            error(&graph(RESIDUAL), &changed, &images)
        })
        .collect();
    assert!(errors[1] < 0.9 * errors[0] && errors[2] < 0.9 * errors[1], "{errors:?}");
}

#[test]
fn bases_are_orthonormal_and_no_thread_or_byte_of_memory_changes_a_weight() {
    let images = Images::new(&[1, 8, 10, 10], 40);
    let make = |threads: usize, memory: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut graph = graph(RESIDUAL);
            let pipeline = "allocate-ranks:target=macs:0.5,factorize-conv";
            try_run(&mut graph, pipeline, &images, memory, None).unwrap();
            basisopt::onnx::export_new(&graph).unwrap()
        })
    };
    let whole = make(1, usize::MAX);
    assert!(whole == make(2, usize::MAX), "two threads");
    assert!(whole == make(2, 1), "memory for one image only");
    let (changed, report) = run(RESIDUAL, "factorize-conv:rank=3", &images);
    for id in changed.node_ids().filter(|&id| changed.value(ValueId::of(id)).name.ends_with(".basis")) {
        let Some(basis) = changed.constant(ValueId::of(id)) else { continue };
        let f = basis.to_f64s().unwrap();
        let defect = basisopt::passes::factor::orthonormality_defect(&f, 3, f.len() / 3);
        assert!(defect < 1e-5, "{defect}");
    }
    assert!(value(&report, "second", "defect") < 1e-5);
}

#[test]
fn dead_channels_and_few_rows_are_said_and_survived() {
    let mut images = Images::new(&[1, 6, 10, 10], 30);
    images.dead = vec![0, 1, 2, 3, 4];
    // One live channel through a 1×1 kernel: one direction.
    let text =
        "graph @g(%x: f32[1,6,10,10]) -> (%y) {\n %w = f32[12,6,1,1] randn(seed=1)\n %y = Conv@c(%x, %w)\n}";
    let (changed, report) = run(text, "factorize-conv:rank=3:guard=off", &images);
    assert!(codes(&report).contains(&"rank-deficient"), "{report:?}");
    assert_eq!(value(&report, "c", "rank"), 1.0);
    assert!(error(&graph(text), &changed, &images) < 1e-8);

    images.dead = (0..6).collect();
    let (changed, _) = run(ONE, "factorize-conv:rank=3:guard=off", &images);
    assert!(print::print(&changed).contains("basis"));
    let few = Images::new(&[1, 64], 5);
    let text = "graph @g(%x: f32[1,64]) -> (%y) {\n %w = f32[32,64] randn(seed=1)\n %y = Gemm@c<transB=1>(%x, %w)\n}";
    let (changed, report) = run(text, "factorize-linear:energy=0.9", &few);
    assert!(codes(&report).contains(&"few-samples"), "{report:?}");
    // Five inputs do not make a network of five directions.
    assert!(value(&report, "c", "rank") > 5.0);
    assert!(changed.node_ids().all(|id| changed.constant(ValueId::of(id)).is_none_or(Tensor::is_finite)));
}

#[test]
fn what_stays_whole_is_fitted_too_unless_it_is_excluded_or_nobody_wants_it() {
    let text = "graph @g(%x: f32[1,8,10,10]) -> (%y) {
       %w1 = f32[8,8,3,3] randn(seed=1)
       %a = Conv@first<pads=[1,1,1,1]>(%x, %w1)
       %r = Relu(%a)
       %w2 = f32[8,1,3,3] randn(seed=2)
       %d = Conv@depthwise<group=8, pads=[1,1,1,1]>(%r, %w2)
       %e = Concat<axis=1>(%d, %r)
       %s = f32[16] uniform(0.5, 1.5, seed=3)
       %m = f32[16] randn(seed=4)
       %v = f32[16] uniform(0.5, 1.5, seed=5)
       %n = BatchNormalization@norm(%e, %s, %m, %m, %v)
       %y = Relu(%n)
     }";
    let images = Images::new(&[1, 8, 10, 10], 40);
    let (refitted, report) = run(text, "factorize-conv:rank=3", &images);
    assert!(codes(&report).contains(&"refitted") && codes(&report).contains(&"statistics"), "{report:?}");
    let (left, report) = run(text, "factorize-conv:rank=3:refit=off", &images);
    assert!(!codes(&report).contains(&"refitted") && !codes(&report).contains(&"statistics"));
    let original = graph(text);
    // Statistics keep mean and variance, which is not the least error; the depthwise layer is fitted for that.
    let (no_norm, _) = run(text, "factorize-conv:rank=3:exclude=norm", &images);
    assert!(error(&original, &no_norm, &images) < error(&original, &left, &images));
    let bytes =
        |g: &Graph, name: &str| g.find_value(name).map(|v| g.constant(v).unwrap().to_bytes().unwrap());
    assert_eq!(bytes(&no_norm, "v"), bytes(&original, "v"));
    assert_ne!(print::print(&no_norm), print::print(&refitted));
    let weight = |g: &Graph, name: &str| g.constant(g.find_value(name).unwrap()).unwrap().to_bytes().unwrap();
    assert_eq!(weight(&left, "w2"), weight(&original, "w2"));
    let (excluded, report) = run(text, "factorize-conv:rank=3:exclude=depthwise|norm", &images);
    assert_eq!(weight(&excluded, "w2"), weight(&original, "w2"));
    assert!(!codes(&report).contains(&"statistics"));
}

#[test]
fn shared_weights_share_factors_and_transposed_convolutions_say_what_they_go_by() {
    let text = "graph @g(%x: f32[1,8,10,10]) -> (%y) {
       %w = f32[8,8,3,3] randn(seed=1)
       %a = Conv@first<pads=[1,1,1,1]>(%x, %w)
       %r = Relu(%a)
       %b = Conv@second<pads=[1,1,1,1]>(%r, %w)
       %v = f32[8,6,2,2] randn(seed=2)
       %y = ConvTranspose@up<strides=[2,2]>(%b, %v)
     }";
    let images = Images::new(&[1, 8, 10, 10], 30);
    let (changed, report) = run(text, "factorize-conv:rank=4", &images);
    assert!(codes(&report).contains(&"weights-only"), "{report:?}");
    assert_eq!(changed.n_nodes_named("second.basis"), 1);
    let readers = changed.find_value("w.basis").unwrap();
    assert_eq!(changed.n_readers(readers), 2);
}

/// Six layers of different sizes and spectra.
fn chain() -> String {
    let mut text = "graph @g(%x: f32[1,8,16,16]) -> (%y) {\n".to_owned();
    let mut from = "x".to_owned();
    for (i, (c, p)) in [(8, 16), (16, 16), (16, 24), (24, 32), (32, 32), (32, 24)].into_iter().enumerate() {
        text += &format!(" %w{i} = f32[{p},{c},3,3] randn(seed={i})\n");
        text += &format!(" %c{i} = Conv@conv{i}<pads=[1,1,1,1]>(%{from}, %w{i})\n %r{i} = Relu(%c{i})\n");
        from = format!("r{i}");
    }
    text + &format!(" %y = GlobalAveragePool(%{from})\n}}\n")
}

#[test]
fn budgets_are_met_from_below_as_closely_as_ranks_allow() {
    let images = Images::new(&[1, 8, 16, 16], 24);
    let whole = cost::of_pinned(&graph(&chain()), &[]);
    for (target, share) in [("macs", 0.36), ("macs", 0.7), ("params", 0.5), ("bytes", 0.25)] {
        let (changed, _) = run(
            &chain(),
            &format!("allocate-ranks:target={target}:{share},factorize-conv:refit=off"),
            &images,
        );
        let after = cost::of_pinned(&changed, &[]);
        let found = match target {
            "macs" => after.macs.unwrap() as f64 / whole.macs.unwrap() as f64,
            // Biases that the fit adds are not weights.
            _ => (after.params - (16 + 16 + 24 + 32 + 32 + 24)) as f64 / whole.params as f64,
        };
        // From below, by no more than the largest step of a single rank: (288 + 32) of 29,952 per position.
        assert!(found <= share + 1e-9 && found > share - 0.011, "{target} {share}: {found}");
        assert!(changed.metadata.keys().all(|k| !k.starts_with("basisopt.rank.")));
    }
    let mut g = graph(&chain());
    let wrong = try_run(&mut g, "allocate-ranks:target=macs:0.01", &images, usize::MAX, None).unwrap_err();
    assert!(wrong.to_string().contains("the least is"), "{wrong}");
}

#[test]
fn a_drop_of_accuracy_is_found_and_never_exceeded() {
    let images = Images::new(&[1, 8, 16, 16], 12);
    let whole = cost::of_pinned(&graph(&chain()), &[]).macs.unwrap();
    let mut judge = ByMacs { whole, n_scored: 0 };
    let mut changed = graph(&chain());
    let pipeline = "allocate-ranks:target=drop:2.0,factorize-conv";
    try_run(&mut changed, pipeline, &images, usize::MAX, Some(&mut judge)).unwrap();
    // Two points are lost at four tenths.
    let share = cost::of_pinned(&changed, &[]).macs.unwrap() as f64 / whole as f64;
    assert!((0.395..0.42).contains(&share), "{share}");
    assert_eq!(judge.n_scored, 8);

    let mut judge = ByMacs { whole, n_scored: 0 };
    let mut greedy = graph(&chain());
    let pipeline = "allocate-ranks:target=macs:0.6:by=greedy,factorize-conv";
    try_run(&mut greedy, pipeline, &images, usize::MAX, Some(&mut judge)).unwrap();
    assert!(cost::of_pinned(&greedy, &[]).macs.unwrap() as f64 <= 0.6 * whole as f64);
    assert!(judge.n_scored > 20);

    for target in ["drop:1", "macs:0.5:by=greedy"] {
        let wrong = try_run(
            &mut graph(&chain()),
            &format!("allocate-ranks:target={target}"),
            &images,
            usize::MAX,
            None,
        );
        assert!(wrong.unwrap_err().to_string().contains("cannot be judged"), "{target}");
    }
}

#[test]
fn what_cannot_be_read_or_run_is_an_error_and_ctrl_c_is_heard() {
    let mut broken = Images::new(&[1, 8, 16, 16], 12);
    broken.broken_at = Some(7);
    for pipeline in ["factorize-conv:rank=3", "factorize-conv:rank=3:method=output", "allocate-ranks"] {
        let wrong = try_run(&mut graph(&chain()), pipeline, &broken, usize::MAX, None).unwrap_err();
        assert!(wrong.to_string().contains("image 7.jpg is damaged"), "{wrong}");
    }
    let narrow = Images::new(&[1, 5, 16, 16], 12);
    assert!(try_run(&mut graph(&chain()), "factorize-conv:rank=3", &narrow, usize::MAX, None).is_err());
    let none = Images::new(&[1, 8, 16, 16], 0);
    assert!(try_run(&mut graph(&chain()), "factorize-conv:rank=3", &none, usize::MAX, None).is_err());

    let images = Images::new(&[1, 8, 16, 16], 12);
    for pipeline in ["factorize-conv:rank=3", "allocate-ranks"] {
        let pipeline = Pipeline::parse(pipeline, &Registry::builtin()).unwrap();
        let mut executor = FreshExecutor;
        let mut manager = Manager {
            executor: Some(&mut executor),
            host: &Stopped,
            is_checked: false,
            calibration: Some(Calibration { samples: &images, memory: usize::MAX }),
            ..Manager::default()
        };
        let stopped = manager.run(&mut graph(&chain()), &pipeline, &mut NoObserver);
        assert!(
            matches!(stopped, Err(ManagerError::Pass { source: PassError::Interrupted, .. })),
            "{stopped:?}"
        );
    }
}

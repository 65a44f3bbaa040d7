//! Random networks through random exact pipelines: the outputs stay, a second run finds nothing,
//! and what was written as ONNX is read back as it was.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use basisopt::ir::op::*;
use basisopt::ir::{DType, Dim, Generator, Graph, Node, Op, Tensor, Value, ValueId, ValueType, print};
use basisopt::{Manager, NoObserver, Pipeline, Registry};
use common::FreshExecutor;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Builds a small network from a list of choices.
struct Builder {
    graph: Graph,
    n: usize,
    seed: u64,
}

impl Builder {
    fn name(&mut self, stem: &str) -> String {
        self.n += 1;
        format!("{stem}{}", self.n)
    }

    fn constant(&mut self, shape: &[usize], generator: Generator) -> ValueId {
        let name = self.name("w");
        let tensor = Tensor::generated(DType::F32, shape.to_vec(), generator).unwrap();
        self.graph.add_constant(name, tensor)
    }

    fn randn(&mut self, shape: &[usize]) -> ValueId {
        self.seed += 1;
        let seed = self.seed;
        self.constant(shape, Generator::Uniform { low: -0.5, high: 0.5, seed })
    }

    fn positive(&mut self, shape: &[usize]) -> ValueId {
        self.seed += 1;
        let seed = self.seed;
        self.constant(shape, Generator::Uniform { low: 0.5, high: 1.5, seed })
    }

    fn node(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        let name = self.name("n");
        let value = Value { name: name.clone(), ty: ValueType::default() };
        let inputs: Vec<_> = inputs.iter().map(|&v| Some(v)).collect();
        ValueId::of(self.graph.add_node(Node::new(name, op.into(), vec![value]), &inputs))
    }

    /// Appends what `choice` stands for behind `x`, which has `channels` channels and keeps its
    /// spatial size.
    fn step(&mut self, choice: u8, x: ValueId, channels: &mut usize) -> ValueId {
        let c = *channels;
        let same = || Conv { pads: vec![1, 1, 1, 1], ..Conv::default() };
        match choice % 13 {
            0 => {
                *channels = 4 + (choice as usize / 13) % 3 * 2;
                let w = self.randn(&[*channels, c, 3, 3]);
                self.node(same(), &[x, w])
            }
            1 => {
                let (w, b) = (self.randn(&[c, 1, 3, 3]), self.randn(&[c]));
                self.node(Conv { group: c as i64, ..same() }, &[x, w, b])
            }
            2 => {
                let w = self.randn(&[c, c / 2, 1, 1]);
                self.node(Conv { group: 2, ..Conv::default() }, &[x, w])
            }
            3 | 4 => {
                let (scale, bias, mean, var) =
                    (self.randn(&[c]), self.randn(&[c]), self.randn(&[c]), self.positive(&[c]));
                self.node(BatchNormalization::default(), &[x, scale, bias, mean, var])
            }
            5 => self.node(Relu {}, &[x]),
            6 => self.node(Identity {}, &[x]),
            7 => self.node(Dropout::default(), &[x]),
            8 => {
                let w = self.randn(&[c, c, 1, 1]);
                let branch = self.node(Conv::default(), &[x, w]);
                self.node(Add::default(), &[x, branch])
            }
            9 => {
                // A scale that is computed from constants.
                let (a, b) = (self.randn(&[c, 1, 1]), self.randn(&[c, 1, 1]));
                let s = self.node(Mul::default(), &[a, b]);
                self.node(Mul::default(), &[x, s])
            }
            10 => {
                // Something that nobody reads.
                self.node(Sigmoid {}, &[x]);
                x
            }
            11 => {
                let w = self.randn(&[c, c, 3, 3]);
                self.node(ConvTranspose { pads: vec![1, 1, 1, 1], ..ConvTranspose::default() }, &[x, w])
            }
            _ => {
                let (kernel_shape, pads) = (vec![3, 3], vec![1, 1, 1, 1]);
                self.node(MaxPool { kernel_shape, pads, ..MaxPool::default() }, &[x])
            }
        }
    }
}

fn network(choices: &[u8]) -> Graph {
    let mut b = Builder { graph: Graph::new("random", 17), n: 0, seed: 0 };
    let shape = vec![Dim::symbol("N"), Dim::Known(4), Dim::Known(6), Dim::Known(5)];
    let mut x = b.graph.add_input("x", ValueType { dtype: Some(DType::F32), shape: Some(shape) });
    let mut channels = 4;
    for &choice in choices {
        x = b.step(choice, x, &mut channels);
    }
    // A last operator, so that the output is not the input.
    let y = b.node(Tanh {}, &[x]);
    b.graph.add_output(y);
    b.graph
}

const EXACT: [&str; 5] =
    ["fold-constants", "eliminate-identity", "fold-batch-norm", "merge-factors", "dead-code"];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::with_cases(48) })]

    #[test]
    fn exact_pipelines_keep_the_outputs(
        choices in prop::collection::vec(any::<u8>(), 1..9),
        passes in prop::collection::vec(0..EXACT.len(), 1..6),
    ) {
        let mut graph = network(&choices);
        let text = passes.iter().map(|&i| EXACT[i]).collect::<Vec<_>>().join(",");
        let pipeline = Pipeline::parse(&text, &Registry::builtin()).unwrap();
        let before = print::print(&graph);
        // The manager verifies around every pass and fails where outputs move by over 1e-4.
        let mut executor = FreshExecutor;
        let mut manager = Manager { executor: Some(&mut executor), ..Manager::default() };
        let report = manager.run(&mut graph, &pipeline, &mut NoObserver);
        let report = report.map_err(|e| TestCaseError::fail(format!("{text}: {e}\n{before}")))?;
        for pass in &report.passes {
            prop_assert!(!matches!(pass.check, basisopt::passes::Check::Impossible(_)), "{:?}", pass.check);
        }
        // One more run of the last pass finds nothing.
        let last = Pipeline::parse(EXACT[passes[passes.len() - 1]], &Registry::builtin()).unwrap();
        let again = Manager::default().run(&mut graph, &last, &mut NoObserver).unwrap();
        prop_assert_eq!(again.n_rewrites(), 0, "{} again:\n{}", text, print::print(&graph));

        let bytes = basisopt::onnx::export_new(&graph).unwrap();
        let model = basisopt::onnx::Model::from_bytes("random", bytes, None).unwrap();
        prop_assert_eq!(model.graph.n_nodes(), graph.n_nodes());
    }
}

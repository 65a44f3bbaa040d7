//! A rule of one's own: it looks at one node and proposes a rewrite; where, how often and whether that was honest is the
//! manager's affair.
//!
//! ```text
//! cargo run --release --no-default-features --example custom_rule
//! ```

#![allow(clippy::print_stdout, reason = "an example")]

use basisopt::ir::{Graph, NodeId, Op, Operand, Rewrite, ValueId};
use basisopt::{
    Fidelity, Model, OptimizeOptions, PassInfo, Pipeline, Proposal, Refusal, Rule, RulePass, optimize,
};

/// `Relu(Relu(x))` is `Relu(x)`.
#[derive(Clone, Copy, Debug)]
struct ReluOnce;

impl Rule for ReluOnce {
    fn rewrite(&self, graph: &Graph, at: NodeId) -> Result<Option<Proposal>, Refusal> {
        let (Op::Relu(_), Some(inner)) = (&graph.node(at).op, graph.node_input(at, 0)) else {
            return Ok(None);
        };
        if !matches!(graph.node(inner.node).op, Op::Relu(_)) {
            return Ok(None);
        }
        // A reason that users will read under --remarks; this one is only for show.
        if graph.is_output(inner) && graph.is_output(ValueId::of(at)) {
            return Err(Refusal::new("both-outputs", "both are outputs, and an output keeps its name"));
        }
        let mut rewrite = Rewrite::at(at);
        rewrite.replace(ValueId::of(at), Operand::Existing(inner));
        let message = format!("{} has clamped it already", graph.node(inner.node).label());
        Ok(Some(Proposal { rewrite, code: "clamped-before", message }))
    }
}

static INFO: PassInfo = PassInfo {
    name: "relu-once",
    summary: "one Relu is enough",
    fidelity: Fidelity::Exact,
    options: &[],
    build: |_| Ok(Box::new(RulePass { info: &INFO, rule: ReluOnce })),
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let text = "graph @g(%x: f32[1,3,8,8]) -> (%y) {\n  %a = Relu(%x)\n  %b = Relu(%a)\n  %y = Neg(%b)\n}\n";
    let mut model = Model::from_bytes("example", basisopt::onnx::export_new(&text.parse()?)?, None)?;
    let pipeline = Pipeline::default().then_pass(RulePass { info: &INFO, rule: ReluOnce });
    let done = optimize(&mut model, &pipeline, OptimizeOptions::default())?;
    for remark in done.report.remarks() {
        println!("{remark}");
    }
    print!("{}", basisopt::ir::print::print(&model.graph));
    Ok(())
}

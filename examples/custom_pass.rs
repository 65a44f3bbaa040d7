//! A pass of one's own, in a pipeline with those built in: it counts what it cannot do in remarks, as they do.
//!
//! ```text
//! cargo run --release --no-default-features --example custom_pass
//! ```

#![allow(clippy::print_stdout, reason = "an example")]

use basisopt::ir::{Graph, Op, Operand, Rewrite, ValueId};
use basisopt::{
    Fidelity, Model, OptimizeOptions, Outcome, Pass, PassContext, PassError, PassInfo, Pipeline, Registry,
    optimize,
};

/// Takes `Dropout` out, which does nothing in inference.
#[derive(Debug)]
struct RemoveDropout;

static INFO: PassInfo = PassInfo {
    name: "remove-dropout",
    summary: "take out Dropout, which does nothing in inference",
    fidelity: Fidelity::Exact,
    options: &[],
    build: |_| Ok(Box::new(RemoveDropout)),
};

impl Pass for RemoveDropout {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Outcome, PassError> {
        let mut n = 0;
        for id in graph.topological() {
            // Operators that the IR does not model are carried whole, with the name that the file has for them.
            if graph.node(id).op.op_type() != "Dropout" || matches!(graph.node(id).op, Op::Constant(_)) {
                continue;
            }
            let label = graph.node(id).label().to_owned();
            let Some(x) = graph.node_input(id, 0) else { continue };
            // The manager may allow only so many rewrites: bisection works by that.
            if !cx.spend() {
                break;
            }
            let mut rewrite = Rewrite::at(id);
            rewrite.replace(ValueId::of(id), Operand::Existing(x));
            rewrite.apply(graph).map_err(|source| PassError::Rewrite { node: label.clone(), source })?;
            cx.applied(&label, "removed", "does nothing in inference", &[]);
            n += 1;
        }
        Ok(Outcome::of(n))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let text = "graph @g(%x: f32[1,3,8,8]) -> (%y) {\n  \
                %w = f32[16,3,3,3] lowrank(2, seed=1)\n  \
                %c = Conv<pads=[1,1,1,1]>(%x, %w)\n  \
                %d = Dropout(%c)\n  \
                %y = Relu(%d)\n}\n";
    let bytes = basisopt::onnx::export_new(&text.parse()?)?;
    let mut model = Model::from_bytes("example", bytes, None)?;

    // By name, beside the built-in ones …
    let registry = Registry::builtin().with(&INFO);
    let pipeline = Pipeline::parse("remove-dropout,factorize-conv:energy=0.99", &registry)?;
    let done = optimize(&mut model, &pipeline, OptimizeOptions::default())?;
    for remark in done.report.remarks() {
        println!("{remark}");
    }
    // … or as a value: `Pipeline::default().then_pass(RemoveDropout)`.
    print!("{}", basisopt::ir::print::print(&model.graph));
    Ok(())
}

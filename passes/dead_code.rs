//! `dead-code`: removes nodes whose values nobody reads.
//!
//! ## Rewrite
//!
//! ```text
//! %a = Relu(%x)
//! %b = Exp(%x)          // nobody reads %b
//! ```
//! becomes
//! ```text
//! %a = Relu(%x)
//! ```
//!
//! ## Legality
//!
//! - Graph inputs stay: they are the network's interface (`input-stays.bir`).
//! - A node one of whose outputs is read, by a slot, by a body that names it or as a graph output,
//!   stays whole (`captured-stays.bir`,
//!   `output-stays.bir`, `second-output.bir`).
//! - Constants that a caller may override stay: they are inputs too (`overridable-stays.bir`).
//!
//! ONNX operators have no side effects; the random ones do not count as having any.
//!
//! ## Numerics
//!
//! None: what is computed for the outputs is untouched, bit for bit.
//!
//! ## Options
//!
//! None.
//!
//! ## Pipeline
//!
//! Run last. Other passes take the constants that they replace with them; what they leave is what
//! was dead before.

use crate::driver::options::Options;
use crate::driver::pass::{Fidelity, Outcome, Pass, PassContext, PassError, PassInfo};
use basisopt_ir::{Graph, NodeId, Op, ValueId};

/// The pass `dead-code`: `docs/passes.md` shows what it does, `basisopt passes dead-code` has its options.
pub static INFO: PassInfo = PassInfo {
    name: "dead-code",
    summary: "remove nodes and weights whose values nobody reads",
    fidelity: Fidelity::Exact,
    options: &[],
    build: |_: &Options| Ok(Box::new(DeadCode)),
};

#[derive(Debug)]
struct DeadCode;

impl Pass for DeadCode {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Outcome, PassError> {
        let mut n = 0;
        // Readers come after what they read, so one walk from the back sees every death.
        for id in graph.topological().into_iter().rev() {
            if !is_dead(graph, id) {
                continue;
            }
            if !cx.spend() {
                break;
            }
            let label = graph.node(id).label().to_owned();
            let op_type = graph.node(id).op.op_type().to_owned();
            graph.remove_node(id);
            cx.applied(&label, "dead", format!("removed the {op_type}: nobody reads it"), &[]);
            n += 1;
        }
        Ok(Outcome::of(n))
    }
}

fn is_dead(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let n_ports = node.outputs.len() as u32;
    !matches!(node.op, Op::Input)
        && !node.overridable
        && (0..n_ports).all(|port| graph.n_readers(ValueId { node: id, port }) == 0)
}

//! `freeze-weights`: makes plain constants of weights that are graph inputs too.
//!
//! Since ONNX IR version 4 an initializer that is listed among the inputs is a default, which a caller
//! may override. Exporters of that time listed all of them out of habit, and no pass may touch such a
//! weight. Whoever knows that nobody overrides them says so with this pass.
//!
//! ## Rewrite
//!
//! ```text
//! %w = overridable f32[8,4,3,3] randn(seed=1)
//! ```
//! becomes
//! ```text
//! %w = f32[8,4,3,3] randn(seed=1)
//! ```
//! and the input of that name goes; the initializer stays as it is.
//!
//! ## Legality
//!
//! - Inputs without a default stay inputs (`inputs-stay.bir`), and so do weights that `include` and
//!   `exclude` leave out (`excluded.bir`).
//!
//! The network loses inputs that a caller could leave out. It computes the same for every caller that
//! did leave them out.
//!
//! ## Numerics
//!
//! None.
//!
//! ## Options
//!
//! - `include`, `exclude`: globs over the names of the weights.
//!
//! ## Pipeline
//!
//! Run first, where remarks say `overridable-weight`. `compress` does.

use crate::driver::options::{Globs, OptionKind, OptionSpec};
use crate::driver::pass::{Fidelity, Outcome, Pass, PassContext, PassError, PassInfo};
use basisopt_ir::Graph;

/// The pass `freeze-weights`: `docs/passes.md` shows what it does, `basisopt passes freeze-weights` has its options.
pub static INFO: PassInfo = PassInfo {
    name: "freeze-weights",
    summary: "make plain constants of weights that are also graph inputs",
    fidelity: Fidelity::Exact,
    options: &[
        OptionSpec {
            name: "include",
            kind: OptionKind::Globs,
            default: "every weight",
            help: "only weights whose name matches (globs joined by |)",
        },
        OptionSpec {
            name: "exclude",
            kind: OptionKind::Globs,
            default: "no weight",
            help: "not the weights whose name matches (globs joined by |)",
        },
    ],
    build: |options| {
        Ok(Box::new(FreezeWeights { include: options.globs("include"), exclude: options.globs("exclude") }))
    },
};

#[derive(Debug)]
struct FreezeWeights {
    include: Option<Globs>,
    exclude: Option<Globs>,
}

impl Pass for FreezeWeights {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Outcome, PassError> {
        let mut n = 0;
        for id in graph.topological() {
            let name = graph.node(id).label().to_owned();
            let wanted = self.include.as_ref().is_none_or(|g| g.matches(&name))
                && !self.exclude.as_ref().is_some_and(|g| g.matches(&name));
            if !graph.node(id).overridable || !wanted {
                continue;
            }
            if !cx.spend() {
                break;
            }
            graph.freeze(id);
            cx.applied(&name, "frozen", "a caller can no longer override it", &[]);
            n += 1;
        }
        Ok(Outcome::of(n))
    }
}

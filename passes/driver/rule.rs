//! Local rewrite rules and the loop that applies them.

use crate::driver::pass::{Outcome, Pass, PassContext, PassError, PassInfo};
use crate::driver::remark::Refusal;
use basisopt_ir::{Graph, NodeId, Rewrite, infer};

/// What a rule proposes: the rewrite and the remark that goes with it.
#[derive(Debug)]
pub struct Proposal {
    /// The change.
    pub rewrite: Rewrite,
    /// A short stable code for the remark.
    pub code: &'static str,
    /// What was done, for people.
    pub message: String,
}

/// A rule looks at one node and proposes a rewrite; it never changes the graph itself.
pub trait Rule {
    /// The proposal at this node; `None` where the pattern does not match.
    ///
    /// # Errors
    /// A [`Refusal`] where it matches but the rewrite would not be legal or would not pay.
    fn rewrite(&self, graph: &Graph, at: NodeId) -> Result<Option<Proposal>, Refusal>;
}

/// A rule as a pass: applied everywhere, until it finds nothing more.
///
/// ```
/// use basisopt_ir::{Graph, NodeId, Op, Operand, Rewrite, ValueId, op};
/// use basisopt_passes::{Fidelity, Manager, NoObserver, PassInfo, Pipeline, Proposal, Refusal, Rule, RulePass};
///
/// /// `Neg(Neg(x))` is `x`.
/// #[derive(Clone, Copy, Debug)]
/// struct DoubleNegation;
///
/// impl Rule for DoubleNegation {
///     fn rewrite(&self, graph: &Graph, at: NodeId) -> Result<Option<Proposal>, Refusal> {
///         let inner = match (&graph.node(at).op, graph.node_input(at, 0)) {
///             (Op::Neg(_), Some(v)) if matches!(graph.node(v.node).op, Op::Neg(_)) => v.node,
///             _ => return Ok(None),
///         };
///         let Some(x) = graph.node_input(inner, 0) else { return Ok(None) };
///         let mut rewrite = Rewrite::at(at);
///         rewrite.replace(ValueId::of(at), Operand::Existing(x));
///         Ok(Some(Proposal { rewrite, code: "cancelled", message: "two negations cancel".to_owned() }))
///     }
/// }
///
/// static INFO: PassInfo = PassInfo {
///     name: "double-negation",
///     summary: "remove two negations in a row",
///     fidelity: Fidelity::Exact,
///     options: &[],
///     build: |_| Ok(Box::new(RulePass { info: &INFO, rule: DoubleNegation })),
/// };
///
/// let text = "graph @g(%x: f32[2]) -> (%y) {\n  %a = Abs(%x)\n  %n = Neg(%a)\n  %m = Neg(%n)\n  %y = Relu(%m)\n}\n";
/// let mut graph: Graph = text.parse()?;
/// let pipeline = Pipeline::default().then_pass(RulePass { info: &INFO, rule: DoubleNegation });
/// let report = Manager::default().run(&mut graph, &pipeline, &mut NoObserver)?;
/// assert_eq!(report.n_rewrites(), 1);
/// # let _ = op::Neg {};
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RulePass<R> {
    /// What there is to know about the pass.
    pub info: &'static PassInfo,
    /// What it applies.
    pub rule: R,
}

impl<R: Rule + std::fmt::Debug + Send + Sync> Pass for RulePass<R> {
    fn info(&self) -> &'static PassInfo {
        self.info
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Outcome, PassError> {
        apply_everywhere(&self.rule, graph, cx)
    }
}

/// Applies a rule everywhere, again and again until it finds nothing more. Refusals of the last
/// round become remarks.
///
/// # Errors
/// [`PassError::Rewrite`] if the rule proposed an impossible rewrite, [`PassError::Interrupted`].
pub fn apply_everywhere(
    rule: &dyn Rule,
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
) -> Result<Outcome, PassError> {
    let mut total = 0;
    loop {
        let (mut n, mut refusals) = (0, Vec::new());
        // A node is remembered with the name of its first value: its number may by then belong to
        // another node, the name may not.
        let name = |g: &Graph, id| g.get(id).and_then(|n| n.outputs.first()).map(|v| v.name.clone());
        let nodes: Vec<_> = graph.topological().into_iter().map(|id| (id, name(graph, id))).collect();
        for (id, seen_as) in nodes {
            if cx.host.interrupted() {
                return Err(PassError::Interrupted);
            }
            if graph.get(id).is_none() || name(graph, id) != seen_as {
                continue;
            }
            let label = graph.node(id).label().to_owned();
            match rule.rewrite(graph, id) {
                Ok(None) => {}
                Err(refusal) => refusals.push((label, refusal)),
                Ok(Some(proposal)) => {
                    if !cx.spend() {
                        return Ok(Outcome::of(total + n));
                    }
                    let Proposal { rewrite, code, message } = proposal;
                    rewrite
                        .apply(graph)
                        .map_err(|source| PassError::Rewrite { node: label.clone(), source })?;
                    cx.applied(&label, code, message, &[]);
                    n += 1;
                }
            }
        }
        total += n;
        if n == 0 {
            for (label, refusal) in refusals {
                cx.refused(&label, refusal);
            }
            return Ok(Outcome::of(total));
        }
        // The next round sees what this one made known: a folded shape, the type of a new value. A
        // contradiction is for the verifier to report, which runs after every pass.
        let _ = infer::infer(graph);
    }
}

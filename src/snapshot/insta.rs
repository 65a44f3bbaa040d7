//! Assertions for Rust tests that keep their snapshots with [`insta`](https://insta.rs), reviewed with `cargo insta`.
//!
//! [`assert_graph!`](crate::assert_graph) is for tests of passes: the graph as `.bir`, every norm as `[norm]`, so that the text is the
//! same whatever computed the weights. [`assert_snapshot!`](crate::assert_snapshot) is for tests of whole pipelines: the numbers stay, and are
//! compared as [`compare()`] does.
//!
//! ```
//! use basisopt_passes::{Manager, NoObserver, Pipeline, Registry};
//!
//! let mut graph = basisopt_ir::parse::parse(
//!     "graph @g(%x: f32[1,3,8,8]) -> (%y) {
//!        %w = f32[16,3,3,3] lowrank(2, seed=1)
//!        %y = Conv<pads=[1,1,1,1]>(%x, %w)
//!      }",
//! )?;
//! let pipeline = Pipeline::parse("factorize-conv:rank=2", &Registry::builtin())?;
//! Manager::default().run(&mut graph, &pipeline, &mut NoObserver)?;
//! assert_eq!(
//!     basisopt_snapshot::insta::graph_text(&graph),
//!     "graph @g(%x: f32[1,3,8,8]) -> (%y) {
//!   %w.basis = f32[2,3,3,3] norm [norm]
//!   %y.basis: f32[1,2,8,8] = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(%x, %w.basis)
//!   %w.coefficients = f32[16,2,1,1] norm [norm]
//!   %y: f32[1,16,8,8] = Conv@y.coefficients<kernel_shape=[1,1]>(%y.basis, %w.coefficients)
//! }
//! "
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::compare::compare;
use crate::numbers::{self, Kind};
use basisopt_ir::Graph;

/// The crate, for the macros.
#[doc(hidden)]
pub use ::insta as reexported;

/// The graph as `.bir` text, redacted.
pub fn graph_text(graph: &Graph) -> String {
    redacted(&basisopt_ir::print::print(graph))
}

/// A text with `[norm]`, `[value]` and `[number]` in place of the norms, listed constants and other numbers that were
/// computed in floating point.
pub fn redacted(text: &str) -> String {
    let word = |kind| match kind {
        Kind::Norm => "[norm]",
        Kind::Listed(_) => "[value]",
        Kind::Printed => "[number]",
    };
    text.split_inclusive('\n').map(|line| numbers::replace(line, &numbers::find(line), word)).collect()
}

/// Settings under which `insta` takes texts for equal that differ by rounding noise only.
pub fn settings() -> ::insta::Settings {
    let mut settings = ::insta::Settings::clone_current();
    settings.set_comparator(Box::new(WithoutNoise));
    settings
}

/// Compares texts as [`compare()`] does.
#[derive(Clone, Copy, Debug, Default)]
pub struct WithoutNoise;

impl ::insta::Comparator for WithoutNoise {
    fn matches(&self, reference: &::insta::Snapshot, test: &::insta::Snapshot) -> bool {
        match (reference.as_text(), test.as_text()) {
            (Some(a), Some(b)) => compare(&a.to_string(), &b.to_string()).is_equal(),
            _ => ::insta::DefaultComparator.matches(reference, test),
        }
    }

    fn dyn_clone(&self) -> Box<dyn ::insta::Comparator> {
        Box::new(*self)
    }
}

/// Asserts that a graph is as in the snapshot beside the test, norms left out: `assert_graph!(graph)`, or
/// `assert_graph!("name", graph)`.
#[macro_export]
macro_rules! assert_graph {
    ($graph:expr $(,)?) => {
        $crate::insta::reexported::assert_snapshot!($crate::insta::graph_text(&$graph))
    };
    ($name:expr, $graph:expr $(,)?) => {
        $crate::insta::reexported::assert_snapshot!($name, $crate::insta::graph_text(&$graph))
    };
}

/// Asserts that a [`Snapshot`](crate::Snapshot), or any text, is as in the snapshot beside the test, rounding noise
/// left aside: `assert_snapshot!(snapshot)`, or `assert_snapshot!("name", snapshot)`.
#[macro_export]
macro_rules! assert_snapshot {
    ($snapshot:expr $(,)?) => {
        $crate::insta::settings().bind(|| $crate::insta::reexported::assert_snapshot!($snapshot.to_string()))
    };
    ($name:expr, $snapshot:expr $(,)?) => {
        $crate::insta::settings()
            .bind(|| $crate::insta::reexported::assert_snapshot!($name, $snapshot.to_string()))
    };
}

//! Snapshot tests of networks: what a pipeline makes of a model, as text that is checked in and compared in CI.
//!
//! A [`Snapshot`] is the canonical `.bir` text of the resulting graph under a head of comments: the model and the
//! pipeline, what each pass remarked, what was noted in the model's metadata, and the cost of every layer before and
//! after. It has no values of weights, and nothing in it depends on the machine but the last digit of some norms and
//! shares, which [`compare()`] knows how to overlook.
//!
//! ```
//! use basisopt_snapshot::{Settings, Snapshot, compare};
//!
//! let network = b"graph @g(%x: f32[1,3,8,8]) -> (%y) {
//!   %w = f32[16,3,3,3] lowrank(2, seed=1)
//!   %y = Conv<pads=[1,1,1,1]>(%x, %w)
//! }";
//! let take = |pipeline| Snapshot::of_bytes("g.bir", &network[..], None, pipeline, &Settings::default());
//! let stored = take("factorize-conv:rank=2")?;
//! assert!(compare(stored.text(), take("factorize-conv:rank=2")?.text()).is_equal());
//! assert!(!compare(stored.text(), take("factorize-conv:rank=1")?.text()).is_equal());
//! # Ok::<(), basisopt_snapshot::SnapshotError>(())
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`snapshot`] | snapshots and how they are taken |
//! | [`mod@compare`] | comparison without noise, diffs |
//! | [`spec`] | the TOML file that lists models and pipelines |
//! | [`suite`] | all cases of such a file: checked, accepted, orphans found |
//! | [`junit`] | the outcome for CI servers |
//! | `insta` | assertions for Rust tests, behind the feature of that name |
//!
//! `docs/snapshots.md` is the guide for users.

pub mod compare;
mod cost;
pub mod error;
mod files;
#[cfg(feature = "insta")]
pub mod insta;
pub mod junit;
mod numbers;
mod shapes;
pub mod snapshot;
pub mod spec;
pub mod suite;

pub use compare::{Comparison, compare};
pub use error::SnapshotError;
pub use snapshot::{FORMAT, Settings, Snapshot};
pub use spec::{Case, FILE_NAME, Spec};
pub use suite::{Accepted, Outcome, Report, RunOptions, Status, Suite};

//! `reconstruct`: each block of the network is trained for a moment to give what the original's block gives, fed by the
//! compressed blocks before it (Li and others, BRECQ, 2021, for another kind of compression).
//!
//! ## Rewrite
//!
//! Constants get new values, as in `fine-tune`. No labels are needed, and a block at a time is in memory.
//!
//! ## Legality
//!
//! - There are images, and the original.
//! - A block begins and ends at a value that everything after it depends on through that value alone, and that the
//!   original has by the same name. Where there is none in the middle of the network, the whole network is one block.
//! - A block holds at least `pairs` factored layers; blocks without any are passed over.
//! - Every operator of a block has a gradient; a block with one that has none is left alone, with a remark
//!   (`no-gradient.bir`). A constant that other blocks read as well is not trained.
//! - Where no layer is factored, or there are fewer than sixteen images, there is nothing to do; a remark says so.
//!
//! ## Numerics
//!
//! The loss is the mean squared difference of the block's output from the original's, over the variance of that. An eighth
//! of the images is kept apart; a block is left as it was if training made it worse on these. Bases are made orthonormal
//! again at the end.
//!
//! ## Options
//!
//! See `basisopt passes reconstruct`.
//!
//! ## Pipeline
//!
//! After the factorising passes, before `fine-tune`.

mod blocks;
mod cached;

use crate::driver::options::{OptionError, OptionKind, OptionSpec, Options};
use crate::driver::pass::{Fidelity, Host, Outcome, Pass, PassContext, PassError, PassInfo};
use crate::driver::remark::Refusal;
use crate::training::parameters::{self, Trained, write};
use crate::training::{self, GOAL, Scorer};
use basisopt_ir::{Graph, NodeId};
use basisopt_train::examples::Augmentation;
use basisopt_train::fit::fit;
use basisopt_train::optimizer::{Method, Schedule};
use basisopt_train::statistics;
use basisopt_train::task::{Objective, Reference, Task, TrainError};
use basisopt_train::trainer::Trainer;
use basisopt_train::watch::{Epoch, FitError, FitOptions, Length, Progress, Watch};
use blocks::{Block, blocks, extract};
use cached::{Cached, Part};
use std::collections::BTreeMap;

/// The pass `reconstruct`: `docs/passes.md` shows what it does, `basisopt passes reconstruct` has its options.
pub static INFO: PassInfo = PassInfo {
    name: "reconstruct",
    summary: "train each block against the original's: no labels, little memory",
    fidelity: Fidelity::Trained,
    options: OPTIONS,
    build: |options| Ok(Box::new(Reconstruct::read(options)?)),
};

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "images",
        kind: OptionKind::Int { min: 16 },
        default: "2048, or what 512 MiB of activations hold",
        help: "images to train on, at most",
    },
    OptionSpec {
        name: "epochs",
        kind: OptionKind::Float { min: 0.0, max: f64::INFINITY },
        default: "10",
        help: "passes over these images, for each block",
    },
    OptionSpec {
        name: "rate",
        kind: OptionKind::Float { min: 0.0, max: f64::INFINITY },
        default: "0.001",
        help: "peak rate of AdamW; falls to zero by half a cosine",
    },
    OptionSpec { name: "batch", kind: OptionKind::Int { min: 1 }, default: "32", help: "images per step" },
    OptionSpec {
        name: "pairs",
        kind: OptionKind::Int { min: 1 },
        default: "2",
        help: "factored layers in a block, at least",
    },
    GOAL,
];

/// Images, where the option does not say.
const IMAGES: usize = 2048;
/// Fewer than this teach nothing.
const FEWEST: usize = 16;
/// Bytes of activations that are kept, at most.
const MAX_BYTES: usize = 512 << 20;

#[derive(Debug)]
struct Reconstruct {
    images: Option<usize>,
    pairs: usize,
    goal: Option<f64>,
    fit: FitOptions,
}

impl Reconstruct {
    fn read(options: &Options) -> Result<Self, OptionError> {
        let rate = options.float("rate").unwrap_or(1e-3);
        let epochs = options.float("epochs").unwrap_or(10.0);
        if rate == 0.0 || !rate.is_finite() || !epochs.is_finite() {
            let message = "rate=0 learns nothing, and neither rate nor epochs can be infinite".to_owned();
            return Err(OptionError::Conflict { pass: INFO.name.to_owned(), message });
        }
        let fit = FitOptions {
            length: Length::Epochs(epochs),
            batch: options.int("batch").unwrap_or(32),
            method: Method::AdamW { betas: (0.9, 0.999), epsilon: 1e-8 },
            rate,
            schedule: Schedule::Cosine,
            warmup: 0.5,
            weight_decay: 0.0,
            clip: None,
            augmentation: Augmentation::default(),
            patience: None,
            seed: 0,
        };
        Ok(Self {
            images: options.int("images"),
            pairs: options.int("pairs").unwrap_or(2),
            goal: training::goal(options),
            fit,
        })
    }
}

/// What came of a block.
enum Done {
    /// Relative squared error on images kept apart, before and after.
    Trained(f64, f64),
    /// Why it was left alone.
    Skipped(Refusal),
}

impl Pass for Reconstruct {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Outcome, PassError> {
        let Some(training) = cx.training.take() else { return Err(PassError::Missing(NO_IMAGES.to_owned())) };
        let Some(original) = training.original else {
            return Err(PassError::Missing("there is no original network to imitate".to_owned()));
        };
        if !cx.spend() {
            return Ok(Outcome::Unchanged);
        }
        let image = training.examples.shape();
        let mut network = graph.clone();
        training::pin(&mut network, image)?;
        let original = training::folded(original, image)?;
        let scorer = Scorer::new(&network, Some(&original), training.validation)?;
        let start = scorer.as_ref().map(|s| s.standing(&network)).transpose()?;
        if training::is_met(self.goal, start.as_ref(), cx)? {
            return Ok(Outcome::Unchanged);
        }
        let pairs = parameters::pairs(graph);
        if pairs.is_empty() {
            cx.note("", "no-pairs", "nothing to do: no layer is factored");
            return Ok(Outcome::Unchanged);
        }
        let blocks = blocks(&network, &original, &pairs, self.pairs);
        let widest = blocks.iter().map(|b| b.widest(&network)).max().unwrap_or(1);
        let n = MAX_BYTES / (4 * size_of::<f32>() * widest.max(image.len()));
        let n = self.images.unwrap_or(IMAGES.min(n.max(16))).min(training.examples.len());
        if n < FEWEST {
            let text = format!("{n} images are too few to reconstruct from; {FEWEST} are needed");
            cx.refused("", Refusal::new("too-few-images", text));
            return Ok(Outcome::Unchanged);
        }
        let mut data = Cached::some(training.examples, n).map_err(FitError::from)?;
        let mut values = BTreeMap::new();
        let (mut before, mut after, mut n_trained) = (0.0, 0.0, 0);
        for (i, block) in blocks.iter().enumerate() {
            cx.host.progress(
                i,
                blocks.len(),
                &format!("block {} of {}: up to {}", i + 1, blocks.len(), block.end),
            );
            match self.block(&network, &original, block, &pairs, &mut data, &mut values, cx)? {
                Done::Trained(from, to) => {
                    cx.applied(
                        &block.end,
                        "block",
                        format!("relative squared error {from:.4} → {to:.4} on images kept apart"),
                        &[("error_before", from), ("error", to)],
                    );
                    (before, after, n_trained) = (before + from, after + to, n_trained + 1);
                }
                Done::Skipped(refusal) => cx.refused(&block.end, refusal),
            }
        }
        let written = write(graph, &values)?;
        if written == 0 {
            return Ok(Outcome::Unchanged);
        }
        parameters::orthonormalise(graph, &pairs)?;
        let mut network = graph.clone();
        training::pin(&mut network, image)?;
        let per_block = 1.0 / f64::from(n_trained.max(1));
        let mut numbers = vec![("error_before", before * per_block), ("error", after * per_block)];
        let mut text = format!(
            "{n_trained} of {} blocks trained on {n} images: mean relative squared error {:.4} → {:.4}",
            blocks.len(),
            before * per_block,
            after * per_block
        );
        if let Some((scorer, start)) = scorer.as_ref().zip(start) {
            let end = scorer.standing(&network)?;
            let (from, to) = (100.0 * start.score, 100.0 * end.score);
            text += &format!("; {} on validation images {from:.2} % → {to:.2} %", end.measure());
            numbers.extend(training::scores(&start, &end));
        }
        cx.applied("", "reconstructed", text, &numbers);
        Ok(Outcome::of(written))
    }
}

const NO_IMAGES: &str = "there are no images to train on: give --train PATH (opt) or --data PATH (compress)";

impl Reconstruct {
    /// Trains one block, and moves on to what the next one is given.
    #[allow(
        clippy::too_many_arguments,
        reason = "two networks, the block, and what goes from block to block"
    )]
    fn block(
        &self,
        network: &Graph,
        original: &Graph,
        block: &Block,
        pairs: &[(NodeId, NodeId)],
        data: &mut Cached,
        values: &mut BTreeMap<String, Vec<f32>>,
        cx: &PassContext<'_>,
    ) -> Result<Done, PassError> {
        let fail = |e: TrainError| PassError::from(FitError::from(e));
        let mut ours = extract(network, block)?;
        let theirs = extract(original, block)?;
        let expected = statistics::values(&theirs, &block.end, &data.original()).map_err(fail)?;
        data.set_targets(expected);
        let trained = match block.has_pairs(pairs) {
            true => self.train((network, &ours), block, pairs, data, cx)?,
            false => None,
        };
        let done = match trained {
            Some(Ok((new, from, to))) => {
                write(&mut ours, &new)?;
                values.extend(new);
                Done::Trained(from, to)
            }
            Some(Err(refusal)) => Done::Skipped(refusal),
            None => Done::Skipped(Refusal::new("no-pairs", "no layer of it is factored")),
        };
        let given = statistics::values(&ours, &block.end, &data.compressed()).map_err(fail)?;
        data.advance(given, &ours, &block.end);
        Ok(done)
    }

    /// New values, and the error before and after; or why the block is left alone.
    #[allow(clippy::type_complexity, reason = "the values, and two numbers about them")]
    fn train(
        &self,
        (network, ours): (&Graph, &Graph),
        block: &Block,
        pairs: &[(NodeId, NodeId)],
        data: &Cached,
        cx: &PassContext<'_>,
    ) -> Result<Option<Result<(BTreeMap<String, Vec<f32>>, f64, f64), Refusal>>, PassError> {
        let kept_apart = (data.len() / 8).max(1);
        let (train, rest) =
            (Part::new(data, 0..data.len() - kept_apart), data.len() - kept_apart..data.len());
        let validation = Part::new(data, rest);
        let variance = data.target_variance();
        #[allow(clippy::cast_possible_truncation, reason = "a scale")]
        let scale = (variance as f32).max(1e-12);
        let Ok(mut trained) = parameters::find(ours, Trained::All, pairs) else { return Ok(None) };
        // What other blocks read as well is not this one's to change.
        let readers = |graph: &Graph, name: &str| graph.find_value(name).map(|v| graph.n_readers(v));
        trained.retain(|name| readers(ours, name) == readers(network, name));
        let task = Task {
            network: ours,
            reference: Reference::Examples,
            objectives: vec![(Objective::Match { value: block.end.clone(), scale }, 1.0)],
            parameters: trained,
            logits: None,
            norms: vec![],
            frames: vec![],
        };
        let mut trainer = match Trainer::new(&task) {
            Ok(trainer) => trainer,
            Err(e @ (TrainError::Differentiate(_) | TrainError::Compile(_) | TrainError::Nothing)) => {
                return Ok(Some(Err(Refusal::new("no-gradient", e.to_string()))));
            }
            Err(e) => return Err(FitError::from(e).into()),
        };
        let mut options = self.fit.clone();
        options.seed = cx.seed;
        let mut silent = Silent { host: cx.host };
        let fitted = match fit(&mut trainer, &train, &validation, &options, "", None, &mut silent) {
            Err(e @ FitError::Diverged { .. }) => {
                return Ok(Some(Err(Refusal::new("diverged", e.to_string()))));
            }
            other => other?,
        };
        if fitted.interrupted {
            return Err(PassError::Interrupted);
        }
        let before = fitted.history.first().map_or(0.0, |e| e.validation.loss);
        let names = trainer.parameters().iter().cloned();
        let values = names.zip(trainer.values().iter().cloned()).collect();
        Ok(Some(Ok((values, before, fitted.best.loss))))
    }
}

/// Training that nobody looks at: a block takes seconds.
struct Silent<'a> {
    host: &'a dyn Host,
}

impl Watch for Silent<'_> {
    fn step(&mut self, _: &Progress) {}
    fn epoch(&mut self, _: &Epoch) {}
    fn note(&mut self, _: &str) {}
    fn seconds(&mut self) -> f64 {
        0.0
    }
    fn stops(&mut self) -> bool {
        self.host.interrupted()
    }
    fn wants_checkpoint(&mut self) -> bool {
        false
    }
    fn keep(&mut self, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

//! A run of training: epochs, validation, checkpoints, recovery.

use crate::checkpoint::{self, CheckpointError};
use crate::examples::{Augmentation, Chunk, Examples, mix, order};
use crate::optimizer::{Optimizer, clip};
use crate::task::{Tally, TrainError};
use crate::trainer::Trainer;
use crate::watch::{Epoch, FitError, FitOptions, Fitted, Length, Progress, Score, Watch};
use basisopt_kernels::LANES;
use serde::{Deserialize, Serialize};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

/// Batches that are read ahead.
const AHEAD: usize = 3;
/// How often a run that diverges is taken up again with a smaller step.
const RECOVERIES: u32 = 5;

/// Images that the statistics of normalisations are measured over, at most, and bytes of them.
const MEASURED: usize = 2048;
/// See [`MEASURED`].
const MEASURED_BYTES: usize = 64 << 20;

/// Everything that a run goes on from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub step: u64,
    /// Steps in all.
    pub n_steps: u64,
    /// Factor on the rate: halved when a run diverges.
    pub rate_scale: f64,
    pub n_recoveries: u32,
    pub values: Vec<Vec<f32>>,
    pub optimizer_steps: u64,
    pub moments: Vec<Vec<f32>>,
    pub best: Vec<Vec<f32>>,
    pub best_score: Score,
    pub since_best: u32,
    /// Of the epoch that has begun.
    pub loss: f64,
    pub n_images: u64,
    pub n_hits: u64,
    pub n_labelled: u64,
    pub history: Vec<Epoch>,
}

/// Trains until the epochs are over, the watcher stops it, or nothing gets better.
///
/// `key` names the run in checkpoints: everything that must be the same for one to be resumed. The trainer is left
/// with the best version's parameters, or where the run was interrupted with the last one's.
///
/// # Errors
/// [`FitError`]; the last checkpoint that was kept is good then.
pub fn fit(
    trainer: &mut Trainer,
    examples: &dyn Examples,
    validation: &dyn Examples,
    options: &FitOptions,
    key: &str,
    resume: Option<&[u8]>,
    watch: &mut dyn Watch,
) -> Result<Fitted, FitError> {
    check(trainer, examples, validation, options)?;
    let steps_per_epoch = examples.len().div_ceil(options.batch).max(1) as u64;
    let is_matrix = |shape: &[usize]| shape.iter().filter(|&&d| d > 1).count() > 1;
    let decays: Vec<bool> =
        trainer.shapes().enumerate().map(|(i, s)| is_matrix(s) && !trainer.is_frame(i)).collect();
    let measured = match trainer.has_norms() {
        true => {
            let n = MEASURED.min(MEASURED_BYTES / (size_of::<f32>() * trainer.image_len().max(1)));
            Chunk::first(examples, n.max(4 * LANES)).map_err(TrainError::Data)?
        }
        false => vec![],
    };
    let sizes: Vec<usize> = trainer.values().iter().map(Vec::len).collect();
    let mut optimizer = Optimizer::new(options.method, options.weight_decay, &sizes);
    let key = format!("{key}\n{options:?}\n{} {}", examples.len(), validation.len());

    let mut state = match resume {
        Some(bytes) => {
            let state = checkpoint::read(bytes, &key)?;
            if !optimizer.restore(state.optimizer_steps, state.moments.clone()) {
                return Err(CheckpointError::Other.into());
            }
            trainer.values_mut().clone_from_slice(&state.values);
            trainer.changed();
            state
        }
        None => {
            let started = watch.seconds();
            let score = Score::of(&validate(trainer, &measured, validation)?);
            let epoch =
                Epoch { epoch: 0.0, loss: None, accuracy: None, validation: score, is_best: true, rate: 0.0 };
            watch.epoch(&epoch);
            let validation_seconds = watch.seconds() - started;
            #[allow(clippy::cast_precision_loss, reason = "a count")]
            let per_epoch = steps_per_epoch as f64;
            let n_steps = match options.length {
                Length::Epochs(epochs) => whole(epochs * per_epoch),
                Length::Minutes(minutes) => {
                    let step = step_seconds(trainer, examples, options, watch)?;
                    let epoch = step * per_epoch + validation_seconds;
                    let epochs = (minutes * 60.0 / epoch.max(f64::EPSILON)).max(1.0 / per_epoch);
                    watch.note(&format!("{epochs:.2} epochs fit into {minutes} minutes"));
                    whole(epochs * per_epoch)
                }
            };
            State {
                step: 0,
                n_steps,
                rate_scale: 1.0,
                n_recoveries: 0,
                values: trainer.values().to_vec(),
                optimizer_steps: 0,
                moments: optimizer.state().1.cloned().collect(),
                best: trainer.values().to_vec(),
                best_score: score,
                since_best: 0,
                loss: 0.0,
                n_images: 0,
                n_hits: 0,
                n_labelled: 0,
                history: vec![epoch],
            }
        }
    };
    // What a run that diverges goes back to.
    let mut good = state.clone();
    let run = Run { options, steps_per_epoch, n_steps: state.n_steps, decays, measured, key };
    let interrupted = loop {
        let end = run.go(trainer, examples, validation, &mut optimizer, &mut state, &mut good, watch)?;
        match end {
            End::Done => break false,
            End::Interrupted => break true,
            End::Diverged if good.n_recoveries >= RECOVERIES => {
                return Err(FitError::Diverged { rate: options.rate * good.rate_scale });
            }
            End::Diverged => {
                good.rate_scale *= 0.5;
                good.n_recoveries += 1;
                watch.note(&format!(
                    "the loss is not finite at step {}: back to step {} with a rate of {:.1e}",
                    state.step + 1,
                    good.step,
                    options.rate * good.rate_scale
                ));
                state = good.clone();
                trainer.values_mut().clone_from_slice(&state.values);
                trainer.changed();
                let _ = optimizer.restore(state.optimizer_steps, state.moments.clone());
            }
        }
    };
    if !interrupted {
        trainer.values_mut().clone_from_slice(&state.best);
        trainer.changed();
        trainer.measure(&run.measured);
    }
    Ok(Fitted { history: state.history, best: state.best_score, interrupted })
}

fn check(
    trainer: &Trainer,
    examples: &dyn Examples,
    validation: &dyn Examples,
    options: &FitOptions,
) -> Result<(), FitError> {
    for (set, what) in [(examples, "train on"), (validation, "validate on")] {
        if set.is_empty() {
            return Err(FitError::TooFew { found: 0, needed: 1, what });
        }
        if set.shape().len() != trainer.image_len() {
            return Err(FitError::Size { found: set.shape().len(), expected: trainer.image_len() });
        }
    }
    let (Length::Epochs(length) | Length::Minutes(length)) = options.length;
    if options.batch == 0 || options.rate <= 0.0 || !options.rate.is_finite() || length < 0.0 {
        let text = "nothing can be learnt with a batch of 0, a rate of 0 or less, or less than no time";
        return Err(FitError::Options(text.to_owned()));
    }
    Ok(())
}

/// A number of steps.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates where it must")]
fn whole(steps: f64) -> u64 {
    steps.ceil() as u64
}

/// How long a step takes, reading included: the better of two, since the first one is slow.
fn step_seconds(
    trainer: &mut Trainer,
    examples: &dyn Examples,
    options: &FitOptions,
    watch: &mut dyn Watch,
) -> Result<f64, FitError> {
    let indices: Vec<usize> = (0..options.batch.min(examples.len())).collect();
    let mut best = f64::INFINITY;
    for _ in 0..2 {
        let started = watch.seconds();
        let read = |chunk: &[usize]| Chunk::read(examples, chunk, options.augmentation, 0);
        let batch: Result<Vec<Chunk>, String> = indices.chunks(LANES).map(read).collect();
        trainer.gradient(&batch.map_err(TrainError::Data)?)?;
        best = best.min(watch.seconds() - started);
    }
    Ok(best)
}

enum End {
    Done,
    Interrupted,
    Diverged,
}

struct Run<'a> {
    options: &'a FitOptions,
    steps_per_epoch: u64,
    n_steps: u64,
    decays: Vec<bool>,
    /// Images to measure statistics over.
    measured: Vec<Chunk>,
    key: String,
}

impl Run<'_> {
    /// Trains from a state on, while a thread of its own reads ahead.
    #[allow(clippy::too_many_arguments, reason = "the parts of a run, each with its own lifetime")]
    fn go(
        &self,
        trainer: &mut Trainer,
        examples: &dyn Examples,
        validation: &dyn Examples,
        optimizer: &mut Optimizer,
        state: &mut State,
        good: &mut State,
        watch: &mut dyn Watch,
    ) -> Result<End, FitError> {
        let (send, batches) = sync_channel(AHEAD);
        let first = state.step;
        thread::scope(|scope| {
            scope.spawn(move || {
                for step in first..self.n_steps {
                    // The receiver is gone when the run has ended early.
                    if send.send(self.batch(examples, step)).is_err() {
                        break;
                    }
                }
            });
            // By value: the reader ends once nobody takes its batches.
            self.steps(batches, trainer, validation, optimizer, state, good, watch)
        })
    }

    /// The images of one step.
    fn batch(&self, examples: &dyn Examples, step: u64) -> Result<Vec<Chunk>, String> {
        let epoch = step / self.steps_per_epoch;
        let order = order(examples.len(), self.options.seed, epoch);
        let at = usize::try_from(step % self.steps_per_epoch).unwrap_or(0) * self.options.batch;
        let seed = mix(&[self.options.seed, epoch, 2]);
        let indices = order.get(at..(at + self.options.batch).min(order.len())).unwrap_or_default();
        let read = |chunk: &[usize]| Chunk::read(examples, chunk, self.options.augmentation, seed);
        indices.chunks(LANES).map(read).collect()
    }

    #[allow(
        clippy::too_many_arguments,
        clippy::cast_precision_loss,
        clippy::needless_pass_by_value,
        reason = "as above; counts; the receiver has to go"
    )]
    fn steps(
        &self,
        batches: Receiver<Result<Vec<Chunk>, String>>,
        trainer: &mut Trainer,
        validation: &dyn Examples,
        optimizer: &mut Optimizer,
        state: &mut State,
        good: &mut State,
        watch: &mut dyn Watch,
    ) -> Result<End, FitError> {
        // Also of a state that was taken up again.
        let is_over =
            |state: &State| self.options.patience.is_some_and(|patience| state.since_best >= patience);
        while state.step < self.n_steps && !is_over(state) {
            let Ok(batch) = batches.recv() else { break };
            let batch = batch.map_err(TrainError::Data)?;
            let (mut gradients, tally) = trainer.gradient(&batch)?;
            trainer.project(&mut gradients);
            let norm = clip(&mut gradients, self.options.clip.unwrap_or(f64::INFINITY));
            if !norm.is_finite() || !tally.loss.is_finite() {
                return Ok(End::Diverged);
            }
            let rate = self.rate(state);
            #[allow(clippy::cast_possible_truncation, reason = "a rate")]
            optimizer.step(trainer.values_mut(), &gradients, &self.decays, rate as f32);
            trainer.retract();
            trainer.changed();
            state.step += 1;
            state.loss += tally.loss;
            state.n_images += tally.n_images as u64;
            state.n_hits += tally.n_hits as u64;
            state.n_labelled += tally.n_labelled as u64;
            let share = |n: u64, of: u64| n as f64 / of.max(1) as f64;
            let loss = state.loss / state.n_images.max(1) as f64;
            let accuracy = (state.n_labelled > 0).then(|| share(state.n_hits, state.n_labelled));
            watch.step(&Progress {
                step: state.step,
                n_steps: self.n_steps,
                steps_per_epoch: self.steps_per_epoch,
                n_images: tally.n_images,
                loss,
                accuracy,
            });
            let is_end = state.step.is_multiple_of(self.steps_per_epoch) || state.step == self.n_steps;
            if is_end {
                let tally = validate(trainer, &self.measured, validation)?;
                if !tally.loss.is_finite() {
                    return Ok(End::Diverged);
                }
                let score = Score::of(&tally);
                let is_best = score.better_than(&state.best_score);
                state.since_best = if is_best { 0 } else { state.since_best + 1 };
                if is_best {
                    state.best_score = score;
                    state.best = trainer.values().to_vec();
                }
                let epoch = state.step as f64 / self.steps_per_epoch as f64;
                let epoch = Epoch { epoch, loss: Some(loss), accuracy, validation: score, is_best, rate };
                state.history.push(epoch);
                (state.loss, state.n_images, state.n_hits, state.n_labelled) = (0.0, 0, 0, 0);
                watch.epoch(&epoch);
            }
            let stops = watch.stops();
            if is_end || stops || watch.wants_checkpoint() {
                state.values = trainer.values().to_vec();
                state.optimizer_steps = optimizer.state().0;
                state.moments = optimizer.state().1.cloned().collect();
                watch.keep(&checkpoint::write(state, &self.key)?).map_err(FitError::Keep)?;
                *good = state.clone();
            }
            if stops && state.step < self.n_steps && !is_over(state) {
                return Ok(End::Interrupted);
            }
        }
        Ok(End::Done)
    }

    #[allow(clippy::cast_precision_loss, reason = "counts")]
    fn rate(&self, state: &State) -> f64 {
        let progress = state.step as f64 / self.n_steps as f64;
        let warmup = self.options.warmup * self.steps_per_epoch as f64 / self.n_steps as f64;
        // The middle of a step, so that neither the first nor the last does nothing.
        let half = 0.5 / self.n_steps as f64;
        self.options.rate * state.rate_scale * self.options.schedule.rate(progress + half, warmup.min(0.5))
    }
}

/// Loss and hits on images as they are.
fn validate(
    trainer: &mut Trainer,
    measured: &[Chunk],
    validation: &dyn Examples,
) -> Result<Tally, TrainError> {
    // So many at a time that all threads have work and few images are in memory.
    const AT_ONCE: usize = 32 * LANES;
    trainer.measure(measured);
    let mut tally = Tally::default();
    let indices: Vec<usize> = (0..validation.len()).collect();
    for part in indices.chunks(AT_ONCE) {
        let chunks: Result<Vec<Chunk>, String> =
            part.chunks(LANES).map(|c| Chunk::read(validation, c, Augmentation::default(), 0)).collect();
        tally.add(&trainer.evaluate(&chunks.map_err(TrainError::Data)?)?);
    }
    Ok(tally)
}

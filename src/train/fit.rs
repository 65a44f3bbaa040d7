//! A run of training: epochs, validation, checkpoints, recovery.

use crate::checkpoint::{self, CheckpointError};
use crate::examples::{Augmentation, Chunk, Examples, mix, order, spread};
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
const RECOVERIES: u32 = 8;
/// A run diverges when the loss, over some steps, is this many times what it was before the first step, and
/// [`GROWTH_MARGIN`] more.
const GROWTH: f64 = 2.5;
/// See [`GROWTH`]: a loss near zero may grow to something small.
const GROWTH_MARGIN: f64 = 0.5;
/// Steps that the loss is judged over, about.
const JUDGED: f64 = 10.0;

/// Images that the statistics of normalisations are measured over, at most.
const MEASURED: usize = 2048;
/// Bytes of images that are read at once, about.
const AT_ONCE_BYTES: usize = 64 << 20;

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
    /// Mean loss of the first batch, before the first step.
    pub first_loss: Option<f64>,
    /// Mean loss of the last steps.
    pub recent_loss: f64,
}

/// What names a run beside its options: parameters, the original, and the data, by some of the images and all labels.
fn fingerprint(
    trainer: &Trainer,
    examples: &dyn Examples,
    validation: &dyn Examples,
) -> Result<String, TrainError> {
    let mut sum = crc32fast::Hasher::new();
    let mut image = vec![0.0; trainer.image_len()];
    for set in [examples, validation] {
        for index in spread(set, LANES) {
            set.read(index, &mut image).map_err(TrainError::Data)?;
            image.iter().for_each(|v| sum.update(&v.to_le_bytes()));
        }
        (0..set.len()).for_each(|i| sum.update(&set.label(i).map_or(u64::MAX, |l| l as u64).to_le_bytes()));
    }
    let data = sum.finalize();
    Ok(format!("{} {} {data:08x} {:08x}", examples.len(), validation.len(), trainer.fingerprint()))
}

/// Images that are read at once: enough for all threads, if they are not large.
fn at_once(image_len: usize) -> usize {
    (AT_ONCE_BYTES / (size_of::<f32>() * image_len.max(1))).max(LANES).next_multiple_of(LANES)
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
            let n = at_once(trainer.image_len()).min(MEASURED);
            let mut chunks = Chunk::some(examples, n).map_err(TrainError::Data)?;
            // A group that is filled up with copies would count as much as a full one.
            if chunks.len() > 1 && chunks.last().is_some_and(|c| c.labels.len() < LANES) {
                chunks.pop();
            }
            chunks
        }
        false => vec![],
    };
    let sizes: Vec<usize> = trainer.values().iter().map(Vec::len).collect();
    let mut optimizer = Optimizer::new(options.method, options.weight_decay, &sizes);
    let key = format!("{key}\n{options:?}\n{}", fingerprint(trainer, examples, validation)?);

    // What has been reached, and what a run that diverges goes back to: the beginning of the epoch.
    let (mut state, mut good) = match resume {
        Some(bytes) => {
            let (state, good) = checkpoint::read(bytes, &key)?;
            let fits = |values: &[Vec<f32>]| values.iter().map(Vec::len).eq(sizes.iter().copied());
            let fits = [&state, &good].iter().all(|s| fits(&s.values) && fits(&s.best));
            if !fits || !optimizer.restore(state.optimizer_steps, state.moments.clone()) {
                return Err(CheckpointError::Other.into());
            }
            trainer.values_mut().clone_from_slice(&state.values);
            trainer.changed();
            watch.resumed(&state.history);
            (state, good)
        }
        None => {
            let started = watch.seconds();
            // The network as it came: with the statistics that it has.
            let score = Score::of(&validate(trainer, &[], validation)?);
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
            let state = State {
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
                first_loss: None,
                recent_loss: 0.0,
            };
            (state.clone(), state)
        }
    };
    let run = Run { options, steps_per_epoch, n_steps: state.n_steps, decays, measured, key };
    let interrupted = loop {
        let end = run.go(trainer, examples, validation, &mut optimizer, &mut state, &mut good, watch)?;
        match end {
            End::Done => break false,
            End::Interrupted => break true,
            End::Diverged(_) if good.n_recoveries >= RECOVERIES => {
                return Err(FitError::Diverged { rate: options.rate * good.rate_scale });
            }
            End::Diverged(why) => {
                good.rate_scale *= 0.5;
                good.n_recoveries += 1;
                watch.note(&format!(
                    "{why} at step {}: back to step {} with a rate of {:.1e}",
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
        match state.history.iter().rfind(|e| e.is_best) {
            Some(best) if best.epoch > 0.0 => trainer.measure(&run.measured),
            _ => trainer.forget_measured(),
        }
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
    /// Why it cannot go on like this.
    Diverged(String),
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
                let mut order = (u64::MAX, vec![]);
                for step in first..self.n_steps {
                    let epoch = step / self.steps_per_epoch;
                    if order.0 != epoch {
                        order = (epoch, self::order(examples.len(), self.options.seed, epoch));
                    }
                    // The receiver is gone when the run has ended early.
                    if send.send(self.batch(examples, &order.1, step)).is_err() {
                        break;
                    }
                }
            });
            // By value: the reader ends once nobody takes its batches.
            self.steps(batches, trainer, validation, optimizer, state, good, watch)
        })
    }

    /// The images of one step.
    fn batch(&self, examples: &dyn Examples, order: &[usize], step: u64) -> Result<Vec<Chunk>, String> {
        let epoch = step / self.steps_per_epoch;
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
                return Ok(End::Diverged("the loss is not finite".to_owned()));
            }
            let mean = tally.mean_loss();
            let first = *state.first_loss.get_or_insert(mean);
            let share = (1.0 / (state.step as f64 + 1.0)).max(1.0 / JUDGED);
            state.recent_loss += share * (mean - state.recent_loss);
            if state.recent_loss > GROWTH * first + GROWTH_MARGIN {
                return Ok(End::Diverged(format!(
                    "the loss went from {first:.3} to {:.3}",
                    state.recent_loss
                )));
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
                let (before, now) =
                    (state.history.first().map_or(0.0, |e| e.validation.loss), tally.mean_loss());
                if !now.is_finite() || now > GROWTH * before + GROWTH_MARGIN {
                    return Ok(End::Diverged(format!(
                        "the loss on validation images went from {before:.3} to {now:.3}"
                    )));
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
                if trainer.values().iter().flatten().any(|v| !v.is_finite()) {
                    return Ok(End::Diverged("a weight is not finite".to_owned()));
                }
                state.values = trainer.values().to_vec();
                state.optimizer_steps = optimizer.state().0;
                state.moments = optimizer.state().1.cloned().collect();
                // Only there: when a checkpoint is kept in between is the clock's business.
                if is_end {
                    *good = state.clone();
                }
                watch.keep(&checkpoint::write(state, good, &self.key)?).map_err(FitError::Keep)?;
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
    if !measured.is_empty() {
        trainer.measure(measured);
    }
    // So many at a time that all threads have work and few images are in memory.
    let at_once = at_once(trainer.image_len()).min(32 * LANES);
    let mut tally = Tally::default();
    let indices: Vec<usize> = (0..validation.len()).collect();
    for part in indices.chunks(at_once) {
        let chunks: Result<Vec<Chunk>, String> =
            part.chunks(LANES).map(|c| Chunk::read(validation, c, Augmentation::default(), 0)).collect();
        tally.add(&trainer.evaluate(&chunks.map_err(TrainError::Data)?)?);
    }
    Ok(tally)
}

//! Training as the program does it: images of a data set, progress, the log, checkpoints.

use crate::progress::{Progress, interrupted};
use anyhow::{Context as _, anyhow};
use basisopt_embed::training::{Checkpoints, EpochLine};
use basisopt_onnx::check_writable;
use basisopt_passes::Session;
use basisopt_train::watch::{self, Epoch, Watch};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Flags of commands that train.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Training")]
pub(crate) struct TrainArgs {
    /// Write a line of JSON per epoch: run (which training in the pipeline), epoch, loss, images_per_second, validation
    /// figures. With --resume lines are added, else what is there is replaced.
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Where the state of training is kept, every minute and on Ctrl-C [default: the output's name with
    /// .checkpoint, removed when all is done].
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint: with the same model, data and options the result is what it would have been.
    #[arg(long)]
    pub resume: bool,
}

impl TrainArgs {
    /// The file of the checkpoint, if there is to be one.
    pub(crate) fn checkpoint(&self, output: Option<&Path>) -> Option<PathBuf> {
        self.checkpoint.clone().or_else(|| {
            let mut name = output?.file_name()?.to_owned();
            name.push(".checkpoint");
            Some(output?.with_file_name(name))
        })
    }
}

/// One epoch, in the log and in reports.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct LogLine {
    #[serde(flatten)]
    pub line: EpochLine,
    images_per_second: Option<f64>,
}

/// With two decimals at most.
pub(crate) fn rounded(value: f64) -> f64 {
    (100.0 * value).round() / 100.0
}

/// A run as the program shows and keeps it.
pub(crate) struct CliSession {
    quiet: bool,
    progress: Option<Progress>,
    /// The step at which this run began or was taken up again.
    first_step: Option<u64>,
    log: Option<File>,
    checkpoints: Checkpoints,
    started: Instant,
    /// When the last event was, for the speed of training alone.
    last: Instant,
    trained: Duration,
    n_images: usize,
    /// Every epoch so far.
    pub history: Vec<LogLine>,
}

impl CliSession {
    /// Where nothing is trained.
    pub(crate) fn none() -> Self {
        let now = Instant::now();
        Self {
            quiet: true,
            progress: None,
            first_step: None,
            log: None,
            checkpoints: Checkpoints::none(),
            started: now,
            last: now,
            trained: Duration::ZERO,
            n_images: 0,
            history: Vec::new(),
        }
    }

    /// Opens the log.
    ///
    /// # Errors
    /// If the log cannot be written, or there is no checkpoint to resume from.
    pub(crate) fn new(args: &TrainArgs, output: Option<&Path>, quiet: bool) -> anyhow::Result<Self> {
        let checkpoint = args.checkpoint(output);
        if args.resume && !checkpoint.as_ref().is_some_and(|c| c.is_file()) {
            let name = checkpoint
                .as_ref()
                .map_or("none: give --checkpoint FILE".into(), |c| c.display().to_string());
            return Err(anyhow!("--resume: there is no checkpoint ({name})"));
        }
        if let (Some(path), false) = (&checkpoint, args.resume) {
            if path.is_file() {
                return Err(anyhow!(
                    "{} is the checkpoint of an earlier run: go on from it with --resume, remove it, or name another with --checkpoint",
                    path.display()
                ));
            }
            if path.exists() {
                return Err(anyhow!("--checkpoint {} is no regular file; name another", path.display()));
            }
            // Where it cannot be written there is no point in beginning.
            check_writable(path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let open = |path: &PathBuf| {
            let file = OpenOptions::new()
                .create(true)
                .write(true)
                .append(args.resume)
                .truncate(!args.resume)
                .open(path);
            file.with_context(|| format!("cannot write {}", path.display()))
        };
        Ok(Self {
            quiet,
            log: args.log.as_ref().map(open).transpose()?,
            checkpoints: Checkpoints::new(checkpoint, args.resume)?,
            ..Self::none()
        })
    }

    /// The output is written: the checkpoint has served.
    pub(crate) fn finish(&self, args: &TrainArgs) {
        if let (None, Some(path)) = (&args.checkpoint, self.checkpoints.path()) {
            // It may never have been written.
            let _ = std::fs::remove_file(path);
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "a count")]
    fn speed(&self) -> Option<f64> {
        (self.n_images > 0).then(|| self.n_images as f64 / self.trained.as_secs_f64().max(1e-9))
    }

    fn say(&mut self, text: &str) {
        if self.quiet {
            return;
        }
        match &self.progress {
            Some(progress) => progress.above(&format!("  {text}")),
            None => eprintln!("  {text}"),
        }
    }

    fn line(&self, e: &Epoch, images_per_second: Option<f64>) -> LogLine {
        let line = EpochLine::new(self.checkpoints.run(), e, self.started.elapsed().as_secs_f64());
        LogLine { line, images_per_second }
    }
}

impl Watch for CliSession {
    fn step(&mut self, p: &watch::Progress) {
        let now = Instant::now();
        self.trained += now - self.last;
        self.last = now;
        self.n_images += p.n_images;
        let accuracy = p.accuracy.map(|a| format!(", accuracy {:.2} %", a * 100.0)).unwrap_or_default();
        let speed = self.speed().map(|s| format!(", {s:.0} images/s")).unwrap_or_default();
        let epoch = p.step.div_ceil(p.steps_per_epoch);
        let text = format!("epoch {epoch}: loss {:.4}{accuracy}{speed}", p.loss);
        let quiet = self.quiet;
        let whole = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let first = *self.first_step.get_or_insert(p.step.saturating_sub(1));
        let progress = self.progress.get_or_insert_with(|| Progress::new("fine-tune", quiet));
        progress.update(whole(p.step - first), whole(p.n_steps.saturating_sub(first)), &text);
    }

    fn epoch(&mut self, e: &Epoch) {
        let line = self.line(e, self.speed());
        let percent =
            |a: Option<f64>| a.map(|a| format!(", accuracy {:.2} %", a * 100.0)).unwrap_or_default();
        let trained = match e.loss {
            None => "before training".to_owned(),
            Some(loss) => format!("epoch {}: loss {loss:.4}{}", rounded(e.epoch), percent(e.accuracy)),
        };
        let speed = line.images_per_second.map(|s| format!("; {s:.0} images/s")).unwrap_or_default();
        self.say(&format!(
            "{trained}; validation: loss {:.4}{}{speed}{}",
            e.validation.loss,
            percent(e.validation.accuracy),
            if e.is_best && e.loss.is_some() { "; the best so far" } else { "" }
        ));
        self.history.push(line);
        let written = match (&mut self.log, serde_json::to_string(&line)) {
            (Some(log), Ok(text)) => writeln!(log, "{text}"),
            _ => Ok(()),
        };
        if let Err(e) = written {
            self.say(&format!("the log cannot be written: {e}"));
            self.log = None;
        }
        (self.trained, self.n_images, self.last) = (Duration::ZERO, 0, Instant::now());
    }

    fn resumed(&mut self, history: &[Epoch]) {
        let lines: Vec<LogLine> = history.iter().map(|e| self.line(e, None)).collect();
        self.history.extend(lines);
        let epoch = history.last().map_or(0.0, |e| e.epoch);
        self.say(&format!("going on after epoch {}", rounded(epoch)));
    }

    fn note(&mut self, text: &str) {
        self.say(text);
        self.last = Instant::now();
    }

    fn seconds(&mut self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn stops(&mut self) -> bool {
        interrupted()
    }

    fn wants_checkpoint(&mut self) -> bool {
        self.checkpoints.is_due()
    }

    fn keep(&mut self, checkpoint: &[u8]) -> Result<(), String> {
        self.checkpoints.keep(checkpoint)?;
        if let (Some(path), true) = (self.checkpoints.path(), interrupted()) {
            let text = format!("kept in {}; go on with --resume", path.display());
            self.say(&text);
        }
        Ok(())
    }
}

impl Session for CliSession {
    fn ended(&mut self) {
        self.progress = None;
    }

    fn resume(&mut self) -> Option<Vec<u8>> {
        self.last = Instant::now();
        (self.progress, self.first_step) = (None, None);
        if self.checkpoints.path().is_none() {
            self.say("no checkpoints are kept: give -o or --checkpoint FILE");
        }
        self.checkpoints.begin()
    }
}

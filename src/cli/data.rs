//! Where images come from and how they become inputs: flags, over the settings file of the model.

use anyhow::{Context as _, anyhow};
use basisopt_embed::samples::SAMPLES;
use basisopt_embed::{Material, Use};
use basisopt_runtime::{Channels, Dataset, DatasetOptions, Layout, ModelConfig, Preprocess, RuntimeError};
use clap::ValueEnum;
use std::path::{Path, PathBuf};

/// Order of the axes of an image input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutArg {
    /// Batch, channels, height, width (PyTorch).
    Nchw,
    /// Batch, height, width, channels (TensorFlow).
    Nhwc,
}

/// Colour channels of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ChannelsArg {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red (Caffe, OpenCV).
    Bgr,
    /// One channel of luminance.
    Gray,
}

/// The flags of every command that looks at images. What they leave open is read from the TOML file
/// beside the model, and what that leaves open has the defaults of [`Preprocess`].
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Data and preprocessing (read from MODEL.toml where not given)")]
pub(crate) struct DataArgs {
    /// Images: a folder (one sub-folder per class, or class numbers in the file names), CIFAR .bin
    /// files or a folder of them, .npy, .npz.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Labels in a file of their own: .npy, .npz, or text with one label or `file,label` per line.
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Use at most so many images: the first ones, or random ones with --seed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub samples: Option<u64>,
    /// Leave out the first so many images.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip: usize,
    /// Seed of what is drawn at random: samples, or inputs where there are no images.
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// Subtracted after scaling: one value, or one per channel.
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', allow_hyphen_values = true)]
    pub mean: Option<Vec<f32>>,
    /// Divides last: one value, or one per channel.
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    pub std: Option<Vec<f32>>,
    /// Divides the bytes first: 255 (the default) gives 0…1, 1 leaves 0…255.
    #[arg(long, value_name = "S")]
    pub scale: Option<f32>,
    /// Order of the axes; read off the shape of the input by default.
    #[arg(long, value_enum)]
    pub layout: Option<LayoutArg>,
    /// Colour channels of the network [default: rgb].
    #[arg(long, value_enum)]
    pub channels: Option<ChannelsArg>,
    /// Scale images so that their shorter side has so many pixels.
    #[arg(long, value_name = "PIXELS")]
    pub resize: Option<usize>,
    /// Cut a square of so many pixels from the centre.
    #[arg(long, value_name = "PIXELS")]
    pub crop: Option<usize>,
    /// Added to every label: 1 for networks whose class 0 is "background" [default: 0].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub label_offset: Option<i64>,
    /// Settings file to read instead of MODEL.toml.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl DataArgs {
    /// The settings: flags over `--config` over the file beside the model.
    ///
    /// # Errors
    /// If a settings file is there and cannot be read.
    pub(crate) fn settings(&self, model: &Path) -> anyhow::Result<ModelConfig> {
        let stored = match &self.config {
            Some(path) => ModelConfig::load(path)?,
            None if model == Path::new("-") => ModelConfig::default(),
            None => ModelConfig::beside(model)?.unwrap_or_default(),
        };
        // Labels that go with the stored data do not go with other data.
        let stored_labels = stored.labels.filter(|_| self.data.is_none());
        Ok(ModelConfig {
            // Other data bring their own images to calibrate on.
            calibration: stored.calibration.filter(|_| self.data.is_none()),
            data: self.data.clone().or(stored.data),
            labels: self.labels.clone().or(stored_labels),
            mean: self.mean.clone().or(stored.mean),
            std: self.std.clone().or(stored.std),
            scale: self.scale.or(stored.scale),
            layout: self.layout.map(Layout::from).or(stored.layout),
            channels: self.channels.map(Channels::from).or(stored.channels),
            resize: self.resize.or(stored.resize),
            crop: self.crop.or(stored.crop),
            label_offset: self.label_offset.or(stored.label_offset),
        })
    }

    /// The data set and the preprocessing; `None` if neither flags nor settings name any data.
    ///
    /// # Errors
    /// If the settings, the data or the labels cannot be read or make no sense.
    pub(crate) fn open(&self, model: &Path) -> anyhow::Result<Option<(Dataset, Preprocess)>> {
        self.open_at_most(model, None)
    }

    /// As [`DataArgs::open`], with this many samples where `--samples` is not given.
    ///
    /// # Errors
    /// As [`DataArgs::open`].
    pub(crate) fn open_at_most(
        &self,
        model: &Path,
        samples: Option<usize>,
    ) -> anyhow::Result<Option<(Dataset, Preprocess)>> {
        let settings = self.settings(model)?;
        let preprocess = settings.preprocess();
        preprocess.validate().map_err(|e| flag_error(&e))?;
        let Some(data) = &settings.data else {
            if let Some(labels) = &self.labels {
                return Err(anyhow!("--labels {}: labels of what? give --data as well", labels.display()));
            }
            return Ok(None);
        };
        let options = DatasetOptions {
            labels: settings.labels.clone(),
            skip: self.skip,
            samples: self.samples.map(|n| usize::try_from(n).unwrap_or(usize::MAX)).or(samples),
            seed: self.seed,
        };
        let dataset = Dataset::open(data, &options).with_context(|| match (&self.data, &self.config) {
            (Some(_), _) => "cannot read the data given by --data".to_owned(),
            (None, Some(config)) => format!("cannot read the data named in {}", config.display()),
            (None, None) => {
                format!("cannot read the data named in {}", ModelConfig::path_beside(model).display())
            }
        })?;
        Ok(Some((dataset, preprocess)))
    }

    /// Opens the data and shares them out: `--samples` images at random for calibration (all other parts too, if the
    /// settings name images for that), some to choose by if that is needed, the rest to report on.
    ///
    /// # Errors
    /// As [`DataArgs::open`].
    pub(crate) fn share(
        &self,
        model: &Path,
        calibration: Option<&Path>,
        use_: Use,
        held_out: usize,
    ) -> anyhow::Result<Material> {
        let settings = self.settings(model)?;
        let n_samples = self.samples.map_or(SAMPLES, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let seed = self.seed.unwrap_or(0);
        let own = calibration.map(Path::to_owned).or_else(|| settings.calibration.clone());
        let own = own.map(|path| Dataset::open(path, &DatasetOptions::default())).transpose();
        let own = own.context("cannot read the images to calibrate on")?;
        // All of the data are shared out here, so none are left out by the flags of other commands.
        let all = Self { samples: None, seed: None, ..self.clone() };
        let (data, preprocess) = match all.open(model)? {
            Some((data, preprocess)) => (Some(data), preprocess),
            None => (None, settings.preprocess()),
        };
        Ok(Material::share(data, own, preprocess, (n_samples, held_out), seed, use_)?)
    }

    /// As [`DataArgs::open`], where there must be data.
    ///
    /// # Errors
    /// As [`DataArgs::open`], and if there is none: with what to do about it.
    pub(crate) fn require(&self, model: &Path) -> anyhow::Result<(Dataset, Preprocess)> {
        self.open(model)?.ok_or_else(|| {
            let settings = self.config.clone().unwrap_or_else(|| ModelConfig::path_beside(model));
            anyhow!(
                "{}: no data: give --data PATH (and --mean, --std, … as the network was trained), or write `data = \"PATH\"` into {}",
                model.display(),
                settings.display()
            )
        })
    }

    /// Writes the settings beside the model, where later commands find them; returns the path.
    ///
    /// Paths are stored relative to the model's folder where they lie in it. Comments of an
    /// existing file are lost.
    ///
    /// # Errors
    /// If the model has no path, or the file cannot be written.
    pub(crate) fn save(&self, model: &Path) -> anyhow::Result<PathBuf> {
        if model == Path::new("-") {
            return Err(anyhow!("a model read from stdin has no folder that settings could be stored in"));
        }
        let mut settings = self.settings(model)?;
        let path = ModelConfig::path_beside(model);
        let dir = std::path::absolute(&path).with_context(|| format!("{}", path.display()))?;
        let dir = dir.parent().unwrap_or(Path::new("/"));
        for entry in
            [&mut settings.data, &mut settings.calibration, &mut settings.labels].into_iter().flatten()
        {
            let full = std::path::absolute(&*entry).with_context(|| format!("{}", entry.display()))?;
            *entry = full.strip_prefix(dir).map(Path::to_owned).unwrap_or(full);
        }
        settings.save(&path)?;
        Ok(path)
    }
}

/// An error of the runtime, naming the model and the flag where it speaks of a setting.
pub(crate) fn explain(error: RuntimeError, model: &Path) -> anyhow::Error {
    match error {
        RuntimeError::Preprocess { .. } => flag_error(&error).context(model.display().to_string()),
        other => other.into(),
    }
}

/// A complaint about a setting, in the words of the command line.
fn flag_error(error: &RuntimeError) -> anyhow::Error {
    match error {
        RuntimeError::Preprocess { key, reason } => {
            anyhow!("--{key} {}", reason.replace("set channels = ", "give --channels "))
        }
        other => anyhow!("{other}"),
    }
}

impl From<LayoutArg> for Layout {
    fn from(layout: LayoutArg) -> Self {
        match layout {
            LayoutArg::Nchw => Self::Nchw,
            LayoutArg::Nhwc => Self::Nhwc,
        }
    }
}

impl From<ChannelsArg> for Channels {
    fn from(channels: ChannelsArg) -> Self {
        match channels {
            ChannelsArg::Rgb => Self::Rgb,
            ChannelsArg::Bgr => Self::Bgr,
            ChannelsArg::Gray => Self::Gray,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        data: DataArgs,
    }

    fn parse(args: &[&str]) -> DataArgs {
        Command::try_parse_from([&["test"], args].concat()).unwrap().data
    }

    #[test]
    fn flags_win_over_the_settings_beside_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("m.onnx");
        std::fs::write(
            dir.path().join("m.toml"),
            "data = \"d.npz\"\nlabels = \"l.txt\"\nmean = [0.5]\nscale = 1.0\n",
        )
        .unwrap();

        let settings = parse(&["--mean", "-0.5,0.25,1"]).settings(&model).unwrap();
        assert_eq!(settings.mean, Some(vec![-0.5, 0.25, 1.0]));
        assert_eq!(settings.scale, Some(1.0));
        assert_eq!(settings.labels, Some(dir.path().join("l.txt")));

        let other = parse(&["--data", "e.npz"]).settings(&model).unwrap();
        assert_eq!((other.data, other.labels), (Some(PathBuf::from("e.npz")), None));
    }

    #[test]
    fn saved_settings_are_found_again_and_are_relative_to_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("m.onnx");
        let data = dir.path().join("sub/d.npz");
        let args = parse(&["--data", data.to_str().unwrap(), "--std", "0.5", "--layout", "nhwc"]);
        let path = args.save(&model).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("data = \"sub/d.npz\""));
        assert_eq!(parse(&[]).settings(&model).unwrap(), args.settings(&model).unwrap());
    }

    #[test]
    fn mistakes_name_the_flag() {
        let message = |args: &[&str]| format!("{:#}", parse(args).open(Path::new("m.onnx")).unwrap_err());
        assert!(message(&["--std", "0"]).starts_with("--std holds a zero"));
        assert!(message(&["--labels", "l.txt"]).contains("give --data"));
        assert!(message(&["--data", "/nonexistent"]).contains("--data"));
        let none = parse(&[]).require(Path::new("dir/m.onnx")).unwrap_err().to_string();
        assert!(none.contains("--data PATH") && none.contains("dir/m.toml"), "{none}");
    }
}

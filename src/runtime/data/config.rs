//! The settings file beside a model: `net.onnx` has `net.toml`.
//!
//! ```toml
//! data = "glyphs_test.npz"     # relative to this file
//! calibration = "glyphs_calibration.npz"   # images that `compress` learns from
//! mean = [0.4914, 0.4822, 0.4465]
//! std = [0.2023, 0.1994, 0.2010]
//! scale = 255.0                # divides the bytes first; 1 for networks fed 0…255
//! layout = "nchw"              # or "nhwc"; told from the input's shape if absent
//! channels = "rgb"             # or "bgr", "gray"
//! resize = 256                 # shorter side, in pixels
//! crop = 224                   # side of the square cut from the centre
//! label-offset = 0             # 1 for networks whose class 0 is "background"
//! ```

use crate::RuntimeError;
use crate::data::preprocess::{Channels, Layout, Preprocess};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What `<model>.toml` may hold. Every key is optional; absent ones take the defaults of [`Preprocess`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ModelConfig {
    /// The data set, relative to the settings file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Images to calibrate on, without which some of the data set are taken; relative to the settings file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<PathBuf>,
    /// The labels, where they are in a file of their own; relative to the settings file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
    /// See [`Preprocess::mean`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f32>>,
    /// See [`Preprocess::std`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f32>>,
    /// See [`Preprocess::scale`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f32>,
    /// See [`Preprocess::layout`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// See [`Preprocess::channels`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<Channels>,
    /// See [`Preprocess::resize`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<usize>,
    /// See [`Preprocess::crop`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<usize>,
    /// See [`Preprocess::label_offset`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_offset: Option<i64>,
}

impl ModelConfig {
    /// Where the settings of a model are: the same path, ending in `.toml`.
    pub fn path_beside(model: impl AsRef<Path>) -> PathBuf {
        model.as_ref().with_extension("toml")
    }

    /// The settings beside a model, or `None` if there is no such file. Paths in it come back relative to
    /// the current folder.
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn beside(model: impl AsRef<Path>) -> Result<Option<Self>, RuntimeError> {
        let path = Self::path_beside(model);
        match path.try_exists() {
            Ok(true) => Self::load(&path).map(Some),
            Ok(false) => Ok(None),
            Err(source) => Err(RuntimeError::Io { path, source }),
        }
    }

    /// Reads a settings file. Paths in it come back relative to the current folder.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] if it cannot be read, [`RuntimeError::Config`] naming the file, line and key
    /// if it is not what it should be.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, RuntimeError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(RuntimeError::io(path))?;
        let wrong = |reason: String| RuntimeError::Config { path: path.to_owned(), reason };
        let mut config: Self =
            toml::from_str(&text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
        config.preprocess().validate().map_err(|e| wrong(e.to_string()))?;
        if let Some(dir) = path.parent() {
            for entry in [&mut config.data, &mut config.calibration, &mut config.labels].into_iter().flatten()
            {
                *entry = dir.join(&*entry);
            }
        }
        Ok(config)
    }

    /// Writes the settings; paths are written as they stand here. The file appears whole or not at all.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] if it cannot be written, [`RuntimeError::Config`] if a value has no TOML form.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), RuntimeError> {
        let path = path.as_ref();
        let text = toml::to_string(self)
            .map_err(|e| RuntimeError::Config { path: path.to_owned(), reason: e.to_string() })?;
        basisopt_onnx::write_whole(path, text.as_bytes()).map_err(RuntimeError::io(path))
    }

    /// The preprocessing these settings describe.
    pub fn preprocess(&self) -> Preprocess {
        let default = Preprocess::default();
        Preprocess {
            mean: self.mean.clone().unwrap_or(default.mean),
            std: self.std.clone().unwrap_or(default.std),
            scale: self.scale.unwrap_or(default.scale),
            layout: self.layout,
            label_offset: self.label_offset.unwrap_or(default.label_offset),
            resize: self.resize,
            crop: self.crop,
            channels: self.channels.unwrap_or(default.channels),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("net.v2.onnx");
        assert_eq!(ModelConfig::beside(&model).unwrap(), None);
        let config = ModelConfig {
            data: Some(dir.path().join("test.npz")),
            mean: Some(vec![0.5, 0.25, 0.125]),
            std: Some(vec![0.5; 3]),
            scale: Some(255.0),
            layout: Some(Layout::Nchw),
            label_offset: Some(1),
            ..ModelConfig::default()
        };
        config.save(ModelConfig::path_beside(&model)).unwrap();
        assert_eq!(ModelConfig::beside(&model).unwrap().as_ref(), Some(&config));
        assert_eq!(config.preprocess().label_offset, 1);
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.toml");
        std::fs::write(&path, "data = \"test.npz\"\nlabel-offset = 1\nlayout = \"nhwc\"\n").unwrap();
        let config = ModelConfig::load(&path).unwrap();
        assert_eq!(config.data, Some(dir.path().join("test.npz")));
        assert_eq!(config.layout, Some(Layout::Nhwc));
    }

    #[test]
    fn mistakes_name_the_file_and_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.toml");
        let cases =
            [("label_offset = 1", "label_offset"), ("mean = \"0.5\"", "mean"), ("std = [0.0]", "std")];
        for (text, key) in cases {
            std::fs::write(&path, text).unwrap();
            let message = ModelConfig::load(&path).unwrap_err().to_string();
            assert!(message.contains("net.toml") && message.contains(key), "{message}");
        }
    }
}

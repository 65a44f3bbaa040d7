//! Options of a call, as the Python side hands them over: a dict whose values may have the wrong type.

use crate::errors;
use basisopt_embed::{Method, Recipe};
use basisopt_runtime::{Channels, Engine, Layout, ModelConfig};
use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::path::PathBuf;

/// Threads that may be asked for, as on the command line.
const MAX_THREADS: usize = 1024;

/// Keyword arguments of one call.
pub(crate) struct Options<'a, 'py>(pub &'a Bound<'py, PyDict>);

impl<'py> Options<'_, 'py> {
    /// The value under this key, if it is there and not `None`.
    ///
    /// # Errors
    /// `TypeError` with the name of the argument, if it is of another type.
    pub(crate) fn get<T>(&self, key: &str) -> PyResult<Option<T>>
    where
        T: FromPyObjectOwned<'py>,
    {
        let Some(value) = self.0.get_item(key)?.filter(|v| !v.is_none()) else { return Ok(None) };
        let extracted: Result<T, PyErr> = value.extract::<T>().map_err(Into::into);
        extracted.map(Some).map_err(|e| {
            let py = self.0.py();
            let text = format!("{key}: {}", e.value(py));
            match e.is_instance_of::<PyTypeError>(py) {
                true => PyTypeError::new_err(text),
                // Such as a number that is too large, or negative where none can be.
                false => errors::usage(py, &text),
            }
        })
    }

    /// The value under this key, or what stands for it.
    ///
    /// # Errors
    /// As [`Options::get`].
    pub(crate) fn get_or<T>(&self, key: &str, otherwise: T) -> PyResult<T>
    where
        T: FromPyObjectOwned<'py>,
    {
        Ok(self.get(key)?.unwrap_or(otherwise))
    }

    /// One of a few words.
    ///
    /// # Errors
    /// With all of them, if it is none of them.
    pub(crate) fn one_of<T: Copy>(&self, key: &str, known: &[(&str, T)]) -> PyResult<Option<T>> {
        let Some(given) = self.get::<String>(key)? else { return Ok(None) };
        match known.iter().find(|(name, _)| *name == given) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let names = known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
                Err(errors::usage(self.0.py(), &format!("{key}: there is no {given:?}; there are: {names}")))
            }
        }
    }

    /// A count of at least one.
    ///
    /// # Errors
    /// If it is zero or no count.
    pub(crate) fn count(&self, key: &str) -> PyResult<Option<usize>> {
        match self.get::<usize>(key)? {
            Some(0) => Err(errors::usage(self.0.py(), &format!("{key}: expected at least 1, found 0"))),
            given => Ok(given),
        }
    }

    /// A number of threads.
    ///
    /// # Errors
    /// If it is zero, no count, or more than any machine has.
    pub(crate) fn threads(&self) -> PyResult<Option<usize>> {
        match self.count("threads")? {
            Some(n) if n > MAX_THREADS => {
                let text = format!("threads: expected at most {MAX_THREADS}, found {n}");
                Err(errors::usage(self.0.py(), &text))
            }
            given => Ok(given),
        }
    }

    /// Sizes of open dimensions.
    ///
    /// # Errors
    /// If a size is none.
    pub(crate) fn dims(&self) -> PyResult<Vec<(String, usize)>> {
        let dims = self.get::<Vec<(String, usize)>>("dims")?.unwrap_or_default();
        match dims.iter().find(|(_, size)| *size == 0) {
            Some((name, _)) => Err(errors::usage(
                self.0.py(),
                &format!("dims: the size of {name:?} is 0; expected at least 1"),
            )),
            None => Ok(dims),
        }
    }

    /// How networks run that are timed.
    ///
    /// # Errors
    /// If there is no such engine.
    pub(crate) fn engine(&self) -> PyResult<Engine> {
        let known = [("stock", Engine::Stock), ("fused", Engine::Fused), ("fastest", Engine::Fastest)];
        Ok(self.one_of("engine", &known)?.unwrap_or(Engine::Fastest))
    }

    /// The recipe of `compress`.
    ///
    /// # Errors
    /// If an argument has another type.
    pub(crate) fn recipe(&self) -> PyResult<Recipe> {
        let methods = [Method::Weights, Method::Output, Method::Sequential].map(|m| (m.name(), m));
        Ok(Recipe {
            budget: self.get("budget")?,
            device: self.get("device")?,
            energy: self.get("energy")?,
            ranks: self.get("ranks")?,
            method: self.one_of("method", &methods)?,
            greedy: self.get_or("greedy", false)?,
            multiple: self.count("multiple")?.map(|n| n.to_string()),
            include: self.get("include")?,
            exclude: self.get("exclude")?,
            fine_tune: self.get("fine_tune")?,
            goal: self.get("goal")?,
        })
    }

    /// What is said about images; it goes before what a settings file says.
    ///
    /// # Errors
    /// If an argument has another type.
    pub(crate) fn images(&self) -> PyResult<ModelConfig> {
        Ok(ModelConfig {
            mean: self.get("mean")?,
            std: self.get("std")?,
            scale: self.get("scale")?,
            layout: self.one_of("layout", &[("nchw", Layout::Nchw), ("nhwc", Layout::Nhwc)])?,
            channels: self.one_of(
                "channels",
                &[("rgb", Channels::Rgb), ("bgr", Channels::Bgr), ("gray", Channels::Gray)],
            )?,
            resize: self.get("resize")?,
            crop: self.get("crop")?,
            label_offset: self.get("label_offset")?,
            ..ModelConfig::default()
        })
    }

    /// A path.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn path(&self, key: &str) -> PyResult<Option<PathBuf>> {
        self.get(key)
    }
}

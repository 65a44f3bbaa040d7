//! Pipelines: what passes run, in what order, with what options.
//!
//! ```text
//! pipeline := item ("," item)*
//! item     := name (":" key "=" value)*  |  "@" preset
//! ```
//!
//! The same text is given on the command line, heads fixtures and is stored in the output model.

use crate::driver::options::{OptionError, OptionKind, Options};
use crate::driver::pass::{Pass, PassInfo};
use crate::driver::registry::Registry;
use std::fmt;

/// A pass with its options as written.
#[derive(Debug)]
pub struct Item {
    /// The pass.
    pub info: &'static PassInfo,
    /// Its options, in the order written.
    pub given: Vec<(String, String)>,
    /// The pass, made from them.
    pub pass: Box<dyn Pass>,
}

/// Passes in order.
#[derive(Debug, Default)]
pub struct Pipeline {
    /// The items.
    pub items: Vec<Item>,
}

/// Why a pipeline was rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// No pass of this name.
    #[error("there is no pass {found:?}{}; `basisopt passes` lists them", hint.as_ref().map(|h| format!(" (did you mean {h:?}?)")).unwrap_or_default())]
    UnknownPass {
        /// What was written.
        found: String,
        /// A close name.
        hint: Option<String>,
    },
    /// No preset of this name.
    #[error("there is no preset {found:?}; there are: {known}")]
    UnknownPreset {
        /// What was written.
        found: String,
        /// All presets.
        known: String,
    },
    /// Text that is not `name:key=value:…`.
    #[error("cannot read {found:?} in the pipeline: expected {expected}")]
    Syntax {
        /// The offending text.
        found: String,
        /// What should stand there.
        expected: &'static str,
    },
    /// Options that the pass rejects.
    #[error(transparent)]
    Options(#[from] OptionError),
}

impl Pipeline {
    /// Appends a pass by its description, with its options: a slip in the name of the pass is then for the compiler to
    /// see. Values are written as they would be in the text of a pipeline.
    ///
    /// ```
    /// use basisopt_passes::{FACTORIZE_CONV, FOLD_BATCH_NORM, Pipeline};
    ///
    /// let pipeline = Pipeline::default()
    ///     .then(&FOLD_BATCH_NORM, &[])?
    ///     .then(&FACTORIZE_CONV, &[("energy", &0.9), ("multiple", &8)])?;
    /// assert_eq!(pipeline.to_string(), "fold-batch-norm,factorize-conv:energy=0.9:multiple=8");
    /// # Ok::<(), basisopt_passes::PipelineError>(())
    /// ```
    ///
    /// # Errors
    /// [`PipelineError::Options`] where the pass rejects an option.
    pub fn then(
        mut self,
        info: &'static PassInfo,
        options: &[(&str, &dyn fmt::Display)],
    ) -> Result<Self, PipelineError> {
        let given = options.iter().map(|(key, value)| ((*key).to_owned(), value.to_string())).collect();
        self.add(info, given)?;
        Ok(self)
    }

    /// Appends a pass of the caller's own, as a value: it need not be in any registry. Its options are its own affair, and
    /// not part of the pipeline's text.
    #[must_use]
    pub fn then_pass(mut self, pass: impl Pass + 'static) -> Self {
        self.items.push(Item { info: pass.info(), given: Vec::new(), pass: Box::new(pass) });
        self
    }

    fn add(&mut self, info: &'static PassInfo, given: Vec<(String, String)>) -> Result<(), PipelineError> {
        let options = Options::check(info.name, info.options, &given)?;
        let pass = (info.build)(&options)?;
        self.items.push(Item { info, given, pass });
        Ok(())
    }

    /// Reads a pipeline.
    ///
    /// # Errors
    /// [`PipelineError`], naming the item.
    pub fn parse(text: &str, registry: &Registry) -> Result<Self, PipelineError> {
        let mut pipeline = Self::default();
        for item in text.split(',').map(str::trim) {
            pipeline.push(item, registry)?;
        }
        Ok(pipeline)
    }

    /// Appends one item, or the items of a preset.
    ///
    /// # Errors
    /// [`PipelineError`], naming the item.
    pub fn push(&mut self, item: &str, registry: &Registry) -> Result<(), PipelineError> {
        if let Some(preset) = item.strip_prefix('@') {
            let Some(text) = registry.preset(preset) else {
                let known =
                    registry.presets().iter().map(|(n, _)| format!("@{n}")).collect::<Vec<_>>().join(", ");
                return Err(PipelineError::UnknownPreset { found: item.to_owned(), known });
            };
            return text.split(',').try_for_each(|i| self.push(i, registry));
        }
        let mut parts = item.split(':');
        let name = parts.next().unwrap_or_default();
        if name.is_empty() {
            return Err(PipelineError::Syntax { found: item.to_owned(), expected: "the name of a pass" });
        }
        let Some(info) = registry.find(name) else {
            return Err(PipelineError::UnknownPass { found: name.to_owned(), hint: registry.closest(name) });
        };
        let mut given: Vec<(String, String)> = Vec::new();
        for part in parts {
            match (part.split_once('='), given.last_mut()) {
                (Some((key, value)), _) if !key.is_empty() => given.push((key.to_owned(), value.to_owned())),
                // A target has a colon of its own: `target=macs:0.36`.
                (None, Some((key, value))) if is_target(info, key) && !value.contains(':') => {
                    value.push(':');
                    value.push_str(part);
                }
                _ => return Err(PipelineError::Syntax { found: part.to_owned(), expected: "key=value" }),
            }
        }
        self.add(info, given)
    }
}

fn is_target(info: &PassInfo, key: &str) -> bool {
    info.options.iter().any(|o| o.name == key && matches!(o.kind, OptionKind::Target(_)))
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info.name)?;
        self.given.iter().try_for_each(|(key, value)| write!(f, ":{key}={value}"))
    }
}

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.items.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{item}")?;
        }
        Ok(())
    }
}

//! The passes that can be named: those built in and those of an embedder.

use crate::driver::options::closest;
use crate::driver::pass::PassInfo;

/// Passes by name, and pipelines by preset name.
#[derive(Clone, Debug)]
pub struct Registry {
    passes: Vec<&'static PassInfo>,
    presets: Vec<(&'static str, &'static str)>,
}

impl Registry {
    /// The built-in passes and presets.
    pub fn builtin() -> Self {
        Self { passes: crate::BUILTIN.to_vec(), presets: crate::PRESETS.to_vec() }
    }

    /// Adds a pass; one of the same name is replaced.
    #[must_use]
    pub fn with(mut self, pass: &'static PassInfo) -> Self {
        self.passes.retain(|p| p.name != pass.name);
        self.passes.push(pass);
        self
    }

    /// The pass of this name.
    pub fn find(&self, name: &str) -> Option<&'static PassInfo> {
        self.passes.iter().find(|p| p.name == name).copied()
    }

    /// The pipeline behind a preset.
    pub fn preset(&self, name: &str) -> Option<&'static str> {
        self.presets.iter().find(|(n, _)| *n == name).map(|(_, p)| *p)
    }

    /// The known name nearest to what was written.
    pub fn closest(&self, name: &str) -> Option<String> {
        closest(name, self.passes.iter().map(|p| p.name))
    }

    /// All passes.
    pub fn passes(&self) -> &[&'static PassInfo] {
        &self.passes
    }

    /// All presets with their pipelines.
    pub fn presets(&self) -> &[(&'static str, &'static str)] {
        &self.presets
    }
}

//! The recipe: what is wanted, as a pipeline.
//!
//! ```text
//! freeze-weights,@fold,allocate-ranks:target=BUDGET,factorize-conv,factorize-linear[,training],dead-code
//! ```

use crate::ladder;
use basisopt_passes::{Method, OptionError, Pipeline, PipelineError, Quantity, Registry, Target};
use std::fmt::Write as _;

/// The passes that make the network smaller.
pub const PASSES: [&str; 2] = ["factorize-conv", "factorize-linear"];
/// What is done where neither a budget nor a rule is given: with data, and without.
const DEFAULT_BUDGET: &str = "drop:1.0";
const DEFAULT_ENERGY: &str = "0.95";

/// What is wanted. Without any of `budget`, `energy` and `ranks` at most one point of accuracy is given up where there are
/// data, and 95 % of every layer's energy kept where there are none.
///
/// ```
/// let recipe = basisopt_embed::Recipe { budget: Some("macs=0.5".into()), ..Default::default() };
/// assert_eq!(
///     recipe.pipeline(true, false)?.to_string(),
///     "freeze-weights,fold-constants,eliminate-identity,fold-batch-norm,dead-code,\
///      allocate-ranks:target=macs:0.5,factorize-conv,factorize-linear,dead-code"
/// );
/// # Ok::<(), basisopt_embed::RecipeError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recipe {
    /// What to aim for: `macs=0.36`, `params=0.5`, `bytes=0.5`, `latency=0.6`, `energy=0.9`, `drop=1.0`.
    pub budget: Option<String>,
    /// Whose time a budget of latency is of: `here`, or the file of a device's profile.
    pub device: Option<String>,
    /// Share of the energy that every factored layer keeps, 0 to 1, instead of a budget.
    pub energy: Option<String>,
    /// A file of ranks, instead of a budget.
    pub ranks: Option<String>,
    /// What factors are made from; sequential with data, weights without.
    pub method: Option<Method>,
    /// Choose ranks by the paper's greedy rule.
    pub greedy: bool,
    /// Ranks are rounded to multiples of this.
    pub multiple: Option<String>,
    /// Only layers whose node name matches (globs joined by `|`).
    pub include: Option<String>,
    /// Not the layers whose node name matches (globs joined by `|`).
    pub exclude: Option<String>,
    /// Win accuracy back by training, with these options of `fine-tune`, joined by colons.
    pub fine_tune: Option<String>,
    /// With training: stop when no more than so many points are lost on images kept apart for that.
    pub goal: Option<f64>,
}

/// Why a recipe is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The budget cannot be read.
    #[error("budget {0}")]
    Budget(String),
    /// A value that the text of a pipeline cannot hold.
    #[error("{option} {value}: a pipeline cannot hold `,` or `:`; {}", remedy(option))]
    Plain {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
    },
    /// Options of training that are not joined by colons.
    #[error("fine-tune {0}: options are joined by colons, as in epochs=10:flip=on")]
    FineTune(String),
    /// Two of `budget`, `energy` and `ranks`.
    #[error("{0} and {1} exclude each other: both say how small the network is to be")]
    Twice(&'static str, &'static str),
    /// An option that would not be followed.
    #[error("{0}: {1}")]
    Ignored(&'static str, &'static str),
    /// A device without a budget of latency.
    #[error("device says whose time counts: give a budget latency=…")]
    Device,
    /// Training's goal, without training.
    #[error("goal is for training: give fine-tune")]
    Goal,
    /// A pass rejects an option.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

impl Recipe {
    /// What the budget aims for, if there is one.
    ///
    /// # Errors
    /// [`RecipeError::Budget`].
    pub fn target(&self) -> Result<Option<Target>, RecipeError> {
        let wrong = |e: OptionError| {
            let text = e.to_string();
            RecipeError::Budget(text.replace("allocate-ranks: target=", ""))
        };
        self.budget.as_deref().map(Target::parse).transpose().map_err(wrong)
    }

    /// Whether versions of the network are judged by accuracy, so that images to choose by are needed.
    pub fn is_judged(&self) -> bool {
        let target = self.target().ok().flatten();
        let by_accuracy = self.greedy || target.is_none() || matches!(target, Some(Target::Drop(_)));
        by_accuracy && self.energy.is_none() && self.ranks.is_none()
    }

    /// The recipe as a pipeline, with data or without, with labels or without.
    ///
    /// # Errors
    /// [`RecipeError`], naming the option.
    pub fn pipeline(&self, has_data: bool, is_labelled: bool) -> Result<Pipeline, RecipeError> {
        let target = self.target()?;
        let given = [
            ("budget", self.budget.is_some()),
            ("energy", self.energy.is_some()),
            ("ranks", self.ranks.is_some()),
        ];
        let mut given = given.into_iter().filter(|g| g.1).map(|g| g.0);
        if let (Some(one), Some(other)) = (given.next(), given.next()) {
            return Err(RecipeError::Twice(one, other));
        }
        if self.device.is_some() && target.and_then(Target::quantity) != Some(Quantity::Latency) {
            return Err(RecipeError::Device);
        }
        if self.goal.is_some() && self.fine_tune.is_none() {
            return Err(RecipeError::Goal);
        }
        let mut filters = String::new();
        for (key, value) in [("include", &self.include), ("exclude", &self.exclude)] {
            if let Some(value) = value {
                let _ = write!(filters, ":{key}={}", plain(key, value)?);
            }
        }
        let multiple = match &self.multiple {
            Some(n) => format!(":multiple={}", plain("multiple", n)?),
            None => String::new(),
        };
        let method = self.method.map_or(String::new(), |m| format!(":method={}", m.name()));
        let by_default = (!has_data && self.budget.is_none()).then_some(DEFAULT_ENERGY);
        let energy = match &self.energy {
            Some(energy) => Some(plain("energy", energy)?),
            None => by_default,
        };
        if self.multiple.is_some() && self.ranks.is_some() {
            return Err(RecipeError::Ignored("multiple", "ranks says them already"));
        }
        if self.greedy && (self.energy.is_some() || self.ranks.is_some()) {
            return Err(RecipeError::Ignored(
                "greedy",
                "it chooses ranks for a budget; give a budget and no energy or ranks",
            ));
        }
        if self.greedy && by_default.is_some() && self.ranks.is_none() {
            return Err(RecipeError::Ignored("greedy", "it chooses by images; give data, or a budget"));
        }
        let mut text = "freeze-weights,@fold".to_owned();
        match (&self.ranks, energy) {
            (Some(file), _) => {
                let _ = write!(text, ",allocate-ranks:ranks={}{filters}", plain("ranks", file)?);
                PASSES.iter().for_each(|pass| {
                    let _ = write!(text, ",{pass}{method}{filters}");
                });
            }
            // Convolutions alone, as the paper has it.
            (None, Some(energy)) => {
                let _ = write!(text, ",{}:energy={energy}{method}{multiple}{filters}", PASSES[0]);
            }
            (None, None) => {
                let target = self.budget.as_deref().unwrap_or(DEFAULT_BUDGET).replacen('=', ":", 1);
                let greedy = if self.greedy { ":by=greedy" } else { "" };
                let device = match &self.device {
                    Some(file) => format!(":device={}", plain("device", file)?),
                    None => String::new(),
                };
                let _ = write!(text, ",allocate-ranks:target={target}{device}{greedy}{multiple}{filters}");
                PASSES.iter().for_each(|pass| {
                    let _ = write!(text, ",{pass}{method}{filters}");
                });
            }
        }
        if let Some(options) = &self.fine_tune {
            if options.contains(',') {
                return Err(RecipeError::FineTune(options.clone()));
            }
            text += &ladder::passes(options, self.goal, is_labelled);
        }
        text += ",dead-code";
        Ok(Pipeline::parse(&text, &Registry::builtin())?)
    }
}

/// What to write instead of a value with a comma or a colon.
fn remedy(option: &str) -> &'static str {
    match option {
        "include" | "exclude" => "write ? for them",
        "ranks" | "device" => "give the file another name",
        _ => "give one number, as 0.9",
    }
}

/// A value that can stand in the text of a pipeline.
fn plain<'a>(option: &'static str, value: &'a str) -> Result<&'a str, RecipeError> {
    match value.contains([',', ':']) {
        true => Err(RecipeError::Plain { option, value: value.to_owned() }),
        false => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut Recipe)) -> Result<String, String> {
        let mut recipe = Recipe::default();
        change(&mut recipe);
        recipe.pipeline(true, true).map(|p| p.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let set = |text: &str| Some(text.to_owned());
        let twice = of(|r| (r.budget, r.energy) = (set("macs=0.5"), set("0.9")));
        assert!(twice.unwrap_err().contains("budget and energy exclude each other"));
        assert!(of(|r| r.device = set("board.json")).unwrap_err().contains("latency="));
        assert!(of(|r| r.goal = Some(1.0)).unwrap_err().contains("fine-tune"));
        assert!(of(|r| r.budget = set("speed=2")).unwrap_err().starts_with("budget speed=2"));
        assert!(of(|r| r.energy = set("0.9,dead-code")).unwrap_err().starts_with("energy 0.9,dead-code"));
        assert!(of(|r| r.energy = set("0,9")).unwrap_err().ends_with("give one number, as 0.9"));
        assert!(of(|r| r.multiple = set("8:gate=off")).unwrap_err().starts_with("multiple 8:gate=off"));
        assert!(of(|r| (r.multiple, r.ranks) = (set("8"), set("f"))).unwrap_err().starts_with("multiple: "));
        assert!(of(|r| (r.greedy, r.energy) = (true, set("0.9"))).unwrap_err().starts_with("greedy: "));
        assert!(of(|r| (r.greedy, r.budget) = (true, set("macs=0.5"))).is_ok());
        assert!(of(|r| r.include = set("a:b")).unwrap_err().starts_with("include a:b"));
        assert!(of(|r| r.fine_tune = set("epochs=1,flip=on")).unwrap_err().contains("colons"));
    }
}

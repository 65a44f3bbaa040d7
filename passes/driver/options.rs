//! Options of passes: declared once as a table, from which parsing, help and docs follow.

use std::collections::BTreeMap;

/// What an option accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum OptionKind {
    /// A number in a closed interval.
    Float {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// A whole number, at least `min`.
    Int {
        /// Smallest.
        min: usize,
    },
    /// `on` or `off`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A goal and its amount, such as `macs:0.36`: one of these words, `:`, and a number.
    Target(&'static [&'static str]),
    /// Glob patterns joined by `|`.
    Globs,
    /// A file name.
    File,
}

/// One option of a pass.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Its name.
    pub name: &'static str,
    /// What it accepts.
    pub kind: OptionKind,
    /// What holds if it is not given, in words.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// Checked options, as written, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options(BTreeMap<String, String>);

/// Why options were rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// No option of this name.
    #[error("{pass}: there is no option {found:?}{}; it has: {known}", hint.as_ref().map(|h| format!(" (did you mean {h:?}?)")).unwrap_or_default())]
    Unknown {
        /// The pass.
        pass: String,
        /// What was given.
        found: String,
        /// A close name.
        hint: Option<String>,
        /// All names.
        known: String,
    },
    /// A value outside what the option accepts.
    #[error("{pass}: {option}={found}: expected {expected}")]
    Value {
        /// The pass.
        pass: String,
        /// The option.
        option: String,
        /// What was given.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// Options that do not go together, or are given twice.
    #[error("{pass}: {message}")]
    Conflict {
        /// The pass.
        pass: String,
        /// What is wrong.
        message: String,
    },
}

impl OptionKind {
    /// What is accepted, in words.
    pub fn describe(&self) -> String {
        match self {
            Self::Float { min, max } if max.is_infinite() => format!("a number of at least {min}"),
            Self::Float { min, max } => format!("a number from {min} to {max}"),
            Self::Int { min } => format!("a whole number of at least {min}"),
            Self::Switch => "on or off".to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Target(words) => format!("{}:AMOUNT, such as macs:0.5", words.join("|")),
            Self::Globs => "glob patterns joined by |".to_owned(),
            Self::File => "a file name".to_owned(),
        }
    }

    fn accepts(&self, text: &str) -> bool {
        match self {
            Self::Float { min, max } => text.parse::<f64>().is_ok_and(|v| v >= *min && v <= *max),
            Self::Int { min } => text.parse::<usize>().is_ok_and(|v| v >= *min),
            Self::Switch => matches!(text, "on" | "off"),
            Self::Choice(words) => words.contains(&text),
            Self::Target(words) => {
                text.split_once(':').is_some_and(|(w, amount)| words.contains(&w) && !amount.is_empty())
            }
            Self::Globs => Globs::new(text).is_some(),
            Self::File => !text.is_empty(),
        }
    }
}

impl Options {
    /// Checks written options against a pass's table.
    ///
    /// # Errors
    /// [`OptionError`] for unknown names, unacceptable values and repetitions.
    pub fn check(pass: &str, specs: &[OptionSpec], given: &[(String, String)]) -> Result<Self, OptionError> {
        let mut options = BTreeMap::new();
        for (name, value) in given {
            let Some(spec) = specs.iter().find(|s| s.name == name) else {
                return Err(OptionError::Unknown {
                    pass: pass.to_owned(),
                    found: name.clone(),
                    hint: closest(name, specs.iter().map(|s| s.name)),
                    known: if specs.is_empty() {
                        "none".to_owned()
                    } else {
                        specs.iter().map(|s| s.name).collect::<Vec<_>>().join(", ")
                    },
                });
            };
            if !spec.kind.accepts(value) {
                return Err(OptionError::Value {
                    pass: pass.to_owned(),
                    option: name.clone(),
                    found: value.clone(),
                    expected: spec.kind.describe(),
                });
            }
            if options.insert(name.clone(), value.clone()).is_some() {
                let message = format!("the option {name} is given twice");
                return Err(OptionError::Conflict { pass: pass.to_owned(), message });
            }
        }
        Ok(Self(options))
    }

    /// The text of an option, if it was given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A number; checked before.
    pub fn float(&self, name: &str) -> Option<f64> {
        self.get(name)?.parse().ok()
    }

    /// A whole number; checked before.
    pub fn int(&self, name: &str) -> Option<usize> {
        self.get(name)?.parse().ok()
    }

    /// A switch.
    pub fn switch(&self, name: &str, default: bool) -> bool {
        self.get(name).map_or(default, |v| v == "on")
    }

    /// Glob patterns.
    pub fn globs(&self, name: &str) -> Option<Globs> {
        Globs::new(self.get(name)?)
    }
}

/// Glob patterns over node names; `*` crosses `/`, since exporters put slashes into names.
#[derive(Clone, Debug)]
pub struct Globs(globset::GlobSet);

impl Globs {
    /// Parses patterns joined by `|`; `None` if one is malformed.
    pub fn new(text: &str) -> Option<Self> {
        let mut set = globset::GlobSetBuilder::new();
        for pattern in text.split('|') {
            set.add(globset::Glob::new(pattern).ok()?);
        }
        set.build().ok().map(Self)
    }

    /// Whether one of the patterns matches.
    pub fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

/// The known name nearest to what was written, if it is near enough to be meant.
pub fn closest<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|k| (strsim::damerau_levenshtein(found, k), k))
        .filter(|&(d, k)| d <= 2.max(k.len() / 3))
        .min()
        .map(|(_, k)| k.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[OptionSpec] = &[
        OptionSpec {
            name: "energy",
            kind: OptionKind::Float { min: 0.0, max: 1.0 },
            default: "0.9",
            help: "",
        },
        OptionSpec { name: "guard", kind: OptionKind::Switch, default: "on", help: "" },
    ];

    fn check(given: &[(&str, &str)]) -> Result<Options, OptionError> {
        let given: Vec<_> = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Options::check("p", SPECS, &given)
    }

    #[test]
    fn errors_name_the_option_and_the_remedy() {
        assert_eq!(
            check(&[("enrgy", "1")]).unwrap_err().to_string(),
            r#"p: there is no option "enrgy" (did you mean "energy"?); it has: energy, guard"#
        );
        assert_eq!(
            check(&[("energy", "1.5")]).unwrap_err().to_string(),
            "p: energy=1.5: expected a number from 0 to 1"
        );
        assert_eq!(
            check(&[("energy", "nan")]).unwrap_err().to_string(),
            "p: energy=nan: expected a number from 0 to 1"
        );
        assert!(matches!(check(&[("guard", "on"), ("guard", "off")]), Err(OptionError::Conflict { .. })));
    }

    #[test]
    fn stars_cross_slashes() {
        let globs = Globs::new("/layer1/*|conv?").unwrap();
        assert!(globs.matches("/layer1/block/conv1/Conv"));
        assert!(globs.matches("conv1"));
        assert!(!globs.matches("/layer2/conv"));
    }
}

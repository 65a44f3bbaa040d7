//! Pass flags and `-p`: two spellings of a pipeline, in whatever order and mixture they stand on the
//! command line.
//!
//! The flags are made from the registry, so a new pass has a flag, with help, without a line here.

use crate::Usage;
use basisopt_passes::{PassInfo, Pipeline, Registry};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::fmt::Write as _;

const PIPELINE: &str = "pipeline";
const HEADING: &str = "Passes, run in the order in which they stand here; each may be given several times";

/// What pass flags and `-p` say, in the order of the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PassFlags {
    given: Vec<Given>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Given {
    /// `--name` or `--name=options`.
    Flag { name: &'static str, options: String },
    /// `-p text`.
    Text(String),
}

impl PassFlags {
    /// The pipeline.
    ///
    /// # Errors
    /// [`Usage`]: unknown passes, presets and options, and values that options do not accept.
    pub(crate) fn pipeline(&self) -> Result<Pipeline, Usage> {
        let registry = Registry::builtin();
        let mut pipeline = Pipeline::default();
        let usage = |e: basisopt_passes::PipelineError| Usage(e.to_string());
        for given in &self.given {
            match given {
                Given::Flag { name, options } if options.contains(',') => {
                    return Err(Usage(format!(
                        "--{name}={options}: options are joined by `:`, as in --{name}={}",
                        options.replace(',', ":")
                    )));
                }
                Given::Flag { name, options } if options.is_empty() => {
                    pipeline.push(name, &registry).map_err(usage)?
                }
                Given::Flag { name, options } => {
                    pipeline.push(&format!("{name}:{options}"), &registry).map_err(usage)?;
                }
                Given::Text(text) => {
                    pipeline.items.extend(Pipeline::parse(text, &registry).map_err(usage)?.items);
                }
            }
        }
        Ok(pipeline)
    }
}

impl clap::FromArgMatches for PassFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let registry = Registry::builtin();
        let mut given: Vec<(usize, Given)> = Vec::new();
        let mut collect = |id: &str, make: &dyn Fn(&str) -> Given| {
            let values = matches.get_many::<String>(id).into_iter().flatten();
            let places = matches.indices_of(id).into_iter().flatten();
            given.extend(places.zip(values).map(|(at, value)| (at, make(value))));
        };
        collect(PIPELINE, &|text| Given::Text(text.to_owned()));
        for pass in registry.passes() {
            collect(pass.name, &|options| Given::Flag { name: pass.name, options: options.to_owned() });
        }
        given.sort_by_key(|(at, _)| *at);
        Ok(Self { given: given.into_iter().map(|(_, given)| given).collect() })
    }

    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), clap::Error> {
        Err(clap::Error::raw(ErrorKind::InvalidValue, "pass flags cannot be updated"))
    }
}

impl clap::Args for PassFlags {
    fn augment_args(command: Command) -> Command {
        let registry = Registry::builtin();
        let presets: Vec<String> = registry.presets().iter().map(|(n, p)| format!("@{n} = {p}")).collect();
        let pipeline = Arg::new(PIPELINE)
            .short('p')
            .long(PIPELINE)
            .value_name("PIPELINE")
            .action(ArgAction::Append)
            .help_heading(HEADING)
            .help("Passes as text: NAME[:KEY=VALUE]…, joined by commas; @NAME for a preset")
            .long_help(format!(
                "Passes as text: NAME[:KEY=VALUE]…, joined by commas; @NAME for a preset.\nPresets: {}",
                presets.join("; ")
            ));
        registry.passes().iter().fold(command.arg(pipeline), |command, pass| command.arg(flag(pass)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn flag(pass: &'static PassInfo) -> Arg {
    let summary = format!("{} ({})", upper_first(pass.summary), pass.fidelity);
    let mut long = summary.clone();
    for option in pass.options {
        let _ = write!(
            long,
            "\n  {}=…  {}: {} [default: {}]",
            option.name,
            option.kind.describe(),
            option.help,
            option.default
        );
    }
    Arg::new(pass.name)
        .long(pass.name)
        .value_name("KEY=VALUE:…")
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("")
        .action(ArgAction::Append)
        .help_heading(HEADING)
        .help(summary)
        .long_help(long)
}

/// The sentence with a capital letter, as help texts have it.
fn upper_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Test {
        model: String,
        #[command(flatten)]
        passes: PassFlags,
    }

    fn pipeline(args: &[&str]) -> Result<String, String> {
        let test = Test::try_parse_from([&["test"], args].concat()).map_err(|e| e.to_string())?;
        assert_eq!(test.model, "m");
        Ok(test.passes.pipeline().map_err(|e| e.to_string())?.to_string())
    }

    #[test]
    fn the_order_is_that_of_the_command_line() {
        let mixed =
            ["--dead-code", "-p", "fold-constants,@clean", "m", "--factorize-conv=rank=2", "--dead-code"];
        assert_eq!(
            pipeline(&mixed).unwrap(),
            "dead-code,fold-constants,fold-constants,eliminate-identity,dead-code,factorize-conv:rank=2,dead-code"
        );
        assert_eq!(pipeline(&["--factorize-conv", "m"]).unwrap(), "factorize-conv");
        assert_eq!(pipeline(&["m"]).unwrap(), "");
    }

    #[test]
    fn mistakes_say_what_to_do() {
        let cases = [
            (&["m", "--factorize-conv=energy=0.9,guard=off"][..], "--factorize-conv=energy=0.9:guard=off"),
            (&["m", "--factorize-conv=enrgy=1"], "did you mean \"energy\""),
            (&["m", "-p", "factorise-conv"], "did you mean \"factorize-conv\""),
            (&["m", "-p", "@fould"], "@fold"),
            (&["m", "--factorise-conv"], "--factorize-conv"),
        ];
        for (args, expected) in cases {
            let message = pipeline(args).unwrap_err();
            assert!(message.contains(expected), "{args:?}: {message}");
        }
    }
}

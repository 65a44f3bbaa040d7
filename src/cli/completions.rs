//! `completions`: completion scripts.

use crate::{Globals, table};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  basisopt completions bash > ~/.local/share/bash-completion/completions/basisopt
  basisopt completions zsh > ~/.zfunc/_basisopt
  basisopt completions fish > ~/.config/fish/completions/basisopt.fish";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: Args, _: &Globals) -> anyhow::Result<ExitCode> {
    // Into memory first: the generator panics where a write fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::command(), "basisopt", &mut script);
    table::emit(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

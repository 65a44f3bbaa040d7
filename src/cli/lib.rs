//! The `basisopt` command line.
//!
//! Results go to stdout, progress and remarks to stderr. Exit codes: 0 all went well, 1 something
//! failed, 2 the command line could not be understood. Nothing is written without `-o`, but by
//! `snapshot`, whose files are its purpose.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this crate is the command line")]

mod bench;
mod bisect;
mod compare;
mod completions;
mod compress;

mod data;
mod diff;
mod differentiate;
mod engine;
mod eval;
mod host;
mod inspect;
mod load_weights;
mod network;
mod opt;
mod passes;
mod pipeline;
mod power;
mod predicted;
mod print;
mod profile_device;
mod progress;
mod snapshot;
mod step;
mod sweep;
mod table;
mod training;
mod watch;
mod work;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;

/// The exit code after Ctrl-C, as shells have it: 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// What is told on stderr, and how results are printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Globals {
    /// Say nothing on stderr but errors.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Parser)]
#[command(
    name = "basisopt",
    version,
    about = "Makes a trained convolutional network smaller and faster: ONNX in, ONNX out.",
    after_help = "Start with `basisopt inspect m.onnx`, then `basisopt compress m.onnx -o small.onnx`.",
    propagate_version = true
)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run passes over a network, in the order of their flags.
    Opt(opt::Args),
    /// Fold, choose ranks for a budget, factorise, compare, report: the recipe in one command.
    Compress(Box<compress::Args>),
    /// Try many budgets in one run: a table, CSV, JSON and a page with curves, spectra and ranks.
    Sweep(sweep::Args),
    /// Show every layer: shape, cost, spectrum, ranks, and why it can or cannot be factored.
    Inspect(inspect::Args),
    /// Print a network as text (.bir) or as a drawing (DOT).
    Print(print::Args),
    /// Show what differs between two networks, as text.
    Diff(diff::Args),
    /// Show the gradient of a network as a graph, write a step of training as ONNX, or time one.
    Differentiate(differentiate::Args),
    /// Put weights that were trained elsewhere back into a network.
    LoadWeights(load_weights::Args),
    /// Run two networks on the same inputs and report how far their outputs are apart.
    Compare(compare::Args),
    /// Measure top-1 and top-5 accuracy on labelled images.
    Eval(eval::Args),
    /// Measure latency, throughput and memory of one or several networks, interleaved.
    Bench(bench::Args),
    /// Measure what layers take on this machine, for choosing ranks on another.
    ProfileDevice(profile_device::Args),
    /// Find the first pass and rewrite after which the outputs are further off than a tolerance.
    Bisect(bisect::Args),
    /// Hold what pipelines make of models against checked-in text: tests for CI.
    Snapshot(snapshot::Args),
    /// List the passes, or explain one.
    Passes(passes::Args),
    /// Print a completion script for a shell.
    Completions(completions::Args),
}

/// The program. Errors are printed to stderr as `error: …` with their causes.
pub fn main() -> ExitCode {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        // clap prints help and version to stdout with code 0, mistakes to stderr with code 2.
        Err(e) => e.exit(),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// An error and its causes on one line. Many of our errors say their cause themselves; it is not
/// said twice.
fn message(error: &anyhow::Error) -> String {
    let mut out = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !out.contains(&text) {
            let colon = if out.is_empty() { "" } else { ": " };
            out = out + colon + &text;
        }
    }
    out
}

/// The whole command line, with a flag for every pass.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// A mistake in the command line that clap cannot see; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub String);

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let globals = &cli.globals;
    match cli.command {
        Command::Opt(args) => opt::run(args, globals),
        Command::Compress(args) => compress::run(*args, globals),
        Command::Sweep(args) => sweep::run(args, globals),
        Command::Inspect(args) => inspect::run(args, globals),
        Command::Print(args) => print::run(args, globals),
        Command::Diff(args) => diff::run(args, globals),
        Command::Differentiate(args) => differentiate::run(args, globals),
        Command::LoadWeights(args) => load_weights::run(args, globals),
        Command::Compare(args) => compare::run(args, globals),
        Command::Eval(args) => eval::run(args, globals),
        Command::Bench(args) => bench::run(args, globals),
        Command::ProfileDevice(args) => profile_device::run(args, globals),
        Command::Bisect(args) => bisect::run(args, globals),
        Command::Snapshot(args) => snapshot::run(args, globals),
        Command::Passes(args) => passes::run(args, globals),
        Command::Completions(args) => completions::run(args, globals),
    }
}

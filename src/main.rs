//! The `basisopt` program: see `basisopt --help`.

fn main() -> std::process::ExitCode {
    basisopt_cli::main()
}

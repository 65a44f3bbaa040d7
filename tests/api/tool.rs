//! Holds the public API of the library crates against `<crate>.txt` beside this file.
//!
//! ```text
//! cargo run --manifest-path tests/api/Cargo.toml              # exit code 1 and a diff where they differ
//! UPDATE_API=1 cargo run --manifest-path tests/api/Cargo.toml # takes the API as it is now
//! ```
//!
//! A line that goes is a breaking change: it wants an entry in the changelog, and another version. rustdoc's JSON is not
//! stable; where this compiler writes another format than `public-api` reads, that is said and nothing is checked.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What embedders build on.
const CRATES: [&str; 9] = [
    "basisopt",
    "basisopt-embed",
    "basisopt-ir",
    "basisopt-onnx",
    "basisopt-passes",
    "basisopt-runtime",
    "basisopt-snapshot",
    "basisopt-tract",
    "basisopt-train",
];

/// Set where this program stands in for rustdoc: the real one.
const RUSTDOC: &str = "BASISOPT_API_RUSTDOC";

fn main() -> ExitCode {
    if let Some(rustdoc) = std::env::var_os(RUSTDOC) {
        return unstable(Path::new(&rustdoc));
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.join("../..");
    let update = std::env::var_os("UPDATE_API").is_some();
    let mut failed = false;
    let folder = match document(&root) {
        Ok(folder) => folder,
        Err(reason) => {
            eprintln!("error: {reason}");
            return ExitCode::FAILURE;
        }
    };
    for name in CRATES {
        let json = json_of(&folder, name);
        let api = public_api::Builder::from_rustdoc_json(&json)
            .omit_blanket_impls(true)
            .omit_auto_trait_impls(true)
            .omit_auto_derived_impls(true)
            .build();
        let now = match api {
            Ok(api) => api.to_string(),
            Err(reason) => {
                eprintln!("NOT CHECKED: {name}: {reason}");
                continue;
            }
        };
        let file = here.join(format!("{name}.txt"));
        let before = std::fs::read_to_string(&file).unwrap_or_else(|e| {
            eprintln!("{}: {e}", file.display());
            String::new()
        });
        if update {
            if now != before {
                std::fs::write(&file, &now).unwrap_or_else(|e| eprintln!("error: {}: {e}", file.display()));
                eprintln!("wrote {}", file.display());
            }
        } else if now == before {
            eprintln!("{name}: {} items, as they were", now.lines().count());
        } else {
            failed = true;
            let diff = similar::TextDiff::from_lines(&before, &now);
            print!("{}", diff.unified_diff().context_radius(1).header("checked in", "now"));
            eprintln!("error: the public API of {name} differs; UPDATE_API=1 takes it as it is");
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs rustdoc as if it were a nightly one, for JSON. The variable is set for rustdoc alone: cargo would build everything
/// anew if it saw it.
fn unstable(rustdoc: &Path) -> ExitCode {
    let mut command = Command::new(rustdoc);
    command.env("RUSTC_BOOTSTRAP", "1").args(std::env::args_os().skip(1));
    // cargo also asks for the version.
    if std::env::args().any(|a| a == "--crate-name") {
        command.args(["-Z", "unstable-options", "--output-format", "json", "--cap-lints", "allow"]);
    }
    if command.status().is_ok_and(|s| s.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Documents all libraries at once: one by one, what they depend on would be built for the features of each. Returns the
/// folder of their JSON.
fn document(root: &Path) -> Result<PathBuf, String> {
    let variable = |key: &str, default: &str| std::env::var(key).unwrap_or_else(|_| default.to_owned());
    let this = std::env::current_exe().map_err(|e| e.to_string())?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let folder = target.join("doc");
    // What is left from another time is not what is now.
    CRATES.iter().for_each(|name| drop(std::fs::remove_file(json_of(&folder, name))));
    let status = Command::new(variable("CARGO", "cargo"))
        .current_dir(root)
        .env(RUSTDOC, variable("RUSTDOC", "rustdoc"))
        .env("RUSTDOC", this)
        // Other flags than anybody's, so that cargo does not take pages in HTML for these files.
        .env("RUSTDOCFLAGS", "--cfg basisopt_api")
        .args(["doc", "-q", "--workspace", "--no-deps", "--lib"])
        .status()
        .map_err(|e| format!("cargo cannot be run: {e}"))?;
    if !status.success() {
        return Err("rustdoc failed".to_owned());
    }
    match CRATES.iter().find(|name| !json_of(&folder, name).is_file()) {
        None => Ok(folder),
        Some(name) => Err(format!("{name}: rustdoc wrote no JSON")),
    }
}

fn json_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(name.replace('-', "_")).with_extension("json")
}

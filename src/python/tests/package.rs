//! The package's tests, which are pytest's, over the library that cargo built: no wheel is made for them.
//!
//! `PYTHON` names the interpreter; by default it is `python3`. Where that is too old, or has no NumPy or pytest, nothing is
//! run, and it says so; tests that need more (`onnx`, `onnx-ir`, PyTorch) are skipped one by one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Prints why the tests cannot be run, or nothing.
const NEEDS: &str = "
import importlib.util, sys
if sys.version_info < (3, 10):
    print('it is Python ' + sys.version.split()[0] + ', and 3.10 is needed')
else:
    missing = [m for m in ('numpy', 'pytest') if importlib.util.find_spec(m) is None]
    if missing:
        print('it has no ' + ', no '.join(missing))
";

/// What cargo built, by name: beside this program, or in the folder above, where what was asked for by name is put as well.
fn built(name: &str) -> Option<PathBuf> {
    let program = env::current_exe().unwrap();
    program.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The package as it would be installed, in a folder of this name.
fn assemble(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("basisopt")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    let (prefix, suffix) = (env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let library = format!("{prefix}_basisopt{suffix}");
    let library = built(&library).unwrap_or_else(|| panic!("cargo built no {library}"));
    let module = if cfg!(windows) { "_basisopt.pyd" } else { "_basisopt.abi3.so" };
    fs::copy(library, folder.join(module)).unwrap();
}

#[test]
fn pytest_passes() {
    let python = env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let asked = Command::new(&python).args(["-c", NEEDS]).output();
    let reason = match &asked {
        Err(e) => e.to_string(),
        Ok(asked) if !asked.status.success() => String::from_utf8_lossy(&asked.stderr).into_owned(),
        Ok(asked) => String::from_utf8_lossy(&asked.stdout).into_owned(),
    };
    if !reason.trim().is_empty() {
        println!("not run: {python}: {}", reason.trim());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    assemble(&folder.path().join("basisopt"));
    let mut pytest = Command::new(&python);
    pytest.args(["-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider"]);
    pytest.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"));
    // Python looks into the current folder first; where the sources are it would find the package without its library.
    pytest.current_dir(folder.path());
    pytest.env("PYTHONPATH", folder.path()).env("PYTHONDONTWRITEBYTECODE", "1");
    // Some tests hold the package against the program, which cargo builds for tests of its own.
    if let Some(program) = built(&format!("basisopt{}", env::consts::EXE_SUFFIX)) {
        pytest.env("BASISOPT", program);
    }
    let done = pytest.output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    println!("{said}{errors}");
    assert!(done.status.success(), "pytest: {}", done.status);
}

//! The program as a user runs it, in a folder of its own.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of the test functions")]

use super::root;
use assert_cmd::prelude::CommandCargoExt;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// The program, through cargo's runner where it is built for another processor.
pub fn basisopt() -> Command {
    Command::cargo_bin("basisopt").unwrap()
}

/// The program with these arguments, in this folder.
pub fn program(folder: &Path, args: &[&str]) -> Command {
    let mut command = basisopt();
    command.current_dir(folder).args(args);
    command
}

/// Runs the program, which must exit with this code; what it printed on stdout and stderr.
pub fn run(folder: &Path, code: i32, args: &[&str]) -> (String, String) {
    let Output { status, stdout, stderr } = program(folder, args).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!(status.code(), Some(code), "{args:?}\n{stdout}\n{stderr}");
    (stdout, stderr)
}

/// An empty folder with the fixture network, its settings and images in it.
#[derive(Debug)]
pub struct Bench {
    pub dir: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["glyphnet.onnx", "glyphnet.toml", "glyphs_test.npz", "glyphs_calibration.npz"] {
            std::fs::copy(root().join("fixtures/models").join(name), dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    /// See [`run`].
    pub fn run(&self, code: i32, args: &[&str]) -> (String, String) {
        run(self.dir.path(), code, args)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(name)).unwrap()
    }

    pub fn has(&self, name: &str) -> bool {
        self.dir.path().join(name).exists()
    }
}

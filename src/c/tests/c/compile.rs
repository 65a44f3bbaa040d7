//! C programs compiled against the libraries that cargo has built beside the tests.

use std::path::{Path, PathBuf};
use std::process::Command;

/// How a program is linked with the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Loads it when it starts.
    Dynamic,
    /// Has it inside.
    Static,
}

/// What the static library needs of the system, as `docs/c.md` has it.
pub const NATIVE: &str = "-lpthread -lm -ldl";

/// The network in `fixtures/`.
pub const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/glyphnet.onnx");

/// The library beside the tests. There is no shared one where the C library is linked into everything.
pub fn library(link: Link) -> Option<PathBuf> {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let name = match link {
        Link::Static => "libbasisopt_c.a".to_owned(),
        Link::Dynamic if cfg!(target_feature = "crt-static") => {
            println!("not run: with the C library inside, rustc makes no shared libraries");
            return None;
        }
        Link::Dynamic => format!("libbasisopt_c{}", std::env::consts::DLL_SUFFIX),
    };
    let path = folder.join(name);
    assert!(path.is_file(), "{} is not there: cargo builds it for this test", path.display());
    Some(path)
}

/// The C compiler, if it compiles for the processor that the library is for.
pub fn compiler() -> Option<String> {
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let target = output(Command::new(&cc).arg("-dumpmachine"));
    // Where tests are emulated, the compiler is the host's.
    let is_ours = target.starts_with(std::env::consts::ARCH);
    if !is_ours {
        println!("not run: {cc} compiles for {}, not for {}", target.trim(), std::env::consts::ARCH);
    }
    is_ours.then_some(cc)
}

/// Compiles a C file of this crate into a program in a folder; `None` where the library or a compiler for it is not
/// there.
pub fn compile(source: &str, link: Link, folder: &Path) -> Option<PathBuf> {
    let (cc, library) = (compiler()?, library(link)?);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = folder.join(Path::new(source).file_stem().unwrap());
    let mut command = Command::new(cc);
    command.args(["-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
    command.arg("-I").arg(root.join("include")).arg(root.join(source)).arg(library).arg("-o").arg(&program);
    output(command.args(NATIVE.split(' ')));
    Some(program)
}

/// What a command that must succeed writes to its standard output.
pub fn output(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    let err = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {}\n{out}{err}", done.status);
    out
}

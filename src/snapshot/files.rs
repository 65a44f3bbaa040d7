//! Files: which ones a pattern means, what snapshots there are, and writing them whole.

use crate::error::SnapshotError;
use globset::{GlobBuilder, GlobMatcher};
use std::path::{Path, PathBuf};

/// A model that a pattern means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// As the list of cases would write it.
    pub shown: String,
    /// What tells it from the others of the pattern, `/` between folders; of a plain path the file's name.
    pub short: String,
    pub path: PathBuf,
}

/// Whether a path is a pattern.
pub(crate) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

/// A glob in which `*` stays within a folder and `**` does not.
///
/// # Errors
/// The reason in words.
pub(crate) fn glob(pattern: &str) -> Result<GlobMatcher, String> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    glob.map(|g| g.compile_matcher()).map_err(|e| e.kind().to_string())
}

/// The files that a path or pattern means, relative to `dir`, in order of their names.
///
/// # Errors
/// The reason in words, of patterns that cannot be read and of folders that are not there.
pub(crate) fn find(dir: &Path, text: &str) -> Result<Vec<Found>, String> {
    let whole = dir.join(text);
    if !is_pattern(text) || whole.is_file() {
        let short = whole.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        return Ok(if whole.is_file() {
            vec![Found { shown: text.to_owned(), short, path: whole }]
        } else {
            vec![]
        });
    }
    let parts: Vec<&str> = text.split('/').collect();
    let n = parts.iter().position(|p| is_pattern(p)).unwrap_or(0);
    let (fixed, rest) = (parts[..n].join("/"), parts[n..].join("/"));
    let fixed = if n > 0 { fixed + "/" } else { fixed };
    let matcher = glob(&rest)?;
    let base = dir.join(&fixed);
    let files = walk(&base).map_err(|e| format!("{}: {e}", base.display()))?;
    let matching = files.into_iter().filter(|(name, _)| matcher.is_match(name));
    Ok(matching.map(|(short, path)| Found { shown: format!("{fixed}{short}"), short, path }).collect())
}

/// All files below a folder with their names relative to it, in order of the names. Folders that begin with a dot and
/// links to folders are passed over.
///
/// # Errors
/// If the folder cannot be read.
pub(crate) fn walk(base: &Path) -> std::io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut folders = vec![(String::new(), base.to_owned())];
    while let Some((prefix, folder)) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                if !entry.file_name().to_string_lossy().starts_with('.') {
                    folders.push((name + "/", entry.path()));
                }
            } else if entry.path().is_file() {
                found.push((name, entry.path()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Writes a file whole or not at all, with the folders above it.
///
/// # Errors
/// [`SnapshotError::Io`]; what was there is then still there.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<(), SnapshotError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        std::fs::create_dir_all(folder)?;
        basisopt_onnx::write_whole(path, text.as_bytes())
    };
    write().map_err(SnapshotError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_find_files_in_order_and_keep_within_their_folder() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["m/b.onnx", "m/a.onnx", "m/x/c.onnx", "m/.git/d.onnx", "m/e.txt", "list/here"] {
            write_whole(&dir.path().join(name), "").unwrap();
        }
        let list = dir.path().join("list");
        let short = |pattern: &str| -> Vec<String> {
            find(&list, pattern).unwrap().into_iter().map(|f| f.short).collect()
        };
        assert_eq!(short("../m/*.onnx"), ["a.onnx", "b.onnx"]);
        assert_eq!(short("../m/**/*.onnx"), ["a.onnx", "b.onnx", "x/c.onnx"]);
        assert_eq!(short("../m/{a,e}.*"), ["a.onnx", "e.txt"]);
        assert_eq!(short("../m/x/c.onnx"), ["c.onnx"]);
        assert_eq!(short("none.onnx"), [""; 0]);
        assert_eq!(find(&list, "../m/x/*").unwrap()[0].shown, "../m/x/c.onnx");
        assert!(find(&list, "../m/[").is_err() && find(&list, "nowhere/*.onnx").is_err());
    }
}

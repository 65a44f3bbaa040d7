//! Labels that come in a file of their own.

use super::npy::{self, ArrayFile};
use crate::RuntimeError;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Names under which an `.npz` may hold its labels.
pub(crate) const LABEL_KEYS: &[&str] = &["labels", "label", "y", "targets"];

/// A file of labels: one per record in order, or one per file name.
#[derive(Debug)]
pub(crate) struct LabelFile {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    InOrder(Vec<i64>),
    ByFile(BTreeMap<String, i64>),
}

impl LabelFile {
    /// Reads `.npy`, `.npz`, or text: an integer per line, or `file,label` (also with spaces, tabs or
    /// semicolons). Empty lines and those that start with `#` are skipped, and so is a header line.
    pub(crate) fn read(path: &Path) -> Result<Self, RuntimeError> {
        let content = if npy::is_numpy(path) {
            let key = match npy::keys(path)? {
                None => String::new(),
                Some(keys) => pick(path, &keys, LABEL_KEYS, "labels")?,
            };
            Content::InOrder(ArrayFile::open(path, &key)?.integers()?)
        } else {
            parse(path, &std::fs::read_to_string(path).map_err(RuntimeError::io(path))?)?
        };
        Ok(Self { path: path.to_owned(), content })
    }

    /// The labels of records that have no names.
    pub(crate) fn in_order(self, n: usize) -> Result<Vec<i64>, RuntimeError> {
        match self.content {
            Content::InOrder(labels) if labels.len() == n => Ok(labels),
            Content::InOrder(labels) => {
                let reason = format!("holds {} labels, the data set has {n} records", labels.len());
                Err(RuntimeError::data(&self.path, reason))
            }
            Content::ByFile(_) => Err(RuntimeError::data(
                &self.path,
                "names files, but the records of the data set have no names; give one integer per line",
            )),
        }
    }

    /// The labels of files, looked up by the path within `dir`, the file name, or the name without extension.
    pub(crate) fn for_files(self, dir: &Path, files: &[PathBuf]) -> Result<Vec<i64>, RuntimeError> {
        let Content::ByFile(by_file) = &self.content else {
            return self.in_order(files.len());
        };
        let find = |file: &PathBuf| {
            let relative = file.strip_prefix(dir).unwrap_or(file).to_string_lossy().replace('\\', "/");
            let name = file.file_name().map(|n| n.to_string_lossy().into_owned());
            let stem = file.file_stem().map(|n| n.to_string_lossy().into_owned());
            [Some(relative), name, stem].into_iter().flatten().find_map(|k| by_file.get(&k).copied())
        };
        let missing =
            |file: &PathBuf| RuntimeError::data(&self.path, format!("has no label for {}", file.display()));
        files.iter().map(|f| find(f).ok_or_else(|| missing(f))).collect()
    }
}

/// The array to take from an `.npz`: the first of the usual names that it holds.
pub(crate) fn pick(path: &Path, keys: &[String], usual: &[&str], what: &str) -> Result<String, RuntimeError> {
    let found = usual.iter().find(|u| keys.iter().any(|k| k == *u));
    found.map(|k| (*k).to_owned()).ok_or_else(|| {
        let reason = format!(
            "holds no {what} under the names {}; its arrays are: {}",
            usual.join(", "),
            keys.join(", ")
        );
        RuntimeError::data(path, reason)
    })
}

fn parse(path: &Path, text: &str) -> Result<Content, RuntimeError> {
    let (mut in_order, mut by_file) = (Vec::new(), BTreeMap::new());
    let mut is_first = true;
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The label stands last, so that file names may hold separators.
        let (file, label) = match line.rsplit_once([',', ';', '\t', ' ']) {
            Some((file, label)) => {
                (Some(file.trim_end_matches([',', ';', '\t', ' ']).trim_matches('"')), label)
            }
            None => (None, line),
        };
        let was_first = std::mem::replace(&mut is_first, false);
        match (label.trim_matches('"').parse::<i64>(), file) {
            (Ok(label), Some(file)) => {
                by_file.insert(file.to_owned(), label);
            }
            (Ok(label), None) => in_order.push(label),
            (Err(_), _) if was_first => {}
            (Err(_), _) => {
                let reason = format!("line {}: `{label}` is no label; labels are integers", i + 1);
                return Err(RuntimeError::data(path, reason));
            }
        }
        if !in_order.is_empty() && !by_file.is_empty() {
            return Err(RuntimeError::data(
                path,
                format!("line {}: some lines name a file and some do not", i + 1),
            ));
        }
    }
    Ok(if by_file.is_empty() { Content::InOrder(in_order) } else { Content::ByFile(by_file) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_in_two_forms() {
        let path = Path::new("labels.txt");
        let Content::InOrder(labels) = parse(path, "# classes\n3\n\n-1\n").unwrap() else { panic!() };
        assert_eq!(labels, [3, -1]);
        let Content::ByFile(map) = parse(path, "file,label\na b.png, 3\nc.png\t4\n").unwrap() else {
            panic!()
        };
        assert_eq!(map.into_iter().collect::<Vec<_>>(), [("a b.png".to_owned(), 3), ("c.png".to_owned(), 4)]);
        let error = parse(path, "1\n2\nthree\n").unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("three"), "{error}");
    }
}

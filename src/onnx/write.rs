//! Writing to disk: whole or not at all, and never over the input.

use crate::error::Problem;
use crate::export::{Encoded, export};
use crate::external::{Kind, map_tensors};
use crate::layout::Target;
use crate::source::{Inner, Source, skeleton};
use crate::whole::{folder_of, sync_folder, temporary};
use basisopt_ir::Graph;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Writes a version of the source's graph to a path.
///
/// Everything goes to temporary files in the target folder first, and to the disk; only then are
/// the files renamed, data files first.
pub(crate) fn write(graph: &Graph, source: &Source, path: &Path) -> Result<(), Problem> {
    let s = source.inner();
    refuse_inputs(s, path)?;
    let folder = folder_of(path);
    let names = data_names(s, path, folder);
    let encoded = export(graph, source, Target::Files(&names), false)?;

    // A device or a pipe can only be written to directly.
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return write_directly(&encoded, path);
    }
    let mut created = Created::default();
    write_all(s, &encoded, path, folder, &mut created).inspect_err(|_| created.undo())
}

fn write_directly(encoded: &Encoded, path: &Path) -> Result<(), Problem> {
    if let Some((location, _)) = encoded.data_files().first() {
        return Err(crate::external::external(
            "the model",
            location,
            format!("has to be written beside the model, but {} is not a regular file", path.display()),
        ));
    }
    let file = fs::OpenOptions::new().write(true).open(path).map_err(Problem::io("write", path))?;
    let mut to = BufWriter::new(file);
    encoded.write_to(&mut to).and_then(|()| to.flush()).map_err(Problem::io("write", path))
}

/// What has been made on disk so far, to take back if the rest fails.
#[derive(Default)]
struct Created {
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Created {
    fn undo(&self) {
        // Nothing can be done about a failure to clean up after a failure.
        self.files.iter().for_each(|f| drop(fs::remove_file(f)));
        self.folders.iter().rev().for_each(|f| drop(fs::remove_dir(f)));
    }
}

fn write_all(
    s: &Inner,
    encoded: &Encoded,
    path: &Path,
    folder: &Path,
    created: &mut Created,
) -> Result<(), Problem> {
    let ours = locations_in(path);
    let mut files: Vec<(PathBuf, NamedTempFile)> = Vec::new();
    for (location, pieces) in encoded.data_files() {
        let target = folder.join(location);
        refuse_inputs(s, &target)?;
        if target.exists() && !ours.contains(location) {
            let what = "a file that the model there does not name as its data, so it is not ours to replace";
            return Err(Problem::Overwrite { path: target, what: what.to_owned() });
        }
        if files.iter().any(|(other, _)| *other == target) {
            let what = "the target of two data files of the model".to_owned();
            return Err(Problem::Overwrite { path: target, what });
        }
        let parent = target.parent().unwrap_or(folder);
        make_folder(parent, created)?;
        files.push((target.clone(), temporary(pieces, parent).map_err(Problem::io("write", &target))?));
    }
    let model = temporary(encoded.pieces(), folder).map_err(Problem::io("write", path))?;
    files.push((path.to_owned(), model));

    for (target, file) in files {
        let is_new = !target.exists();
        file.persist(&target).map_err(|e| Problem::io("write", &target)(e.error))?;
        if is_new {
            created.files.push(target);
        }
    }
    sync_folder(folder);
    Ok(())
}

fn make_folder(folder: &Path, created: &mut Created) -> Result<(), Problem> {
    let missing: Vec<&Path> =
        folder.ancestors().take_while(|a| !a.as_os_str().is_empty() && !a.exists()).collect();
    for folder in missing.into_iter().rev() {
        fs::create_dir(folder).map_err(Problem::io("create", folder))?;
        created.folders.push(folder.to_owned());
    }
    Ok(())
}

/// Names of the data files beside the output. In another folder they keep theirs, unless a file of
/// that name is there already. Then, and in the folder of the input, they are named after the output: `m.onnx` with `m.data` becomes `out.onnx` with
/// `out.data`.
fn data_names(s: &Inner, path: &Path, folder: &Path) -> BTreeMap<String, String> {
    let here = folder.canonicalize().ok();
    let there = s.dir.as_ref().and_then(|d| d.canonicalize().ok());
    let stem_of = |p: &Path| p.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let old_stem = s.path.as_deref().map(stem_of).unwrap_or_default();
    let new_stem = stem_of(path);
    let ours = locations_in(path);
    let mut taken = BTreeSet::new();
    let mut names = BTreeMap::new();
    for location in s.data.files.keys() {
        let mut name = location.clone();
        // A name that another model's data has here is left to it.
        let taken_here = !ours.contains(location) && folder.join(location).exists();
        if taken_here || (here.is_some() && here == there) {
            name = derived(location, &old_stem, &new_stem);
            let mut n = 1;
            while !taken.insert(name.clone()) {
                n += 1;
                name = derived(location, &old_stem, &format!("{new_stem}.{n}"));
            }
        }
        names.insert(location.clone(), name);
    }
    names
}

/// The location with the model's name in it replaced, or put before it.
fn derived(location: &str, old_stem: &str, new_stem: &str) -> String {
    let (folder, file) = match location.rsplit_once('/') {
        Some((folder, file)) => (format!("{folder}/"), file),
        None => (String::new(), location),
    };
    match file
        .strip_prefix(old_stem)
        .filter(|rest| !old_stem.is_empty() && !rest.starts_with(char::is_alphanumeric))
    {
        Some(rest) => format!("{folder}{new_stem}{rest}"),
        None => format!("{folder}{new_stem}.{file}"),
    }
}

/// The data files that the model at a path names, if there is one.
fn locations_in(path: &Path) -> BTreeSet<String> {
    let mut locations = BTreeSet::new();
    // A device has no end to read to.
    if path.is_file()
        && let Ok(bytes) = crate::external::map(path)
        && let Ok((_, graph)) = skeleton(bytes)
    {
        let mut note = |_: &crate::tensor::RawTensor, data: &crate::external::DataRef| {
            locations.insert(data.location.clone());
            Ok(None)
        };
        // What is there may be anything; as far as it can be read is far enough.
        drop(map_tensors(Kind::Graph, &graph.bytes, "the old output", &mut note));
    }
    locations
}

/// Refuses a path that leads to the model or one of its data files.
fn refuse_inputs(s: &Inner, path: &Path) -> Result<(), Problem> {
    let refuse = |what: &str| Err(Problem::Overwrite { path: path.to_owned(), what: what.to_owned() });
    if s.path.as_deref().is_some_and(|input| same_file(input, path)) {
        return refuse("the input model");
    }
    if s.data.files.values().any(|data| same_file(&data.path, path)) {
        return refuse("a data file of the input model");
    }
    Ok(())
}

/// Whether two paths lead to one file, through links of either kind.
fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    if let (Ok(a), Ok(b)) = (fs::metadata(a), fs::metadata(b)) {
        use std::os::unix::fs::MetadataExt as _;
        // Devices such as a terminal may be input and output at once.
        return a.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino());
    }
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_files_are_named_after_the_output() {
        assert_eq!(derived("m.data", "m", "out"), "out.data");
        assert_eq!(derived("m.onnx.data", "m", "out"), "out.onnx.data");
        assert_eq!(derived("weights.bin", "m", "out"), "out.weights.bin");
        assert_eq!(derived("model.bin", "m", "out"), "out.model.bin", "a name that only begins alike");
        assert_eq!(derived("sub/m_data", "m", "out"), "sub/out_data");
    }
}

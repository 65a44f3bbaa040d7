//! The file that lists the cases: which models, which pipelines.
//!
//! ```toml
//! # basisopt-snapshots.toml
//! [pipelines]                             # a name for files, and the passes
//! import = ""                             # no passes: what is read
//! fold = "@fold"
//! small = "@fold,factorize-conv:energy=0.9"
//!
//! [[case]]
//! model = "models/**/*.onnx"              # a file or a pattern, relative to this file
//!
//! [[case]]                                # named by itself, so the pattern above leaves it out
//! model = "models/detector.onnx"
//! name = "detector-320"                   # instead of the file's name
//! pipelines = ["fold", "dead-code"]       # some of the above, or passes as they stand; all of the above if absent
//! dims = { H = 320, W = 320 }             # sizes that the model leaves open
//! ```
//!
//! A case has a file for each model and pipeline, `snapshots/MODEL/PIPELINE.snap` beside the list; `snapshots =
//! "FOLDER"` at the top of the list names another folder.

use crate::error::SnapshotError;
use crate::files;
use crate::snapshot::read_pipeline;
use basisopt_passes::Registry;
use basisopt_passes::driver::options::closest;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the list of cases is called where only its folder is named.
pub const FILE_NAME: &str = "basisopt-snapshots.toml";
/// Where snapshots lie beside the list, if it does not say.
const FOLDER: &str = "snapshots";
/// What names of snapshot files end in.
pub(crate) const EXTENSION: &str = "snap";
/// The longest name of a file that is made from a pipeline's text, in bytes.
const LONGEST: usize = 100;

/// A list of cases as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    file: PathBuf,
    folder: PathBuf,
    pipelines: BTreeMap<String, String>,
    entries: Vec<Entry>,
}

/// One model under one pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// `MODEL/PIPELINE`, no two the same.
    pub name: String,
    /// The model as the list has it.
    pub model: String,
    /// Where the model is.
    pub path: PathBuf,
    /// The passes.
    pub pipeline: String,
    /// Sizes of dimensions that the model leaves open.
    pub dims: Vec<(String, usize)>,
    /// Where its snapshot is.
    pub file: PathBuf,
}

#[derive(Deserialize)]
struct Raw {
    snapshots: Option<PathBuf>,
    #[serde(default)]
    pipelines: BTreeMap<String, String>,
    #[serde(default, rename = "case")]
    cases: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Entry {
    model: String,
    name: Option<String>,
    pipelines: Option<Vec<String>>,
    #[serde(default)]
    dims: BTreeMap<String, usize>,
}

const KEYS: &[&str] = &["snapshots", "pipelines", "case"];
const CASE_KEYS: &[&str] = &["model", "name", "pipelines", "dims"];

impl Spec {
    /// Reads a list: a file, or the [`FILE_NAME`] of a folder.
    ///
    /// # Errors
    /// [`SnapshotError::NoSpec`], [`SnapshotError::Io`], [`SnapshotError::Spec`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, SnapshotError> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join(FILE_NAME) } else { path.to_owned() };
        match std::fs::read_to_string(&file) {
            Ok(text) => Self::parse(&text, &file),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(SnapshotError::NoSpec { path: file }),
            Err(e) => Err(SnapshotError::io("read", file)(e)),
        }
    }

    /// Reads a list that is, or could be, at this path.
    ///
    /// # Errors
    /// [`SnapshotError::Spec`], saying what is wrong and what is meant perhaps.
    pub fn parse(text: &str, file: &Path) -> Result<Self, SnapshotError> {
        let wrong = |reason: String| SnapshotError::Spec {
            file: file.display().to_string(),
            reason: reason.trim_end().to_owned(),
        };
        let table: toml::Table = toml::from_str(text).map_err(|e| wrong(e.to_string()))?;
        check_keys(&table).map_err(wrong)?;
        let raw: Raw = toml::from_str(text).map_err(|e| wrong(e.to_string()))?;
        if raw.cases.is_empty() {
            return Err(wrong(
                "there is no case; begin with\n\n[[case]]\nmodel = \"model.onnx\"\npipelines = [\"@fold\"]"
                    .to_owned(),
            ));
        }
        for name in raw.pipelines.keys() {
            if slug(name) != *name || name.starts_with('.') || name.len() > LONGEST {
                return Err(wrong(format!(
                    "the pipeline {name:?} names a file: expected letters, digits and - _ + = . only, and {LONGEST} at most"
                )));
            }
        }
        if let Some((name, _)) = raw.cases.iter().flat_map(|c| &c.dims).find(|(_, n)| **n == 0) {
            return Err(wrong(format!("dims: {name} = 0 is no size")));
        }
        let folder =
            file.parent().unwrap_or(Path::new("")).join(raw.snapshots.unwrap_or_else(|| FOLDER.into()));
        Ok(Self { file: file.to_owned(), folder, pipelines: raw.pipelines, entries: raw.cases })
    }

    /// The file that was read.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The folder that snapshots are in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder that models and files in options of passes are relative to.
    pub fn dir(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    /// All cases, in the order of the list, the models of a pattern by name.
    ///
    /// # Errors
    /// [`SnapshotError::Spec`]: models that are not there, two cases of one name;
    /// [`SnapshotError::Pipeline`]: passes that are not in the registry.
    pub fn cases(&self, registry: &Registry) -> Result<Vec<Case>, SnapshotError> {
        let by_itself: Vec<PathBuf> = (self.entries.iter())
            .filter(|e| !self.is_pattern(e))
            .filter_map(|e| self.dir().join(&e.model).canonicalize().ok())
            .collect();
        let mut cases = Vec::new();
        for entry in &self.entries {
            let pipelines = self.pipelines_of(entry, registry)?;
            let mut found = files::find(self.dir(), &entry.model)
                .map_err(|e| self.wrong(format!("model {:?}: {e}", entry.model)))?;
            if found.is_empty() {
                let what = if self.is_pattern(entry) { "matches no file" } else { "is not there" };
                return Err(
                    self.wrong(format!("model {:?} {what}; paths are relative to this file", entry.model))
                );
            }
            let is_pattern = self.is_pattern(entry);
            if is_pattern {
                found.retain(|f| f.path.canonicalize().map_or(true, |path| !by_itself.contains(&path)));
            }
            for model in found {
                let name = model_name(entry, &model.short, is_pattern).map_err(|e| self.wrong(e))?;
                for (pipeline_name, pipeline) in &pipelines {
                    cases.push(Case {
                        name: format!("{name}/{pipeline_name}"),
                        model: model.shown.clone(),
                        path: model.path.clone(),
                        pipeline: pipeline.clone(),
                        dims: entry.dims.iter().map(|(k, v)| (k.clone(), *v)).collect(),
                        file: self.folder.join(&name).join(format!("{pipeline_name}.{EXTENSION}")),
                    });
                }
            }
        }
        self.check_names(&cases)?;
        Ok(cases)
    }

    /// Whether an entry means several models: a file whose name has brackets is one.
    fn is_pattern(&self, entry: &Entry) -> bool {
        files::is_pattern(&entry.model) && !self.dir().join(&entry.model).is_file()
    }

    /// Names and texts of the pipelines of a case.
    fn pipelines_of(
        &self,
        entry: &Entry,
        registry: &Registry,
    ) -> Result<Vec<(String, String)>, SnapshotError> {
        let all: Vec<String> = self.pipelines.keys().cloned().collect();
        let wanted = entry.pipelines.as_ref().unwrap_or(&all);
        if wanted.is_empty() {
            return Err(self.wrong(format!(
                "model {:?} has no pipelines; give some, as in pipelines = [\"@fold\"]",
                entry.model
            )));
        }
        let named = |text: &String| match self.pipelines.get(text) {
            Some(passes) => (text.clone(), passes.clone()),
            None => (slug(text), text.clone()),
        };
        let found: Vec<(String, String)> = wanted.iter().map(named).collect();
        for (name, text) in &found {
            read_pipeline(text, registry)?;
            if name.len() > LONGEST {
                return Err(self.wrong(format!(
                    "the pipeline {text:?} is too long for a file name; name it in [pipelines]"
                )));
            }
        }
        Ok(found)
    }

    /// Two cases must not share a file, on file systems that do not tell `A` from `a` either.
    fn check_names(&self, cases: &[Case]) -> Result<(), SnapshotError> {
        let mut seen: BTreeMap<String, &Case> = BTreeMap::new();
        for case in cases {
            if let Some(other) = seen.insert(case.name.to_lowercase(), case) {
                return Err(self.wrong(format!(
                    "two cases have the name {:?}: {} with {:?} and {} with {:?}; give one of them another `name`, or its pipeline a name in [pipelines]",
                    case.name, other.model, other.pipeline, case.model, case.pipeline
                )));
            }
        }
        Ok(())
    }

    fn wrong(&self, reason: String) -> SnapshotError {
        SnapshotError::Spec { file: self.file.display().to_string(), reason }
    }
}

/// A key that nobody reads is a spelling mistake.
fn check_keys(table: &toml::Table) -> Result<(), String> {
    let check = |place: &str, table: &toml::Table, known: &[&str]| match table
        .keys()
        .find(|k| !known.contains(&k.as_str()))
    {
        None => Ok(()),
        Some(key) => {
            let hint = closest(key, known.iter().copied())
                .map(|k| format!(" (did you mean {k:?}?)"))
                .unwrap_or_default();
            Err(format!("{place}there is no key {key:?}{hint}; expected {}", known.join(", ")))
        }
    };
    check("", table, KEYS)?;
    let cases = table.get("case").and_then(toml::Value::as_array);
    for (i, case) in cases.into_iter().flatten().enumerate() {
        if let Some(case) = case.as_table() {
            check(&format!("[[case]] number {}: ", i + 1), case, CASE_KEYS)?;
        }
    }
    Ok(())
}

/// The name of a model in names of files: its own without the ending, or the one given, under which those of a
/// pattern then stand.
fn model_name(entry: &Entry, short: &str, is_pattern: bool) -> Result<String, String> {
    let stem = match short.rsplit_once('.') {
        Some((stem, end)) if !stem.is_empty() && !end.contains('/') => stem,
        _ => short,
    };
    let parts = |text: &str| -> Vec<String> { text.split('/').map(slug).collect() };
    let Some(name) = &entry.name else { return Ok(parts(stem).join("/")) };
    if name.split('/').any(|part| part.is_empty() || part.starts_with('.') || slug(part) != part) {
        return Err(format!(
            "name {name:?} names a folder: expected letters, digits and - _ + = . only, perhaps with / between"
        ));
    }
    Ok(if is_pattern { format!("{name}/{}", parts(stem).join("/")) } else { name.clone() })
}

/// A text as the name of a file: `@fold,dead-code` is `fold+dead-code`.
fn slug(text: &str) -> String {
    let of = |c: char| match c {
        ',' => '+',
        ':' => '_',
        c if c.is_ascii_alphanumeric() || "-_+=.".contains(c) => c,
        _ => '-',
    };
    let text = text.trim().replace('@', "");
    if text.is_empty() { "no-passes".to_owned() } else { text.chars().map(of).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|name| files::write_whole(&dir.path().join(name), "").unwrap());
        dir
    }

    fn names(dir: &Path, text: &str) -> Result<Vec<String>, String> {
        let spec = Spec::parse(text, &dir.join("list.toml")).map_err(|e| e.to_string())?;
        let cases = spec.cases(&Registry::builtin()).map_err(|e| e.to_string())?;
        Ok(cases.into_iter().map(|c| c.file.strip_prefix(dir).unwrap().display().to_string()).collect())
    }

    #[test]
    fn cases_are_models_times_pipelines_with_files_of_their_names() {
        let dir = folder(&["m/a.onnx", "m/x/b v2.onnx", "m/x/c.bir", "d.onnx"]);
        let text = "[pipelines]\nimport = \"\"\nsmall = \"@fold,factorize-conv:energy=0.9\"\n\
                    [[case]]\nmodel = \"m/**/*.{onnx,bir}\"\n\
                    [[case]]\nmodel = \"d.onnx\"\nname = \"other/d\"\npipelines = [\"import\", \"@fold,dead-code:\"]\n";
        let error = names(dir.path(), text).unwrap_err();
        assert!(error.starts_with("pipeline \"@fold,dead-code:\": "), "{error}");
        assert_eq!(
            names(dir.path(), &text.replace("code:", "code")).unwrap(),
            [
                "snapshots/a/import.snap",
                "snapshots/a/small.snap",
                "snapshots/x/b-v2/import.snap",
                "snapshots/x/b-v2/small.snap",
                "snapshots/x/c/import.snap",
                "snapshots/x/c/small.snap",
                "snapshots/other/d/import.snap",
                "snapshots/other/d/fold+dead-code.snap",
            ]
        );
    }

    #[test]
    fn a_model_named_by_itself_is_left_out_of_patterns() {
        let dir = folder(&["a.onnx", "b.onnx"]);
        let text = "snapshots = \"s\"\n[[case]]\nmodel = \"*.onnx\"\npipelines = [\"@fold\"]\n\
                    [[case]]\nmodel = \"./b.onnx\"\npipelines = [\"\"]\ndims = { H = 8 }\n";
        assert_eq!(names(dir.path(), text).unwrap(), ["s/a/fold.snap", "s/b/no-passes.snap"]);
    }

    #[test]
    fn a_file_with_brackets_in_its_name_is_one_model() {
        let dir = folder(&["a[1].bir", "b.bir"]);
        let text = "[[case]]\nmodel = \"*.bir\"\npipelines = [\"\"]\n\
                    [[case]]\nmodel = \"a[1].bir\"\nname = \"alpha\"\npipelines = [\"\"]\n";
        let expected = ["snapshots/b/no-passes.snap", "snapshots/alpha/no-passes.snap"];
        assert_eq!(names(dir.path(), text).unwrap(), expected);
    }

    #[test]
    fn mistakes_say_what_was_meant() {
        let dir = folder(&["a.onnx", "x/a.onnx"]);
        let one = "[[case]]\nmodel = \"a.onnx\"\n";
        for (text, expected) in [
            (
                "[[case]]\nmodle = \"a.onnx\"".to_owned(),
                "[[case]] number 1: there is no key \"modle\" (did you mean \"model\"?)",
            ),
            ("[pipeline]\na = \"\"".to_owned(), "no key \"pipeline\" (did you mean \"pipelines\"?)"),
            ("[[case]]\nname = \"a\"".to_owned(), "missing field `model`"),
            (String::new(), "there is no case; begin with"),
            (one.to_owned(), "has no pipelines"),
            (format!("{one}pipelines = [\"@fould\"]"), "there is no preset \"@fould\""),
            (format!("{one}pipelines = [\"dead-cod\"]"), "did you mean \"dead-code\""),
            (format!("{one}pipelines = [\"\"]\nname = \"../b\""), "name \"../b\" names a folder"),
            (format!("{one}dims = {{ H = 0 }}\npipelines = [\"\"]"), "H = 0 is no size"),
            (
                format!("{one}dims = {{ H = -1 }}\npipelines = [\"\"]"),
                "list.toml: TOML parse error at line 3",
            ),
            (one.replace("a.onnx", "b.onnx") + "pipelines = [\"\"]", "\"b.onnx\" is not there"),
            (one.replace("a.onnx", "*.bir") + "pipelines = [\"\"]", "\"*.bir\" matches no file"),
            (format!("[pipelines]\n\"a/b\" = \"\"\n{one}"), "the pipeline \"a/b\" names a file"),
            (
                format!("[pipelines]\nf = \"@fold\"\n{one}[[case]]\nmodel = \"x/a.onnx\""),
                "two cases have the name \"a/f\": a.onnx with \"@fold\" and x/a.onnx with \"@fold\"",
            ),
        ] {
            let error = names(dir.path(), &text).unwrap_err();
            assert!(error.contains(expected), "{text}\n{error}");
        }
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        for text in ["..", "a/../b", "/etc/x", "@fold,x:include=/a/*|b"] {
            assert!(!slug(text).contains(['/', '*', '|', ':']), "{text}");
        }
        assert_eq!(slug("@fold,factorize-conv:energy=0.9"), "fold+factorize-conv_energy=0.9");
    }
}

//! Snapshots: a network, a pipeline, and what came of them, as text.
//!
//! ```text
//! // snapshot: 1
//! // model: glyphnet.onnx
//! // passes: @fold,factorize-conv:energy=0.9
//! //
//! // fold-batch-norm: 7 rewrites
//! //   + fold-batch-norm: …
//! //
//! // basisopt.layer.conv1 = {"rank":5,…}
//! //
//! //   conv1: 110592 -> 58368 multiply-adds, 144 -> 125 parameters
//! //   total: …
//! graph @main(…) -> (…) {
//!   …
//! }
//! ```
//!
//! Or, where the model is not accepted or a pass fails, the head and `// error: …` with the reason: errors are part of
//! what users of a network see, and change as graphs do.

use crate::cost::{self, Table};
use crate::error::SnapshotError;
use crate::shapes::Shapes;
use basisopt_ir::{Graph, parse, print};
use basisopt_onnx::{Model, Problem};
use basisopt_passes::cost::open_dims;
use basisopt_passes::{
    Host, Manager, ManagerError, NoHost, NoObserver, PassError, Pipeline, Registry, Report,
};
use bytes::Bytes;
use std::fmt::Write as _;
use std::path::Path;

/// The version of the text's layout. It changes when the layout does, not with every release of this crate.
pub const FORMAT: u32 = 1;

/// What a model's metadata has of the program that wrote it, and would change with every release.
const VERSION_KEY: &str = "basisopt.version";
/// Begins the keys of metadata that passes write.
const OWN_METADATA: &str = "basisopt.";

/// What snapshots are taken with.
#[derive(Clone)]
pub struct Settings<'a> {
    /// Passes that pipelines may name; the built-in ones by default.
    pub registry: Registry,
    /// Files that options of passes name, and interruption; neither by default.
    pub host: &'a (dyn Host + Sync),
    /// Sizes of dimensions that the network leaves open, by their name in the model or as `INPUT:AXIS`, for the cost
    /// table and for passes that go by multiply-adds. The batch is 1 if it is not given.
    pub dims: Vec<(String, usize)>,
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Self { registry: Registry::builtin(), host: &NoHost, dims: vec![] }
    }
}

impl std::fmt::Debug for Settings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("dims", &self.dims).finish_non_exhaustive()
    }
}

/// What a pipeline made of a network, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    text: String,
    is_error: bool,
}

impl Snapshot {
    /// Of a graph. An empty pipeline shows what was read. `name` stands for the network in the head and in errors.
    ///
    /// # Errors
    /// [`SnapshotError::Pipeline`] and [`SnapshotError::Dims`] for requests that are wrong whatever the network does;
    /// [`SnapshotError::Interrupted`]. A pass that fails is no error here but what the snapshot says.
    pub fn of_graph(
        name: &str,
        graph: Graph,
        pipeline: &str,
        settings: &Settings<'_>,
    ) -> Result<Self, SnapshotError> {
        let passes = read_pipeline(pipeline, &settings.registry)?;
        let mut graph = graph;
        check_dims(name, &graph, &settings.dims)?;
        let before = Table::of(&graph, &settings.dims);
        let mut executor = Shapes { dims: &settings.dims };
        let mut manager =
            Manager { host: settings.host, executor: Some(&mut executor), ..Manager::default() };
        manager.is_checked = false;
        match manager.run(&mut graph, &passes, &mut NoObserver) {
            Ok(report) => {
                let after = Table::of(&graph, &settings.dims);
                let mut text = head(name, pipeline);
                remarks(&mut text, &report);
                metadata(&mut text, &graph);
                section(&mut text, cost::lines(&before, &after));
                text.push_str(&print::print(&graph));
                Ok(Self { text, is_error: false })
            }
            Err(ManagerError::Pass { source: PassError::Interrupted, .. }) => Err(SnapshotError::Interrupted),
            // The machine's, not the network's: it would be stored as if it were meant.
            Err(error @ ManagerError::Pass { source: PassError::File { .. }, .. }) => {
                Err(SnapshotError::File(error.to_string()))
            }
            Err(error @ ManagerError::Panicked { .. }) => Err(SnapshotError::Panicked(error.to_string())),
            Err(error) => Ok(Self::error(name, pipeline, &error.to_string())),
        }
    }

    /// Of a model in memory: ONNX, or `.bir` text, which is told by its first word. `dir` is where the model's external
    /// data lie, if it has any.
    ///
    /// # Errors
    /// As [`Snapshot::of_graph`]. A model that is damaged or not supported is no error here but what the snapshot says.
    pub fn of_bytes(
        name: &str,
        bytes: impl Into<Bytes>,
        dir: Option<&Path>,
        pipeline: &str,
        settings: &Settings<'_>,
    ) -> Result<Self, SnapshotError> {
        let bytes = bytes.into();
        // A mistake in the pipeline is one whatever the model is like.
        read_pipeline(pipeline, &settings.registry)?;
        let begin = bytes.trim_ascii_start();
        if begin.starts_with(b"graph ") || begin.starts_with(b"//") {
            return Self::of_bir(name, &bytes, pipeline, settings);
        }
        match Model::from_bytes(name, bytes, dir) {
            Ok(model) => Self::of_graph(name, model.graph, pipeline, settings),
            Err(error) => Ok(Self::error(name, pipeline, &relative(&error.to_string(), dir))),
        }
    }

    fn of_bir(
        name: &str,
        bytes: &[u8],
        pipeline: &str,
        settings: &Settings<'_>,
    ) -> Result<Self, SnapshotError> {
        let graph = std::str::from_utf8(bytes)
            .map_err(|e| e.to_string())
            .and_then(|text| parse::parse(text).map_err(|e| format!("line {}: {}", e.line, e.message)));
        match graph {
            Ok(graph) => Self::of_graph(name, graph, pipeline, settings),
            Err(error) => Ok(Self::error(name, pipeline, &format!("{name}: {error}"))),
        }
    }

    /// Of a file, ONNX or `.bir`; an ONNX file is mapped into memory.
    ///
    /// # Errors
    /// As [`Snapshot::of_bytes`], and [`SnapshotError::Io`] if the file cannot be read.
    pub fn of_file(
        name: &str,
        path: &Path,
        pipeline: &str,
        settings: &Settings<'_>,
    ) -> Result<Self, SnapshotError> {
        let dir = path.parent();
        read_pipeline(pipeline, &settings.registry)?;
        if path.extension().is_some_and(|e| e == "bir") {
            let bytes = std::fs::read(path).map_err(SnapshotError::io("read", path))?;
            return Self::of_bir(name, &bytes, pipeline, settings);
        }
        match Model::read(path) {
            Ok(model) => Self::of_graph(name, model.graph, pipeline, settings),
            Err(error) => {
                // The file itself cannot be opened: nobody knows what the network is like.
                if matches!(error.problem(), Problem::Io { path: at, .. } if at == path) {
                    std::fs::File::open(path).map_err(SnapshotError::io("read", path))?;
                }
                let text = error.to_string().replace(&path.display().to_string(), name);
                Ok(Self::error(name, pipeline, &relative(&text, dir)))
            }
        }
    }

    fn error(name: &str, pipeline: &str, error: &str) -> Self {
        let mut text = head(name, pipeline);
        for (i, line) in error.lines().enumerate() {
            let lead = if i == 0 { "//\n// error:" } else { "//  " };
            let _ = writeln!(text, "{lead} {}", plain(line));
        }
        Self { text, is_error: true }
    }

    /// The text, ending in a line break. Unless it is an error it is a `.bir` text with comments.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the model was not accepted, or a pass failed.
    pub fn is_error(&self) -> bool {
        self.is_error
    }
}

impl std::fmt::Display for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// A pipeline, which may be empty.
pub(crate) fn read_pipeline(text: &str, registry: &Registry) -> Result<Pipeline, SnapshotError> {
    if text.trim().is_empty() {
        return Ok(Pipeline::default());
    }
    let pipeline = Pipeline::parse(text, registry);
    pipeline.map_err(|source| SnapshotError::Pipeline { text: text.to_owned(), source: Box::new(source) })
}

/// The first line of every snapshot.
pub(crate) fn first_line() -> String {
    format!("// snapshot: {FORMAT}")
}

fn head(name: &str, pipeline: &str) -> String {
    let passes = format!("// passes: {pipeline}");
    format!("{}\n// model: {}\n{}\n", first_line(), plain(name), plain(&passes).trim_end())
}

/// A blank comment line, then these lines as comments; nothing if there are none.
fn section(out: &mut String, lines: Vec<String>) {
    for (i, line) in lines.into_iter().enumerate() {
        let lead = if i == 0 { "//\n" } else { "" };
        let _ = writeln!(out, "{lead}//   {}", plain(&line));
    }
}

fn remarks(out: &mut String, report: &Report) {
    for (i, pass) in report.passes.iter().enumerate() {
        let lead = if i == 0 { "//\n" } else { "" };
        let n = pass.outcome.n_rewrites();
        let _ = writeln!(out, "{lead}// {}: {n} rewrite{}", plain(&pass.item), if n == 1 { "" } else { "s" });
        for remark in &pass.remarks {
            let _ = writeln!(out, "//   {}", plain(&remark.to_string()));
        }
    }
}

/// What passes noted in the model for later readers.
fn metadata(out: &mut String, graph: &Graph) {
    let own = graph.metadata.iter().filter(|(k, _)| k.starts_with(OWN_METADATA) && *k != VERSION_KEY);
    section(out, own.map(|(key, value)| format!("{key} = {value}")).collect());
}

/// A text on one line, whatever is in a name: control characters are written as escapes.
fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// An error without the folder of this machine in it: where a path begins with the folder, that goes.
fn relative(error: &str, dir: Option<&Path>) -> String {
    let Some(dir) = dir.map(|d| d.display().to_string()).filter(|d| !d.is_empty()) else {
        return error.to_owned();
    };
    let dir = format!("{dir}{}", std::path::MAIN_SEPARATOR);
    let mut rest = error;
    let mut out = String::with_capacity(error.len());
    while let Some(at) = rest.find(&dir) {
        let before = &rest[..at];
        let begins = before.chars().next_back().is_none_or(|c| c.is_whitespace() || "\"'`(=".contains(c));
        out += before;
        if !begins {
            out += &dir;
        }
        rest = &rest[at + dir.len()..];
    }
    out + rest
}

/// A size for what is not open is a spelling mistake.
fn check_dims(model: &str, graph: &Graph, dims: &[(String, usize)]) -> Result<(), SnapshotError> {
    let open = open_dims(graph);
    match dims.iter().find(|(name, _)| !open.iter().any(|(own, place)| own == name || place == name)) {
        None => Ok(()),
        Some((name, _)) => {
            let open: Vec<String> = open.into_iter().map(|(own, _)| own).collect();
            Err(SnapshotError::Dims { model: model.to_owned(), name: name.clone(), open: open.join(", ") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: &str = "graph @g(%x: f32[N,8,H,9]) -> (%y) {
  %conv1.w = f32[16,8,3,3] lowrank(3, seed=1)
  %c = Conv@conv1<pads=[1,1,1,1]>(%x, %conv1.w)
  %y = Relu(%c)
}
";

    fn take(pipeline: &str, dims: &[(&str, usize)]) -> Result<Snapshot, SnapshotError> {
        let dims = dims.iter().map(|&(name, n)| (name.to_owned(), n)).collect();
        Snapshot::of_bytes("net.bir", NETWORK, None, pipeline, &Settings { dims, ..Settings::default() })
    }

    #[test]
    fn a_snapshot_has_a_head_remarks_costs_and_the_graph_but_no_version() {
        let snapshot = take("factorize-conv:rank=3", &[("H", 9)]).unwrap();
        let text = snapshot.text();
        assert!(
            text.starts_with("// snapshot: 1\n// model: net.bir\n// passes: factorize-conv:rank=3\n//\n"),
            "{text}"
        );
        assert!(
            text.contains("// factorize-conv:rank=3: 1 rewrite\n//   + factorize-conv: conv1: rank 3 of 16"),
            "{text}"
        );
        // 16·72 weights at 81 places; 3·(72 + 16) afterwards.
        assert!(
            text.contains("//   conv1: 93312 -> 21384 multiply-adds, 1152 -> 264 parameters\n"),
            "{text}"
        );
        assert!(text.contains("basisopt.layer.conv1 = {") && !text.contains("basisopt.version"), "{text}");
        // The whole text is a graph with comments.
        let graph = parse::parse(text).unwrap();
        assert!(text.ends_with(&print::print(&graph)) && !snapshot.is_error());
    }

    #[test]
    fn sizes_reach_passes_that_go_by_multiply_adds() {
        let pipeline = "allocate-ranks:target=macs:0.5,factorize-conv";
        assert!(take(pipeline, &[("H", 9)]).unwrap().text().contains("[allotted]"));
        let open = take(pipeline, &[]).unwrap();
        assert!(open.is_error() && open.text().contains("\n// error: allocate-ranks: "), "{}", open.text());
        let error = take("", &[("height", 9)]).unwrap_err().to_string();
        assert_eq!(error, "net.bir: dims has \"height\"; its open sizes are N, H");
    }

    #[test]
    fn what_is_wrong_with_a_model_is_the_snapshot_and_with_a_pipeline_an_error() {
        let take = |bytes: &'static [u8], pipeline| {
            Snapshot::of_bytes("m", bytes, None, pipeline, &Settings::default())
        };
        for (bytes, reason) in
            [(&b""[..], "the file is empty"), (b"graph @g(", "m: line 1: "), (b"\x08", "truncated")]
        {
            let snapshot = take(bytes, "@fold").unwrap();
            assert!(snapshot.is_error() && snapshot.text().contains(reason), "{snapshot}");
        }
        assert!(take(b"", "@fould").unwrap_err().is_usage());
    }

    #[test]
    fn a_bir_file_is_one_however_it_begins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.bir");
        std::fs::write(&path, format!("\n  {NETWORK}")).unwrap();
        let of_file = Snapshot::of_file("net.bir", &path, "", &Settings::default()).unwrap();
        assert!(!of_file.is_error(), "{of_file}");
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(Snapshot::of_bytes("net.bir", bytes, None, "", &Settings::default()).unwrap(), of_file);
    }

    #[test]
    fn files_that_are_not_there_are_the_lists_fault() {
        let error = take("factorize-conv:ranks=nowhere", &[]).unwrap_err();
        assert!(matches!(&error, SnapshotError::File(text) if text.contains("ranks=nowhere")), "{error}");
    }

    #[test]
    fn errors_have_no_folder_of_this_machine_in_them() {
        let of = |error, dir| relative(error, Some(Path::new(dir)));
        assert_eq!(of("cannot read /a/b/w.data: gone", "/a/b"), "cannot read w.data: gone");
        assert_eq!(of("\"./w.data\" and ../w.data", "."), "\"w.data\" and ../w.data");
        assert_eq!(of("no folder", ""), "no folder");
    }

    #[test]
    fn names_stay_on_their_line() {
        let graph = parse::parse("graph @g(%x: f32[1]) -> (%y) {\n  %y = Relu@\"a\\nb\"(%x)\n}\n").unwrap();
        let text = Snapshot::of_graph("a\nb", graph, "", &Settings::default()).unwrap();
        assert!(text.text().contains("// model: a\\nb\n// passes:\n//\n//   total: 0 "), "{text}");
    }
}

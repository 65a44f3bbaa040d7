//! ONNX import and export that lose nothing.
//!
//! [`Model::read`] turns a file into a [`Graph`] and keeps the file's bytes as the graph's
//! [`Source`]. Export splices what has changed into those bytes: what no pass touched leaves as it
//! came — names, node order, opset, IR version, metadata, doc strings, fields that nobody knows,
//! layout of external data. An untouched graph is written as the file that it came from.
//!
//! ```no_run
//! let mut model = basisopt_onnx::Model::read("resnet.onnx")?;
//! // … passes change `model.graph` …
//! model.write("small.onnx")?;
//! # Ok::<(), basisopt_onnx::OnnxError>(())
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`source`] | the file behind a graph, cut into its fields |
//! | [`export`] | encoded models |
//! | [`fresh`] | models for graphs that came from no file |
//! | [`inline`] | inlining of model-local functions, for running |
//! | [`error`] | what can go wrong |
//!
//! Weights are never copied on the way through: tensors are slices of the mapped file, and export
//! is a list of slices. Nothing is believed about a file's own sizes before the bytes are there.

mod attr;
mod bodies;
mod encode;
pub mod error;
pub mod export;
mod external;
pub mod fresh;
mod import;
pub mod inline;
pub mod layers;
mod layout;
#[doc(hidden)]
pub mod proto;
pub mod source;
mod tensor;
mod types;
mod whole;
mod wire;
mod write;

pub use error::{OnnxError, Problem};
pub use export::Encoded;
pub use external::read_stream;
pub use fresh::export_new;
pub use inline::inline_functions;
pub use layers::node_layers;
pub use source::Source;
pub use whole::{check_writable, write_whole};

use basisopt_ir::Graph;
use bytes::Bytes;
use layout::Target;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The oldest version of the standard operator set that is read.
pub const OLDEST_OPSET: i64 = 6;
/// The newest version of the standard operator set that is read.
pub const NEWEST_OPSET: i64 = 28;
/// The newest ONNX IR version that is read.
pub const NEWEST_IR_VERSION: i64 = 14;

/// A graph and the file that it came from.
#[derive(Clone, Debug)]
pub struct Model {
    /// The graph, for passes to change.
    pub graph: Graph,
    source: Source,
}

impl Model {
    /// Reads a model. The file and its data files are mapped, and must not be changed in place
    /// while the model lives.
    ///
    /// # Errors
    /// See [`Problem`]: everything that can be wrong with a file is one clear error.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, OnnxError> {
        let path = path.as_ref();
        let file = path.display().to_string();
        let bytes = external::map(path).map_err(|e| Problem::io("read", path)(e).within(""))?;
        let dir = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
            _ => PathBuf::from("."),
        };
        Self::import(file, Some(path.to_owned()), Some(dir), bytes)
    }

    /// Reads a model from memory. `name` stands for it in errors; `dir` is where its external data
    /// lies, if it has any.
    ///
    /// # Errors
    /// As [`Model::read`].
    pub fn from_bytes(name: impl Into<String>, bytes: Bytes, dir: Option<&Path>) -> Result<Self, OnnxError> {
        Self::import(name.into(), None, dir.map(Path::to_owned), bytes)
    }

    /// Reads a model from a stream such as standard input. It must not have external data.
    ///
    /// # Errors
    /// As [`Model::read`].
    pub fn from_reader(name: impl Into<String>, from: impl Read) -> Result<Self, OnnxError> {
        let name = name.into();
        let bytes = read_stream(from).map_err(|e| Problem::io("read", &name)(e).within(""))?;
        Self::import(name, None, None, bytes.into())
    }

    fn import(
        file: String,
        path: Option<PathBuf>,
        dir: Option<PathBuf>,
        bytes: Bytes,
    ) -> Result<Self, OnnxError> {
        let imported = import::import(file.clone(), path, dir, bytes);
        let (graph, source) = imported.map_err(|problem| problem.within(&file))?;
        Ok(Self { graph, source })
    }

    /// The file behind the graph.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Encodes the model; see [`Source::encode`].
    ///
    /// # Errors
    /// As [`Source::encode`].
    pub fn to_bytes(&self) -> Result<Encoded, OnnxError> {
        self.source.encode(&self.graph)
    }

    /// Writes the model; see [`Source::write`].
    ///
    /// # Errors
    /// As [`Source::write`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), OnnxError> {
        self.source.write(&self.graph, path)
    }

    /// Another version of this model's graph, to run; see [`Source::to_executable`].
    ///
    /// # Errors
    /// As [`Source::encode`].
    pub fn to_executable(&self, graph: &Graph) -> Result<(Bytes, Option<PathBuf>), OnnxError> {
        self.source.to_executable(graph)
    }
}

impl Source {
    /// Encodes a version of the graph that was imported from this source. The imported graph
    /// itself, untouched, gives the source's own bytes.
    ///
    /// # Errors
    /// [`Problem::Elided`] for constants without values, [`Problem::TooLarge`] beyond 2 GiB,
    /// [`Problem::Cycle`], [`Problem::Duplicate`], [`Problem::Capture`] and [`Problem::Invalid`]
    /// for graphs that no pass should leave behind.
    pub fn encode(&self, graph: &Graph) -> Result<Encoded, OnnxError> {
        self.encode_for(graph, false)
    }

    /// As [`Source::encode`], but an untouched graph takes the way of a touched one; for tests.
    ///
    /// # Errors
    /// As [`Source::encode`].
    #[doc(hidden)]
    pub fn encode_spliced(&self, graph: &Graph) -> Result<Encoded, OnnxError> {
        self.encode_for(graph, true)
    }

    fn encode_for(&self, graph: &Graph, force: bool) -> Result<Encoded, OnnxError> {
        let names = BTreeMap::new();
        export::export(graph, self, Target::Files(&names), force).map_err(|p| p.within(self.file()))
    }

    /// A version of the graph for a runtime: one message, and the folder in which its external data
    /// lies, if it has any. The values of the source's external tensors stay in its own data files.
    ///
    /// # Errors
    /// As [`Source::encode`].
    pub fn to_executable(&self, graph: &Graph) -> Result<(Bytes, Option<PathBuf>), OnnxError> {
        let encoded = export::export(graph, self, Target::InPlace, false);
        let encoded = encoded.map_err(|p| p.within(self.file()))?;
        let s = self.inner();
        Ok((encoded.concat(), s.dir.clone().filter(|_| !s.data.files.is_empty())))
    }

    /// Writes a version of the graph, whole or not at all: to temporary files in the target folder
    /// first, which are then renamed.
    ///
    /// Data files keep their names in another folder. In the folder of the input they are named
    /// after the output (`m.data` of `m.onnx` becomes `out.data` of `out.onnx`). An existing data
    /// file is replaced only if the model being replaced names it as its own.
    ///
    /// # Errors
    /// [`Problem::Overwrite`] if the output is the input or one of its data files, or would replace
    /// a data file of another model; [`Problem::Io`] if the disk refuses; and as
    /// [`Source::encode`]. The input is intact in every case.
    pub fn write(&self, graph: &Graph, path: impl AsRef<Path>) -> Result<(), OnnxError> {
        write::write(graph, self, path.as_ref()).map_err(|problem| match problem {
            Problem::Io { .. } | Problem::Overwrite { .. } => problem.within(""),
            problem => problem.within(self.file()),
        })
    }
}

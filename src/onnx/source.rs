//! The file behind a graph, cut into its fields.

use crate::error::Problem;
use crate::external::{DataFiles, entries};
use crate::wire::{LEN, Message};
use basisopt_ir::Graph;
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Keys in `metadata_props` that are this program's: on import they go to [`Graph::metadata`], and
/// on export they are what stands there.
pub(crate) const OWN_METADATA: &str = "basisopt.";

/// Field numbers of `ModelProto`.
pub(crate) mod model {
    pub const IR_VERSION: u32 = 1;
    pub const GRAPH: u32 = 7;
    pub const OPSET_IMPORT: u32 = 8;
    pub const METADATA: u32 = 14;
    pub const FUNCTION: u32 = 25;
}

/// Field numbers of `GraphProto`.
pub(crate) mod graph {
    pub const NODE: u32 = 1;
    pub const NAME: u32 = 2;
    pub const INITIALIZER: u32 = 5;
    pub const INPUT: u32 = 11;
    pub const OUTPUT: u32 = 12;
    pub const VALUE_INFO: u32 = 13;
    pub const QUANTIZATION: u32 = 14;
    pub const SPARSE_INITIALIZER: u32 = 15;
}

/// The file that a graph was imported from: what export takes everything from that no pass
/// touched. Cloning is cheap, and every version of the graph can be exported against it.
#[derive(Clone, Debug)]
pub struct Source {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub file: String,
    pub path: Option<PathBuf>,
    pub dir: Option<PathBuf>,
    pub model: Message,
    pub graph: Message,
    pub data: DataFiles,
    /// What the imported graph was like.
    pub revision: u64,
    pub opset: i64,
    pub ir_version: i64,
    pub name: String,
}

impl Source {
    pub(crate) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// The file as the caller named it.
    pub fn file(&self) -> &str {
        &self.inner.file
    }

    /// The path that the model was read from, if it was.
    pub fn path(&self) -> Option<&Path> {
        self.inner.path.as_deref()
    }

    /// The bytes of the model file, without data files.
    pub fn bytes(&self) -> &Bytes {
        &self.inner.model.bytes
    }

    /// Size of the model and its data files in bytes.
    pub fn n_bytes(&self) -> u64 {
        let data: u64 = self.inner.data.files.values().map(|f| f.bytes.len() as u64).sum();
        self.bytes().len() as u64 + data
    }

    /// Locations of the data files, relative to the model.
    pub fn data_files(&self) -> Vec<&str> {
        self.inner.data.files.keys().map(String::as_str).collect()
    }

    /// Keys and values of the model's `metadata_props`, in order, those of this program included.
    pub fn metadata(&self) -> Vec<(String, String)> {
        entries(&self.inner.model, model::METADATA).unwrap_or_default()
    }

    /// Name and version of the program that wrote the file, as far as it says.
    pub fn producer(&self) -> (String, String) {
        let field = |number| self.inner.model.string(number).ok().flatten().unwrap_or_default();
        (field(2), field(3))
    }

    /// Whether a graph is the imported one, untouched.
    pub(crate) fn is_unchanged(&self, graph: &Graph) -> bool {
        let s = &self.inner;
        graph.revision() == s.revision
            && graph.opset == s.opset
            && graph.ir_version == s.ir_version
            && graph.name == s.name
    }
}

/// Cuts a model file into its fields, and its graph too.
pub(crate) fn skeleton(bytes: Bytes) -> Result<(Message, Message), Problem> {
    let not_a_model = |reason: String| Problem::NotAModel { reason };
    if bytes.is_empty() {
        return Err(Problem::Empty);
    }
    let model = Message::parse(bytes.clone()).map_err(|e| {
        let is_text = bytes.iter().take(64).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
        not_a_model(if is_text {
            "it is a text file".to_owned()
        } else {
            format!("{e}; the file is truncated, or it is something else")
        })
    })?;
    let graphs: Vec<_> = model.fields.iter().filter(|f| f.number == model::GRAPH).collect();
    let field = match graphs.as_slice() {
        [one] => *one,
        [] => return Err(not_a_model("it has no graph".to_owned())),
        more => return Err(not_a_model(format!("it has {} graphs, expected one", more.len()))),
    };
    if field.wire_type != LEN {
        return Err(not_a_model("its graph is no message".to_owned()));
    }
    let graph = Message::parse(model.body(field)).map_err(|e| Problem::damaged("the graph", e))?;
    Ok((model, graph))
}

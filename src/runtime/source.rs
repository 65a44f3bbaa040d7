//! Where the bytes of a model come from.

use crate::RuntimeError;
use bytes::Bytes;
use std::fs::File;
use std::path::{Path, PathBuf};

/// An encoded ONNX model, with what is needed to read the files beside it and to name it in messages.
///
/// Cloning is cheap: the bytes are shared.
#[derive(Clone, Debug)]
pub struct Source {
    bytes: Bytes,
    dir: Option<PathBuf>,
    name: String,
}

impl Source {
    /// Maps a model file into memory. External data are looked up in the folder of the file.
    ///
    /// The file must not be cut short by another program while the `Source` lives; replacing it by
    /// a rename, as `basisopt` itself writes files, is harmless.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] if the file cannot be opened or mapped.
    #[allow(
        unsafe_code,
        reason = "a memory map; models are too large to copy for a decoder that copies anyway"
    )]
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, RuntimeError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(RuntimeError::io(path))?;
        let metadata = file.metadata().map_err(RuntimeError::io(path))?;
        if metadata.is_dir() {
            let source =
                std::io::Error::new(std::io::ErrorKind::IsADirectory, "this is a folder, not a model");
            return Err(RuntimeError::Io { path: path.to_owned(), source });
        }
        // An empty map is an error on some systems; an empty file is refused later, as no model.
        let bytes = if metadata.len() == 0 {
            Bytes::new()
        } else {
            // SAFETY: the map is read-only and lives as long as the bytes. A writer that truncates the
            // file meanwhile breaks this; the doc comment forbids it, as every memory-mapping reader must.
            let map = unsafe { memmap2::Mmap::map(&file) }.map_err(RuntimeError::io(path))?;
            Bytes::from_owner(map)
        };
        // A bare file name has the empty parent, which means the current folder.
        let dir =
            path.parent().map(|d| if d.as_os_str().is_empty() { PathBuf::from(".") } else { d.to_owned() });
        Ok(Self { bytes, dir, name: path.display().to_string() })
    }

    /// A model held in memory. `name` appears in messages and tables; `dir` is the folder of its
    /// external data, if it has any.
    pub fn from_bytes(name: impl Into<String>, bytes: impl Into<Bytes>, dir: Option<PathBuf>) -> Self {
        Self { bytes: bytes.into(), dir, name: name.into() }
    }

    /// The encoded `ModelProto`.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The folder that external data are relative to.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// The name for messages: the path as it was given, for a file.
    pub fn name(&self) -> &str {
        &self.name
    }
}

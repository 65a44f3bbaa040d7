//! External data: tensors whose values lie in files beside the model.
//!
//! A location comes from an untrusted file, so it may only lead to a regular file inside the
//! model's folder: no absolute path, no `..`, and no symbolic link that leads out.

use crate::error::Problem;
use crate::tensor::RawTensor;
use crate::wire::{LEN, Message, Splice};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

/// Where in which data file the values of a tensor lie.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DataRef {
    pub location: String,
    pub offset: u64,
    pub length: Option<u64>,
}

impl DataRef {
    pub fn parse(tensor: &Message, place: &str) -> Result<Self, Problem> {
        let (mut location, mut offset, mut length) = (None, 0, None);
        for (key, value) in entries(tensor, 13).map_err(|e| Problem::damaged(place, e))? {
            let number = |what: &str| {
                value.parse::<u64>().map_err(|_| {
                    Problem::invalid(place, format!("its external data has the {what} {value:?}"))
                })
            };
            match key.as_str() {
                "location" => location = Some(value),
                "offset" => offset = number("offset")?,
                "length" => length = Some(number("length")?),
                _ => {}
            }
        }
        match location {
            Some(location) => Ok(Self { location, offset, length }),
            None => Err(Problem::invalid(place, "its data is external, but no location says where")),
        }
    }
}

/// The pairs of a `StringStringEntryProto` field.
pub(crate) fn entries(message: &Message, number: u32) -> Result<Vec<(String, String)>, String> {
    let entry = |field| {
        let entry = Message::parse(message.body(field))?;
        Ok((entry.string(1)?.unwrap_or_default(), entry.string(2)?.unwrap_or_default()))
    };
    message.all(number).map(entry).collect()
}

/// A data file, open.
#[derive(Clone, Debug)]
pub(crate) struct DataFile {
    /// Canonical path.
    pub path: PathBuf,
    pub bytes: Bytes,
}

/// The data files of a model by location, each opened once.
#[derive(Clone, Debug, Default)]
pub(crate) struct DataFiles {
    dir: Option<PathBuf>,
    pub files: BTreeMap<String, DataFile>,
}

impl DataFiles {
    /// The data files in a folder; without one, external data is an error.
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self { dir, files: BTreeMap::new() }
    }

    /// The bytes of a tensor that needs this many, shared with the file.
    pub fn slice(&mut self, place: &str, data: &DataRef, needed: usize) -> Result<Bytes, Problem> {
        let file = self.open(place, &data.location)?;
        let refuse = |reason: String| external(place, &data.location, reason);
        if let Some(length) = data.length.filter(|&length| length != needed as u64) {
            return Err(refuse(format!("its length is {length} bytes, but the tensor needs {needed}")));
        }
        let end = data.offset.checked_add(needed as u64).and_then(|end| usize::try_from(end).ok());
        match end.filter(|&end| end <= file.bytes.len()) {
            Some(end) => Ok(file.bytes.slice(end - needed..end)),
            None => Err(refuse(format!(
                "the tensor needs {needed} bytes at offset {}, but the file has {} bytes; it is truncated or \
                 belongs to another model",
                data.offset,
                file.bytes.len()
            ))),
        }
    }

    fn open(&mut self, place: &str, location: &str) -> Result<&DataFile, Problem> {
        if !self.files.contains_key(location) {
            let file = self.find(place, location)?;
            self.files.insert(location.to_owned(), file);
        }
        self.files.get(location).ok_or_else(|| external(place, location, "cannot be opened"))
    }

    fn find(&self, place: &str, location: &str) -> Result<DataFile, Problem> {
        let refuse = |reason: String| external(place, location, reason);
        let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
        let relative = Path::new(location);
        // A drive letter or a backslash means something only where the file came from.
        if location.is_empty() || location.contains(['\\', '\0']) || !relative.components().all(inside) {
            return Err(refuse("must be a relative path inside the model's folder, without `..`".to_owned()));
        }
        let Some(dir) = &self.dir else {
            return Err(refuse(
                "the model was read from memory or standard input, so there is no folder to find it in; read \
                 the model by its path"
                    .to_owned(),
            ));
        };
        let unreadable = |e: std::io::Error| refuse(format!("{e} (looked in {})", dir.display()));
        let dir = dir.canonicalize().map_err(unreadable)?;
        let path = dir.join(relative).canonicalize().map_err(unreadable)?;
        if !path.starts_with(&dir) {
            return Err(refuse("is a symbolic link that leads out of the model's folder".to_owned()));
        }
        let bytes = map(&path).map_err(unreadable)?;
        Ok(DataFile { path, bytes })
    }
}

pub(crate) fn external(place: &str, location: &str, reason: impl Into<String>) -> Problem {
    Problem::External { place: place.to_owned(), location: location.to_owned(), reason: reason.into() }
}

/// The contents of a file: mapped if it is a regular one, read otherwise.
pub(crate) fn map(path: &Path) -> std::io::Result<Bytes> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        if metadata.len() == 0 {
            return Ok(Bytes::new());
        }
        // SAFETY: the map is private and read-only. Another process that shortens the file while
        // it is mapped can make reads fail with a signal; like every mapping program, we rely on
        // model files not being edited in place while in use. We never write to an input.
        #[allow(unsafe_code, reason = "mapping a file is unsafe by nature; see above")]
        let map = unsafe { memmap2::Mmap::map(&file)? };
        return Ok(Bytes::from_owner(map));
    }
    if metadata.is_dir() {
        return Err(std::io::Error::from(std::io::ErrorKind::IsADirectory));
    }
    read_stream(&mut file).map(Bytes::from)
}

/// Everything that comes from a stream, up to the most that a protobuf can hold: some streams never
/// end.
///
/// # Errors
/// If more comes, or what [`Read::read_to_end`](std::io::Read::read_to_end) fails with.
pub fn read_stream(from: impl std::io::Read) -> std::io::Result<Vec<u8>> {
    const MOST: u64 = (1 << 31) - 1;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut from.take(MOST + 1), &mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(std::io::Error::other("the stream does not end where a model must, after 2 GiB"));
    }
    Ok(bytes)
}

/// The kinds of messages in which a tensor can lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Function,
    Training,
}

impl Kind {
    /// What a field of a `ModelProto` holds.
    pub fn in_model(number: u32) -> Option<Self> {
        match number {
            7 => Some(Self::Graph),
            20 => Some(Self::Training),
            25 => Some(Self::Function),
            _ => None,
        }
    }

    /// What a field of a message of this kind holds.
    pub fn child(self, number: u32) -> Option<Self> {
        match (self, number) {
            (Self::Training, 1 | 2) | (Self::Attribute, 6 | 11) => Some(Self::Graph),
            (Self::Function, 7) | (Self::Graph, 1) => Some(Self::Node),
            (Self::Function, 11) | (Self::Node, 5) => Some(Self::Attribute),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Some(Self::Tensor),
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Some(Self::Sparse),
            _ => None,
        }
    }
}

/// As deep as protobuf's own decoders go.
const MAX_DEPTH: usize = 100;

/// A tensor with external data, anywhere in a message.
type Visitor<'a> = &'a mut dyn FnMut(&RawTensor, &DataRef) -> Result<Option<Splice>, Problem>;

/// Shows every tensor with external data inside a message to `visit`, and puts what it returns in
/// the tensor's place. `None` if nothing was replaced.
pub(crate) fn map_tensors(
    kind: Kind,
    bytes: &Bytes,
    place: &str,
    visit: Visitor<'_>,
) -> Result<Option<Splice>, Problem> {
    walk(kind, bytes, place, 0, visit)
}

fn walk(
    kind: Kind,
    bytes: &Bytes,
    place: &str,
    depth: usize,
    visit: Visitor<'_>,
) -> Result<Option<Splice>, Problem> {
    if depth > MAX_DEPTH {
        return Err(Problem::invalid(place, format!("messages are nested more than {MAX_DEPTH} deep")));
    }
    let message = Message::parse(bytes.clone()).map_err(|e| Problem::damaged(place, e))?;
    if kind == Kind::Tensor {
        if message.varint(14) != Some(1) {
            return Ok(None);
        }
        let tensor = RawTensor::parse(bytes.clone(), &|name| match name {
            "" => place.to_owned(),
            name => format!("tensor {name:?} of {place}"),
        })?;
        return match &tensor.external {
            Some(data) => visit(&tensor, data),
            None => Ok(None),
        };
    }
    let mut changed = Vec::new();
    for (i, field) in message.fields.iter().enumerate() {
        if let Some(child) = kind.child(field.number).filter(|_| field.wire_type == LEN)
            && let Some(splice) = walk(child, &message.body(field), place, depth + 1, visit)?
        {
            changed.push((i, splice));
        }
    }
    if changed.is_empty() {
        return Ok(None);
    }
    let mut out = Splice::default();
    let mut changed = changed.into_iter().peekable();
    for (i, field) in message.fields.iter().enumerate() {
        match changed.next_if(|(n, _)| *n == i) {
            Some((_, splice)) => out.nest(field.number, splice, Some(&message.bytes)),
            None => out.push(message.whole(field), Some(&message.bytes)),
        }
    }
    Ok(Some(out))
}

/// The tensor with its data elsewhere; every other field and entry stays.
pub(crate) fn relocate(tensor: &RawTensor, location: &str, offset: u64, length: usize) -> Splice {
    let message = &tensor.message;
    let mut wanted = vec![("location", location.to_owned()), ("offset", offset.to_string())];
    if tensor.external.as_ref().is_some_and(|d| d.length.is_none()) {
        wanted.push(("length", length.to_string()));
    }
    let key_of = |field| Message::parse(message.body(field)).ok().and_then(|e| e.string(1).ok().flatten());
    let last = message.fields.iter().rposition(|f| f.number == 13);
    let mut out = Splice::default();
    for (i, field) in message.fields.iter().enumerate() {
        let key = (field.number == 13).then(|| key_of(field)).flatten();
        match wanted.iter().position(|(k, _)| Some(*k) == key.as_deref()) {
            Some(n) => {
                let (key, value) = wanted.remove(n);
                out.nest(13, entry(key, &value), None);
            }
            None => out.push(message.whole(field), Some(&message.bytes)),
        }
        if Some(i) == last {
            for (key, value) in wanted.drain(..) {
                if key != "offset" || offset != 0 {
                    out.nest(13, entry(key, &value), None);
                }
            }
        }
    }
    out
}

/// A `StringStringEntryProto`.
pub(crate) fn entry(key: &str, value: &str) -> Splice {
    let mut out = Splice::default();
    out.put_field(1, key.as_bytes());
    out.put_field(2, value.as_bytes());
    out
}

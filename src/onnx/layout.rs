//! Where the values of external tensors lie after export.
//!
//! A data file of which every tensor survives is kept as it is, byte for byte; one that lost
//! tensors is written anew without them, with the alignment that it had. New constants of some size
//! go behind the last tensor of the first data file, as the rest of the model has it.

use crate::error::Problem;
use crate::external::{DataRef, Kind, map_tensors, relocate};
use crate::source::Inner;
use crate::tensor::RawTensor;
use crate::wire::Splice;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A new constant of at least this many bytes becomes external where the others are.
const EXTERNAL_FROM: usize = 1024;
/// Data files are aligned for mapping by pages, at most.
const MAX_ALIGNMENT: u64 = 4096;

/// Where external data goes.
#[derive(Clone, Copy)]
pub(crate) enum Target<'a> {
    /// Into data files beside the output, under these names.
    Files(&'a BTreeMap<String, String>),
    /// Nowhere: the tensors of the file stay in its own data files, new ones go into the model.
    InPlace,
}

/// Location, offset, length.
type Place = (String, u64, u64);

/// A data file to write, as slices of the old one and new bytes.
#[derive(Clone, Debug, Default)]
struct NewFile {
    pieces: Vec<Bytes>,
    len: u64,
}

impl NewFile {
    fn push(&mut self, bytes: Bytes, alignment: u64) -> u64 {
        let padding = self.len.next_multiple_of(alignment) - self.len;
        if padding > 0 {
            self.pieces.push(Bytes::from(vec![0; padding as usize]));
        }
        let offset = self.len + padding;
        self.len = offset + bytes.len() as u64;
        self.pieces.push(bytes);
        offset
    }
}

/// Where every external tensor goes.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    moves: BTreeMap<Place, (String, u64)>,
    files: BTreeMap<String, NewFile>,
    /// The file that new constants go to, with its alignment.
    append: Option<(String, u64)>,
}

impl Layout {
    /// Plans the data files. `all` and `surviving` are the external tensors before and after.
    pub fn plan(source: &Inner, all: &Refs, surviving: &Refs, target: Target<'_>) -> Self {
        let mut layout = Self::default();
        let Target::Files(names) = target else { return layout };
        for (location, file) in &source.data.files {
            let name = names.get(location).unwrap_or(location);
            let of_file = |refs: &Refs| -> Vec<Place> {
                refs.0.iter().filter(|(l, ..)| l == location).cloned().collect()
            };
            let (before, after) = (of_file(all), of_file(surviving));
            let alignment = alignment(&before);
            layout.append.get_or_insert_with(|| (name.clone(), alignment));
            let mut new = NewFile::default();
            if before == after {
                new.push(file.bytes.clone(), 1);
            }
            for (_, offset, length) in &after {
                let moved = if before == after {
                    *offset
                } else {
                    // In range: checked when the file was read.
                    let bytes = file.bytes.slice(*offset as usize..(*offset + *length) as usize);
                    new.push(bytes, alignment)
                };
                if moved != *offset || name != location {
                    layout.moves.insert((location.clone(), *offset, *length), (name.clone(), moved));
                }
            }
            if !new.pieces.is_empty() {
                layout.files.insert(name.clone(), new);
            }
        }
        layout
    }

    /// Puts the values of a new constant into a data file, if that is where they belong; location
    /// and offset.
    pub fn append(&mut self, bytes: &Bytes) -> Option<(String, u64)> {
        let (location, alignment) = self.append.clone().filter(|_| bytes.len() >= EXTERNAL_FROM)?;
        let file = self.files.entry(location.clone()).or_default();
        let offset = file.push(bytes.clone(), alignment);
        Some((location, offset))
    }

    /// The message with its tensors where they go; `None` if they stay where they are.
    pub fn relocated(&self, kind: Kind, bytes: &Bytes, what: &str) -> Result<Option<Splice>, Problem> {
        if self.moves.is_empty() {
            return Ok(None);
        }
        map_tensors(kind, bytes, what, &mut |tensor, data| {
            let (place, length) = resolve(tensor, data, what)?;
            let moved = self.moves.get(&place);
            Ok(moved.map(|(location, offset)| relocate(tensor, location, *offset, length)))
        })
    }

    /// The data files to write: location and contents.
    pub fn into_files(self) -> Vec<(String, Vec<Bytes>)> {
        self.files.into_iter().map(|(location, file)| (location, file.pieces)).collect()
    }
}

/// The external tensors of some messages.
#[derive(Debug, Default)]
pub(crate) struct Refs(BTreeSet<Place>);

impl Refs {
    /// Notes every external tensor inside a message.
    pub fn note(&mut self, kind: Kind, bytes: &Bytes, what: &str) -> Result<(), Problem> {
        map_tensors(kind, bytes, what, &mut |tensor, data| {
            self.0.insert(resolve(tensor, data, what)?.0);
            Ok(None)
        })
        .map(|_| ())
    }
}

fn resolve(tensor: &RawTensor, data: &DataRef, what: &str) -> Result<(Place, usize), Problem> {
    let length = tensor.n_external_bytes(data, what)?;
    Ok(((data.location.clone(), data.offset, length as u64), length))
}

/// The largest power of two, up to a page, that divides every offset.
fn alignment(places: &[Place]) -> u64 {
    match places.iter().filter(|(_, offset, _)| *offset > 0).map(|(_, o, _)| o.trailing_zeros()).min() {
        Some(zeros) => MAX_ALIGNMENT.min(1 << zeros.min(63)),
        // One tensor at the start says nothing; a cache line suits every element type.
        None => 64,
    }
}

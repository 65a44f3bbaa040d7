//! Protobuf at the level of the wire: which fields a message has, in which order and with which
//! bytes.
//!
//! Decoding into structs forgets unknown fields, field order and the difference between absent and
//! default. So what is carried from file to file stays raw: a [`Message`] is a slice of the file
//! cut into its fields, and a [`Splice`] is a list of such slices with new bytes between them.

use bytes::Bytes;
use std::ops::Range;

pub(crate) const VARINT: u8 = 0;
pub(crate) const FIXED64: u8 = 1;
pub(crate) const LEN: u8 = 2;
pub(crate) const FIXED32: u8 = 5;

/// One field of a message, as positions in the bytes of the message.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub number: u32,
    pub wire_type: u8,
    /// Tag, length and payload.
    pub whole: Range<usize>,
    /// The payload.
    pub body: Range<usize>,
}

/// A message cut into its fields.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub bytes: Bytes,
    pub fields: Vec<Field>,
}

impl Message {
    /// Cuts a message; the reason why it cannot be cut otherwise.
    pub fn parse(bytes: Bytes) -> Result<Self, String> {
        let mut fields = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let field = next_field(&bytes, at)?;
            at = field.whole.end;
            fields.push(field);
        }
        Ok(Self { bytes, fields })
    }

    /// The payload of a field, sharing storage.
    pub fn body(&self, field: &Field) -> Bytes {
        self.bytes.slice(field.body.clone())
    }

    /// Tag, length and payload of a field, sharing storage.
    pub fn whole(&self, field: &Field) -> Bytes {
        self.bytes.slice(field.whole.clone())
    }

    /// All fields of this number with a length-delimited payload.
    pub fn all(&self, number: u32) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(move |f| f.number == number && f.wire_type == LEN)
    }

    /// The payload of the last field of this number: protobuf's rule for singular fields.
    pub fn last(&self, number: u32) -> Option<Bytes> {
        self.all(number).last().map(|f| self.body(f))
    }

    /// The string in a field, or none if it is absent.
    pub fn string(&self, number: u32) -> Result<Option<String>, String> {
        self.last(number).map(|b| utf8(&b)).transpose()
    }

    /// The strings of a repeated field.
    pub fn strings(&self, number: u32) -> Result<Vec<String>, String> {
        self.all(number).map(|f| utf8(&self.bytes[f.body.clone()])).collect()
    }

    /// The integer in a varint field.
    pub fn varint(&self, number: u32) -> Option<u64> {
        let field = self.fields.iter().rfind(|f| f.number == number && f.wire_type == VARINT)?;
        read_varint(&self.bytes, field.body.start).ok().map(|(v, _)| v)
    }

    /// The integers of a repeated field, packed or not.
    pub fn varints(&self, number: u32) -> Result<Vec<u64>, String> {
        let mut values = Vec::new();
        for field in self.fields.iter().filter(|f| f.number == number) {
            match field.wire_type {
                VARINT => values.push(read_varint(&self.bytes, field.body.start)?.0),
                LEN => {
                    let payload = &self.bytes[field.body.clone()];
                    let mut at = 0;
                    while at < payload.len() {
                        let (value, next) = read_varint(payload, at)?;
                        values.push(value);
                        at = next;
                    }
                }
                t => return Err(format!("field {number} has wire type {t}, expected integers")),
            }
        }
        Ok(values)
    }

    /// The little-endian elements of a repeated fixed-width field, packed or not; the common case
    /// of one packed field shares storage.
    pub fn fixed(&self, number: u32, wire_type: u8) -> Result<Bytes, String> {
        let mut parts = Vec::new();
        for field in self.fields.iter().filter(|f| f.number == number) {
            if field.wire_type != wire_type && field.wire_type != LEN {
                return Err(format!("field {number} has wire type {}", field.wire_type));
            }
            parts.push(self.body(field));
        }
        match parts.as_slice() {
            [one] => Ok(one.clone()),
            parts => Ok(Bytes::from(parts.concat())),
        }
    }

    /// Whether any field has this number.
    pub fn has(&self, number: u32) -> bool {
        self.fields.iter().any(|f| f.number == number)
    }
}

pub(crate) fn utf8(bytes: &[u8]) -> Result<String, String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a name is not UTF-8".to_owned())
}

fn next_field(bytes: &[u8], start: usize) -> Result<Field, String> {
    let (number, wire_type, at) = read_tag(bytes, start)?;
    let (body, end) = match wire_type {
        // A group, which nobody has written since 2008, is skipped as a unit if one turns up.
        3 => {
            let end = group_end(bytes, at, number)?;
            (at..end, end)
        }
        _ => payload(bytes, at, wire_type)?,
    };
    Ok(Field { number, wire_type, whole: start..end, body })
}

fn read_tag(bytes: &[u8], at: usize) -> Result<(u32, u8, usize), String> {
    let (tag, next) = read_varint(bytes, at)?;
    let number = u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n));
    let number = number.ok_or_else(|| format!("impossible field number at byte {at}"))?;
    Ok((number, (tag & 7) as u8, next))
}

fn payload(bytes: &[u8], at: usize, wire_type: u8) -> Result<(Range<usize>, usize), String> {
    let (start, len) = match wire_type {
        VARINT => (at, read_varint(bytes, at)?.1 - at),
        FIXED64 => (at, 8),
        FIXED32 => (at, 4),
        LEN => {
            let (len, start) = read_varint(bytes, at)?;
            (start, usize::try_from(len).map_err(|_| format!("impossible length at byte {at}"))?)
        }
        t => return Err(format!("impossible wire type {t} at byte {at}")),
    };
    match start.checked_add(len).filter(|&end| end <= bytes.len()) {
        Some(end) => Ok((start..end, end)),
        None => Err(format!(
            "a field at byte {at} needs {len} bytes, but only {} are left",
            bytes.len().saturating_sub(start)
        )),
    }
}

/// Position behind the end tag of a group.
fn group_end(bytes: &[u8], mut at: usize, number: u32) -> Result<usize, String> {
    let mut open = vec![number];
    while let Some(&innermost) = open.last() {
        let (number, wire_type, next) = read_tag(bytes, at)?;
        at = match wire_type {
            3 => {
                open.push(number);
                next
            }
            4 if number == innermost => {
                open.pop();
                next
            }
            _ => payload(bytes, next, wire_type)?.1,
        };
    }
    Ok(at)
}

/// A varint and the position behind it.
pub(crate) fn read_varint(bytes: &[u8], start: usize) -> Result<(u64, usize), String> {
    let mut value = 0u64;
    for i in 0..10 {
        let Some(&byte) = bytes.get(start + i) else {
            return Err(format!("the bytes end inside an integer at byte {start}"));
        };
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Ok((value, start + i + 1));
        }
    }
    Err(format!("an integer at byte {start} is longer than ten bytes"))
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

/// New bytes and slices of old ones, in order; nothing is joined or copied until somebody asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Splice {
    pieces: Vec<Bytes>,
    /// New bytes behind the last piece.
    pending: Vec<u8>,
    len: usize,
}

/// Slices shorter than this are copied: a list entry costs as much.
const COPY_BELOW: usize = 64;

impl Splice {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Appends a slice of a file; one that continues the last one in memory is joined to it.
    pub fn push(&mut self, bytes: Bytes, parent: Option<&Bytes>) {
        self.len += bytes.len();
        if self.pending.is_empty()
            && let (Some(parent), Some(last)) = (parent, self.pieces.last_mut())
            && let Some(joined) = join(last, &bytes, parent)
        {
            *last = joined;
        } else if bytes.len() < COPY_BELOW && parent.is_none() {
            self.pending.extend_from_slice(&bytes);
        } else if !bytes.is_empty() {
            self.flush();
            self.pieces.push(bytes);
        }
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        self.pending.extend_from_slice(bytes);
    }

    pub fn put_varint_field(&mut self, number: u32, value: u64) {
        let start = self.pending.len();
        put_tag(&mut self.pending, number, VARINT);
        put_varint(&mut self.pending, value);
        self.len += self.pending.len() - start;
    }

    /// Appends a length-delimited field.
    pub fn put_field(&mut self, number: u32, payload: &[u8]) {
        self.put_header(number, payload.len());
        self.put(payload);
    }

    /// Appends a length-delimited field with shared payload.
    pub fn push_field(&mut self, number: u32, payload: Bytes) {
        self.put_header(number, payload.len());
        self.push(payload, None);
    }

    /// Appends a length-delimited field whose payload is another splice.
    pub fn nest(&mut self, number: u32, inner: Splice, parent: Option<&Bytes>) {
        self.put_header(number, inner.len);
        self.append(inner, parent);
    }

    /// Appends another splice.
    pub fn append(&mut self, inner: Splice, parent: Option<&Bytes>) {
        for piece in inner.pieces {
            self.push(piece, parent);
        }
        self.put(&inner.pending);
    }

    fn put_header(&mut self, number: u32, len: usize) {
        let start = self.pending.len();
        put_tag(&mut self.pending, number, LEN);
        put_varint(&mut self.pending, len as u64);
        self.len += self.pending.len() - start;
    }

    fn flush(&mut self) {
        if !self.pending.is_empty() {
            self.pieces.push(Bytes::from(std::mem::take(&mut self.pending)));
        }
    }

    pub fn into_pieces(mut self) -> Vec<Bytes> {
        self.flush();
        self.pieces
    }

    pub fn concat(self) -> Bytes {
        concat(&self.into_pieces())
    }
}

/// The pieces as one; no copy where there is only one.
pub(crate) fn concat(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [one] => one.clone(),
        pieces => Bytes::from(pieces.concat()),
    }
}

/// Two adjacent slices of `parent` as one slice.
fn join(a: &Bytes, b: &Bytes, parent: &Bytes) -> Option<Bytes> {
    let base = parent.as_ptr() as usize;
    let start = (a.as_ptr() as usize).checked_sub(base)?;
    let middle = (b.as_ptr() as usize).checked_sub(base)?;
    let end = middle.checked_add(b.len())?;
    let adjacent = start.checked_add(a.len())? == middle && end <= parent.len();
    adjacent.then(|| parent.slice(start..end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_cut_and_put_back_together() {
        let mut splice = Splice::default();
        splice.put_varint_field(1, 300);
        splice.put_field(2, b"hello");
        splice.put(&[3 << 3 | FIXED32, 1, 2, 3, 4]);
        let bytes = splice.concat();
        let message = Message::parse(bytes.clone()).unwrap();
        assert_eq!(message.varint(1), Some(300));
        assert_eq!(message.string(2).unwrap().as_deref(), Some("hello"));
        assert_eq!(message.fixed(3, FIXED32).unwrap(), [1, 2, 3, 4][..]);
        let mut again = Splice::default();
        message.fields.iter().for_each(|f| again.push(message.whole(f), Some(&bytes)));
        let pieces = again.into_pieces();
        assert_eq!(pieces, [bytes], "adjacent slices are joined");
    }

    #[test]
    fn a_length_beyond_the_end_is_an_error_and_allocates_nothing() {
        let mut bytes = Vec::new();
        put_tag(&mut bytes, 7, LEN);
        put_varint(&mut bytes, 1 << 40);
        assert!(Message::parse(bytes.into()).unwrap_err().contains("only 0 are left"));
        assert!(Message::parse(Bytes::from_static(&[0xff; 11])).is_err());
        assert!(Message::parse(Bytes::from_static(&[0x00, 0x00])).is_err(), "field number 0");
    }

    #[test]
    fn groups_are_skipped_as_a_unit() {
        // Field 5 as a group that holds field 1 = 7 and a group 6.
        let bytes = Bytes::from_static(&[0x2b, 0x08, 0x07, 0x33, 0x34, 0x2c]);
        let message = Message::parse(bytes.clone()).unwrap();
        assert_eq!(message.fields.len(), 1);
        assert_eq!(message.fields[0].whole, 0..6);
        assert!(Message::parse(bytes.slice(..5)).is_err());
    }
}

//! Bodies of control flow: which values of the enclosing graph they refer to by name.

use crate::error::Problem;
use crate::wire::{Message, utf8};
use bytes::Bytes;
use std::collections::BTreeSet;

/// Bodies inside bodies: protobuf's own decoders stop at a hundred messages, which is 33 bodies.
const MAX_DEPTH: usize = 33;

/// The names in bodies.
#[derive(Default)]
pub(crate) struct Names {
    /// Those that are referred to and not defined, without repetition, in order of first appearance.
    pub free: Vec<String>,
    /// Those that are defined; nothing outside may be called so.
    pub defined: BTreeSet<String>,
}

/// The names in the bodies among a node's attributes (encoded `AttributeProto`s).
pub(crate) fn names<'a>(attributes: impl Iterator<Item = &'a Bytes>) -> Result<Names, String> {
    let mut free = Ordered::default();
    for attribute in attributes {
        of_attribute(attribute, 0, &mut free)?;
    }
    Ok(Names { free: free.names, defined: free.inner })
}

/// Checks that the bodies among a node's attributes still read the values that they name.
pub(crate) fn check_captures<'a>(
    attributes: impl Iterator<Item = &'a Bytes>,
    captures: &[String],
    place: &str,
) -> Result<(), Problem> {
    if captures.is_empty() {
        return Ok(());
    }
    let expected = names(attributes).map_err(|e| Problem::damaged(place, e))?.free;
    match expected.iter().zip(captures).find(|(a, b)| a != b) {
        None => Ok(()),
        Some((expected, found)) => Err(Problem::Capture {
            place: place.to_owned(),
            expected: expected.clone(),
            found: found.clone(),
        }),
    }
}

#[derive(Default)]
struct Ordered {
    names: Vec<String>,
    seen: BTreeSet<String>,
    /// What bodies define, however deep.
    inner: BTreeSet<String>,
}

impl Ordered {
    fn push(&mut self, name: String) {
        if !name.is_empty() && self.seen.insert(name.clone()) {
            self.names.push(name);
        }
    }
}

fn of_attribute(attribute: &Bytes, depth: usize, free: &mut Ordered) -> Result<(), String> {
    let attribute = Message::parse(attribute.clone())?;
    for body in attribute.fields.iter().filter(|f| matches!(f.number, 6 | 11)) {
        of_graph(attribute.body(body), depth, free)?;
    }
    Ok(())
}

fn of_graph(body: Bytes, depth: usize, free: &mut Ordered) -> Result<(), String> {
    if depth >= MAX_DEPTH {
        return Err(format!("bodies are nested more than {MAX_DEPTH} deep"));
    }
    let body = Message::parse(body)?;
    let (mut read, mut defined) = (Ordered::default(), BTreeSet::new());
    for field in &body.fields {
        let bytes = &body.body(field);
        let name = |number| Message::parse(bytes.clone()).and_then(|m| m.string(number));
        match field.number {
            1 => {
                let node = Message::parse(bytes.clone())?;
                node.strings(1)?.into_iter().for_each(|name| read.push(name));
                defined.extend(node.strings(2)?);
                for attribute in node.all(5) {
                    of_attribute(&node.body(attribute), depth + 1, &mut read)?;
                }
            }
            5 => defined.extend(name(8)?),
            11 => defined.extend(name(1)?),
            12 => name(1)?.into_iter().for_each(|name| read.push(name)),
            15 => {
                if let Some(values) = Message::parse(bytes.clone())?.last(1) {
                    defined.extend(Message::parse(values)?.last(8).map(|b| utf8(&b)).transpose()?);
                }
            }
            _ => {}
        }
    }
    read.names.into_iter().filter(|name| !defined.contains(name)).for_each(|name| free.push(name));
    free.inner.append(&mut read.inner);
    free.inner.append(&mut defined);
    Ok(())
}

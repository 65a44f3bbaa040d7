//! Text to tokens, one at a time.

use super::error::{Fault, Parsed};
use crate::dim::Dim;
use crate::print::{dim_from_text, plain_name_len};
use std::ops::Range;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind<'a> {
    /// `%name`
    Value(String),
    /// `@name`
    At(String),
    /// A word, or words joined by dots.
    Word(&'a str),
    /// An integer or float, not yet converted.
    Number(&'a str),
    /// A quoted string.
    Str(Vec<u8>),
    /// `( ) [ ] { } < > , ; = : :: -> ?`
    Punct(&'static str),
    /// Nothing is left.
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind<'a>,
    pub(super) span: Range<usize>,
}

impl Token<'_> {
    pub(super) fn is(&self, punct: &str) -> bool {
        matches!(&self.kind, Kind::Punct(p) if *p == punct)
    }

    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(&self.kind, Kind::Word(w) if *w == word)
    }
}

/// A dimension with its place.
pub(super) type Placed = (Dim, Range<usize>);

const PUNCTS: &[&str] = &["::", "->", "(", ")", "[", "]", "{", "}", "<", ">", ",", ";", "=", ":", "?"];

#[derive(Debug)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, position: 0 }
    }

    /// What the next token starts with; no space is skipped.
    pub(super) fn rest(&self) -> &'a str {
        self.text.get(self.position..).unwrap_or("")
    }

    pub(super) fn source(&self, span: Range<usize>) -> &'a str {
        self.text.get(span).unwrap_or("")
    }

    fn take(&mut self, n_bytes: usize) -> &'a str {
        let taken = self.rest().get(..n_bytes).unwrap_or_else(|| self.rest());
        self.position += taken.len();
        taken
    }

    fn skip_space(&mut self) {
        loop {
            let rest = self.rest();
            let space = rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
            self.position += space;
            if !self.rest().starts_with("//") {
                return;
            }
            self.take(self.rest().find('\n').unwrap_or(self.rest().len()));
        }
    }

    pub(super) fn next(&mut self) -> Parsed<Token<'a>> {
        self.skip_space();
        let start = self.position;
        let rest = self.rest();
        let token = |kind, lexer: &Self| Ok(Token { kind, span: start..lexer.position });
        let Some(first) = rest.chars().next() else {
            // The mark stands behind the last thing there is, not on an empty line.
            let end = self.text.trim_end().len();
            return Ok(Token { kind: Kind::End, span: end..end });
        };
        match first {
            '%' | '@' => {
                let name = self.name(first)?;
                token(if first == '%' { Kind::Value(name) } else { Kind::At(name) }, self)
            }
            '"' => {
                let bytes = self.string()?;
                token(Kind::Str(bytes), self)
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                let word = self.take(path_len(rest));
                token(Kind::Word(word), self)
            }
            c if c.is_ascii_digit() || (c == '-' && !rest.starts_with("->")) => {
                let number = self.take(number_len(rest));
                if number.parse::<f64>().is_err() {
                    let span = start..self.position;
                    return Err(Fault::new(span, format!("`{number}` is not a number")));
                }
                token(Kind::Number(number), self)
            }
            _ => match PUNCTS.iter().find(|p| rest.starts_with(**p)) {
                Some(punct) => {
                    self.take(punct.len());
                    token(Kind::Punct(punct), self)
                }
                None => {
                    let span = start..start + first.len_utf8();
                    Err(Fault::new(span, format!("unexpected character {first:?}")))
                }
            },
        }
    }

    /// A name behind its sigil.
    fn name(&mut self, sigil: char) -> Parsed<String> {
        let start = self.position;
        self.take(sigil.len_utf8());
        if self.rest().starts_with('"') {
            let bytes = self.string()?;
            return utf8(bytes, start..self.position);
        }
        match plain_name_len(self.rest()) {
            0 => {
                let fault = Fault::new(start..self.position, format!("expected a name after `{sigil}`"));
                Err(fault.help(format!("names with other characters are quoted: {sigil}\"a name\"")))
            }
            n => Ok(self.take(n).to_owned()),
        }
    }

    /// A quoted string, on one line.
    fn string(&mut self) -> Parsed<Vec<u8>> {
        let start = self.position;
        self.take(1);
        let mut bytes = Vec::new();
        loop {
            let rest = self.rest();
            let run = rest.find(['"', '\\', '\n']).unwrap_or(rest.len());
            bytes.extend_from_slice(self.take(run).as_bytes());
            let at = self.position;
            let escape = |n: usize| rest.get(run..run + n);
            if escape(1) == Some("\"") {
                self.take(1);
                return Ok(bytes);
            }
            if escape(1) != Some("\\") {
                return Err(Fault::new(start..at, "this string is not closed")
                    .help("strings end on the line they begin on; a line break is `\\n`"));
            }
            let byte = match escape(2) {
                Some("\\\\") => Some(b'\\'),
                Some("\\\"") => Some(b'"'),
                Some("\\n") => Some(b'\n'),
                Some("\\r") => Some(b'\r'),
                Some("\\t") => Some(b'\t'),
                Some("\\x") => escape(4)
                    .filter(|e| e[2..].bytes().all(|c| c.is_ascii_hexdigit()))
                    .and_then(|e| u8::from_str_radix(&e[2..], 16).ok()),
                _ => None,
            };
            let Some(byte) = byte else {
                return Err(Fault::new(at..at + 1, "unknown escape in a string")
                    .help("the escapes are \\\\ \\\" \\n \\r \\t and \\x with two hexadecimal digits"));
            };
            bytes.push(byte);
            self.take(if escape(2) == Some("\\x") { 4 } else { 2 });
        }
    }

    /// The dimensions of a shape and the bracket that closes it; the one that opens it has been
    /// taken. `None` for `..`, an unknown rank. Each dimension comes with its place.
    pub(super) fn dims(&mut self) -> Parsed<Option<Vec<Placed>>> {
        let mut dims = Vec::new();
        let opened = self.position.saturating_sub(1);
        let unclosed = |lexer: &Self| {
            Fault::new(opened..lexer.position, "this shape is not closed").help("shapes end with `]`")
        };
        loop {
            self.skip_space();
            let start = self.position;
            let dim = if self.rest().starts_with('"') {
                let bytes = self.string()?;
                Dim::symbol(utf8(bytes, start..self.position)?)
            } else {
                let n = self.rest().find([',', ']', '\n']).unwrap_or(self.rest().len());
                let text = self.take(n).trim();
                let is_last = self.rest().starts_with(']');
                if dims.is_empty() && is_last && matches!(text, "" | "..") {
                    self.take(1);
                    return Ok(text.is_empty().then(Vec::new));
                }
                if !is_last && !self.rest().starts_with(',') {
                    return Err(unclosed(self));
                }
                let span = start..(start + text.len()).max(start + 1);
                dim_from_text(text).ok_or_else(|| {
                    Fault::new(span, format!("`{}` is not a dimension", super::error::shorten(text)))
                        .help("a dimension is a number, a name, an expression such as `(H+1)/2`, or `?`")
                })?
            };
            dims.push((dim, start..self.position));
            self.skip_space();
            if self.rest().starts_with(']') {
                self.take(1);
                return Ok(Some(dims));
            }
            if !self.rest().starts_with(',') {
                return Err(unclosed(self));
            }
            self.take(1);
        }
    }
}

pub(super) fn utf8(bytes: Vec<u8>, span: Range<usize>) -> Parsed<String> {
    String::from_utf8(bytes).map_err(|_| Fault::new(span, "a name must be UTF-8"))
}

/// Letters, digits and `_`, with single dots in between.
fn path_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let inner = |i: usize| bytes.get(i).is_some_and(|c| c.is_ascii_alphanumeric() || *c == b'_');
    let mut n = 0;
    while inner(n) || (n > 0 && bytes.get(n) == Some(&b'.') && inner(n + 1)) {
        n += 1;
    }
    n
}

/// Everything that belongs to a number or could only be a mistake in one.
fn number_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut n = 1;
    while let Some(c) = bytes.get(n) {
        let exponent = matches!(c, b'+' | b'-') && matches!(bytes[n - 1], b'e' | b'E');
        if !(c.is_ascii_alphanumeric() || *c == b'.' || exponent) {
            break;
        }
        n += 1;
    }
    n
}

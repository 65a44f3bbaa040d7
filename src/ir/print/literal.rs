//! The smallest pieces of text: names, strings, dimensions.

use crate::dim::Dim;
use std::fmt::Write as _;

/// The longest dimension expression, in bytes, that is written or read: reading one takes time in
/// proportion to its length times the number of terms that a dimension may have.
const MAX_DIM_TEXT: usize = 1024;

/// Whether a name can stand behind its sigil without quotes.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && plain_name_len(name) == name.len()
}

/// How many bytes at the beginning of `text` make a name without quotes: letters, digits and
/// `_ . - / :`, except that a colon at the end begins a type and `//` begins a comment.
pub(crate) fn plain_name_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let plain = |i: usize| {
        bytes.get(i).is_some_and(|c| c.is_ascii_alphanumeric() || b"_.-/:".contains(c))
            && !bytes[i..].starts_with(b"//")
    };
    let mut n = 0;
    while plain(n) && (bytes[n] != b':' || plain(n + 1)) {
        n += 1;
    }
    n
}

/// Whether this is a word of the text format: a letter or `_`, then letters, digits and `_`.
pub(crate) fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

/// Whether this is words joined by dots, as operator domains are.
pub(crate) fn is_path(text: &str) -> bool {
    let mut parts = text.split('.');
    parts.next().is_some_and(is_word)
        && parts.all(|p| !p.is_empty() && p.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_'))
}

/// Writes a quoted string. What is not UTF-8 or cannot be seen is written as `\xHH`, byte by byte.
pub(crate) fn write_string(out: &mut String, bytes: &[u8]) {
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if c.is_control() || is_invisible(c) => {
                    escape(out, c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                c => out.push(c),
            }
        }
        escape(out, chunk.invalid());
    }
    out.push('"');
}

fn escape(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(out, "\\x{byte:02x}");
    }
}

/// Marks without width, and those that turn the direction of the text around them.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A dimension as text that [`dim_from_text`] or a quoted name reads back; `?` where there is no
/// such text.
pub(crate) fn dim_to_text(dim: &Dim) -> String {
    let text = dim.to_string();
    if dim_from_text(&text).as_ref() == Some(dim) {
        return text;
    }
    // Files may name a dimension as they like: `batch size`, `floor(H/2)`.
    match dim.name() {
        Some(name) => {
            let mut out = String::new();
            write_string(&mut out, name.as_bytes());
            out
        }
        None => "?".to_owned(),
    }
}

/// Reads a dimension that is not a quoted name.
pub(crate) fn dim_from_text(text: &str) -> Option<Dim> {
    if text.len() > MAX_DIM_TEXT || text.contains(['"', ',', ']', '\n']) || text != text.trim() {
        return None;
    }
    let dim = Dim::parse(text)?;
    // Negative numbers and overflow: no such dimension.
    (text == "?" || dim != Dim::Unknown).then_some(dim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_stop_before_types_and_comments() {
        for (text, name) in [
            ("y: f32[2]", "y"),
            ("relu:0)", "relu:0"),
            ("onnx::Conv_1,", "onnx::Conv_1"),
            ("/a/b//c", "/a/b"),
            ("a:// b", "a"),
            ("a-b.c ", "a-b.c"),
            (": f32", ""),
        ] {
            assert_eq!(&text[..plain_name_len(text)], name, "{text}");
        }
        for name in ["", "a b", "a:", "a//b", "é", "a;b", "%a"] {
            assert!(!is_plain(name), "{name:?}");
        }
    }

    #[test]
    fn strings_show_every_byte() {
        let mut out = String::new();
        write_string(&mut out, b"a\"\\\n\x01\xff\xc3\xa9\xe2\x80\xae");
        assert_eq!(out, "\"a\\\"\\\\\\n\\x01\\xffé\\xe2\\x80\\xae\"");
    }

    #[test]
    fn dimensions_without_a_text_are_quoted_or_unknown() {
        assert_eq!(dim_to_text(&Dim::symbol("batch size")), "\"batch size\"");
        assert_eq!(dim_to_text(&Dim::symbol("3x")), "\"3x\"");
        assert_eq!(dim_to_text(&Dim::symbol("a b").add_int(1)), "?");
        assert_eq!(dim_to_text(&Dim::symbol("?")), "\"?\"");
        assert_eq!(dim_to_text(&Dim::symbol("H").add_int(1).floor_div(2)), "(H+1)/2");
        assert_eq!(dim_from_text("1-2"), None);
    }
}

//! Where a text stops being a graph, and how to say so.

use std::fmt;
use std::ops::Range;

/// The widest piece of a line that a message quotes, in characters.
const MAX_SNIPPET: usize = 100;

/// A place in a text that is not what the format expects.
///
/// Displays as the message, the line with a mark under the place, and a remedy where there is one:
///
/// ```text
/// 3:14: expected `,` or `)`, found `[`
///   |
/// 3 |   %y = Relu(%x[0])
///   |               ^
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What was expected and found.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The line, or the piece of a long line that has the place in it.
    snippet: String,
    /// Characters of the snippet before the mark, and under it.
    mark: (usize, usize),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line.to_string();
        let margin = " ".repeat(line.len());
        // Tabs under tabs, so that the mark stands right whatever their width.
        let before: String =
            self.snippet.chars().take(self.mark.0).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        writeln!(f, "{line}:{}: {}", self.column, self.message)?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{line} | {}", self.snippet)?;
        write!(f, "{margin} | {before}{}", "^".repeat(self.mark.1))?;
        match &self.help {
            Some(help) => write!(f, "\n{margin} = help: {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ParseError {}

/// A [`ParseError`] whose place is still a range of bytes.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) span: Range<usize>,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

/// Boxed: the parser passes `Result`s through every call, and faults are rare.
pub(super) type Parsed<T> = Result<T, Box<Fault>>;

impl Fault {
    pub(super) fn new(span: Range<usize>, message: impl Into<String>) -> Box<Self> {
        Box::new(Self { span, message: message.into(), help: None })
    }

    pub(super) fn help(mut self: Box<Self>, help: impl Into<String>) -> Box<Self> {
        self.help = Some(help.into());
        self
    }

    pub(super) fn locate(self, text: &str) -> ParseError {
        let (head, tail) = text.split_at_checked(self.span.start).unwrap_or((text, ""));
        let line_start = head.rfind('\n').map_or(0, |i| i + 1);
        let before = &head[line_start..];
        let after = tail.lines().next().unwrap_or("");
        let marked = self.span.len().min(after.len());
        let n_before = before.chars().count();
        let n_marked = after.char_indices().take_while(|(i, _)| *i < marked).count();

        // Of a long line, what stands around the mark.
        let skipped = n_before.saturating_sub(MAX_SNIPPET / 2);
        let snippet: String = before.chars().skip(skipped).chain(after.chars()).take(MAX_SNIPPET).collect();
        let indent = n_before - skipped;
        ParseError {
            line: head.bytes().filter(|&c| c == b'\n').count() + 1,
            column: n_before + 1,
            message: self.message,
            help: self.help,
            snippet: snippet.trim_end().to_owned(),
            mark: (indent, n_marked.clamp(1, MAX_SNIPPET - indent)),
        }
    }
}

/// A name cut to what fits a message.
pub(super) fn shorten(text: &str) -> String {
    const MAX: usize = 48;
    match text.char_indices().nth(MAX) {
        Some((i, _)) => format!("{}…", &text[..i]),
        None => text.to_owned(),
    }
}

/// The candidate closest to a misspelt name, if any is close: at most a third of it wrong, and at
/// most two letters.
pub(super) fn closest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const MAX_NAME: usize = 64;
    let n = name.len();
    let limit = (n / 3).clamp(1, 2);
    candidates
        .filter(|c| n <= MAX_NAME && c.len().abs_diff(n) <= limit)
        .map(|c| (edit_distance(name.as_bytes(), c.as_bytes()), c))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, c)| c)
}

/// Insertions, deletions and replacements that turn one into the other (Levenshtein).
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_quoted_around_the_mark() {
        let text = format!("{}é!{}\nrest", "a".repeat(500), "b".repeat(500));
        let error = Fault::new(502..503, "no").locate(&text);
        assert_eq!((error.line, error.column), (1, 502));
        let expected =
            format!("1:502: no\n  |\n1 | {}é!{}\n  | {}^", "a".repeat(49), "b".repeat(49), " ".repeat(50));
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn suggestions_are_close_or_none() {
        let names = ["conv1", "conv2", "relu"];
        assert_eq!(closest("covn2", names.into_iter()), None);
        assert_eq!(closest("con2", names.into_iter()), Some("conv2"));
        assert_eq!(closest("rel", names.into_iter()), Some("relu"));
        assert_eq!(closest("softmax", names.into_iter()), None);
        assert_eq!(edit_distance(b"kitten", b"sitting"), 3);
    }
}

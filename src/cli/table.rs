//! Tables and JSON: every command that prints a table prints it as JSON too.

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{ErrorKind, Write as _};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people.
    #[default]
    Text,
    /// JSON for programs.
    Json,
}

/// A borderless table with these headings; columns after the first are right-aligned.
pub(crate) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        column.set_cell_alignment(if i == 0 { CellAlignment::Left } else { CellAlignment::Right });
    }
    table
}

/// The table as text, without the blanks that would trail every line.
pub(crate) fn render(table: &Table) -> String {
    table.to_string().lines().map(|l| l.trim_end().to_owned() + "\n").collect()
}

/// Pretty JSON with a newline at the end.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// `1234567` as `1.23 M`.
pub(crate) fn si(n: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.iter().find(|(u, _)| n.abs() >= *u) {
        Some((u, name)) => format!("{:.2} {name}", n / u),
        None => format!("{n}"),
    }
}

/// Writes a result to stdout. A reader that has seen enough (`| head`) is no error.
///
/// # Errors
/// If stdout cannot be written for another reason, such as a full disk behind it.
pub(crate) fn emit(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(e).context("cannot write to stdout"))
        }
        _ => Ok(()),
    }
}

/// A number to four digits: what a picture needs, and no more.
pub(crate) fn significant(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// A name of at most `width` characters, the middle left out of longer ones: both ends of a node's
/// name tell more than its middle.
pub(crate) fn shorten(name: &str, width: usize) -> String {
    let n = name.chars().count();
    if n <= width || width < 3 {
        return name.to_owned();
    }
    let head = (width - 1) / 2;
    let tail = width - 1 - head;
    name.chars().take(head).chain(['…']).chain(name.chars().skip(n - tail)).collect()
}

/// A page with data in it, in place of the text `place`.
///
/// # Errors
/// If the data have no JSON form.
pub(crate) fn page(page: &str, place: &str, data: &impl Serialize) -> anyhow::Result<String> {
    // A name may hold `</script>`.
    let data = serde_json::to_string(data)?.replace('<', "\\u003c").replace('\u{2028}', "\\u2028");
    Ok(page.replacen(place, &data, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_get_a_unit_from_a_thousand_on() {
        assert_eq!([999.0, 1000.0, 125_490_000.0].map(si), ["999", "1.00 k", "125.49 M"]);
    }

    #[test]
    fn long_names_keep_both_ends() {
        assert_eq!(shorten("conv1", 5), "conv1");
        assert_eq!(shorten("/features/0/Conv", 9), "/fea…Conv");
        assert_eq!(shorten("größe", 4), "g…ße");
    }

    #[test]
    fn lines_do_not_trail_blanks() {
        let mut t = table(&["name", "n"]);
        t.add_row(["a", "1"]);
        assert!(render(&t).lines().all(|l| l == l.trim_end()));
    }
}

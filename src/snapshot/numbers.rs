//! Which numbers of a snapshot were computed in floating point, and when two of them are the same.
//!
//! Two machines, or two versions of a decomposition, agree on such numbers but for rounding, far beyond the digits
//! that are printed. So their texts can differ in one way only: a number near a boundary is rounded up here and down
//! there, and the last printed digit moves by one. That is what counts as noise, and nothing more:
//!
//! | where | what | noise |
//! |---|---|---|
//! | graph | `norm 12.34` | one unit of the fourth digit, the last that is printed |
//! | graph | `f32[2] [0.1, 6.0]`, a small constant in full | 1e-6 of the largest in the list: a few roundings of f32 |
//! | remarks, metadata | `92.88 %`, `0.2668` | one unit in the last place, from three significant digits or four decimals on |
//! | remarks, metadata | numbers with many digits | 1e-6 of the number |
//!
//! Whole numbers, which ranks, sizes and costs are, must be equal, and so must numbers inside of names, attributes
//! and options.

use std::ops::Range;

/// Significant digits of a printed norm.
const NORM_DIGITS: i32 = 4;
/// What numbers that are printed in full may differ by, relative.
const RELATIVE: f64 = 1e-6;
/// From so many significant digits on, the last one may be a matter of rounding.
const SIGNIFICANT: usize = 3;
/// From so many decimals on, it may be so in small numbers too.
const DECIMALS: i32 = 4;
/// Decimal texts are not exact in binary: a unit in the last place is met with this to spare.
const SPARE: f64 = 1.0 + 1e-6;

/// Where a number stands, which decides what is noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// The norm of a constant.
    Norm,
    /// A value in a list, whose largest magnitude is this.
    Listed(f64),
    /// In a sentence or in metadata.
    Printed,
}

/// A number of a line that was computed in floating point.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Number {
    /// Its bytes in the line.
    pub range: Range<usize>,
    pub kind: Kind,
}

/// The numbers of a line that may differ by noise, in order.
pub(crate) fn find(line: &str) -> Vec<Number> {
    if line.trim_start().starts_with("//") { in_comment(line) } else { in_graph(line) }
}

/// The line with `by` in place of its numbers.
pub(crate) fn replace(line: &str, numbers: &[Number], by: impl Fn(Kind) -> &'static str) -> String {
    let (mut out, mut done) = (String::with_capacity(line.len()), 0);
    for number in numbers {
        out.push_str(&line[done..number.range.start]);
        out.push_str(by(number.kind));
        done = number.range.end;
    }
    out.push_str(&line[done..]);
    out
}

/// Whether two lines are equal but for noise.
pub(crate) fn same(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    let (in_a, in_b) = (find(a), find(b));
    let masked = |line: &str, numbers: &[Number]| replace(line, numbers, |_| "~");
    in_a.len() == in_b.len()
        && masked(a, &in_a) == masked(b, &in_b)
        && in_a
            .iter()
            .zip(&in_b)
            .all(|(x, y)| agree((&a[x.range.clone()], x.kind), (&b[y.range.clone()], y.kind)))
}

fn agree((a, kind_a): (&str, Kind), (b, kind_b): (&str, Kind)) -> bool {
    if a == b {
        return true;
    }
    let (Ok(x), Ok(y)) = (a.parse::<f64>(), b.parse::<f64>()) else { return false };
    let largest = x.abs().max(y.abs());
    let slack = match (kind_a, kind_b) {
        (Kind::Norm, Kind::Norm) => 10f64.powi(largest.log10().floor() as i32 + 1 - NORM_DIGITS),
        (Kind::Listed(m), Kind::Listed(n)) => RELATIVE * m.max(n),
        (Kind::Printed, Kind::Printed) => {
            let unit = last_place(a).into_iter().chain(last_place(b)).fold(0.0, f64::max);
            unit.max(RELATIVE * largest)
        }
        _ => return false,
    };
    // Infinities and what is no number are equal as text or not at all.
    (x - y).abs() <= slack * SPARE && largest.is_finite()
}

/// One unit in the last printed place of a number that has enough digits for that to be small.
fn last_place(text: &str) -> Option<f64> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().ok()?;
    let decimals = i32::try_from(mantissa.split_once('.')?.1.len()).ok()?;
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).skip_while(|&d| d == b'0').count();
    (digits >= SIGNIFICANT || decimals >= DECIMALS).then(|| 10f64.powi(exponent.saturating_sub(decimals)))
}

/// Numbers of remarks, of errors and of metadata: those with a decimal point or an exponent that stand alone, so that
/// names and options keep theirs.
fn in_comment(line: &str) -> Vec<Number> {
    let bytes = line.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + number_len(&bytes[at..]);
        let before = &bytes[..at];
        let before = before.strip_suffix(b"-").or_else(|| before.strip_suffix(b"+")).unwrap_or(before);
        let begins = [&b" "[..], b"(", b"\":"].iter().any(|end| before.ends_with(end));
        let ends = match (bytes.get(end), bytes.get(end + 1)) {
            (None, _) => true,
            // The end of a sentence.
            (Some(b'.'), next) => next.is_none_or(|c| *c == b' '),
            (Some(c), _) => b" ,;)]}%".contains(c),
        };
        if end > at && begins && ends && line[at..end].contains(['.', 'e']) {
            found.push(Number { range: at..end, kind: Kind::Printed });
        }
        // What did not begin here does not begin in its middle either.
        at = end.max(at + 1);
    }
    found
}

/// Norms and listed values of a line of the graph. Quoted names and strings are passed over.
fn in_graph(line: &str) -> Vec<Number> {
    let bytes = line.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'"' {
            at += quoted_len(&bytes[at..]);
        } else if bytes[at..].starts_with(b"] norm ") {
            let start = at + b"] norm ".len();
            let len = number_len(&bytes[start..]);
            if len > 0 {
                found.push(Number { range: start..start + len, kind: Kind::Norm });
            }
            at = start + len;
        } else if bytes[at..].starts_with(b"] [") {
            let start = at + b"] [".len();
            let end = bytes[start..].iter().position(|&c| c == b']').map_or(bytes.len(), |n| start + n);
            found.extend(listed(line, start..end));
            at = end.max(start);
        } else {
            at += 1;
        }
    }
    found
}

/// The floating-point numbers of a list.
fn listed(line: &str, within: Range<usize>) -> Vec<Number> {
    let mut at = within.start;
    let mut items = Vec::new();
    for item in line[within].split(',') {
        let text = item.trim();
        let start = at + (item.len() - item.trim_start().len());
        at += item.len() + 1;
        if text.contains(['.', 'e'])
            && let Ok(value) = text.parse::<f64>()
        {
            items.push((start..start + text.len(), value.abs()));
        }
    }
    let largest = items.iter().map(|(_, v)| *v).fold(0.0, f64::max);
    items.into_iter().map(|(range, _)| Number { range, kind: Kind::Listed(largest) }).collect()
}

/// How many bytes at the beginning are a number without a sign.
fn number_len(bytes: &[u8]) -> usize {
    let digits = |from: usize| bytes[from..].iter().take_while(|c| c.is_ascii_digit()).count();
    let mut n = digits(0);
    if n == 0 {
        return 0;
    }
    if bytes.get(n) == Some(&b'.') && digits(n + 1) > 0 {
        n += 1 + digits(n + 1);
    }
    if bytes.get(n) == Some(&b'e') {
        let sign = usize::from(bytes.get(n + 1).is_some_and(|c| b"+-".contains(c)));
        let exponent = bytes.get(n + 1 + sign..).map_or(0, |_| digits(n + 1 + sign));
        if exponent > 0 {
            n += 1 + sign + exponent;
        }
    }
    n
}

/// How many bytes a quoted string takes, to the end if it is not closed.
fn quoted_len(bytes: &[u8]) -> usize {
    let mut n = 1;
    while let Some(c) = bytes.get(n) {
        match c {
            b'"' => return n + 1,
            b'\\' => n += 2,
            _ => n += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(line: &str) -> Vec<&str> {
        find(line).into_iter().map(|n| &line[n.range]).collect()
    }

    #[test]
    fn numbers_are_found_where_they_are_computed() {
        assert_eq!(texts("  %conv1.5.w = f32[16,3,3,3] norm 12.34"), ["12.34"]);
        assert_eq!(texts("  %s = f32[2] [0.25, -6.0]"), ["0.25", "-6.0"]);
        assert_eq!(texts("  %s = i64[2] [4, 6]"), [""; 0]);
        assert_eq!(texts("  %y: f32[1] = Clip<max=6.0, scales=[1.5, 2.5]>(%x)"), [""; 0]);
        assert_eq!(texts("  %\"a] norm 1.5\" = f32[3,3] norm 1e16"), ["1e16"]);
        assert_eq!(texts("  %w = f32[1,2] randn(seed=1)"), [""; 0]);
        let remark =
            "//   + p: /0.5/conv1.25: rank 3 of 16: 92.88 % of the energy, error 0.2668, 22.9 % [factored]";
        assert_eq!(texts(remark), ["92.88", "0.2668", "22.9"]);
        assert_eq!(
            texts("// basisopt.layer.1.5 = {\"rank\":3,\"energy\":0.928794,\"e\":1e-7}"),
            ["0.928794", "1e-7"]
        );
        assert_eq!(texts("// passes: factorize-conv:energy=0.905,allocate-ranks:target=macs:0.512"), [""; 0]);
    }

    #[test]
    fn noise_is_one_unit_in_the_last_place() {
        let norm = |a: &str, b: &str| {
            same(&format!("  %w = f32[2,2] norm {a}"), &format!("  %w = f32[2,2] norm {b}"))
        };
        assert!(
            norm("12.34", "12.35")
                && norm("9.999", "10.0")
                && norm("5.0", "5.001")
                && norm("1.234e-9", "1.233e-9")
        );
        // One percent, one per mille and two units are not noise.
        assert!(!norm("12.34", "12.46") && !norm("5.0", "5.005") && !norm("12.34", "12.36"));
        assert!(!norm("0.0", "1.0") && !norm("inf", "1.0"));
        let said =
            |a: &str, b: &str| same(&format!("//   + p: c: {a} % [x]"), &format!("//   + p: c: {b} % [x]"));
        assert!(said("92.88", "92.89") && said("100.00", "99.99") && said("0.0012", "0.0013"));
        assert!(said("0.30000001192", "0.30000000001"));
        // A parameter with two digits is as it is.
        assert!(!said("0.25", "0.26") && !said("0.5", "0.6") && !said("92.88", "92.90") && !said("12", "13"));
        let list = |a: &str, b: &str| same(&format!("  %b = f32[2] [{a}]"), &format!("  %b = f32[2] [{b}]"));
        assert!(list("4.0, 1e-9", "4.0000001, 2e-9"));
        assert!(!list("4.0, 0.1", "4.0, 0.11") && !list("6.0, 0.0", "6.001, 0.0"));
    }

    #[test]
    fn ranks_sizes_and_names_are_exact() {
        assert!(!same("//   + p: c: rank 3 of 16: 92.88 %", "//   + p: c: rank 4 of 16: 92.88 %"));
        assert!(!same("  %w = f32[3,2] norm 1.732", "  %w = f32[4,2] norm 1.732"));
        assert!(!same("  %w.125 = f32[3,2] norm 1.732", "  %w.126 = f32[3,2] norm 1.732"));
        assert!(!same("//   conv1: 9216 -> 1000 multiply-adds", "//   conv1: 9216 -> 1001 multiply-adds"));
    }

    #[test]
    fn any_line_can_be_looked_at() {
        for line in [
            "",
            "\"",
            "\"\\",
            "] norm ",
            "] [",
            "] [1.5",
            "// 1e",
            "// 1.",
            "é] norm é",
            "// é1.5é",
            "// 1e+",
        ] {
            let numbers = find(line);
            assert!(replace(line, &numbers, |_| "").len() <= line.len(), "{line}");
        }
    }
}

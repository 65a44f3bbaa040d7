//! Comparison of a stored text with a new one.

use crate::numbers;
use similar::{Algorithm, DiffOp, TextDiff, capture_diff_slices};

/// How a new text stands to a stored one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    stored: String,
    settled: String,
}

/// Holds a new text against a stored one. Numbers that differ by rounding noise only count as equal; see
/// `docs/snapshots.md` for which numbers these are. Line ends may be those of Windows.
///
/// ```
/// use basisopt_snapshot::compare;
///
/// let stored = "  %w = f32[16,3,3,3] norm 12.34\n  %v = f32[8,3,3,3] norm 5.0\n";
/// assert!(compare(stored, &stored.replace("12.34", "12.35")).is_equal());
///
/// let other = compare(stored, &stored.replace("12.34", "12.35").replace("f32[8,", "f32[9,"));
/// assert_eq!(
///     other.diff("stored", "now", 0),
///     "--- stored\n+++ now\n@@ -2 +2 @@\n-  %v = f32[8,3,3,3] norm 5.0\n+  %v = f32[9,3,3,3] norm 5.0\n"
/// );
/// ```
pub fn compare(stored: &str, new: &str) -> Comparison {
    let stored = stored.replace("\r\n", "\n");
    let settled = if stored == new { new.to_owned() } else { settle(&stored, new) };
    Comparison { stored, settled }
}

impl Comparison {
    /// Whether nothing differs but noise.
    pub fn is_equal(&self) -> bool {
        self.stored == self.settled
    }

    /// The new text with the stored text's numbers where they differ by noise only: what to store, so that the change
    /// of a file shows what changed and nothing else.
    pub fn settled(&self) -> &str {
        &self.settled
    }

    /// What differs, as a unified diff under these two headings, with so many unchanged lines around it; noise is
    /// not in it. Empty if the texts are equal.
    pub fn diff(&self, stored: &str, new: &str, context: usize) -> String {
        if self.is_equal() {
            return String::new();
        }
        let diff = TextDiff::from_lines(&self.stored, &self.settled);
        diff.unified_diff().context_radius(context).header(stored, new).to_string()
    }
}

/// The new text, its lines replaced by the stored ones where the two are the same but for noise.
fn settle(stored: &str, new: &str) -> String {
    let lines = |text: &str| -> Vec<String> { text.split_inclusive('\n').map(str::to_owned).collect() };
    let masked = |lines: &[String]| -> Vec<String> {
        lines.iter().map(|l| numbers::replace(l, &numbers::find(l), |_| "~")).collect()
    };
    let (old, mut new) = (lines(stored), lines(new));
    for op in capture_diff_slices(Algorithm::Myers, &masked(&old), &masked(&new)) {
        if let DiffOp::Equal { old_index, new_index, len } = op {
            for (a, b) in old[old_index..][..len].iter().zip(&mut new[new_index..][..len]) {
                if numbers::same(a, b) {
                    b.clone_from(a);
                }
            }
        }
    }
    new.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
// factorize-conv: 1 rewrites
//   + factorize-conv: c: rank 3 of 16: 92.88 % of the energy [factored]
graph @g(%x: f32[1,8,9,9]) -> (%y) {
  %w.basis = f32[3,8,3,3] norm 1.732
  %h: f32[1,3,7,7] = Conv(%x, %w.basis)
  %w.coefficients = f32[16,3,1,1] norm 62.11
  %y: f32[1,16,7,7] = Conv(%h, %w.coefficients)
}
";

    #[test]
    fn noise_is_no_difference_and_not_shown_beside_one() {
        let noisy = TEXT.replace("62.11", "62.12").replace("92.88", "92.87");
        assert!(compare(TEXT, &noisy).is_equal());
        let real = noisy.replace("rank 3 of 16", "rank 4 of 16");
        let found = compare(TEXT, &real);
        assert!(!found.is_equal());
        let diff = found.diff("a", "b", 1);
        assert!(diff.contains("-//   + factorize-conv: c: rank 3 of 16: 92.88 %"), "{diff}");
        assert!(diff.contains("+//   + factorize-conv: c: rank 4 of 16: 92.87 %"), "{diff}");
        assert!(!diff.contains("norm"), "{diff}");
        // What would be stored keeps the numbers that only trembled.
        assert!(found.settled().contains("62.11") && found.settled().contains("rank 4"));
    }

    #[test]
    fn lines_that_come_and_go_are_differences() {
        let fewer = TEXT.replace("  %w.coefficients = f32[16,3,1,1] norm 62.11\n", "");
        for (a, b) in [(TEXT, fewer.as_str()), (fewer.as_str(), TEXT)] {
            assert!(!compare(a, b).is_equal());
        }
        assert!(!compare(TEXT, TEXT.trim_end()).is_equal());
        assert!(!compare(TEXT, &TEXT.replace("62.11", "62.8")).is_equal());
        assert!(compare(&TEXT.replace('\n', "\r\n"), TEXT).is_equal());
    }
}

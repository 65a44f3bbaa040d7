//! Choosing ranks: by energy, by ratio, by number, or from a file.

use crate::driver::options::{OptionError, OptionKind, OptionSpec, Options};
use crate::driver::pass::{PassContext, PassError};

/// The options that every factorising pass has.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "energy",
        kind: OptionKind::Float { min: 0.0, max: 1.0 },
        default: "0.9, if none of ratio, rank, ranks is given and allocate-ranks did not run",
        help: "smallest rank that keeps this share of the squared singular values",
    },
    OptionSpec {
        name: "ratio",
        kind: OptionKind::Float { min: 0.0, max: 1.0 },
        default: "not used",
        help: "rank as a share of the full rank, rounded up",
    },
    OptionSpec {
        name: "rank",
        kind: OptionKind::Int { min: 1 },
        default: "not used",
        help: "the same rank everywhere (at most the full rank)",
    },
    OptionSpec {
        name: "ranks",
        kind: OptionKind::File,
        default: "not used",
        help: "a file with a line `RANK NAME` per layer; without names, ranks in the order of the layers; `allocated`: those of allocate-ranks",
    },
    OptionSpec {
        name: "method",
        kind: OptionKind::Choice(&["weights", "output", "sequential"]),
        default: "sequential with data, weights without",
        help: "weights: singular values of the weight; output: principal components of the layer's output; sequential: regression on what the compressed layers before it really give",
    },
    OptionSpec {
        name: "refit",
        kind: OptionKind::Switch,
        default: "on",
        help: "with method=sequential: fit layers that stay whole, and statistics of normalisations, to the compressed network as well",
    },
    OptionSpec {
        name: "multiple",
        kind: OptionKind::Int { min: 1 },
        default: "1",
        help: "round ranks up to a multiple of this",
    },
    OptionSpec {
        name: "guard",
        kind: OptionKind::Switch,
        default: "on",
        help: "leave a layer whole if its factors would need as many multiply-adds",
    },
    OptionSpec {
        name: "include",
        kind: OptionKind::Globs,
        default: "every layer",
        help: "only layers whose node name matches (globs joined by |)",
    },
    OptionSpec {
        name: "exclude",
        kind: OptionKind::Globs,
        default: "no layer",
        help: "not the layers whose node name matches (globs joined by |)",
    },
];

/// How ranks are chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum RankRule {
    /// The smallest rank with `Σ_{i≤Q} s_i² / Σ s_i² ≥ t` (the paper's rule).
    Energy(f64),
    /// `⌈r · full rank⌉`.
    Ratio(f64),
    /// The same for all.
    Fixed(usize),
    /// From a file, by name or by position.
    File(String),
    /// Those that `allocate-ranks` noted.
    Allocated,
}

impl RankRule {
    /// The share of energy that is kept where nothing is said.
    pub const DEFAULT_ENERGY: f64 = 0.9;

    /// Reads the rule from checked options; `None` if they do not say.
    ///
    /// # Errors
    /// [`OptionError::Conflict`] if more than one rule is given.
    pub fn from_options(pass: &str, options: &Options) -> Result<Option<Self>, OptionError> {
        let rules = [
            options.float("energy").map(Self::Energy),
            options.float("ratio").map(Self::Ratio),
            options.int("rank").map(Self::Fixed),
            options.get("ranks").map(|f| match f {
                "allocated" => Self::Allocated,
                file => Self::File(file.to_owned()),
            }),
        ];
        let mut given = rules.into_iter().flatten();
        let rule = given.next();
        if given.next().is_some() {
            let message = "give one of energy, ratio, rank, ranks, not several".to_owned();
            return Err(OptionError::Conflict { pass: pass.to_owned(), message });
        }
        Ok(rule)
    }
}

/// Ranks read from a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RankTable {
    entries: Vec<(usize, Option<String>)>,
}

impl RankTable {
    /// Reads the file behind an option through the host.
    ///
    /// # Errors
    /// [`PassError::File`] with the line that cannot be read.
    pub fn read(path: &str, cx: &PassContext<'_>) -> Result<Self, PassError> {
        let error = |reason| PassError::File { option: "ranks", path: path.to_owned(), reason };
        Self::parse(&cx.host.read_text(path).map_err(error)?).map_err(error)
    }

    /// The ranks that `allocate-ranks` noted in the metadata of a graph, if it did. Those of layers that
    /// stay whole have no entry here.
    pub fn allotted(graph: &basisopt_ir::Graph) -> Option<Self> {
        let prefix = crate::plan::rank_key("");
        let mut notes =
            graph.metadata.iter().filter_map(|(k, v)| Some((k.strip_prefix(&prefix)?, v))).peekable();
        notes.peek()?;
        let entry = |(name, rank): (&str, &String)| Some((rank.parse().ok()?, Some(name.to_owned())));
        Some(Self { entries: notes.filter_map(entry).collect() })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut entries: Vec<(usize, Option<String>)> = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = without_comment(line).trim();
            if line.is_empty() {
                continue;
            }
            let (rank, name) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let rank = rank.parse().ok().filter(|&r| r > 0);
            let rank = rank
                .ok_or_else(|| format!("line {}: expected `RANK NAME` or `RANK`, found {line:?}", i + 1))?;
            let name = Some(name.trim()).filter(|n| !n.is_empty()).map(str::to_owned);
            if let Some(n) = &name
                && entries.iter().any(|(_, other)| other.as_ref() == Some(n))
            {
                return Err(format!("line {}: {n:?} stands here for the second time", i + 1));
            }
            entries.push((rank, name));
        }
        if entries.iter().any(|(_, n)| n.is_some()) && entries.iter().any(|(_, n)| n.is_none()) {
            return Err("some lines have a name and some have none".to_owned());
        }
        Ok(Self { entries })
    }

    /// The rank for the n-th layer, which has these names: several layers may share one weight.
    pub fn rank<'a>(&self, index: usize, mut names: impl Iterator<Item = &'a str>) -> Option<usize> {
        if self.is_positional() && !self.entries.is_empty() {
            return self.entries.get(index).map(|(r, _)| *r);
        }
        let of = |name: &str| self.entries.iter().find(|(_, n)| n.as_deref() == Some(name)).map(|(r, _)| *r);
        names.find_map(of)
    }

    /// Whether ranks go by position rather than by name.
    pub fn is_positional(&self) -> bool {
        self.entries.iter().all(|(_, n)| n.is_none())
    }

    /// Names that are not among these.
    pub fn unknown<'a>(&'a self, known: &[String]) -> Vec<&'a str> {
        self.entries
            .iter()
            .filter_map(|(_, n)| n.as_deref())
            .filter(|n| !known.iter().any(|k| k == n))
            .collect()
    }

    /// Number of ranks in it.
    pub fn n_ranks(&self) -> usize {
        self.entries.len()
    }
}

/// The smallest rank that keeps a share `t` of the energy; 1 at least. Energies — squared singular values,
/// or variances — largest first.
pub fn energy_rank(energies: &[f64], t: f64) -> usize {
    let total: f64 = energies.iter().sum();
    let mut kept = 0.0;
    for (i, e) in energies.iter().enumerate() {
        kept += e;
        // At t = 1 the sums differ by rounding only once nothing is left.
        if kept >= t * total {
            return i + 1;
        }
    }
    energies.len().max(1)
}

/// The rank at which `rank·(n_rows + n_columns)`, the cost of two factors per position, equals
/// `n_rows·n_columns`, that of the whole. Factoring pays strictly below it.
pub fn break_even(n_rows: usize, n_columns: usize) -> f64 {
    let (p, d) = (n_rows as f64, n_columns as f64);
    p * d / (p + d)
}

/// Rounds a rank up to a multiple, but not above the full rank.
pub fn round_up(rank: usize, multiple: usize, full: usize) -> usize {
    rank.checked_next_multiple_of(multiple.max(1)).unwrap_or(full).min(full)
}

/// A line without its comment, which begins the line or follows a space: names of layers may have a `#` within.
fn without_comment(line: &str) -> &str {
    let begins = |(at, _): &(usize, &str)| line[..*at].chars().next_back().is_none_or(char::is_whitespace);
    line.match_indices('#').find(begins).map_or(line, |(at, _)| &line[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_rule_takes_the_smallest_rank_that_reaches_the_threshold() {
        let s = [9.0, 4.0, 1.0, 1.0]; // of 15
        assert_eq!(energy_rank(&s, 0.6), 1); // 9/15 = 0.6 exactly
        assert_eq!(energy_rank(&s, 0.61), 2);
        assert_eq!(energy_rank(&s, 13.0 / 15.0), 2);
        assert_eq!(energy_rank(&s, 1.0), 4);
        assert_eq!(energy_rank(&s, 0.0), 1);
    }

    #[test]
    fn break_even_of_the_papers_examples() {
        assert!((break_even(64, 27) - 18.989).abs() < 1e-3);
        assert_eq!(break_even(16, 144), 14.4);
    }

    #[test]
    fn multiples_round_up_and_stop_at_the_full_rank() {
        assert_eq!(
            [(3, 4, 16), (4, 4, 16), (15, 4, 15), (3, usize::MAX, 9)].map(|(r, m, f)| round_up(r, m, f)),
            [4, 4, 15, 9]
        );
    }

    #[test]
    fn rank_files_are_by_name_or_by_position() {
        // A # within a name is part of it.
        let numbered = RankTable::parse("2 conv#1 # of 16\n3 #no-name\n#4 x\n").unwrap_err();
        assert!(numbered.contains("some lines"), "{numbered}");
        let numbered = RankTable::parse("2 conv#1 # of 16\n#4 x\n").unwrap();
        assert_eq!(numbered.rank(0, ["conv#1"].into_iter()), Some(2));
        let named = RankTable::parse("# ranks\n4 conv1\n5 /a/b c # spaces are fine\n").unwrap();
        let rank = |table: &RankTable, i, name| table.rank(i, [name].into_iter());
        assert_eq!((rank(&named, 0, "/a/b c"), rank(&named, 0, "x")), (Some(5), None));
        assert_eq!(named.rank(0, ["x", "conv1"].into_iter()), Some(4));
        assert_eq!(named.unknown(&["conv1".to_owned()]), ["/a/b c"]);
        let positional = RankTable::parse("3\n4").unwrap();
        assert_eq!((rank(&positional, 1, "any"), rank(&positional, 2, "any")), (Some(4), None));
        assert!(RankTable::parse("3\n4 x").unwrap_err().contains("some lines"));
        assert!(RankTable::parse("0 x").unwrap_err().contains("line 1"));
        assert!(RankTable::parse("1 x\n2 x").unwrap_err().contains("second time"));
    }
}

//! What a budget is of, and how much.

use super::survey::{Quantity, Survey};
use crate::driver::options::OptionError;
use crate::driver::pass::PassError;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Target {
    /// A share of a quantity, 0…1, to keep at most.
    Share(Quantity, f64),
    /// An amount of a quantity to keep at most.
    Amount(Quantity, f64),
    /// The share of the energy of every layer to keep at least.
    Energy(f64),
    /// Points of accuracy, or of agreement with the original, to lose at most.
    Drop(f64),
}

impl Quantity {
    /// All of them by name.
    pub const ALL: [(&'static str, Self); 4] =
        [("macs", Self::Macs), ("params", Self::Params), ("bytes", Self::Bytes), ("latency", Self::Latency)];

    /// The name in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Macs => "multiply-adds",
            Self::Params => "parameters",
            Self::Bytes => "bytes of parameters",
            Self::Latency => "time per image",
        }
    }
}

impl Target {
    /// Reads `macs:0.36`, `params:1.5M`, `energy:0.9`, `drop:1.0`; the first `=` may stand for the colon.
    ///
    /// # Errors
    /// [`OptionError::Value`] with what is accepted.
    pub fn parse(text: &str) -> Result<Self, OptionError> {
        let error = |expected: &str| OptionError::Value {
            pass: "allocate-ranks".to_owned(),
            option: "target".to_owned(),
            found: text.to_owned(),
            expected: expected.to_owned(),
        };
        let known = "macs:SHARE, params:SHARE, bytes:SHARE (or a number such as 45M), latency:SHARE (or 12ms), energy:SHARE or drop:POINTS";
        let (what, amount) = text.split_once([':', '=']).ok_or_else(|| error(known))?;
        let number = |text: &str| text.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0);
        if let Some((_, quantity)) = Quantity::ALL.iter().find(|(name, _)| *name == what) {
            if let Some(digits) = amount.strip_suffix("ms") {
                let time = number(digits).filter(|v| *v > 0.0 && *quantity == Quantity::Latency);
                return time.map(|ms| Self::Amount(*quantity, ms)).ok_or_else(|| error(known));
            }
            let unit = |c: char| match c {
                'k' | 'K' => Some(1e3),
                'M' => Some(1e6),
                'G' => Some(1e9),
                _ => None,
            };
            let (digits, factor) = match amount.chars().last().and_then(unit) {
                Some(factor) => (&amount[..amount.len() - 1], factor),
                None => (amount.strip_suffix('%').unwrap_or(amount), 1.0),
            };
            let expected = match quantity {
                Quantity::Latency => "a share from 0 to 1 (or 36%), or milliseconds (12ms)",
                _ => "a share from 0 to 1 (or 36%), or a number with k, M or G",
            };
            let value = number(digits).ok_or_else(|| error(expected))?;
            if amount.ends_with('%') && value <= 100.0 {
                return Ok(Self::Share(*quantity, value / 100.0));
            }
            return match value <= 1.0 && factor == 1.0 {
                true => Ok(Self::Share(*quantity, value)),
                false
                    if value * factor >= 2.0 && !amount.ends_with('%') && *quantity != Quantity::Latency =>
                {
                    Ok(Self::Amount(*quantity, value * factor))
                }
                false => Err(error(expected)),
            };
        }
        match what {
            "energy" => number(amount)
                .filter(|v| *v <= 1.0)
                .map(Self::Energy)
                .ok_or_else(|| error("a share from 0 to 1")),
            "drop" => number(amount)
                .filter(|v| *v <= 100.0)
                .map(Self::Drop)
                .ok_or_else(|| error("points of accuracy from 0 to 100")),
            _ => Err(error(known)),
        }
    }

    /// What the budget is of, if it is a quantity.
    pub fn quantity(self) -> Option<Quantity> {
        match self {
            Self::Share(q, _) | Self::Amount(q, _) => Some(q),
            _ => None,
        }
    }

    /// An amount as a share of what the network has.
    pub(crate) fn relative(self, survey: &Survey) -> Result<Self, PassError> {
        match self {
            Self::Amount(quantity, amount) => {
                let total = survey.total(quantity).ok_or_else(|| unknown(quantity))?;
                Ok(Self::Share(quantity, amount / total.max(f64::MIN_POSITIVE)))
            }
            other => Ok(other),
        }
    }
}

/// The error where a quantity depends on a size that is not known.
pub(crate) fn unknown(quantity: Quantity) -> PassError {
    PassError::Missing(format!(
        "the {} of this network are not known: an input size is open; give it (--dim NAME=N), or data",
        quantity.name()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_shares_numbers_or_points() {
        let parse = |t: &str| Target::parse(t).unwrap();
        assert_eq!(parse("macs:0.36"), Target::Share(Quantity::Macs, 0.36));
        assert_eq!(parse("macs=0.36"), Target::Share(Quantity::Macs, 0.36));
        assert_eq!(parse("bytes:50%"), Target::Share(Quantity::Bytes, 0.5));
        assert_eq!(parse("params:1.5M"), Target::Amount(Quantity::Params, 1.5e6));
        assert_eq!(parse("params:20000"), Target::Amount(Quantity::Params, 2e4));
        assert_eq!(parse("drop:1.0"), Target::Drop(1.0));
        assert_eq!(parse("latency:0.6"), Target::Share(Quantity::Latency, 0.6));
        assert_eq!(parse("latency=12.5ms"), Target::Amount(Quantity::Latency, 12.5));
        assert_eq!(parse("energy:0.9"), Target::Energy(0.9));
        for wrong in [
            "macs:1.5",
            "macs:12ms",
            "latency:3",
            "latency:0ms",
            "macs:-1",
            "macs:",
            "mac:0.5",
            "energy:2",
            "drop:101",
            "macs:nan",
            "macs:120%",
        ] {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
    }
}

//! What a sweep found: as a table, CSV, JSON, and a page to look at.

use crate::table::{json, page, render, si, table};
use serde::Serialize;
use std::fmt::Write as _;

/// The page, with a place for the data.
const PAGE: &str = include_str!("page.html");
const PLACE: &str = "/*SWEEP*/null/*END*/";
/// Components of a spectrum that are shown.
pub(super) const MAX_SPECTRUM: usize = 1024;

/// Everything a sweep found; what could not be measured is null.
#[derive(Debug, Serialize)]
pub(super) struct Sweep {
    pub file: String,
    pub version: &'static str,
    pub engine: &'static str,
    pub method: &'static str,
    /// What the budgets are of.
    pub target: &'static str,
    pub calibration: Option<String>,
    pub held_out: Option<String>,
    pub labelled: bool,
    pub original: Point,
    pub points: Vec<Point>,
    pub layers: Vec<Layer>,
    pub notes: Vec<String>,
    pub seconds: f64,
    pub command: String,
}

/// A network and what it does.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Point {
    /// The share that was asked for.
    pub budget: f64,
    pub macs: Option<u64>,
    pub params: u64,
    pub bytes: u64,
    /// 0…1, as all shares.
    pub accuracy: Option<f64>,
    /// Half the width of the 95 % interval of the accuracy.
    pub margin: Option<f64>,
    pub agreement: Option<f64>,
    /// Root of the squared error of the outputs relative to their variance over images.
    pub output_error: Option<f64>,
    pub n_factored: usize,
    /// One per layer; null for those that stay whole.
    pub ranks: Vec<Option<usize>>,
}

/// A layer that could be factored, or the reason why not.
#[derive(Debug, Serialize)]
pub(super) struct Layer {
    pub name: String,
    pub kind: String,
    pub n_rows: usize,
    pub n_columns: usize,
    pub full_rank: usize,
    pub break_even: f64,
    pub macs: Option<u64>,
    pub sensitivity: Option<f64>,
    pub spectrum: Vec<f64>,
    pub left_alone: Option<String>,
}

impl Sweep {
    /// The page: everything in one file.
    ///
    /// # Errors
    /// If the report has no JSON form.
    pub(super) fn page(&self) -> anyhow::Result<String> {
        page(PAGE, PLACE, self)
    }

    pub(super) fn csv(&self) -> String {
        let mut out =
            "budget,macs,params,bytes,accuracy,margin,agreement,output_error,n_factored\n".to_owned();
        for p in self.points.iter().chain([&self.original]) {
            let number = |v: Option<f64>| v.map_or(String::new(), |v| format!("{v:.6}"));
            let _ = writeln!(
                out,
                "{},{},{},{},{},{},{},{},{}",
                p.budget,
                p.macs.map_or(String::new(), |m| m.to_string()),
                p.params,
                p.bytes,
                number(p.accuracy),
                number(p.margin),
                number(p.agreement),
                number(p.output_error),
                p.n_factored
            );
        }
        out
    }

    pub(super) fn json(&self) -> anyhow::Result<String> {
        json(self)
    }

    pub(super) fn text(&self) -> String {
        let mut rows = table(&[
            self.target,
            "multiply-adds",
            "parameters",
            "bytes",
            "accuracy",
            "agreement",
            "output error",
            "factored",
        ]);
        let percent = |v: Option<f64>| v.map_or(String::new(), |v| format!("{:.2} %", 100.0 * v));
        for (i, p) in [&self.original].into_iter().chain(&self.points).enumerate() {
            let accuracy = match p.margin {
                Some(m) => format!("{} ± {:.1}", percent(p.accuracy), 100.0 * m),
                None => percent(p.accuracy),
            };
            rows.add_row([
                if i == 0 { "original".to_owned() } else { p.budget.to_string() },
                p.macs.map_or("?".to_owned(), |m| si(m as f64)),
                si(p.params as f64),
                crate::work::bytes(p.bytes),
                accuracy,
                percent(p.agreement.filter(|_| i > 0)),
                p.output_error.filter(|_| i > 0).map_or(String::new(), |e| format!("{e:.3}")),
                if i == 0 { String::new() } else { p.n_factored.to_string() },
            ]);
        }
        let mut out = render(&rows) + "\n";
        for (what, on) in [("calibrated on", &self.calibration), ("measured on", &self.held_out)] {
            if let Some(on) = on {
                let _ = writeln!(out, "{what} {on}");
            }
        }
        self.notes.iter().for_each(|note| {
            let _ = writeln!(out, "{note}");
        });
        out
    }
}

//! The ladder of recovery: what is done, step by step, until enough of the accuracy is back.

use basisopt_passes::{Outcome, PassReport, Report, meets_goal};
use serde::Serialize;
use std::fmt::Write as _;

/// Epochs of the first rung, which trains biases only.
const REFIT_EPOCHS: f64 = 0.25;
/// Share of the epochs that distillation has before labels are used.
const DISTILLED: f64 = 0.25;
/// Options that each rung has for itself.
const OWN: [&str; 6] = ["epochs", "minutes", "loss", "mix", "train", "goal"];

/// One step of recovery, in reports.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Rung {
    /// The pass with its options.
    pub name: String,
    /// What it does, for people.
    pub title: String,
    /// How long it took.
    pub seconds: f64,
    /// Passes over the images.
    pub epochs: Option<f64>,
    /// On the validation images, 0…1.
    pub score_before: Option<f64>,
    /// After it.
    pub score: Option<f64>,
    /// The original's.
    #[serde(skip)]
    pub original: Option<f64>,
    /// Whether the score is accuracy, and not agreement.
    #[serde(skip)]
    pub is_accuracy: Option<bool>,
    /// The loss, or the error of blocks, on the validation images.
    pub loss_before: Option<f64>,
    /// After it.
    pub loss: Option<f64>,
    /// Why it was not needed.
    pub skipped: Option<String>,
    /// Whether the goal is met after it, if there is one.
    pub met: Option<bool>,
}

/// The passes that recover accuracy, each from `,` on. `options` are those of the last rung.
///
/// Without a goal there is no reason to stop early, so what only saves time is left out: blocks are trained, then the
/// whole network with everything there is.
pub fn passes(options: &str, goal: Option<f64>, is_labelled: bool) -> String {
    let tail = if options.is_empty() { String::new() } else { format!(":{options}") };
    let Some(goal) = goal else { return format!(",reconstruct,fine-tune{tail}") };
    let given = |key: &str| {
        options.split(':').find_map(|o| o.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
    };
    let key_of = |option: &&str| option.split('=').next().unwrap_or_default().to_owned();
    let shared: String = options
        .split(':')
        .filter(|o| !o.is_empty() && !OWN.contains(&&key_of(o)[..]))
        .fold(String::new(), |text, o| text + ":" + o);
    let mut text = format!(
        ",fine-tune:train=biases:loss=distill:epochs={REFIT_EPOCHS}{shared}:goal={goal},reconstruct:goal={goal}"
    );
    // A loss of the user's own choice is the only one; without labels the last rung distils already.
    if is_labelled && given("loss").is_none() {
        let (unit, length) = match given("minutes") {
            Some(minutes) => ("minutes", minutes),
            None => ("epochs", given("epochs").unwrap_or_else(|| "10".to_owned())),
        };
        if let Ok(length) = length.parse::<f64>() {
            let length = (DISTILLED * length * 1e4).round() / 1e4;
            let _ = write!(text, ",fine-tune:loss=distill:{unit}={length}{shared}:goal={goal}");
        }
    }
    text + &format!(",fine-tune{tail}:goal={goal}")
}

/// What became of each rung; the first one is the factors as they were made.
pub fn rungs(report: &Report, goal: Option<f64>) -> Vec<Rung> {
    let mut found: Vec<Rung> = Vec::new();
    let mut factoring = 0.0;
    for pass in &report.passes {
        match pass_name(pass) {
            "allocate-ranks" | "factorize-conv" | "factorize-linear" => factoring += pass.time.as_secs_f64(),
            "reconstruct" | "fine-tune" => found.push(rung(pass, goal)),
            _ => {}
        }
    }
    if let Some(first) = found.first() {
        let (score, original) = (first.score_before, first.original);
        let start = Rung {
            title: "factors".to_owned(),
            seconds: factoring,
            score,
            original,
            met: met(goal, original, score),
            ..Rung::default()
        };
        found.insert(0, start);
    }
    found
}

/// As the passes judge it.
fn met(goal: Option<f64>, original: Option<f64>, score: Option<f64>) -> Option<bool> {
    Some(meets_goal(original?, score?, goal?))
}

fn pass_name(pass: &PassReport) -> &str {
    pass.item.split(':').next().unwrap_or_default()
}

fn rung(pass: &PassReport, goal: Option<f64>) -> Rung {
    let name = pass.item.clone();
    let is = |option: &str| name.split(':').any(|o| o == option);
    let title = match pass_name(pass) {
        "reconstruct" => "blocks, one by one",
        _ if is("train=biases") => "biases",
        _ if is("loss=distill") => "distillation",
        _ if is("loss=match") => "matching the original's values",
        _ => "the whole network",
    };
    let remark = |code: &str| pass.remarks.iter().find(|r| r.code == code && r.node.is_empty());
    let done = ["trained", "reconstructed", "goal-met"].into_iter().find_map(remark);
    let value = |key: &str| done.and_then(|r| r.values.get(key)).copied();
    let (score, original) = (value("score"), value("original_score"));
    let skipped = (pass.outcome == Outcome::Unchanged).then(|| "the goal was met before".to_owned());
    Rung {
        title: title.to_owned(),
        seconds: pass.time.as_secs_f64(),
        epochs: value("epochs"),
        is_accuracy: value("is_accuracy").map(|v| v > 0.0),
        score_before: value("score_before"),
        score,
        original,
        loss_before: value("validation_loss_before").or_else(|| value("error_before")),
        loss: value("validation_loss").or_else(|| value("error")),
        met: met(goal, original, score),
        skipped,
        name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basisopt_passes::{Pipeline, Registry};

    #[test]
    fn rungs_are_pipelines_and_the_last_has_the_options() {
        for (options, goal, labels, n) in [
            ("", None, true, 2),
            ("epochs=3:flip=on", None, false, 2),
            ("epochs=3:flip=on", Some(1.0), true, 4),
            ("minutes=2", Some(0.5), true, 4),
            ("loss=labels", Some(0.5), true, 3),
            ("epochs=3", Some(0.5), false, 3),
        ] {
            let text = passes(options, goal, labels);
            let pipeline = Pipeline::parse(&text[1..], &Registry::builtin()).unwrap();
            assert_eq!(pipeline.items.len(), n, "{text}");
            let last = pipeline.items.last().unwrap().to_string();
            assert!(last.starts_with("fine-tune") && last.contains(options), "{last}");
        }
        let text = passes("epochs=8:flip=on:goal=9", Some(1.0), true);
        assert!(text.contains(",fine-tune:loss=distill:epochs=2:flip=on:goal=1,"), "{text}");
    }
}

//! `fine-tune`: basis filters and coefficients are trained together, in the basis space, to win back what truncation
//! lost (Tayyab, Khan, Mahalanobis 2021).
//!
//! ## Rewrite
//!
//! ```text
//! %h = Conv<pads=[1,1,1,1]>(%x, %w.basis)
//! %y = Conv(%h, %w.coefficients, %b)
//! ```
//! keeps its shape: only constants get new values. After training every pair is brought back to an orthonormal basis
//! without changing what it computes (`w·F` is decomposed again), so that later passes recognise it.
//!
//! ## Legality
//!
//! - There are images to train on.
//! - Every operator between what is trained and what the loss compares has a gradient; otherwise the loss compares the
//!   last values before (`src/train/differentiate.rs`).
//! - Something is trainable: with `train=both`, `basis` or `coefficients` there are pairs.
//!
//! ## Numerics
//!
//! Single precision. The loss is the mean over a batch of cross-entropy with labels, of cross-entropy with the original
//! network's softened classes, or of the squared distance from the original's outputs (`src/train/loss.rs`). Gradients
//! come from the graph itself. The version that does best on images that are not trained on is kept, the one before
//! training included. Batch normalisation that was not folded keeps its statistics, while scale and bias are trained;
//! with `statistics=batch` it normalises by the images at hand, sixteen at a time, and its statistics are measured anew
//! for each validation and at the end. With `norm=on` there is such a normalisation between the two factors of each
//! convolution as well (the paper), which starts as the identity on the images and is folded into the factors at the end:
//! `w·(s∘(F·x) + t) = w·(diag(s)·F)·x + w·t`. `basis=orthonormal` keeps every basis on its Stiefel manifold
//! (`src/train/stiefel.rs`); `orthogonality=` only adds the paper's penalty to the loss.
//!
//! ## Options
//!
//! See `basisopt passes fine-tune`.
//!
//! ## Pipeline
//!
//! After the factorising passes. Before `dead-code`.

mod norms;
mod objective;

use crate::driver::options::{Globs, OptionError, OptionKind, OptionSpec, Options};
use crate::driver::pass::{Fidelity, Outcome, Pass, PassContext, PassError, PassInfo};
use crate::training::parameters::{self, Trained, write};
use crate::training::{self, GOAL, Scorer, Standing};
use basisopt_ir::Graph;
use basisopt_ir::op::Op;
use basisopt_train::examples::Augmentation;
use basisopt_train::fit::fit;
use basisopt_train::optimizer::{Method, Schedule};
use basisopt_train::task::{Objective, Reference, Task};
use basisopt_train::trainer::Trainer;
use basisopt_train::watch::{FitError, FitOptions, Fitted, Length};
use std::collections::BTreeMap;

const ANY: f64 = f64::INFINITY;

/// The pass `fine-tune`: `docs/passes.md` shows what it does, `basisopt passes fine-tune` has its options.
pub static INFO: PassInfo = PassInfo {
    name: "fine-tune",
    summary: "train basis filters and coefficients to win back accuracy",
    fidelity: Fidelity::Trained,
    options: OPTIONS,
    build: |options| Ok(Box::new(FineTune::read(options)?)),
};

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "epochs",
        kind: OptionKind::Float { min: 0.0, max: ANY },
        default: "10",
        help: "passes over the images",
    },
    OptionSpec {
        name: "minutes",
        kind: OptionKind::Float { min: 0.0, max: ANY },
        default: "as epochs says",
        help: "as many epochs as fit into this time",
    },
    OptionSpec {
        name: "loss",
        kind: OptionKind::Choice(&["labels", "distill", "labels+distill", "distill+labels", "match"]),
        default: "labels+distill with labels, distill without, match where there are no classes",
        help: "what is compared: labels, the original's classes, both, or the original's outputs",
    },
    OptionSpec {
        name: "mix",
        kind: OptionKind::Float { min: 0.0, max: 1.0 },
        default: "0.5",
        help: "share of the labels in labels+distill",
    },
    OptionSpec {
        name: "temperature",
        kind: OptionKind::Float { min: 1e-3, max: 1e3 },
        default: "4",
        help: "what softens classes in distillation",
    },
    OptionSpec {
        name: "until",
        kind: OptionKind::Globs,
        default: "the outputs, or the last values with a gradient",
        help: "values to match with the original's, by name",
    },
    OptionSpec {
        name: "train",
        kind: OptionKind::Choice(&["all", "both", "basis", "coefficients", "biases"]),
        default: "all",
        help: "every weight and bias, both factors (the paper), one of them, or biases and normalisations only",
    },
    OptionSpec {
        name: "basis",
        kind: OptionKind::Choice(&["free", "orthonormal"]),
        default: "free",
        help: "free: made orthonormal again at the end; orthonormal: after every step",
    },
    OptionSpec {
        name: "orthogonality",
        kind: OptionKind::Float { min: 0.0, max: ANY },
        default: "0",
        help: "weight of a penalty on bases that are not orthogonal; the paper has 0.001",
    },
    OptionSpec {
        name: "norm",
        kind: OptionKind::Switch,
        default: "off",
        help: "train with batch normalisation between the factors of convolutions (the paper); folded at the end",
    },
    OptionSpec {
        name: "statistics",
        kind: OptionKind::Choice(&["fixed", "batch"]),
        default: "fixed",
        help: "what batch normalisation goes by that the file still has: its own statistics, or those of the images at hand",
    },
    OptionSpec {
        name: "optimizer",
        kind: OptionKind::Choice(&["sgd", "adam"]),
        default: "sgd",
        help: "SGD with Nesterov's momentum, or AdamW",
    },
    OptionSpec {
        name: "rate",
        kind: OptionKind::Float { min: 0.0, max: ANY },
        default: "0.005 for sgd, 0.0005 for adam",
        help: "peak rate",
    },
    OptionSpec {
        name: "momentum",
        kind: OptionKind::Float { min: 0.0, max: 0.9999 },
        default: "0.9",
        help: "of sgd",
    },
    OptionSpec {
        name: "decay",
        kind: OptionKind::Float { min: 0.0, max: ANY },
        default: "0.0005 for sgd, 0.01 for adam",
        help: "weight decay, of weights but not of biases",
    },
    OptionSpec {
        name: "schedule",
        kind: OptionKind::Choice(&["cosine", "constant", "steps"]),
        default: "cosine",
        help: "down to zero by half a cosine; not at all; a tenth after 1/4, 1/2 and 3/4 of the run (the paper)",
    },
    OptionSpec {
        name: "warmup",
        kind: OptionKind::Float { min: 0.0, max: ANY },
        default: "0.2",
        help: "epochs over which the rate rises",
    },
    OptionSpec {
        name: "clip",
        kind: OptionKind::Float { min: 0.0, max: ANY },
        default: "5",
        help: "limit of the gradient's norm; 0 for none",
    },
    OptionSpec { name: "batch", kind: OptionKind::Int { min: 1 }, default: "128", help: "images per step" },
    OptionSpec {
        name: "shift",
        kind: OptionKind::Int { min: 0 },
        default: "an eighth of the width",
        help: "pixels by which images are shifted at random",
    },
    OptionSpec {
        name: "flip",
        kind: OptionKind::Switch,
        default: "off",
        help: "mirror half of the images: right for photographs, wrong for letters",
    },
    OptionSpec {
        name: "patience",
        kind: OptionKind::Int { min: 1 },
        default: "no end before the end",
        help: "stop after so many epochs without improvement",
    },
    GOAL,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Labels,
    Distill,
    Both,
    Match,
}

#[derive(Debug)]
struct FineTune {
    loss: Option<Loss>,
    mix: f32,
    temperature: f32,
    until: Option<Globs>,
    trained: Trained,
    is_orthonormal: bool,
    orthogonality: f32,
    has_norm: bool,
    by_batch: bool,
    goal: Option<f64>,
    /// Without the shift, which depends on the images, and the seed.
    fit: FitOptions,
    shift: Option<usize>,
    /// The options as given, which name a run in its checkpoints.
    text: String,
}

impl FineTune {
    #[allow(clippy::cast_possible_truncation, reason = "options are given with few digits")]
    fn read(options: &Options) -> Result<Self, OptionError> {
        let number = |name: &str, default: f64| options.float(name).unwrap_or(default);
        let conflict =
            |message: &str| OptionError::Conflict { pass: INFO.name.to_owned(), message: message.to_owned() };
        let is_adam = options.get("optimizer") == Some("adam");
        if options.get("epochs").is_some() && options.get("minutes").is_some() {
            return Err(conflict("epochs= and minutes= both say how long; choose one of them"));
        }
        if options.switch("norm", false) && options.get("basis") == Some("orthonormal") {
            return Err(conflict("norm=on scales basis filters, which basis=orthonormal forbids"));
        }
        for name in ["rate", "epochs", "minutes"] {
            if options.float(name).is_some_and(f64::is_infinite) {
                return Err(conflict(&format!("{name}= cannot be infinite")));
            }
        }
        if options.float("rate") == Some(0.0) {
            return Err(conflict("rate=0 learns nothing"));
        }
        let loss = options.get("loss").map(|l| match l {
            "labels" => Loss::Labels,
            "distill" => Loss::Distill,
            "match" => Loss::Match,
            _ => Loss::Both,
        });
        let method = match is_adam {
            true => Method::AdamW { betas: (0.9, 0.999), epsilon: 1e-8 },
            false => Method::Sgd { momentum: number("momentum", 0.9) as f32 },
        };
        let fit = FitOptions {
            length: match options.float("minutes") {
                Some(minutes) => Length::Minutes(minutes),
                None => Length::Epochs(number("epochs", 10.0)),
            },
            batch: options.int("batch").unwrap_or(128),
            method,
            rate: number("rate", if is_adam { 5e-4 } else { 5e-3 }),
            schedule: match options.get("schedule") {
                Some("constant") => Schedule::Constant,
                Some("steps") => Schedule::Steps(vec![0.25, 0.5, 0.75]),
                _ => Schedule::Cosine,
            },
            warmup: number("warmup", 0.2),
            weight_decay: number("decay", if is_adam { 0.01 } else { 5e-4 }) as f32,
            clip: Some(number("clip", 5.0)).filter(|&c| c > 0.0),
            augmentation: Augmentation { shift: 0, flip: options.switch("flip", false) },
            patience: options.int("patience").map(|p| u32::try_from(p).unwrap_or(u32::MAX)),
            seed: 0,
        };
        Ok(Self {
            loss,
            mix: number("mix", 0.5) as f32,
            temperature: number("temperature", 4.0) as f32,
            until: options.globs("until"),
            trained: Trained::parse(options.get("train").unwrap_or("all")),
            is_orthonormal: options.get("basis") == Some("orthonormal"),
            orthogonality: number("orthogonality", 0.0) as f32,
            has_norm: options.switch("norm", false),
            by_batch: options.get("statistics") == Some("batch"),
            goal: training::goal(options),
            fit,
            shift: options.int("shift"),
            text: format!("{options:?}"),
        })
    }
}

impl Pass for FineTune {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Outcome, PassError> {
        let Some(training) = cx.training.take() else {
            let text = "there are no images to train on: give --train PATH (opt) or --data PATH (compress)";
            return Err(PassError::Missing(text.to_owned()));
        };
        if !cx.spend() {
            return Ok(Outcome::Unchanged);
        }
        let mut network = graph.clone();
        let (examples, validation) = (training.examples, training.validation);
        let image = examples.shape();
        training::pin(&mut network, image)?;
        let original = training.original.map(|o| training::folded(o, image)).transpose()?;
        let scorer = Scorer::new(&network, original.as_ref(), validation)?;
        let before = scorer.as_ref().map(|s| s.standing(&network)).transpose()?;
        if training::is_met(self.goal, before.as_ref(), cx)? {
            return Ok(Outcome::Unchanged);
        }
        let pairs = parameters::pairs(graph);
        let mut trained = parameters::find(&network, self.trained, &pairs)?;
        let mut frames = parameters::frames(graph, &pairs);
        frames.retain(|f| trained.contains(&f.parameter));
        let mut objective = objective::choose(self, &network, original.as_ref(), &trained, examples)?;
        for note in &objective.notes {
            cx.note("", "objective", note.clone());
        }
        let mut normalised = if self.by_batch { own_statistics(&network) } else { vec![] };
        let norms = match self.has_norm {
            true => norms::insert(&mut network, &pairs, examples)?,
            false => vec![],
        };
        if self.has_norm && norms.is_empty() {
            cx.note("", "no-pairs", "norm=on does nothing: no convolution is factored");
        }
        for norm in &norms {
            normalised.push(norm.output.clone());
            trained.extend(norm.constants.iter().take(2).cloned());
        }
        if self.orthogonality > 0.0 {
            let several = frames.iter().filter(|f| f.rank > 1);
            let terms = several.map(|f| (Objective::Orthogonality(f.clone()), self.orthogonality));
            objective.terms.extend(terms);
        }
        let task = Task {
            network: &network,
            reference: original.as_ref().map_or(Reference::None, Reference::Network),
            objectives: objective.terms,
            parameters: trained,
            logits: objective.logits,
            norms: normalised,
            frames: if self.is_orthonormal { frames } else { vec![] },
        };
        let mut trainer = Trainer::new(&task).map_err(FitError::from)?;
        for name in trainer.unreached() {
            cx.note(name, "no-effect", "it has no effect on the loss, and is left as it is");
        }
        let mut options = self.fit.clone();
        options.seed = cx.seed;
        options.augmentation.shift = self.shift.unwrap_or(image.width / 8);
        let threads = rayon::current_num_threads();
        let memory = trainer.memory(threads) as f64 / f64::from(1 << 20);
        let n: usize = trainer.values().iter().map(Vec::len).sum();
        training.session.note(&format!(
            "{n} parameters, {} images to train on and {} to validate on, {memory:.0} MiB for {threads} threads",
            examples.len(),
            validation.len()
        ));
        let resume = training.session.resume();
        let resume = resume.as_deref();
        let fitted = fit(&mut trainer, examples, validation, &options, &self.text, resume, training.session);
        let fitted = fitted.map_err(training::explain)?;
        if fitted.interrupted {
            return Err(PassError::Interrupted);
        }
        let names = trainer.parameters().iter().cloned().zip(trainer.values().iter().cloned());
        let mut values: BTreeMap<String, Vec<f32>> = names.collect();
        values.extend(trainer.measured().map(|(name, values)| (name.to_owned(), values.to_vec())));
        let n = write(graph, &values)?;
        norms::fold(graph, &norms, &values)?;
        parameters::orthonormalise(graph, &pairs)?;
        let mut network = graph.clone();
        training::pin(&mut network, image)?;
        let after = scorer.as_ref().map(|s| s.standing(&network)).transpose()?;
        report(cx, &fitted, before.zip(after));
        Ok(Outcome::of(n))
    }
}

/// Outputs of batch normalisations whose statistics no other node has.
fn own_statistics(graph: &Graph) -> Vec<String> {
    let own = |id, slot| {
        let value = graph.node_input(id, slot)?;
        (graph.constant(value).is_some() && graph.n_readers(value) == 1).then_some(())
    };
    let norms = graph.topological().into_iter().filter(|&id| {
        matches!(graph.node(id).op, Op::BatchNormalization(_)) && own(id, 3).and(own(id, 4)).is_some()
    });
    norms.filter_map(|id| Some(graph.node(id).outputs.first()?.name.clone())).collect()
}

/// Names of the weights, biases and scales that `train=all` trains.
///
/// # Errors
/// [`PassError::Missing`] if there are none.
pub fn trainable(graph: &Graph) -> Result<Vec<String>, PassError> {
    parameters::find(graph, Trained::All, &[])
}

fn report(cx: &mut PassContext<'_>, fitted: &Fitted, standing: Option<(Standing, Standing)>) {
    let (Some(first), best) = (fitted.history.first(), fitted.best) else { return };
    let epochs = fitted.history.last().map_or(0.0, |e| (100.0 * e.epoch).round() / 100.0);
    let mut values = vec![
        ("epochs", epochs),
        ("validation_loss_before", first.validation.loss),
        ("validation_loss", best.loss),
    ];
    let mut text = format!(
        "trained for {epochs} epochs: loss on validation images {:.4} → {:.4}",
        first.validation.loss, best.loss
    );
    if fitted.history.iter().rfind(|e| e.is_best).is_none_or(|e| e.epoch == 0.0) {
        text = format!(
            "trained for {epochs} epochs, none of which did better on validation images than the network as it was (loss {:.4}), which is kept; try a smaller rate= or shift=0",
            best.loss
        );
    } else if let (Some(before), Some(after)) = (first.validation.accuracy, best.accuracy) {
        text += &format!(", accuracy {:.2} % → {:.2} %", before * 100.0, after * 100.0);
    }
    if let (Some(before), Some(after)) = (first.validation.accuracy, best.accuracy) {
        values.extend([("validation_accuracy_before", before), ("validation_accuracy", after)]);
    }
    if let Some((before, after)) = standing {
        values.extend(training::scores(&before, &after));
    }
    cx.applied("", "trained", text, &values);
}

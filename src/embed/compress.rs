//! The recipe, run: fold, choose ranks for a budget, factorise, train if that is wanted, measure.

use crate::error::EmbedError;
use crate::examples::DatasetExamples;
use crate::executor::TractExecutor;
use crate::ladder::{Rung, rungs};
use crate::layers::{Layer, layers, ranks_file};
use crate::material::{HELD_OUT, ImageJudge, JUDGED, Material, Use};
use crate::measure::{Measured, measure};
use crate::optimize::{check_dims, refuse_non_finite};
use crate::recipe::{PASSES, Recipe};
use crate::report::Size;
use crate::samples::{DataSamples, SAMPLES, calibration_memory};
use crate::settings::{Settings, StoppedHost, StoppedSession};
use basisopt_ir::Graph;
use basisopt_onnx::Model;
use basisopt_passes::cost::{self, Cost};
use basisopt_passes::{
    Calibration, Item, Manager, Observer, PassReport, Remark, Samples, Session, Training, n_classes,
};
use basisopt_runtime::{Dataset, Preprocess, Source};
use serde::Serialize;

/// How the recipe is run.
#[derive(Default)]
pub struct CompressOptions<'a> {
    /// Seed, sizes, engine, threads, the world.
    pub settings: Settings<'a>,
    /// The images, shared out. None at all leaves the weights to go by.
    pub material: Material,
    /// Leaves latency unmeasured.
    pub untimed: bool,
    /// Leaves everything unmeasured but sizes.
    pub unmeasured: bool,
    /// Sees the graph between passes.
    pub observer: Option<&'a mut dyn Observer>,
    /// Progress, checkpoints and the log of training; needed where the recipe trains.
    pub session: Option<&'a mut dyn Session>,
}

impl std::fmt::Debug for CompressOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompressOptions")
            .field("settings", &self.settings)
            .field("material", &self.material)
            .finish_non_exhaustive()
    }
}

impl CompressOptions<'_> {
    /// Shares images out as the recipe needs them, with the numbers that the command line has as its defaults:
    /// `n_samples` to calibrate on (1000 if `None`), up to 1000 to choose by, up to 2000 to report on.
    ///
    /// # Errors
    /// As [`Material::share`].
    pub fn share(
        &mut self,
        recipe: &Recipe,
        data: Option<Dataset>,
        preprocess: Preprocess,
        n_samples: Option<usize>,
    ) -> Result<(), EmbedError> {
        let n = (n_samples.unwrap_or(SAMPLES), HELD_OUT);
        self.material = Material::share(data, None, preprocess, n, self.settings.seed, Use::of(recipe))?;
        Ok(())
    }
}

/// What the recipe did to a model.
#[derive(Clone, Debug, Serialize)]
pub struct Compressed {
    /// The pipeline that was run, as text.
    pub pipeline: String,
    /// Cost and bytes of what was given.
    pub before: Size,
    /// Cost and bytes of what came out.
    pub after: Size,
    /// The network before and after, on the same inputs.
    pub measured: Measured,
    /// What became of every convolution and linear layer.
    pub layers: Vec<Layer>,
    /// What recovered accuracy, in order.
    pub rungs: Vec<Rung>,
    /// How many points may be lost.
    pub goal: Option<f64>,
    /// What the score of a rung is: `accuracy` or `agreement`.
    pub measure: &'static str,
    /// The original's score on the same images.
    pub original_score: Option<f64>,
    /// What the passes said.
    pub remarks: Vec<Remark>,
}

impl Compressed {
    /// The ranks that were chosen, as a file for [`Recipe::ranks`], to be edited.
    pub fn ranks_file(&self) -> String {
        ranks_file(&self.pipeline, &self.layers)
    }
}

/// Notes what the layers cost just before they are factored: folding renames none, but may remove.
struct Costs<'a, 'd> {
    observer: Option<&'a mut dyn Observer>,
    dims: &'d [(String, usize)],
    cost: Cost,
}

impl Observer for Costs<'_, '_> {
    fn before(&mut self, index: usize, item: &Item, graph: &Graph) {
        if item.info.name == PASSES[0] {
            self.cost = cost::of_pinned(graph, self.dims);
        }
        if let Some(observer) = &mut self.observer {
            observer.before(index, item, graph);
        }
    }

    fn after(&mut self, index: usize, item: &Item, graph: &Graph, report: &PassReport) {
        if let Some(observer) = &mut self.observer {
            observer.after(index, item, graph, report);
        }
    }
}

/// Compresses a model.
///
/// ```
/// use basisopt_embed::{CompressOptions, Recipe, compress};
/// use basisopt_onnx::Model;
///
/// let mut model = Model::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/glyphnet.onnx"))?;
/// let recipe = Recipe { budget: Some("macs=0.5".into()), ..Recipe::default() };
/// let done = compress(&mut model, &recipe, CompressOptions { untimed: true, ..CompressOptions::default() })?;
/// assert!(done.after.cost.macs <= done.before.cost.macs.map(|n| n / 2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`EmbedError`]; the model is then as it was.
pub fn compress(
    model: &mut Model,
    recipe: &Recipe,
    options: CompressOptions<'_>,
) -> Result<Compressed, EmbedError> {
    let (mut graph, stop) = (model.graph.clone(), options.settings.stop.clone());
    // Whatever fails because a run was cut short fails for that reason.
    let because = |e| if stop() { EmbedError::Interrupted } else { e };
    let done = run(model, &mut graph, recipe, options).map_err(because)?;
    model.graph = graph;
    Ok(done)
}

fn run(
    model: &Model,
    graph: &mut Graph,
    recipe: &Recipe,
    options: CompressOptions<'_>,
) -> Result<Compressed, EmbedError> {
    let CompressOptions { settings, material, untimed, unmeasured, observer, session } = options;
    let file = model.source().file().to_owned();
    // Slips before slow work.
    recipe.pipeline(true, true)?;
    if recipe.fine_tune.is_some() && material.training.is_none() {
        return Err(EmbedError::Missing(format!("{file}: there are no images to train on; give data")));
    }
    if recipe.fine_tune.is_some() && session.is_none() {
        return Err(EmbedError::Missing(format!(
            "{file}: training needs a session, which is told of it and says when to stop; give one"
        )));
    }
    refuse_non_finite(model)?;
    check_dims(&file, graph, &settings.dims)?;
    let before = Size::of_source(model, &settings.dims);
    let original = encode(model, graph, file.clone())?;

    let executor = || TractExecutor::with_settings(model.source().clone(), &settings);
    let (mut checker, preprocess) = (executor(), &material.preprocess);
    let samples = match &material.calibration {
        Some(dataset) => {
            let samples = DataSamples::new(dataset.clone(), preprocess.clone(), graph, &checker);
            Some(samples.map_err(|e| EmbedError::Images {
                file: file.clone(),
                message: format!("the images to calibrate on: {e}"),
            })?)
        }
        None => None,
    };
    let (mut recipe, mut notes) = (recipe.clone(), Vec::new());
    let judged = material.judged.clone().filter(|_| recipe.is_judged());
    let judged = judged.map(|d| d.split(JUDGED, settings.seed).0);
    let mut judge = judged.map(|d| ImageJudge::new(executor(), d, preprocess.clone(), settings.stop.clone()));
    let n_classes = n_classes(graph);
    material.check_labels(&file, n_classes)?;
    // Detectors and the like have no classes to agree on: a budget that suits them stands in.
    if let Some(j) = &mut judge
        && recipe.budget.is_none()
        && !recipe.greedy
        && j.score_of_classes(graph).map_err(|e| EmbedError::images(&file, &e))?.is_none()
    {
        notes.push("its outputs are no class scores, so the budget is macs=0.5 and not drop=1.0".to_owned());
        recipe.budget = Some("macs=0.5".to_owned());
        judge = None;
    }
    let is_labelled = material.training.as_ref().is_some_and(Dataset::is_labelled);
    let pipeline = recipe.pipeline(samples.is_some(), is_labelled)?;

    let (train_on, validate_on) = match (&material.training, &material.judged) {
        (Some(training), Some(judged)) => {
            let input = checker.image_input(graph).map_err(|e| EmbedError::images(&file, &e))?;
            let examples = |set| DatasetExamples::new(set, preprocess, &input, n_classes, &settings);
            (Some(examples(training)?), Some(examples(judged)?))
        }
        _ => (None, None),
    };
    let mut costs = Costs { observer, dims: &settings.dims, cost: Cost::default() };
    let host = StoppedHost::new(&settings);
    let mut session = session.map(|session| StoppedSession { session, stop: settings.stop.clone() });
    let mut manager = Manager {
        seed: settings.seed,
        host: &host,
        executor: Some(&mut checker),
        calibration: samples.as_ref().map(|s| Calibration { samples: s, memory: calibration_memory() }),
        ..Manager::default()
    };
    if let Some(judge) = &mut judge {
        manager.judge = Some(judge);
    }
    if let (Some(examples), Some(validation), Some(session)) = (&train_on, &validate_on, &mut session) {
        manager.training = Some(Training { examples, validation, original: None, session });
    }
    let result = manager.run(graph, &pipeline, &mut costs);
    if let Some(mut session) = session {
        session.ended();
    }
    let report = result.map_err(|e| EmbedError::manager(&file, e))?;
    let layers = layers(&costs.cost, &report);
    let after = Size::of_written(model.source(), graph, &settings.dims)?;
    let mut measured = match unmeasured {
        true => Measured::default(),
        false => {
            let sources = [original, encode(model, graph, format!("{file} (compressed)"))?];
            let data = material.held_out.as_ref().map(|d| (d, preprocess));
            measure(&settings, untimed, data, &sources)?
        }
    };
    if (settings.stop)() {
        return Err(EmbedError::Interrupted);
    }
    measured.calibration = samples.as_ref().map(Samples::describe);
    measured.notes.extend(notes);
    let of = |r: &&Remark| r.node.is_empty() && r.code != "tried";
    measured.notes.extend(report.remarks().filter(of).map(|r| r.message.clone()));
    let rungs = rungs(&report, recipe.goal);
    Ok(Compressed {
        pipeline: pipeline.to_string(),
        before,
        after,
        measured,
        layers,
        goal: recipe.goal,
        measure: if is_labelled { "accuracy" } else { "agreement" },
        original_score: rungs.iter().find_map(|r| r.original),
        rungs,
        remarks: report.remarks().cloned().collect(),
    })
}

/// A version of the model, for the runtime.
fn encode(model: &Model, graph: &Graph, name: String) -> Result<Source, EmbedError> {
    let (bytes, dir) = model.to_executable(graph)?;
    Ok(Source::from_bytes(name, bytes, dir))
}

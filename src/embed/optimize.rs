//! A pipeline over a model in memory, checked by tract at every step.

use crate::error::EmbedError;
use crate::examples::DatasetExamples;
use crate::executor::TractExecutor;
use crate::report::{PassSummary, Size};
use crate::samples::calibration_memory;
use crate::settings::{Settings, StoppedHost, StoppedSession};
use basisopt_ir::{Graph, Op};
use basisopt_onnx::Model;
use basisopt_passes::cost::open_dims;
use basisopt_passes::{
    Calibration, EXACT_TOLERANCE, Fidelity, Manager, NoObserver, Observer, Pipeline, Registry, Remark,
    Report, Samples, Session, Training, n_classes,
};
use basisopt_runtime::{Dataset, Preprocess};
use serde::Serialize;

/// How a pipeline is run.
#[derive(Default)]
pub struct OptimizeOptions<'a> {
    /// Seed, sizes, threads, the world.
    pub settings: Settings<'a>,
    /// Leaves the numerical check out: the network is then not run before and after passes.
    pub unchecked: bool,
    /// What exact passes may move outputs by, relative; [`EXACT_TOLERANCE`] where it is `None`.
    pub tolerance: Option<f64>,
    /// Images for the numerical check, and how they become inputs; random numbers without.
    pub check_on: Option<(Dataset, Preprocess)>,
    /// Stops after so many rewrites in all.
    pub stop_after: Option<usize>,
    /// Inputs that data-aware passes learn from: a [`DataSamples`](crate::DataSamples), or a source of the caller's own.
    pub calibration: Option<&'a dyn Samples>,
    /// What passes that train may train on.
    pub train: Option<TrainOn<'a>>,
    /// Sees the graph between passes.
    pub observer: Option<&'a mut dyn Observer>,
}

impl std::fmt::Debug for OptimizeOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OptimizeOptions").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Images to train on, of which a tenth is kept apart to choose the best version by.
pub struct TrainOn<'a> {
    /// The images.
    pub dataset: Dataset,
    /// How they become inputs.
    pub preprocess: Preprocess,
    /// The network that training imitates, where that is not the one that the pipeline begins with.
    pub original: Option<&'a Graph>,
    /// Progress, checkpoints, the log.
    pub session: &'a mut dyn Session,
}

impl std::fmt::Debug for TrainOn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrainOn").field("dataset", &self.dataset).finish_non_exhaustive()
    }
}

/// What a pipeline did to a model.
#[derive(Clone, Debug)]
pub struct Optimized {
    /// The pipeline as text, presets spelt out.
    pub pipeline: String,
    /// Cost and bytes of what was given.
    pub before: Size,
    /// Cost and bytes of what came out.
    pub after: Size,
    /// Pass by pass, with remarks.
    pub report: Report,
}

/// The report of a pipeline as data.
#[derive(Clone, Debug, Serialize)]
pub struct Summary<'a> {
    pipeline: &'a str,
    rewrites: usize,
    passes: Vec<PassSummary<'a>>,
    before: &'a Size,
    after: &'a Size,
    remarks: Vec<&'a Remark>,
}

impl Optimized {
    /// Everything as data: what `basisopt opt --format json` prints, without the names of files.
    pub fn summary(&self) -> Summary<'_> {
        Summary {
            pipeline: &self.pipeline,
            rewrites: self.report.n_rewrites(),
            passes: self.report.passes.iter().map(PassSummary::from).collect(),
            before: &self.before,
            after: &self.after,
            remarks: self.report.remarks().collect(),
        }
    }
}

/// A pipeline of built-in passes from text, see [`Pipeline::parse`].
///
/// # Errors
/// [`EmbedError::Pipeline`], naming the item.
pub fn parse(pipeline: &str) -> Result<Pipeline, EmbedError> {
    Ok(Pipeline::parse(pipeline, &Registry::builtin())?)
}

/// Runs a pipeline over a model. tract runs the network before and after every pass; a network that it cannot run is
/// changed unchecked, and the report says so.
///
/// # Errors
/// [`EmbedError`]; the model is then as it was.
pub fn optimize(
    model: &mut Model,
    pipeline: &Pipeline,
    options: OptimizeOptions<'_>,
) -> Result<Optimized, EmbedError> {
    let OptimizeOptions {
        settings,
        unchecked,
        tolerance,
        check_on,
        stop_after,
        calibration,
        train,
        observer,
    } = options;
    let file = model.source().file().to_owned();
    // What one is not asked to change, one need not find fault with.
    if !pipeline.items.is_empty() {
        refuse_non_finite(model)?;
    }
    check_dims(&file, &model.graph, &settings.dims)?;
    let before = Size::of_source(model, &settings.dims);
    let mut executor = TractExecutor::with_settings(model.source().clone(), &settings);
    if let Some((dataset, preprocess)) = check_on {
        executor = executor.with_data(dataset, preprocess);
    }
    let trains = pipeline.items.iter().any(|i| i.info.fidelity == Fidelity::Trained);
    let (parts, mut training) = match train {
        Some(train) => {
            let (validation, rest) = train_and_validate(train.dataset, settings.seed);
            let session = StoppedSession { session: train.session, stop: settings.stop.clone() };
            (Some((rest, validation, train.preprocess)), Some((train.original, session)))
        }
        None if trains => {
            return Err(EmbedError::Missing(format!("{file}: there are no images to train on")));
        }
        None => (None, None),
    };
    let (train_on, validate_on) = match &parts {
        Some((rest, validation, preprocess)) => {
            let input = executor.image_input(&model.graph).map_err(|e| EmbedError::images(&file, &e))?;
            let n_classes = n_classes(&model.graph);
            let examples = |set| DatasetExamples::new(set, preprocess, &input, n_classes, &settings);
            (Some(examples(rest)?), Some(examples(validation)?))
        }
        None => (None, None),
    };
    let host = StoppedHost::new(&settings);
    let mut manager = Manager {
        seed: settings.seed,
        host: &host,
        executor: Some(&mut executor),
        is_checked: !unchecked,
        calibration: calibration.map(|samples| Calibration { samples, memory: calibration_memory() }),
        budget: stop_after.unwrap_or(usize::MAX),
        tolerance: tolerance.unwrap_or(EXACT_TOLERANCE),
        ..Manager::default()
    };
    if let (Some(examples), Some(validation), Some((original, session))) =
        (&train_on, &validate_on, &mut training)
    {
        manager.training = Some(Training { examples, validation, original: *original, session });
    }
    let mut graph = model.graph.clone();
    let result = match observer {
        Some(observer) => manager.run(&mut graph, pipeline, observer),
        None => manager.run(&mut graph, pipeline, &mut NoObserver),
    };
    if let Some((_, mut session)) = training {
        session.ended();
    }
    // Whatever fails because a run was cut short fails for that reason.
    let because = |e| if (settings.stop)() { EmbedError::Interrupted } else { EmbedError::manager(&file, e) };
    let report = result.map_err(because)?;
    let after = Size::of_written(model.source(), &graph, &settings.dims)?;
    model.graph = graph;
    Ok(Optimized { pipeline: pipeline.to_string(), before, after, report })
}

/// Images that training chooses the best version by, a tenth of them, and those that it trains on. Who calibrates on images
/// that are also trained on takes the second part.
pub fn train_and_validate(dataset: Dataset, seed: u64) -> (Dataset, Dataset) {
    let n = (dataset.len() / 10).max(1);
    dataset.split(n, seed.wrapping_add(1))
}

/// Refuses a network whose layers have weights that are not numbers: whatever a pass made of them, the
/// result would be worth nothing. Infinite bounds and masks elsewhere are nobody's business.
///
/// # Errors
/// [`EmbedError::NotFinite`] if a weight, bias or statistic contains NaN or infinity.
pub fn refuse_non_finite(model: &Model) -> Result<(), EmbedError> {
    let graph = &model.graph;
    for id in graph.topological() {
        let node = graph.node(id);
        let weighted = matches!(
            node.op,
            Op::Conv(_) | Op::ConvTranspose(_) | Op::Gemm(_) | Op::MatMul(_) | Op::BatchNormalization(_)
        );
        for value in graph.node_inputs(id).into_iter().flatten().filter(|_| weighted) {
            if graph.constant_value(value).is_some_and(|t| !t.is_finite()) {
                return Err(EmbedError::NotFinite {
                    file: model.source().file().to_owned(),
                    weight: graph.value(value).name.clone(),
                    op: node.op.op_type().to_owned(),
                    node: node.label().to_owned(),
                });
            }
        }
    }
    Ok(())
}

/// A size that names no open dimension, by its name or as `INPUT:AXIS`, is a spelling mistake, and 0 is no size.
///
/// # Errors
/// [`EmbedError::Dim`], with the dimensions that are open; [`EmbedError::DimZero`].
pub fn check_dims(file: &str, graph: &Graph, dims: &[(String, usize)]) -> Result<(), EmbedError> {
    let open = open_dims(graph);
    let is_wrong = |(name, size): &&(String, usize)| {
        *size == 0 || !open.iter().any(|(own, place)| own == name || place == name)
    };
    match dims.iter().find(is_wrong) {
        None => Ok(()),
        Some((name, 0)) => Err(EmbedError::DimZero { file: file.to_owned(), name: name.clone() }),
        Some((name, _)) => {
            let open = open.into_iter().map(|(own, _)| own).collect();
            Err(EmbedError::Dim { file: file.to_owned(), name: name.clone(), open })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_sizes_are_offered_where_a_pin_names_none() {
        let graph: Graph = "graph @g(%x: f32[N,3,H,W]) -> (%y) {\n  %y = Relu(%x)\n}\n".parse().unwrap();
        let pin = |name: &str| check_dims("m.onnx", &graph, &[(name.to_owned(), 8)]);
        assert!(pin("H").is_ok() && pin("x:2").is_ok() && pin("x:1").is_err());
        let zero = check_dims("m.onnx", &graph, &[("H".to_owned(), 0)]);
        assert!(zero.unwrap_err().to_string().contains("expected at least 1"));
        assert!(pin("h").unwrap_err().to_string().ends_with("its open sizes are N, H, W"));
    }
}

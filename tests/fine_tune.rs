//! Training: the same for any number of threads, taken up where it was left, and safe from slips.

#![allow(
    clippy::unwrap_used,
    clippy::field_reassign_with_default,
    reason = "a test; a manager borrows what it trains on"
)]

mod common;

use basisopt::ir::{Graph, parse, print};
use basisopt::passes::{ManagerError, PassError, Training};
use basisopt::{Manager, NoObserver, Pipeline, Registry};
use common::{Kept, Patterns};

const NETWORK: &str = "graph @g(%x: f32[N,3,8,8]) -> (%y) {
  %w1 = f32[8,3,3,3] randn(seed=1)
  %a = Conv@conv1<pads=[1,1,1,1], strides=[2,2]>(%x, %w1)
  %r = Relu(%a)
  %p = GlobalAveragePool(%r)
  %f = Flatten(%p)
  %w3 = f32[4,8] randn(seed=3)
  %c = f32[4] zeros
  %y = Gemm@classifier<transB=1>(%f, %w3, %c)
}";

fn network() -> Graph {
    parse::parse(NETWORK).unwrap()
}

/// Factors and trains; the network as text with all values.
fn train(options: &str, session: &mut Kept) -> Result<String, ManagerError> {
    let mut graph = network();
    let (examples, validation) = (Patterns::of(&graph, 200, 0), Patterns::of(&graph, 50, 1));
    train_on(&mut graph, options, &examples, &validation, session)?;
    let values = print::PrintOptions { values: true, ..print::PrintOptions::default() };
    Ok(print::print_with(&graph, &values))
}

fn train_on(
    graph: &mut Graph,
    options: &str,
    examples: &Patterns,
    validation: &Patterns,
    session: &mut Kept,
) -> Result<(), ManagerError> {
    let text = format!("factorize-conv:rank=3:guard=off,fine-tune:batch=48:{options}");
    let pipeline = Pipeline::parse(&text, &Registry::builtin()).unwrap();
    let mut manager = Manager::default();
    manager.training = Some(Training { examples, validation, original: None, session });
    manager.run(graph, &pipeline, &mut NoObserver).map(|_| ())
}

fn words(result: Result<impl Sized, ManagerError>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let with = |n: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| train("epochs=2:flip=on", &mut Kept::default()).unwrap())
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
}

#[test]
fn another_seed_gives_another_result() {
    let seeded = |seed: u64| {
        let mut graph = network();
        let (examples, validation) = (Patterns::of(&graph, 200, 0), Patterns::of(&graph, 50, 1));
        let pipeline = Pipeline::parse("fine-tune:epochs=1", &Registry::builtin()).unwrap();
        let mut session = Kept::default();
        let mut manager = Manager { seed, ..Manager::default() };
        manager.training = Some(Training {
            examples: &examples,
            validation: &validation,
            original: None,
            session: &mut session,
        });
        manager.run(&mut graph, &pipeline, &mut NoObserver).unwrap();
        print::print(&graph)
    };
    assert_ne!(seeded(1), seeded(2));
}

/// Stopped after any step, and resumed, a run gives what it would have given.
#[test]
fn a_resumed_run_gives_the_bytes_of_an_uninterrupted_one() {
    for options in ["epochs=2.5:optimizer=adam:rate=0.01", "epochs=3:flip=on:patience=2"] {
        let whole = train(options, &mut Kept::default()).unwrap();
        for stop in [1, 4, 5, 7, 10] {
            let mut first = Kept { stop_after: Some(stop), ..Kept::default() };
            let error = train(options, &mut first);
            assert!(
                matches!(error, Err(ManagerError::Pass { source: PassError::Interrupted, .. })),
                "stopped after {stop}"
            );
            let mut second = Kept { resume_from: first.checkpoint, ..Kept::default() };
            assert_eq!(train(options, &mut second).unwrap(), whole, "stopped after {stop}");
        }
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let mut first = Kept { stop_after: Some(3), ..Kept::default() };
    assert!(train("epochs=2", &mut first).is_err());
    let resumed = |options: &str, checkpoint: Option<Vec<u8>>| {
        words(train(options, &mut Kept { resume_from: checkpoint, ..Kept::default() }))
    };
    let other = resumed("epochs=2:rate=0.02", first.checkpoint.clone());
    assert!(other.contains("other options"), "{other}");
    // The same options, and as many images, but others; and another network.
    let (good, validation) = (Patterns::of(&network(), 200, 0), Patterns::of(&network(), 50, 1));
    let images = Patterns { seed: 7, ..Patterns::of(&network(), 200, 0) };
    let labels = Patterns { n_classes: 3, ..Patterns::of(&network(), 200, 0) };
    let changed = parse::parse(&NETWORK.replace("randn(seed=3)", "randn(seed=4)")).unwrap();
    for (graph, examples) in [(network(), &images), (network(), &labels), (changed, &good)] {
        let mut session = Kept { resume_from: first.checkpoint.clone(), ..Kept::default() };
        let text = words(train_on(&mut graph.clone(), "epochs=2", examples, &validation, &mut session));
        assert!(text.contains("other data"), "{text}");
    }
    let mut damaged = first.checkpoint.clone().unwrap();
    let n = damaged.len();
    damaged[n / 2] ^= 1;
    assert!(resumed("epochs=2", Some(damaged)).contains("damaged"));
    assert!(resumed("epochs=2", Some(b"not one".to_vec())).contains("no checkpoint"));
}

#[test]
fn a_full_disk_ends_the_run_with_what_to_do() {
    let text = words(train("epochs=1", &mut Kept { full: true, ..Kept::default() }));
    assert!(text.contains("no space left") && text.contains("resumed"), "{text}");
}

/// A rate that is far too large: the run goes back and halves it, and gives up in words if that does not help.
#[test]
fn a_loss_that_is_not_finite_goes_back_with_a_smaller_rate() {
    let mut session = Kept::default();
    let result = train("epochs=3:rate=1e30:clip=0:warmup=0", &mut session);
    assert!(session.notes.iter().any(|n| n.contains("not finite")), "{:?}", session.notes);
    assert!(words(result).contains("smaller rate"), "a rate of 1e30 halved five times is still too large");
}

#[test]
fn slips_are_named() {
    let run = |options: &str, examples: &Patterns| {
        let mut graph = network();
        let validation = Patterns::of(&graph, 20, 1);
        words(train_on(&mut graph, options, examples, &validation, &mut Kept::default()))
    };
    let graph = network();
    let good = Patterns::of(&graph, 64, 0);
    let labels = run("epochs=1", &Patterns { n_classes: 9, ..Patterns::of(&graph, 64, 0) });
    assert!(labels.contains("out of range") && labels.contains("4 classes"), "{labels}");
    let few = run("epochs=1", &Patterns { n_images: 0, ..Patterns::of(&graph, 64, 0) });
    assert!(few.contains("0 images"), "{few}");
    assert!(run("epochs=1:until=nothing", &good).contains("matches the name"));
    let pipeline =
        |text: &str| Pipeline::parse(text, &Registry::builtin()).map(|_| ()).map_err(|e| e.to_string());
    assert!(pipeline("fine-tune:rate=0").unwrap_err().contains("learns nothing"));
    assert!(pipeline("fine-tune:epochs=1:minutes=1").unwrap_err().contains("choose one"));

    let mut graph = network();
    let only = Pipeline::parse("fine-tune:train=both", &Registry::builtin()).unwrap();
    let mut session = Kept::default();
    let mut manager = Manager::default();
    manager.training =
        Some(Training { examples: &good, validation: &good, original: None, session: &mut session });
    assert!(words(manager.run(&mut graph, &only, &mut NoObserver)).contains("no layer was factored"));
    let mut manager = Manager::default();
    let text = words(manager.run(&mut graph, &only, &mut NoObserver));
    assert!(text.contains("no images to train on"), "{text}");
}

/// As it came, without training: the loss on validation images.
fn validation_loss(graph: &mut Graph, original: &Graph, options: &str) -> f64 {
    let (examples, validation) = (Patterns::of(graph, 200, 0), Patterns::of(graph, 50, 1));
    let mut session = Kept::default();
    let pipeline = Pipeline::parse(&format!("fine-tune:{options}:epochs=0"), &Registry::builtin()).unwrap();
    let mut manager = Manager::default();
    manager.training = Some(Training {
        examples: &examples,
        validation: &validation,
        original: Some(original),
        session: &mut session,
    });
    manager.run(graph, &pipeline, &mut NoObserver).unwrap();
    session.epochs[0].validation.loss
}

fn factored() -> Graph {
    let mut graph = network();
    let pipeline = Pipeline::parse("factorize-conv:rank=3:guard=off", &Registry::builtin()).unwrap();
    Manager::default().run(&mut graph, &pipeline, &mut NoObserver).unwrap();
    graph
}

/// Normalisation between the factors starts as the identity, up to the number of images that its statistics are of,
/// and what was trained with it is what is written without it.
#[test]
fn normalisation_between_factors_starts_as_nothing_and_is_folded_without_loss() {
    let original = network();
    let without = validation_loss(&mut factored(), &original, "shift=0");
    let with = validation_loss(&mut factored(), &original, "norm=on:shift=0");
    assert!((with - without).abs() < 1e-4 * without, "{with} {without}");

    let mut session = Kept::default();
    let mut graph = network();
    let (examples, validation) = (Patterns::of(&graph, 200, 0), Patterns::of(&graph, 50, 1));
    train_on(&mut graph, "norm=on:epochs=3:shift=0:rate=0.05", &examples, &validation, &mut session).unwrap();
    let best = session.epochs.iter().rfind(|e| e.is_best).unwrap();
    assert!(best.epoch > 0.0, "training made nothing better: {:?}", session.epochs);
    let written = validation_loss(&mut graph, &original, "shift=0");
    assert!((written - best.validation.loss).abs() < 1e-4 * written, "{written} {}", best.validation.loss);
    let norms =
        graph.topological().iter().filter(|&&id| graph.node(id).op.op_type() == "BatchNormalization").count();
    assert_eq!(norms, 0);
}

/// A rung is not climbed if the goal is met already, and one that is names what it reached.
#[test]
fn a_goal_that_is_met_ends_training_before_it_begins() {
    let run = |text: &str| {
        let mut graph = network();
        // Without labels: the original agrees with itself.
        let unlabelled = |n, seed| Patterns { is_labelled: false, ..Patterns::of(&network(), n, seed) };
        let (examples, validation) = (unlabelled(200, 0), unlabelled(50, 1));
        let mut session = Kept::default();
        let pipeline = Pipeline::parse(text, &Registry::builtin()).unwrap();
        let mut manager = Manager::default();
        manager.training = Some(Training {
            examples: &examples,
            validation: &validation,
            original: None,
            session: &mut session,
        });
        let report = manager.run(&mut graph, &pipeline, &mut NoObserver).unwrap();
        report.remarks().map(|r| r.code.clone()).collect::<Vec<_>>()
    };
    for pass in ["fine-tune:epochs=1", "reconstruct:epochs=1"] {
        let met = run(&format!("factorize-conv:rank=3:guard=off,{pass}:goal=100"));
        assert!(met.contains(&"goal-met".to_owned()) && !met.contains(&"trained".to_owned()), "{met:?}");
    }
    let trained = run("factorize-conv:rank=1:guard=off,fine-tune:epochs=1:goal=0");
    assert!(trained.contains(&"trained".to_owned()), "{trained:?}");
}

/// Its value by the formula, and its gradient by finite differences, in double precision.
#[test]
fn the_penalty_on_bases_that_are_not_orthogonal_is_the_papers() {
    use basisopt::train::differentiate::{Request, differentiate};
    use basisopt::train::exec::{Plan, Program};
    use basisopt::train::loss::{Term, attach};
    use basisopt::train::stiefel::Frames;
    const TEXT: &str = "graph @g(%x: f32[1,2,3,3]) -> (%y) {
      %f = f32[6,1,2,2] randn(seed=1)
      %h = Conv<group=2>(%x, %f)
      %y = Flatten(%h)
    }";
    let mut graph = parse::parse(TEXT).unwrap();
    basisopt::ir::infer::infer(&mut graph).unwrap();
    let basis = graph.find_value("f").unwrap();
    let frames = Frames { parameter: "f".to_owned(), n_groups: 2, rank: 3, n_columns: 4, by_columns: false };
    let term = Term::Orthogonality { basis, frames };
    // The other term ties the loss to images, and is zero: its target is what the network gives.
    let y = graph.find_value("y").unwrap();
    let terms = [(term, 2.0), (Term::Match { value: y, scale: 1.0 }, 0.0)];
    let loss = attach(&mut graph, &terms).unwrap();
    graph.set_outputs(&[loss.value]);
    basisopt::ir::infer::infer(&mut graph).unwrap();
    let derived =
        differentiate(&graph, &Request { targets: vec![loss.value], parameters: vec![basis] }).unwrap();
    let plan = Plan { parameters: derived.parameters.clone(), summed: derived.summed.clone() };
    let program: Program<f64> = Program::compile(&derived.graph, &plan).unwrap();
    let run = |basis: &[f64]| {
        let mut shared = program.shared();
        shared.parameters_mut()[0].copy_from_slice(basis);
        program.prepare(&mut shared);
        let (mut workspace, mut sums) = (program.workspace(), program.sums());
        // The mean over sixteen images.
        let inputs: Vec<Vec<f64>> = program
            .inputs()
            .iter()
            .map(|port| vec![if port.name.ends_with(".seed") { 1.0 / 16.0 } else { 0.5 }; port.len() * 16])
            .collect();
        let slices: Vec<&[f64]> = inputs.iter().map(Vec::as_slice).collect();
        program.run(&slices, &shared, &mut workspace, &mut sums);
        program.finish(&mut sums, &mut shared);
        (program.output(0, &workspace).unwrap()[0], program.total(1, &sums).unwrap().to_vec())
    };
    let start = program.shared().parameters()[0].clone();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let by_formula: f64 = start
        .chunks(12)
        .map(|group| {
            let rows: Vec<&[f64]> = group.chunks(4).collect();
            let cosine = |i: usize, j: usize| {
                dot(rows[i], rows[j]) / (dot(rows[i], rows[i]) * dot(rows[j], rows[j])).sqrt()
            };
            let pairs = [(0, 1), (0, 2), (1, 2)];
            // 2(1 − α)/(Q(Q − 1)) Σ_{i<j} G², the mean over two groups, times the weight.
            pairs.iter().map(|&(i, j)| cosine(i, j).powi(2)).sum::<f64>() / 6.0 / 2.0 * 2.0
        })
        .sum();
    let (value, gradient) = run(&start);
    assert!((value - by_formula).abs() < 1e-6 * by_formula, "{value} {by_formula}");
    for i in 0..start.len() {
        let moved = |h: f64| {
            let mut basis = start.clone();
            basis[i] += h;
            run(&basis).0
        };
        let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        assert!((numeric - gradient[i]).abs() < 1e-8, "{i}: {numeric} {}", gradient[i]);
    }
}

/// With `basis=orthonormal` they are so after every step, not only at the end.
#[test]
fn orthonormal_bases_stay_so_in_training() {
    use basisopt::train::fit::fit;
    use basisopt::train::stiefel::Frames;
    use basisopt::train::task::{Objective, Reference, Task};
    use basisopt::train::trainer::Trainer;
    use basisopt::train::watch::{FitOptions, Length};
    let mut graph = factored();
    basisopt::ir::infer::infer(&mut graph).unwrap();
    let parameter = "w1.basis".to_owned();
    assert!(graph.find_value(&parameter).is_some(), "{}", print::print(&graph));
    let frames =
        Frames { parameter: parameter.clone(), n_groups: 1, rank: 3, n_columns: 27, by_columns: false };
    let task = Task {
        network: &graph,
        reference: Reference::None,
        objectives: vec![(Objective::Labels { logits: "y".to_owned() }, 1.0)],
        parameters: vec![parameter],
        logits: Some("y".to_owned()),
        norms: vec![],
        frames: vec![frames],
    };
    let mut trainer = Trainer::new(&task).unwrap();
    let before = trainer.values()[0].clone();
    let examples = Patterns::of(&graph, 96, 0);
    let options = FitOptions { length: Length::Epochs(1.0), batch: 32, rate: 0.1, ..FitOptions::default() };
    fit(&mut trainer, &examples, &examples, &options, "", None, &mut Kept::default()).unwrap();
    let after = &trainer.values()[0];
    assert!(before.iter().zip(after).any(|(a, b)| (a - b).abs() > 1e-3), "nothing was trained");
    let rows: Vec<&[f32]> = after.chunks(27).collect();
    for i in 0..3 {
        for j in 0..3 {
            let product: f64 = rows[i].iter().zip(rows[j]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((product - f64::from(u8::from(i == j))).abs() < 1e-6, "{i} {j}: {product}");
        }
    }
}

/// A rate at which the loss grows, but stays finite: the run goes back and halves it until it learns.
#[test]
fn a_loss_that_grows_goes_back_with_a_smaller_rate() {
    let mut session = Kept::default();
    let done = train("loss=labels:epochs=3:rate=1:clip=0:warmup=0:shift=0", &mut session);
    assert!(done.is_ok(), "{:?}", session.notes);
    assert!(session.notes.iter().any(|n| n.contains("the loss went from")), "{:?}", session.notes);
    let last = session.epochs.last().unwrap();
    assert!(last.validation.loss < session.epochs[0].validation.loss, "{:?}", session.epochs);
}

/// An original of other sizes is named, and does not crash.
#[test]
fn an_original_that_does_not_fit_is_named() {
    let other =
        parse::parse(&NETWORK.replace("f32[4,8]", "f32[5,8]").replace("f32[4] zeros", "f32[5] zeros"));
    let other = other.unwrap();
    for pass in ["fine-tune:epochs=1", "fine-tune:epochs=1:loss=distill", "reconstruct:epochs=1"] {
        let mut graph = factored();
        let (examples, validation) = (Patterns::of(&graph, 64, 0), Patterns::of(&graph, 32, 1));
        let mut session = Kept::default();
        let pipeline = Pipeline::parse(pass, &Registry::builtin()).unwrap();
        let mut manager = Manager::default();
        manager.training = Some(Training {
            examples: &examples,
            validation: &validation,
            original: Some(&other),
            session: &mut session,
        });
        let text = words(manager.run(&mut graph, &pipeline, &mut NoObserver));
        assert!(text.contains("not the network that this one was made from"), "{pass}: {text}");
    }
}

/// One image taken out of the batch: what follows has no axis of it.
const TAKEN_OUT: &str = "graph @g(%x: f32[1,3,8,8]) -> (%y) {
  %w1 = f32[8,3,3,3] randn(seed=1)
  %a = Conv@conv1<pads=[1,1,1,1], strides=[2,2]>(%x, %w1)
  %r = Relu(%a)
  %i = i64[] [0]
  %g = Gather<axis=0>(%r, %i)
  %y = Relu(%g)
}";

#[test]
fn what_is_taken_out_of_the_batch_is_matched_before_it_is() {
    let train = |options: &str| {
        let mut graph: Graph = parse::parse(TAKEN_OUT).unwrap();
        let before = print::print(&graph);
        let (examples, validation) = (Patterns::of(&graph, 40, 0), Patterns::of(&graph, 20, 1));
        train_on(&mut graph, options, &examples, &validation, &mut Kept::default())?;
        assert_ne!(print::print(&graph), before);
        Ok(())
    };
    assert_eq!(words(train("epochs=1:loss=match")), "");
    let refused = words(train("epochs=1:loss=match:until=g"));
    assert!(refused.contains("the first axis of \"g\" is not the batch"), "{refused}");
}

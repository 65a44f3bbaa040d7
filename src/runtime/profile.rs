//! Where the time goes: each layer's share of a run, factors counted with the layer that they came from.

use crate::bench::{BenchOptions, quantile, rounds, sorted};
use crate::{Engine, RuntimeError, Session, Source, random_inputs};
use serde::Serialize;

/// What one layer of a network takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerTime {
    /// The node's label in the file; for the factors of a layer, that layer's.
    pub layer: String,
    /// Median time of a run in what tract made of it, in milliseconds. Activations and additions that tract fuses
    /// into a layer count with it.
    pub ms: f64,
    /// What tract made of it, by operator.
    pub operators: Vec<String>,
}

/// Profiles networks side by side, each run by the engine beside it; layers stand in the order in which they run. As
/// many rounds as `options` ask for. Reading the clock at every node costs a little: times are a little longer than a
/// benchmark's.
///
/// # Errors
/// Any error of [`Session::load`] or of a run; [`RuntimeError::NotOnnx`] if the file's nodes cannot be read.
pub fn profile(
    networks: &[(&Source, Engine)],
    options: &BenchOptions,
    keep_going: &mut dyn FnMut(usize) -> bool,
) -> Result<Vec<Vec<LayerTime>>, RuntimeError> {
    let mut loaded = Vec::new();
    for &(source, engine) in networks {
        let layers = basisopt_onnx::node_layers(source.bytes())
            .map_err(|e| RuntimeError::NotOnnx { model: source.name().to_owned(), reason: e.to_string() })?;
        let mut session = Session::load(source, &options.load_options(engine))?;
        let inputs = session.prepare(&random_inputs(session.inputs(), options.seed))?;
        for _ in 0..options.warmup.max(1) {
            session.run_prepared(inputs.clone())?;
        }
        loaded.push((session, inputs, layers, Vec::<Vec<f64>>::new()));
    }
    let run = &mut || {
        for (session, inputs, _, times) in &mut loaded {
            session.run_timed(inputs.clone(), &mut |node, seconds| {
                if times.len() <= node {
                    times.resize(node + 1, Vec::new());
                }
                times[node].push(seconds * 1e3);
            })?;
        }
        Ok(())
    };
    rounds(options, run, keep_going)?;
    Ok(loaded.into_iter().map(|(session, _, layers, times)| by_layer(&session, &layers, times)).collect())
}

/// Adds up the nodes that tract made of a layer.
fn by_layer(session: &Session, layers: &[(String, String)], times: Vec<Vec<f64>>) -> Vec<LayerTime> {
    let mut found: Vec<LayerTime> = Vec::new();
    for (node, (name, operator)) in session.nodes().into_iter().enumerate() {
        let Some(times) = times.get(node).filter(|t| !t.is_empty()) else { continue };
        let ms = quantile(&sorted(times.clone()), 0.5);
        let layer = layer_of(&name, layers);
        let at = found.iter().position(|l| l.layer == layer).unwrap_or_else(|| {
            found.push(LayerTime { layer, ms: 0.0, operators: Vec::new() });
            found.len() - 1
        });
        found[at].ms += ms;
        found[at].operators.push(operator);
    }
    found
}

/// tract names what it makes of a node after it, with something behind a dot: the longest label that fits.
fn layer_of(name: &str, layers: &[(String, String)]) -> String {
    let fits = |label: &str| {
        name.strip_prefix(label)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-', '#', '_', ' ']))
    };
    let longest = layers.iter().filter(|(label, _)| fits(label)).max_by_key(|(label, _)| label.len());
    longest.map_or_else(|| name.to_owned(), |(_, layer)| layer.clone())
}

#[cfg(test)]
mod tests {
    use super::layer_of;

    #[test]
    fn the_longest_label_names_the_layer() {
        let layers = [("conv1", "conv1"), ("conv1.basis", "stem"), ("conv10", "conv10")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()));
        let of = |name| layer_of(name, &layers);
        assert_eq!(of("conv1"), "conv1");
        assert_eq!(of("conv1.relu"), "conv1");
        assert_eq!(of("conv1.basis.pad"), "stem");
        assert_eq!(of("conv10.im2col"), "conv10");
        assert_eq!(of("conv2"), "conv2");
    }
}

//! Where times come from: from running things here, or from the profile of a device.

use super::survey::shapes;
use crate::cost;
use crate::device::{DeviceModel, DeviceProfile};
use crate::driver::pass::{PassContext, PassError};
use basisopt_ir::infer::infer;
use basisopt_ir::{Graph, ValueId};

/// The device whose time counts.
pub(crate) enum Clock {
    /// The one at hand: everything is run.
    Here,
    /// The one that a profile was measured on.
    Profile {
        /// What the profile tells.
        model: Box<DeviceModel>,
        /// The device's name.
        device: String,
        /// Whether it is the one at hand, so that whole networks can be run to check what was predicted.
        is_here: bool,
    },
}

impl Clock {
    /// What `device=` names.
    pub fn of(device: Option<&str>, cx: &mut PassContext<'_>) -> Result<Self, PassError> {
        let Some(path) = device.filter(|d| *d != "here") else { return Ok(Self::Here) };
        let file = |reason: String| PassError::File { option: "device", path: path.to_owned(), reason };
        let text = cx.host.read_text(path).map_err(file)?;
        let profile = DeviceProfile::parse(&text).map_err(|e| file(e.to_string()))?;
        let is_here = cx.executor.as_deref().and_then(|e| e.device()).is_some_and(|d| d == profile.device);
        let model = DeviceModel::new(&profile);
        model.check_factors().map_err(|e| file(e.to_string()))?;
        Ok(Self::Profile { model: Box::new(model), device: profile.device, is_here })
    }

    /// Where that is, in words.
    pub fn place(&self) -> String {
        match self {
            Self::Here | Self::Profile { is_here: true, .. } => "here".to_owned(),
            Self::Profile { device, .. } => format!("on {device}"),
        }
    }

    /// Seconds per image of a network, and what predictions for its layers are to be multiplied with: where the device is
    /// here, its pace of now counts and not that of the profile.
    pub fn network(&self, cx: &mut PassContext<'_>, graph: &Graph) -> Result<(f64, f64), PassError> {
        let seconds = self.networks(cx, &[graph])?.0[0];
        match self {
            Self::Profile { model, is_here: true, .. } => {
                Ok((seconds, seconds / predict(model, cx, &[graph])?[0]))
            }
            _ => Ok((seconds, 1.0)),
        }
    }

    /// Seconds per image of networks of single layers.
    pub fn layers(&self, cx: &mut PassContext<'_>, graphs: &[&Graph]) -> Result<Vec<f64>, PassError> {
        match self {
            Self::Here => run(cx, graphs),
            Self::Profile { model, .. } => predict(model, cx, graphs),
        }
    }

    /// Seconds per image of whole networks, and whether they were measured.
    pub fn networks(
        &self,
        cx: &mut PassContext<'_>,
        graphs: &[&Graph],
    ) -> Result<(Vec<f64>, bool), PassError> {
        match self {
            Self::Profile { model, is_here: false, .. } => Ok((predict(model, cx, graphs)?, false)),
            _ => Ok((run(cx, graphs)?, true)),
        }
    }
}

fn run(cx: &mut PassContext<'_>, graphs: &[&Graph]) -> Result<Vec<f64>, PassError> {
    let missing = "time cannot be measured here: a budget of latency needs a runtime that measures it, or the profile of a device (device=FILE)";
    let executor = cx.executor.as_deref_mut().ok_or_else(|| PassError::Missing(missing.to_owned()))?;
    let times = executor.seconds(graphs).map_err(|e| PassError::Missing(format!("{missing} ({e})")))?;
    match times.len() == graphs.len() && times.iter().all(|t| t.is_finite() && *t > 0.0) {
        true => Ok(times),
        false => Err(PassError::Other("the executor gave no times (this is a bug)".to_owned())),
    }
}

fn predict(model: &DeviceModel, cx: &mut PassContext<'_>, graphs: &[&Graph]) -> Result<Vec<f64>, PassError> {
    let of = |&graph: &&Graph| {
        let is_open = |&id: &_| graph.value(ValueId::of(id)).ty.static_shape().is_none();
        let graph = match graph.inputs().iter().any(is_open) {
            true => cost::shaped(graph, &shapes(graph, cx)?),
            false => {
                let mut graph = graph.clone();
                // The verifier reports contradictions; here they only leave some sizes unknown.
                let _ = infer(&mut graph);
                graph
            }
        };
        let ms = model.network_ms(&graph).map_err(|e| PassError::Missing(e.to_string()))?;
        match ms.is_finite() && ms > 0.0 {
            true => Ok(1e-3 * ms),
            false => Err(PassError::Missing(format!("the profile predicts {ms} ms: it is of no use"))),
        }
    };
    graphs.iter().map(of).collect()
}

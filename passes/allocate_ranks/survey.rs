//! What is known about every layer before ranks are allotted: what a rank costs, and what the network loses
//! by it.

use super::lagrange::{self, Choice};
use super::latency::Times;
use super::probe::{self, Measured};
use crate::calibrate::observe::observe;
use crate::cost::{self, Cost};
use crate::driver::pass::{PassContext, PassError};
use crate::factor;
use crate::layer::Layer;
use crate::plan::{Set, check_values};
use crate::ranks::{energy_rank, round_up};
use basisopt_ir::Graph;

/// A quantity that a budget can be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Multiply-adds of convolutions and linear layers, per image.
    Macs,
    /// Parameters.
    Params,
    /// Bytes of parameters.
    Bytes,
    /// Milliseconds per image on the device at hand.
    Latency,
}

/// A layer, or several that share a weight, as the allocation sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Surveyed {
    /// The labels of its nodes.
    pub labels: Vec<String>,
    /// Rows of each group's matrix.
    pub n_rows: usize,
    /// Columns of each group's matrix.
    pub n_columns: usize,
    /// Number of groups.
    pub groups: usize,
    /// Kernel sizes; empty for linear layers.
    pub kernel: Vec<usize>,
    /// Multiply-adds per image of all its nodes; `None` if a size is not known.
    pub macs: Option<u64>,
    /// Energy of each component, over all groups, largest first: variance of the output, or squared
    /// singular values of the weight where there are no data.
    pub spectrum: Vec<f64>,
    /// What the network's output loses for the energy that the layer loses.
    pub sensitivity: Sensitivity,
    /// What it takes, where that was measured.
    pub(crate) times: Option<Times>,
    /// Bytes of one parameter.
    element: usize,
}

/// The loss `scale · (tail)^power`, `tail` being the share of the energy that a rank discards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sensitivity {
    /// The loss if all energy is discarded, as the law has it.
    pub scale: f64,
    /// How it grows.
    pub power: f64,
}

impl Default for Sensitivity {
    /// Where nothing was measured: a layer's own share of energy.
    fn default() -> Self {
        Self { scale: 1.0, power: 1.0 }
    }
}

/// All layers of a network that can be factored, measured once for any number of budgets.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Survey {
    /// The layers, in topological order of their first nodes.
    pub layers: Vec<Surveyed>,
    /// What the whole network costs.
    pub cost: Cost,
    /// Whether spectra are of outputs, and losses measured at the network's output.
    pub has_data: bool,
    /// Milliseconds per image of the whole network, where that was measured.
    pub milliseconds: Option<f64>,
    /// The principal components of the outputs, where there are data.
    pub(crate) measured: Vec<Option<Measured>>,
}

/// How ranks are bounded.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Ranks are multiples of this.
    pub multiple: usize,
}

impl Surveyed {
    /// The largest rank.
    pub fn full_rank(&self) -> usize {
        self.n_rows.min(self.n_columns)
    }

    /// Share of the energy that a rank discards.
    pub fn tail(&self, rank: usize) -> f64 {
        let total: f64 = self.spectrum.iter().sum();
        let left: f64 = self.spectrum.iter().skip(rank).sum();
        if total > 0.0 { left / total } else { 0.0 }
    }

    /// What the network loses by a rank.
    pub fn loss(&self, rank: usize) -> f64 {
        self.sensitivity.scale * self.tail(rank).powf(self.sensitivity.power)
    }

    /// Share of a layer's cost that a rank needs.
    pub fn share(&self, rank: usize) -> f64 {
        (rank * (self.n_rows + self.n_columns)) as f64 / (self.n_rows * self.n_columns) as f64
    }

    fn cost(&self, quantity: Quantity) -> Option<f64> {
        let params = (self.groups * self.n_rows * self.n_columns) as f64;
        match quantity {
            Quantity::Macs => self.macs.map(|m| m as f64),
            Quantity::Params => Some(params),
            Quantity::Bytes => Some(params * self.element as f64),
            Quantity::Latency => self.times.as_ref().map(|t| t.whole),
        }
    }

    /// What it costs with a rank.
    fn cost_at(&self, quantity: Quantity, rank: usize) -> Option<f64> {
        match quantity {
            Quantity::Latency => self.times.as_ref().map(|t| t.at(rank)),
            _ => self.cost(quantity).map(|whole| whole * self.share(rank)),
        }
    }

    /// What a rank saves of a quantity; 0 if that is not known.
    pub(crate) fn saving(&self, quantity: Quantity, rank: usize) -> f64 {
        self.cost(quantity).zip(self.cost_at(quantity, rank)).map_or(0.0, |(whole, at)| whole - at)
    }

    /// The ranks that multiply-adds make worth it.
    pub(crate) fn ranks(&self, limits: Limits) -> impl Iterator<Item = usize> + '_ {
        let full = self.full_rank();
        (1..=full).filter(move |&r| round_up(r, limits.multiple, full) == r && self.share(r) < 1.0)
    }

    /// Every rank that is worth its cost, and staying whole.
    fn choices(&self, quantity: Quantity, limits: Limits) -> Vec<Choice> {
        let whole = self.cost(quantity).unwrap_or(0.0);
        let choice = |r| {
            let cost = self.cost_at(quantity, r).unwrap_or(whole);
            Choice { rank: Some(r), cost, loss: self.loss(r) }
        };
        let mut choices: Vec<Choice> = match (&self.times, quantity) {
            // Only what was measured and is on the lower envelope.
            (Some(times), Quantity::Latency) => times.ranks.iter().map(|&(r, _)| choice(r)).collect(),
            _ => self.ranks(limits).map(choice).collect(),
        };
        choices.push(Choice { rank: None, cost: whole, loss: 0.0 });
        choices
    }
}

impl Survey {
    /// Looks at all sets: at their outputs, and at what the network's output makes of truncated ones, where
    /// there are data; at their weights where there are none.
    pub(crate) fn of(graph: &Graph, cx: &mut PassContext<'_>, sets: &[Set]) -> Result<Self, PassError> {
        let cost = cost::of_shaped(graph, &shapes(graph, cx)?);
        let macs = |layer: &Layer| {
            cost.layers.iter().find(|l| l.label == layer.label && l.node == layer.node).and_then(|l| l.macs)
        };
        let surveyed = |set: &Set| {
            let layer = &set.layers[0];
            Surveyed {
                labels: set.layers.iter().map(|l| l.label.clone()).collect(),
                n_rows: layer.n_rows,
                n_columns: layer.n_columns,
                groups: layer.groups,
                kernel: layer.kernel.clone(),
                macs: set.layers.iter().map(macs).sum(),
                spectrum: vec![],
                sensitivity: Sensitivity::default(),
                times: None,
                element: layer.dtype.n_bytes(1).unwrap_or(4),
            }
        };
        let mut layers: Vec<Surveyed> = sets.iter().map(surveyed).collect();
        let has_data = cx.calibration.is_some() && cx.executor.is_some();
        if has_data {
            let flat: Vec<&Layer> = sets.iter().flat_map(|s| &s.layers).collect();
            let mut moments = observe(graph, cx, &flat)?.into_iter();
            let mut measured = Vec::new();
            for (set, layer) in sets.iter().zip(&mut layers) {
                let of_set: Option<Vec<_>> = moments.by_ref().take(set.layers.len()).collect();
                let found = of_set.map(|m| Measured::of(graph, set, &m)).transpose()?;
                match &found {
                    Some(found) => layer.spectrum.clone_from(&found.spectrum),
                    None => layer.spectrum = by_weight(graph, &set.layers[0])?,
                }
                measured.push(found);
            }
            let survey = Self { layers, cost, has_data, milliseconds: None, measured };
            let ranks = survey.probe_ranks();
            let losses = probe::losses(graph, cx, sets, &survey.measured, &ranks)?;
            return Ok(survey.with_losses(&ranks, &losses));
        }
        for (set, layer) in sets.iter().zip(&mut layers) {
            layer.spectrum = by_weight(graph, &set.layers[0])?;
        }
        Ok(Self { layers, cost, has_data, milliseconds: None, measured: vec![] })
    }

    /// Two ranks for each layer at which losses are worth measuring: what shares of energy alone would give
    /// it at a middling budget, and more than that.
    fn probe_ranks(&self) -> Vec<[usize; 2]> {
        let quantity = if self.cost.macs.is_some() { Quantity::Macs } else { Quantity::Params };
        let ranks = self.ranks(quantity, 0.4, Limits { multiple: 1 });
        let of = |(i, layer): (usize, &Surveyed)| {
            let full = layer.full_rank();
            let middling = ranks.as_ref().and_then(|r| r[i]).unwrap_or(full / 3).clamp(1, full);
            [middling, (middling * 17 / 10).max(middling + 1).min(full)]
        };
        self.layers.iter().enumerate().map(of).collect()
    }

    /// Fits the law of every layer to losses measured at two ranks.
    fn with_losses(mut self, ranks: &[[usize; 2]], losses: &[Option<[f64; 2]>]) -> Self {
        for ((layer, ranks), losses) in self.layers.iter_mut().zip(ranks).zip(losses) {
            let Some([first, second]) = *losses else { continue };
            let [t1, t2] = ranks.map(|r| layer.tail(r));
            let first = first.max(1e-12);
            // Between less than proportional and squared; outside it is noise.
            let power = match second > 0.0 && t1 > t2 && t2 > 0.0 {
                true => ((first / second).ln() / (t1 / t2).ln()).clamp(0.7, 2.0),
                false => 1.0,
            };
            if t1 > 0.0 {
                layer.sensitivity = Sensitivity { scale: first / t1.powf(power), power };
            }
        }
        self
    }

    /// The total of a quantity; `None` if it is not known.
    pub fn total(&self, quantity: Quantity) -> Option<f64> {
        match quantity {
            Quantity::Macs => self.cost.macs.map(|m| m as f64),
            Quantity::Params => Some(self.cost.params as f64),
            Quantity::Bytes => Some(self.cost.param_bytes as f64),
            Quantity::Latency => self.milliseconds,
        }
    }

    /// What the network costs with these ranks, as a share of what it costs whole.
    pub fn share(&self, quantity: Quantity, ranks: &[Option<usize>]) -> Option<f64> {
        let total = self.total(quantity)?;
        let saved: Option<f64> = self
            .layers
            .iter()
            .zip(ranks)
            .map(|(l, rank)| {
                l.cost(quantity)?;
                Some(rank.map_or(0.0, |r| l.saving(quantity, r)))
            })
            .sum();
        Some(1.0 - saved? / total.max(f64::MIN_POSITIVE))
    }

    /// Ranks with which the network costs at most this share of what it does; `None` for layers that stay
    /// whole. `None` at all if no ranks make it so small, or the cost is not known.
    pub fn ranks(&self, quantity: Quantity, share: f64, limits: Limits) -> Option<Vec<Option<usize>>> {
        self.ranks_but(quantity, share, limits, &vec![false; self.layers.len()])
    }

    /// As [`Survey::ranks`], some layers staying whole in any case.
    pub(crate) fn ranks_but(
        &self,
        quantity: Quantity,
        share: f64,
        limits: Limits,
        whole: &[bool],
    ) -> Option<Vec<Option<usize>>> {
        let total = self.total(quantity)?;
        let own: Option<f64> = self.layers.iter().map(|l| l.cost(quantity)).sum();
        let choices = |(layer, &whole): (&Surveyed, &bool)| {
            let mut choices = layer.choices(quantity, limits);
            if whole {
                choices.retain(|c| c.rank.is_none());
            }
            choices
        };
        let choices: Vec<Vec<Choice>> = self.layers.iter().zip(whole).map(choices).collect();
        let chosen = lagrange::allocate(&choices, share * total - (total - own?))?;
        Some(chosen.iter().zip(&choices).map(|(&i, c)| c[i].rank).collect())
    }

    /// The smallest rank of every layer that keeps a share of its energy.
    pub fn ranks_by_energy(&self, energy: f64, limits: Limits) -> Vec<Option<usize>> {
        let of = |layer: &Surveyed| {
            let rank = round_up(energy_rank(&layer.spectrum, energy), limits.multiple, layer.full_rank());
            (layer.share(rank) < 1.0).then_some(rank)
        };
        self.layers.iter().map(of).collect()
    }

    /// The smallest share to which a quantity can be brought.
    pub fn smallest_share(&self, quantity: Quantity, limits: Limits) -> Option<f64> {
        let least = |l: &Surveyed| {
            let cheapest = l.choices(quantity, limits).into_iter().min_by(|a, b| a.cost.total_cmp(&b.cost));
            cheapest.and_then(|c| c.rank)
        };
        self.share(quantity, &self.layers.iter().map(least).collect::<Vec<_>>())
    }
}

/// The shapes of the inputs: of the data, or as the executor would make them.
pub(super) fn shapes(graph: &Graph, cx: &mut PassContext<'_>) -> Result<Vec<Vec<usize>>, PassError> {
    let of = |inputs: Vec<basisopt_ir::Tensor>| inputs.iter().map(|t| t.shape().to_vec()).collect();
    if let Some(calibration) = cx.calibration {
        return match calibration.samples.batches(0).next() {
            Some(inputs) => Ok(of(inputs?)),
            None => Ok(vec![]),
        };
    }
    // Where no input can be made, sizes stay as they are noted.
    let made = cx.executor.as_deref_mut().and_then(|e| e.example_inputs(graph, cx.seed).ok());
    Ok(made.map_or_else(Vec::new, of))
}

/// Squared singular values, the groups' added up.
fn by_weight(graph: &Graph, layer: &Layer) -> Result<Vec<f64>, PassError> {
    let Some(weight) = graph.constant_value(layer.weight) else { return Ok(vec![]) };
    let tensor_error = |source| PassError::Tensor { node: layer.label.clone(), source };
    let matrices = layer.matrices(&weight).map_err(tensor_error)?;
    let mut spectrum = vec![0.0; layer.full_rank()];
    // What has no spectrum is refused with its reason when it is factored.
    if check_values(&matrices).is_err() {
        return Ok(spectrum);
    }
    for h in &matrices {
        let s = factor::singular_values(h, layer.n_rows, layer.n_columns).map_err(|_| PassError::Svd {
            node: layer.label.clone(),
            n_rows: layer.n_rows,
            n_columns: layer.n_columns,
        })?;
        spectrum.iter_mut().zip(s).for_each(|(e, s)| *e += s * s);
    }
    Ok(spectrum)
}

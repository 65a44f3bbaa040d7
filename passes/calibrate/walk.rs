//! Walking through a network layer by layer with all calibration inputs at once: the activations at the
//! frontier are kept, of the original network and of the one that is being made, so that every node runs
//! once per input and not once per layer behind it.

use crate::calibrate::check_count;
use crate::driver::check::{Executor, ExecutorError, Program};
use crate::driver::data::{Calibration, Inputs};
use crate::driver::pass::{Host, PassError};
use basisopt_ir::{DType, Graph, NodeId, Op, Tensor, ValueId, ValueType, infer};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// The values of one batch that are still needed.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    original: BTreeMap<ValueId, Tensor>,
    /// Only those that differ from the original's.
    compressed: BTreeMap<ValueId, Tensor>,
}

impl State {
    /// A value of the original network.
    pub fn original(&self, value: ValueId) -> Result<&Tensor, ExecutorError> {
        self.original.get(&value).ok_or_else(lost)
    }

    /// A value of the network as compressed so far.
    pub fn compressed(&self, value: ValueId) -> Result<&Tensor, ExecutorError> {
        self.compressed.get(&value).or_else(|| self.original.get(&value)).ok_or_else(lost)
    }

    fn of_inputs(graph: &Graph, inputs: Inputs) -> Result<Self, ExecutorError> {
        if inputs.len() != graph.inputs().len() {
            let (n, found) = (graph.inputs().len(), inputs.len());
            return Err(ExecutorError(format!("the network takes {n} inputs, {found} were given")));
        }
        let values = graph.inputs().iter().map(|&id| ValueId::of(id));
        Ok(Self { original: values.zip(inputs).collect(), compressed: BTreeMap::new() })
    }

    fn n_bytes(&self) -> usize {
        let bytes = |t: &Tensor| t.dtype().n_bytes(t.len()).unwrap_or(0);
        self.original.values().chain(self.compressed.values()).map(bytes).sum()
    }
}

fn lost() -> ExecutorError {
    ExecutorError("a value was needed after it had been dropped (this is a bug)".to_owned())
}

/// Which network a step belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Original,
    Compressed,
    Both,
}

struct Step {
    program: Box<dyn Program>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    on: On,
    /// What nobody needs after it.
    drop: Vec<ValueId>,
}

impl Step {
    fn run(&self, state: &mut State) -> Result<(), ExecutorError> {
        if matches!(self.on, On::Original | On::Both) {
            let inputs: Inputs =
                self.inputs.iter().map(|&v| state.original(v).cloned()).collect::<Result<_, _>>()?;
            let outputs = self.program.run(&inputs)?;
            check_count(&outputs, self.outputs.len())?;
            state.original.extend(self.outputs.iter().copied().zip(outputs));
        }
        // Where nothing differs yet the original's values are the compressed network's.
        let differs = self.inputs.iter().any(|v| state.compressed.contains_key(v));
        if self.on == On::Compressed || (self.on == On::Both && differs) {
            let inputs: Inputs =
                self.inputs.iter().map(|&v| state.compressed(v).cloned()).collect::<Result<_, _>>()?;
            let outputs = self.program.run(&inputs)?;
            check_count(&outputs, self.outputs.len())?;
            state.compressed.extend(self.outputs.iter().copied().zip(outputs));
        }
        for value in &self.drop {
            state.original.remove(value);
            state.compressed.remove(value);
        }
        Ok(())
    }
}

/// The part of the original network behind the frontier.
pub(crate) struct Rest {
    program: Option<Box<dyn Program>>,
    /// What it reads at the frontier.
    inputs: Vec<ValueId>,
    /// The network's outputs that depend on what is at the frontier or behind it.
    pub outputs: Vec<ValueId>,
}

impl Rest {
    /// The outputs, one value at the frontier being another.
    pub fn run(
        &self,
        state: &State,
        change: Option<(ValueId, &Tensor)>,
    ) -> Result<Vec<Tensor>, ExecutorError> {
        let value = |v: ValueId| match change {
            Some((changed, tensor)) if changed == v => Ok(tensor.clone()),
            _ => state.original(v).cloned(),
        };
        let mut found = match &self.program {
            Some(program) => {
                program.run(&self.inputs.iter().map(|&v| value(v)).collect::<Result<Vec<_>, _>>()?)?
            }
            None => vec![],
        };
        let direct = &self.outputs[found.len().min(self.outputs.len())..];
        found.extend(direct.iter().map(|&v| value(v)).collect::<Result<Vec<_>, _>>()?);
        Ok(found)
    }
}

/// The frontier, and the way to it.
pub(crate) struct Walk<'a> {
    /// The original, every constant plain.
    pub graph: Graph,
    calibration: Calibration<'a>,
    executor: &'a mut dyn Executor,
    host: &'a dyn Host,
    /// What computes, in topological order, and where each stands.
    order: Vec<NodeId>,
    place: BTreeMap<NodeId, usize>,
    /// The place of the last reader of every value.
    last_use: BTreeMap<ValueId, usize>,
    /// How many nodes the frontier has passed.
    next: usize,
    steps: Vec<Step>,
    /// The states of the first batches. The rest are made again from their inputs when they are needed.
    resident: Vec<State>,
    /// Types of the values that steps have made, as they were found.
    types: BTreeMap<ValueId, (DType, Vec<usize>)>,
    /// Values that differ between the two networks.
    pub diverged: BTreeSet<ValueId>,
}

impl<'a> Walk<'a> {
    /// Stands before the first node, with as many inputs in memory as fit.
    pub fn new(
        graph: &Graph,
        calibration: Calibration<'a>,
        executor: &'a mut dyn Executor,
        host: &'a dyn Host,
    ) -> Result<Self, PassError> {
        let mut graph = graph.clone();
        let overridable = |g: &Graph, id: &NodeId| g.node(*id).overridable;
        let ids: Vec<NodeId> = graph.node_ids().filter(|id| overridable(&graph, id)).collect();
        ids.into_iter().for_each(|id| graph.freeze(id));
        let computes = |id: &NodeId| !matches!(graph.node(*id).op, Op::Input | Op::Constant(_));
        let order: Vec<NodeId> = graph.topological().into_iter().filter(computes).collect();
        let place = order.iter().enumerate().map(|(i, &id)| (id, i)).collect();
        let mut last_use = BTreeMap::new();
        for (i, &id) in order.iter().enumerate() {
            last_use.extend(graph.node_inputs(id).into_iter().flatten().map(|v| (v, i)));
        }
        let mut walk = Self {
            graph,
            calibration,
            executor,
            host,
            order,
            place,
            last_use,
            next: 0,
            steps: Vec::new(),
            resident: Vec::new(),
            types: BTreeMap::new(),
            diverged: BTreeSet::new(),
        };
        let mut used = 0;
        for inputs in calibration.samples.batches(0) {
            let state = State::of_inputs(&walk.graph, inputs?)?;
            if walk.resident.is_empty() {
                walk.types =
                    state.original.iter().map(|(&v, t)| (v, (t.dtype(), t.shape().to_vec()))).collect();
            }
            used += state.n_bytes();
            if used > calibration.memory && !walk.resident.is_empty() {
                break;
            }
            walk.resident.push(state);
        }
        if walk.resident.is_empty() {
            return Err(ExecutorError("there is not a single batch of inputs".to_owned()).into());
        }
        Ok(walk)
    }

    /// Computes everything before a node. Nodes must be visited in topological order.
    pub fn advance_to(&mut self, node: NodeId) -> Result<(), PassError> {
        let Some(&end) = self.place.get(&node) else { return Err(lost().into()) };
        if end > self.next {
            let nodes = self.order[self.next..end].to_vec();
            self.next = end;
            let outputs = self.needed(&nodes, end);
            let drop = self.dead(end);
            if !outputs.is_empty() {
                self.step(&nodes, &outputs, On::Both, drop, |part, _| Ok(part))?;
            }
        }
        Ok(())
    }

    /// Runs the node at the frontier in the original network.
    pub fn run_original(&mut self, node: NodeId) -> Result<(), PassError> {
        self.step(&[node], &[ValueId::of(node)], On::Original, vec![], |part, _| Ok(part))
    }

    /// Runs the node at the frontier in the compressed network, as `change` made it there, and steps over
    /// it. `change` is given the node in a graph of its own.
    pub fn pass(
        &mut self,
        node: NodeId,
        change: Option<&dyn Fn(Graph, NodeId) -> Result<Graph, PassError>>,
    ) -> Result<(), PassError> {
        self.next += 1;
        let drop = self.dead(self.next);
        let differs = self.graph.node_inputs(node).into_iter().flatten().any(|v| self.diverged.contains(&v));
        let value = [ValueId::of(node)];
        match change {
            Some(change) => {
                self.diverged.insert(value[0]);
                self.step(&[node], &value, On::Compressed, drop, change)
            }
            None if differs => {
                self.diverged.insert(value[0]);
                self.step(&[node], &value, On::Compressed, drop, |part, _| Ok(part))
            }
            // Nothing to run, but what is dead goes.
            None => {
                for state in &mut self.resident {
                    for value in &drop {
                        state.original.remove(value);
                        state.compressed.remove(value);
                    }
                }
                if let Some(last) = self.steps.last_mut() {
                    last.drop.extend(drop);
                }
                Ok(())
            }
        }
    }

    /// All nodes that compute, in the order in which they are visited.
    pub fn nodes(&self) -> &[NodeId] {
        &self.order
    }

    /// Number of batches.
    pub fn n_batches(&self) -> usize {
        self.calibration.samples.n_batches()
    }

    /// Whether a value is at the frontier.
    pub fn is_there(&self, value: ValueId) -> bool {
        self.resident.first().is_some_and(|s| s.original.contains_key(&value))
    }

    /// The shape of a value at the frontier.
    pub fn shape(&self, value: ValueId) -> Option<&[usize]> {
        self.types.get(&value).map(|(_, shape)| shape.as_slice())
    }

    /// A node in a graph of its own, with shapes as they really are.
    pub fn alone(&self, node: NodeId) -> Result<(Graph, NodeId), PassError> {
        let part = self.part(&[node], &[ValueId::of(node)])?;
        Ok((part.graph, part.nodes[&node]))
    }

    /// Everything behind the node at the frontier, which must have run, as a program of its own.
    pub fn rest(&mut self) -> Result<Rest, PassError> {
        let nodes = self.order[self.next + 1..].to_vec();
        let here = self.order.get(self.next).copied();
        let behind = |v: &ValueId| self.place.get(&v.node).is_some_and(|&i| i > self.next);
        let mut outputs: Vec<ValueId> = self.graph.outputs().iter().copied().filter(behind).collect();
        let direct = self.graph.outputs().iter().copied().filter(|v| Some(v.node) == here);
        let (program, inputs) = match outputs.is_empty() {
            true => (None, vec![]),
            false => {
                let part = self.part(&nodes, &outputs)?;
                (Some(self.executor.load(&part.graph)?), part.inputs)
            }
        };
        outputs.extend(direct);
        Ok(Rest { program, inputs, outputs })
    }

    /// Looks at every batch: `look` on any number of threads, then `take` in the order of the batches.
    pub fn each<T: Send>(
        &mut self,
        look: impl Fn(usize, &State) -> Result<T, ExecutorError> + Sync,
        mut take: impl FnMut(usize, T),
    ) -> Result<(), PassError> {
        let window = 2 * rayon::current_num_threads();
        for (w, states) in self.resident.chunks(window).enumerate() {
            self.check()?;
            let found: Vec<Result<T, _>> =
                states.par_iter().enumerate().map(|(i, s)| look(w * window + i, s)).collect();
            for (i, found) in found.into_iter().enumerate() {
                take(w * window + i, found?);
            }
        }
        let mut next = self.resident.len();
        if next == self.calibration.samples.n_batches() {
            return Ok(());
        }
        let samples = self.calibration.samples;
        let mut batches = samples.batches(next);
        let mut used: usize = self.resident.iter().map(State::n_bytes).sum();
        loop {
            self.check()?;
            let inputs: Vec<Inputs> = batches.by_ref().take(window).collect::<Result<_, _>>()?;
            if inputs.is_empty() {
                return Ok(());
            }
            let (steps, graph) = (&self.steps, &self.graph);
            let made: Vec<Result<(State, T), ExecutorError>> = inputs
                .into_par_iter()
                .enumerate()
                .map(|(i, inputs)| {
                    let mut state = State::of_inputs(graph, inputs)?;
                    steps.iter().try_for_each(|step| step.run(&mut state))?;
                    let found = look(next + i, &state)?;
                    Ok((state, found))
                })
                .collect();
            for made in made {
                let (state, found) = made?;
                take(next, found);
                // Deeper activations are smaller: there may be room again.
                let size = state.n_bytes();
                if next == self.resident.len() && used + size <= self.calibration.memory {
                    used += size;
                    self.resident.push(state);
                }
                next += 1;
            }
        }
    }

    fn check(&self) -> Result<(), PassError> {
        if self.host.interrupted() { Err(PassError::Interrupted) } else { Ok(()) }
    }

    /// What these nodes make that a node from `end` on reads.
    fn needed(&self, nodes: &[NodeId], end: usize) -> Vec<ValueId> {
        let values = |&node: &NodeId| {
            (0..self.graph.node(node).outputs.len() as u32).map(move |port| ValueId { node, port })
        };
        let read = |v: &ValueId| self.last_use.get(v).is_some_and(|&i| i >= end);
        nodes.iter().flat_map(values).filter(read).collect()
    }

    /// What is at the frontier and read by no node from `end` on.
    fn dead(&self, end: usize) -> Vec<ValueId> {
        let unread = |v: &&ValueId| self.last_use.get(v).is_none_or(|&i| i < end);
        let Some(state) = self.resident.first() else {
            return self.types.keys().filter(unread).copied().collect();
        };
        state.original.keys().chain(state.compressed.keys()).filter(unread).copied().collect()
    }

    fn part(&self, nodes: &[NodeId], outputs: &[ValueId]) -> Result<basisopt_ir::Extract, PassError> {
        let mut part = self.graph.extract(nodes, outputs);
        for (&outside, &inside) in part.inputs.iter().zip(part.graph.inputs().to_vec().iter()) {
            let Some((dtype, shape)) = self.types.get(&outside) else { return Err(lost().into()) };
            part.graph.set_type(ValueId::of(inside), ValueType::fixed(*dtype, shape));
        }
        let wrong = |e: infer::InferError| PassError::Calibration(ExecutorError(e.to_string()));
        infer::infer(&mut part.graph).map_err(wrong)?;
        Ok(part)
    }

    fn step(
        &mut self,
        nodes: &[NodeId],
        outputs: &[ValueId],
        on: On,
        drop: Vec<ValueId>,
        change: impl Fn(Graph, NodeId) -> Result<Graph, PassError>,
    ) -> Result<(), PassError> {
        let part = self.part(nodes, outputs)?;
        let first = part.nodes[&nodes[0]];
        let mut graph = change(part.graph, first)?;
        let wrong = |e: infer::InferError| PassError::Calibration(ExecutorError(e.to_string()));
        infer::infer(&mut graph).map_err(wrong)?;
        let program = self.executor.load(&graph)?;
        if on == On::Both && part.inputs.iter().any(|v| self.diverged.contains(v)) {
            self.diverged.extend(outputs);
        }
        let step = Step { program, inputs: part.inputs, outputs: outputs.to_vec(), on, drop };
        let window = 2 * rayon::current_num_threads();
        for states in self.resident.chunks_mut(window) {
            if self.host.interrupted() {
                return Err(PassError::Interrupted);
            }
            states.par_iter_mut().try_for_each(|state| step.run(state))?;
        }
        if let Some(state) = self.resident.first() {
            let made = |map: &BTreeMap<ValueId, Tensor>| -> Vec<_> {
                let of = |v: &ValueId| map.get(v).map(|t| (*v, (t.dtype(), t.shape().to_vec())));
                step.outputs.iter().filter_map(of).collect()
            };
            self.types.extend(made(&state.original));
            self.types.extend(made(&state.compressed));
        }
        self.steps.push(step);
        // One state always stays: it tells the shapes.
        let mut used: usize = self.resident.iter().map(State::n_bytes).sum();
        while used > self.calibration.memory && self.resident.len() > 1 {
            used -= self.resident.pop().map_or(0, |s| s.n_bytes());
        }
        Ok(())
    }
}

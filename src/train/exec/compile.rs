//! From a graph to a program: what is computed when, in which memory.

use super::buffer::Allocator;
use super::fuse::fuse;
use super::kernel::{Kernel, Operand as KernelOperand, Spec, Unsupported};
use super::ops;
use super::program::{Operand, Place, Port, Program, Step, StepKind};
use super::units::{ADD, Unit, UnitKind, is_shape_only, is_view, shape_of, unit};
use crate::dropout::drops;
use basisopt_ir::infer::{InferError, infer};
use basisopt_ir::op::Op;
use basisopt_ir::{Dim, Graph, NodeId, Tensor, ValueId};
use basisopt_kernels::{Conv, Element};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Why a graph cannot be compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// Types contradict each other for a batch of one.
    #[error("for a batch of one image: {0}")]
    Infer(#[from] InferError),
    /// A size is not known.
    #[error("the shape of {value:?} is not known for a batch of one image; fix the sizes of the inputs")]
    Shape {
        /// Name of the value.
        value: String,
    },
    /// No kernel for an operator.
    #[error("node {node:?}: the trainer cannot run {op}: {reason}")]
    Unsupported {
        /// Label of the node.
        node: String,
        /// The operator.
        op: String,
        /// What about it.
        reason: String,
    },
    /// Sums over images and values of single images meet.
    #[error("node {node:?} mixes values of single images with sums over all of them")]
    Mixed {
        /// Label of the node.
        node: String,
    },
    /// There is no such constant.
    #[error("there is no constant {name:?} to train")]
    NoParameter {
        /// What was asked for.
        name: String,
    },
    /// A constant cannot be read as numbers.
    #[error("constant {name:?}: {source}")]
    Tensor {
        /// Name of the constant.
        name: String,
        /// What was wrong.
        source: basisopt_ir::tensor::TensorError,
    },
}

/// When a value is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Before anything runs.
    Known,
    /// Before images are looked at.
    Shared,
    /// For each image.
    Lane,
    /// When all images have been looked at.
    Late,
}

/// What is to be compiled beside the graph itself.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Constants that change between runs, by name.
    pub parameters: Vec<String>,
    /// Values that are sums over images, by name (`Differentiated::summed`).
    pub summed: BTreeSet<String>,
}

impl<T: Element> Program<T> {
    /// Compiles what the graph's outputs need. The graph is taken for a batch of one image; a program runs
    /// [`basisopt_kernels::LANES`] such batches side by side.
    ///
    /// # Errors
    /// [`CompileError`] naming what cannot be compiled.
    pub fn compile(graph: &Graph, plan: &Plan) -> Result<Self, CompileError> {
        let mut graph = graph.clone();
        pin_batch(&mut graph);
        infer(&mut graph)?;
        Compiler::new(&graph, plan)?.finish()
    }
}

/// Sets every unknown first dimension of an input to 1.
fn pin_batch(graph: &mut Graph) {
    for node in graph.inputs().to_vec() {
        let value = ValueId::of(node);
        let mut ty = graph.value(value).ty.clone();
        if let Some(first) = ty.shape.as_mut().and_then(|s| s.first_mut())
            && first.known().is_none()
        {
            *first = Dim::Known(1);
            graph.set_type(value, ty);
        }
    }
}

struct Compiler<'g, T> {
    graph: &'g Graph,
    plan: &'g Plan,
    /// Needed nodes, in topological order.
    order: Vec<NodeId>,
    class: BTreeMap<ValueId, Class>,
    known: BTreeMap<ValueId, Tensor>,
    /// Values that are another one under another name or shape.
    views: BTreeMap<ValueId, ValueId>,
    place: BTreeMap<ValueId, Place>,
    program: Program<T>,
}

impl<'g, T: Element> Compiler<'g, T> {
    fn new(graph: &'g Graph, plan: &'g Plan) -> Result<Self, CompileError> {
        let program = Program {
            inputs: vec![],
            outputs: vec![],
            parameters: vec![],
            shared: vec![],
            late: vec![],
            sums: vec![],
            buffers: vec![],
            before: vec![],
            body: vec![],
            after: vec![],
        };
        let mut compiler = Self {
            graph,
            plan,
            order: needed(graph),
            class: BTreeMap::new(),
            known: BTreeMap::new(),
            views: BTreeMap::new(),
            place: BTreeMap::new(),
            program,
        };
        compiler.sources()?;
        compiler.classify()?;
        Ok(compiler)
    }

    /// Inputs and parameters.
    fn sources(&mut self) -> Result<(), CompileError> {
        for (i, &node) in self.graph.inputs().iter().enumerate() {
            let value = ValueId::of(node);
            let port = self.port(value)?;
            self.program.inputs.push(port);
            self.class.insert(value, Class::Lane);
            self.place.insert(value, Place::Input(i));
        }
        for name in &self.plan.parameters {
            let missing = || CompileError::NoParameter { name: name.clone() };
            let value = self.graph.find_value(name).ok_or_else(missing)?;
            let tensor = self.graph.constant_value(value).ok_or_else(missing)?;
            let values = self.numbers(value, &tensor)?;
            self.program.parameters.push(Port { name: name.clone(), shape: tensor.shape().to_vec() });
            self.class.insert(value, Class::Shared);
            self.place.insert(value, Place::Shared(self.program.shared.len()));
            self.program.shared.push(values);
        }
        Ok(())
    }

    fn numbers(&self, value: ValueId, tensor: &Tensor) -> Result<Vec<T>, CompileError> {
        let values = tensor
            .to_f64s()
            .map_err(|source| CompileError::Tensor { name: self.graph.value(value).name.clone(), source })?;
        Ok(values.into_iter().map(T::from_f64).collect())
    }

    fn port(&self, value: ValueId) -> Result<Port, CompileError> {
        let name = self.graph.value(value).name.clone();
        match shape_of(self.graph, value) {
            Some(shape) => Ok(Port { name, shape }),
            None => Err(CompileError::Shape { value: name }),
        }
    }

    fn is_summed(&self, value: ValueId) -> bool {
        self.plan.summed.contains(&self.graph.value(value).name)
    }

    /// Says when each value is known, and computes what is known at once.
    fn classify(&mut self) -> Result<(), CompileError> {
        for id in self.order.clone() {
            let node = self.graph.node(id);
            if matches!(node.op, Op::Input) || self.class.contains_key(&ValueId::of(id)) {
                continue;
            }
            if let Some(how) = drops(self.graph, id) {
                return Err(self.unsupported(id, Unsupported(how.trim_start().to_owned())));
            }
            let reads: Vec<ValueId> = data_reads(self.graph, id).flatten().collect();
            let classes = || reads.iter().filter_map(|v| self.class.get(v).copied());
            let class = classes().max().unwrap_or(Class::Known);
            if class == Class::Late && classes().any(|c| c == Class::Lane) {
                return Err(CompileError::Mixed { node: node.label().to_owned() });
            }
            for port in 0..node.outputs.len() as u32 {
                let value = ValueId { node: id, port };
                let summed = class == Class::Lane && self.is_summed(value);
                self.class.insert(value, if summed { Class::Late } else { class });
            }
            if class == Class::Known {
                self.compute(id)?;
            } else if is_view(&node.op)
                && class != Class::Known
                && !self.is_summed(ValueId::of(id))
                && !self.graph.is_output(ValueId::of(id))
                && let Some(&x) = reads.first()
            {
                let root = self.root(x);
                self.views.insert(ValueId::of(id), root);
            }
        }
        Ok(())
    }

    fn root(&self, value: ValueId) -> ValueId {
        self.views.get(&value).copied().unwrap_or(value)
    }

    /// A node that reads constants only.
    fn compute(&mut self, id: NodeId) -> Result<(), CompileError> {
        let value = ValueId::of(id);
        if let Some(tensor) = self.graph.constant_value(value) {
            self.known.insert(value, tensor);
            return Ok(());
        }
        let node = self.graph.node(id);
        let refuse = |reason: &str| self.unsupported(id, Unsupported(reason.to_owned()));
        if let Op::Shape(op) = &node.op {
            let read = self.graph.node_input(id, 0).and_then(|x| shape_of(self.graph, x));
            let dims = read.ok_or_else(|| refuse("a shape that is not known"))?;
            let rank = dims.len() as i64;
            let bound =
                |v: i64| usize::try_from((if v < 0 { v + rank } else { v }).clamp(0, rank)).unwrap_or(0);
            let range = bound(op.start)..bound(op.end.unwrap_or(rank));
            let dims: Vec<i64> = dims.get(range).unwrap_or_default().iter().map(|&d| d as i64).collect();
            let tensor = Tensor::from_i64s(vec![dims.len()], &dims);
            self.known.insert(value, tensor.map_err(|_| refuse("a shape that is too long"))?);
            return Ok(());
        }
        if let Op::ConstantOfShape(op) = &node.op {
            let filled = op.value.as_ref().and_then(|v| Some((v.dtype(), *v.to_f64s().ok()?.first()?)));
            let (dtype, value) = filled.unwrap_or((basisopt_ir::DType::F32, 0.0));
            let tensor = Tensor::full(dtype, self.port(ValueId::of(id))?.shape, value);
            self.known.insert(ValueId::of(id), tensor.map_err(|_| refuse("a value that fits no tensor"))?);
            return Ok(());
        }
        // In double precision: shapes are computed this way too.
        let kernel = ops::lower::<f64>(&node.op, &self.spec(id)?).map_err(|e| self.unsupported(id, e))?;
        let slots = self.graph.node_inputs(id);
        let mut inputs = Vec::with_capacity(slots.len());
        for slot in slots {
            let tensor = slot.and_then(|v| self.known.get(&v));
            inputs.push(tensor.and_then(|t| t.to_f64s().ok()).unwrap_or_default());
        }
        let args: Vec<_> =
            inputs.iter().map(|data| super::kernel::Arg { data: &data[..], batched: false }).collect();
        let ports = (0..node.outputs.len() as u32).map(|port| ValueId { node: id, port });
        let shapes =
            ports.clone().map(|v| Ok(self.port(v)?.shape)).collect::<Result<Vec<_>, CompileError>>()?;
        let mut outs: Vec<Vec<f64>> = shapes.iter().map(|s| vec![0.0; s.iter().product()]).collect();
        let mut slices: Vec<&mut [f64]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
        kernel.run(&args, &mut slices, 1);
        for ((v, shape), values) in ports.zip(shapes).zip(outs) {
            let dtype = self.graph.value(v).ty.dtype.unwrap_or(basisopt_ir::DType::F64);
            let tensor = Tensor::from_f64s(dtype, shape, &values)
                .map_err(|source| CompileError::Tensor { name: self.graph.value(v).name.clone(), source })?;
            self.known.insert(v, tensor);
        }
        Ok(())
    }

    fn unsupported(&self, id: NodeId, reason: Unsupported) -> CompileError {
        let node = self.graph.node(id);
        CompileError::Unsupported {
            node: node.label().to_owned(),
            op: node.op.op_type().to_owned(),
            reason: reason.0,
        }
    }

    fn is_lane(&self, value: ValueId) -> bool {
        self.class.get(&value) == Some(&Class::Lane)
    }

    fn spec(&self, id: NodeId) -> Result<Spec, CompileError> {
        let mut inputs = Vec::new();
        for slot in self.graph.node_inputs(id) {
            inputs.push(match slot {
                None => None,
                Some(v) => Some(KernelOperand {
                    shape: self.port(v)?.shape,
                    batched: self.is_lane(v),
                    constant: self.known.get(&v).cloned(),
                }),
            });
        }
        let ports = (0..self.graph.node(id).outputs.len() as u32).map(|port| ValueId { node: id, port });
        let outputs = ports.map(|v| Ok(self.port(v)?.shape)).collect::<Result<_, CompileError>>()?;
        Ok(Spec { inputs, outputs, opset: self.graph.opset })
    }

    fn finish(mut self) -> Result<Program<T>, CompileError> {
        let mut units = Vec::new();
        for &id in &self.order {
            let value = ValueId::of(id);
            let op = &self.graph.node(id).op;
            // A parameter may be a node that makes a constant; its value is given.
            let is_given = op.is_source() || self.place.contains_key(&value);
            let skip = is_given || self.class.get(&value) == Some(&Class::Known);
            if skip || self.views.contains_key(&value) {
                continue;
            }
            let values = data_reads(self.graph, id).flatten().chain([value]);
            let known = |v: &ValueId| self.class.get(v) == Some(&Class::Known);
            if values.filter(|v| !known(v)).any(|v| self.port(v).is_ok_and(|p| p.is_empty())) {
                return Err(self.unsupported(id, Unsupported("a value without elements".to_owned())));
            }
            let from_lanes = data_reads(self.graph, id).flatten().any(|v| self.is_lane(v));
            if !from_lanes {
                let writes =
                    (0..self.graph.node(id).outputs.len() as u32).map(|port| ValueId { node: id, port });
                let reads = self.graph.node_inputs(id);
                units.push(Unit { kind: UnitKind::Node, node: id, reads, writes: writes.collect() });
                continue;
            }
            let is_summed = self.is_summed(value);
            let mut unit =
                unit(self.graph, id, &|v| self.is_lane(v), is_summed).map_err(|e| self.unsupported(id, e))?;
            for (slot, read) in unit.reads.iter_mut().enumerate() {
                if matches!(unit.kind, UnitKind::Node) && is_shape_only(op, slot) {
                    *read = None;
                }
            }
            units.push(unit);
        }
        let n_reads = self.count_reads(&units);
        let reads_of = |v: ValueId| n_reads.get(&self.root(v)).copied().unwrap_or(0);
        let units = fuse(self.graph, units, &reads_of, &|v| self.is_lane(v));
        self.emit(&units)?;
        for &output in self.graph.outputs() {
            let port = self.port(output)?;
            let operand = self.operand(output)?;
            if !matches!(operand.place, Place::Lane(_) | Place::Late(_)) {
                let reason = "an output that does not depend on the input".to_owned();
                return Err(self.unsupported(output.node, Unsupported(reason)));
            }
            self.program.outputs.push((port, operand));
        }
        Ok(self.program)
    }

    /// How often values are read, by their roots; being an output counts.
    fn count_reads(&self, units: &[Unit]) -> BTreeMap<ValueId, usize> {
        let reads = units.iter().flat_map(|u| u.reads.iter().flatten().copied());
        let mut counts = BTreeMap::new();
        for v in reads.chain(self.graph.outputs().iter().copied()) {
            *counts.entry(self.root(v)).or_insert(0) += 1;
        }
        counts
    }

    /// Steps and memory, in order.
    fn emit(&mut self, units: &[Unit]) -> Result<(), CompileError> {
        let mut last: BTreeMap<ValueId, usize> = BTreeMap::new();
        for (i, unit) in units.iter().enumerate() {
            for &v in unit.reads.iter().flatten() {
                last.insert(self.root(v), i);
            }
        }
        for &v in self.graph.outputs() {
            last.insert(self.root(v), usize::MAX);
        }
        let mut memory = Allocator::default();
        let mut convs: BTreeMap<String, Arc<Conv>> = BTreeMap::new();
        for (i, unit) in units.iter().enumerate() {
            let mut unit = unit.clone();
            // The output may take the place of the tensor that is added, if nobody else needs that.
            let mut taken = None;
            if let UnitKind::Conv { fused, .. } = &mut unit.kind
                && let Some(add) = unit.reads.get(ADD).copied().flatten().map(|v| self.root(v))
                && last.get(&add) == Some(&i)
                && unit.reads.iter().flatten().filter(|&&v| self.root(v) == add).count() == 1
                && let Some(&Place::Lane(buffer)) = self.place.get(&add)
            {
                fused.add_output = true;
                if let Some(slot) = unit.reads.get_mut(ADD) {
                    *slot = None;
                }
                taken = Some((add, buffer));
            }
            let reads = unit
                .reads
                .iter()
                .map(|v| v.map_or(Ok(Operand::ABSENT), |v| self.operand(v)))
                .collect::<Result<Vec<_>, _>>()?;
            let class = self.class.get(&ValueId::of(unit.node)).copied().unwrap_or(Class::Lane);
            let from_lanes = unit.reads.iter().flatten().any(|&v| self.is_lane(v)) || taken.is_some();
            // A sum that no kernel adds up by itself: first each image's share, then the sum. Of several outputs only
            // some may be sums.
            let class_of = |v: &ValueId| self.class.get(v).copied().unwrap_or(Class::Lane);
            let shares: Vec<bool> = unit
                .writes
                .iter()
                .map(|v| class_of(v) == Class::Late && from_lanes && matches!(unit.kind, UnitKind::Node))
                .collect();
            let classes: Vec<Class> = unit.writes.iter().map(class_of).collect();
            let mut writes = Vec::with_capacity(unit.writes.len());
            for ((&v, &shares), &class) in unit.writes.iter().zip(&shares).zip(&classes) {
                let len = self.port(v)?.len();
                let place = match (class, taken) {
                    (_, Some((_, buffer))) => Place::Lane(buffer),
                    (Class::Late, _) if shares => Place::Lane(memory.take(len)),
                    (Class::Late, _) => self.late(len, from_lanes),
                    (Class::Lane, _) => Place::Lane(memory.take(len)),
                    (Class::Shared | Class::Known, _) => {
                        self.program.shared.push(vec![T::ZERO; len]);
                        Place::Shared(self.program.shared.len() - 1)
                    }
                };
                self.place.insert(v, place);
                writes.push(Operand { place, len });
            }
            let mut conv = |shape| {
                Arc::clone(convs.entry(format!("{shape:?}")).or_insert_with(|| Arc::new(Conv::new(shape))))
            };
            let kind = match unit.kind {
                UnitKind::Conv { shape, product, fused } => {
                    StepKind::Conv { conv: conv(shape), product, fused }
                }
                UnitKind::WeightGrad { shape } => StepKind::WeightGrad { conv: conv(shape) },
                UnitKind::Node => StepKind::Kernel(self.kernel(unit.node)?),
            };
            let step = Step { kind, reads, writes: writes.clone() };
            match class {
                _ if from_lanes => self.program.body.push(step),
                Class::Shared | Class::Known => self.program.before.push(step),
                Class::Lane => self.program.body.push(step),
                Class::Late => self.program.after.push(step),
            }
            for ((&v, share), _) in unit.writes.iter().zip(writes).zip(&shares).filter(|(_, s)| **s) {
                let sum = Operand { place: self.late(share.len, true), len: share.len };
                self.place.insert(v, sum.place);
                self.program.body.push(Step {
                    kind: StepKind::LaneSum,
                    reads: vec![share],
                    writes: vec![sum],
                });
                if let Place::Lane(buffer) = share.place {
                    memory.give(buffer);
                }
            }
            // What is read for the last time here, and what nobody reads.
            let dead = unit.reads.iter().flatten().map(|&v| self.root(v)).filter(|v| last.get(v) == Some(&i));
            let unread = unit.writes.iter().copied().filter(|v| !last.contains_key(v));
            let dead: BTreeSet<ValueId> = dead.chain(unread).collect();
            for v in dead {
                if let Some(&Place::Lane(buffer)) = self.place.get(&v) {
                    memory.give(buffer);
                }
            }
        }
        self.program.buffers = memory.into_sizes();
        Ok(())
    }

    fn late(&mut self, len: usize, is_sum: bool) -> Place {
        self.program.late.push(len);
        let place = self.program.late.len() - 1;
        if is_sum {
            self.program.sums.push(place);
        }
        Place::Late(place)
    }

    fn kernel(&self, id: NodeId) -> Result<Box<dyn Kernel<T>>, CompileError> {
        ops::lower(&self.graph.node(id).op, &self.spec(id)?).map_err(|e| self.unsupported(id, e))
    }

    /// Where a value is; a constant is given a place when it is first read.
    fn operand(&mut self, value: ValueId) -> Result<Operand, CompileError> {
        let root = self.root(value);
        let len = self.port(value)?.len();
        if let Some(&place) = self.place.get(&root) {
            return Ok(Operand { place, len });
        }
        let Some(tensor) = self.known.get(&root).cloned() else {
            return Err(self.unsupported(value.node, Unsupported("it is read before it is made".to_owned())));
        };
        let values = self.numbers(root, &tensor)?;
        let place = Place::Shared(self.program.shared.len());
        self.program.shared.push(values);
        self.place.insert(root, place);
        Ok(Operand { place, len })
    }
}

/// The values that a node computes with.
fn data_reads(graph: &Graph, id: NodeId) -> impl Iterator<Item = Option<ValueId>> {
    let op = &graph.node(id).op;
    graph.node_inputs(id).into_iter().enumerate().map(move |(slot, v)| v.filter(|_| !is_shape_only(op, slot)))
}

/// What the outputs need, in topological order.
fn needed(graph: &Graph) -> Vec<NodeId> {
    let mut found: BTreeSet<NodeId> = BTreeSet::new();
    let mut open: Vec<NodeId> = graph.outputs().iter().map(|v| v.node).collect();
    while let Some(id) = open.pop() {
        if found.insert(id) {
            open.extend(data_reads(graph, id).flatten().map(|v| v.node));
        }
    }
    graph.topological().into_iter().filter(|id| found.contains(id)).collect()
}

//! A program: the steps that a graph compiles to, and running them.

use super::buffer::Buffer;
use super::kernel::{Arg, Kernel};
use basisopt_kernels::{Add, Conv, Element, Epilogue, LANES};
use std::sync::Arc;

/// A named tensor that goes in or comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name of the value in the graph.
    pub name: String,
    /// Shape, for a batch of one.
    pub shape: Vec<usize>,
}

impl Port {
    /// Number of elements, for a batch of one.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where a value is when the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Not there: an optional input.
    Absent,
    /// An input, with lanes.
    Input(usize),
    /// A buffer of the workspace, with lanes.
    Lane(usize),
    /// The same for every image, known before images are looked at.
    Shared(usize),
    /// A sum over images, or what is computed from such sums.
    Late(usize),
}

/// A place and how many elements of it are the value's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand {
    pub place: Place,
    pub len: usize,
}

impl Operand {
    pub const ABSENT: Self = Self { place: Place::Absent, len: 0 };
}

/// Which of the three products a convolution step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Product {
    /// Reads x, w.
    Forward,
    /// Reads dy, w.
    InputGrad,
}

/// What is done to the result of a convolution while it is in registers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fused {
    /// The tensor to add is what the output buffer holds.
    pub add_output: bool,
    pub clamp: Option<(f64, f64)>,
    pub mask: Option<(f64, f64)>,
}

#[derive(Debug)]
pub(super) enum StepKind<T> {
    /// Reads x (or dy), w, bias, the tensor to add, the mask.
    Conv { conv: Arc<Conv>, product: Product, fused: Fused },
    /// Reads dy, x; adds to a sum.
    WeightGrad { conv: Arc<Conv> },
    /// Adds a value's lanes to a sum.
    LaneSum,
    /// Anything else.
    Kernel(Box<dyn Kernel<T>>),
}

#[derive(Debug)]
pub(super) struct Step<T> {
    pub kind: StepKind<T>,
    pub reads: Vec<Operand>,
    pub writes: Vec<Operand>,
}

/// A graph made ready to run on [`LANES`] images at a time.
#[derive(Debug)]
pub struct Program<T> {
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<(Port, Operand)>,
    pub(super) parameters: Vec<Port>,
    /// Initial values of shared places: parameters first.
    pub(super) shared: Vec<Vec<T>>,
    /// Elements of late places.
    pub(super) late: Vec<usize>,
    /// Which late places are summed over images.
    pub(super) sums: Vec<usize>,
    /// Elements of the workspace's buffers, without lanes.
    pub(super) buffers: Vec<usize>,
    /// Once before images are looked at.
    pub(super) before: Vec<Step<T>>,
    /// For every [`LANES`] images.
    pub(super) body: Vec<Step<T>>,
    /// Once after all images.
    pub(super) after: Vec<Step<T>>,
}

/// What is the same for all images: parameters, constants, and what is computed from them.
#[derive(Clone, Debug)]
pub struct Shared<T> {
    values: Vec<Vec<T>>,
    n_parameters: usize,
}

impl<T> Shared<T> {
    /// The values of the parameters, in the order of [`Program::parameters`].
    pub fn parameters(&self) -> &[Vec<T>] {
        self.values.get(..self.n_parameters).unwrap_or_default()
    }

    /// All values: parameters, constants, and what is computed from them.
    pub(crate) fn values(&self) -> impl Iterator<Item = &[T]> {
        self.values.iter().map(Vec::as_slice)
    }

    /// The values of the parameters, to be changed; [`Program::prepare`] makes the rest follow.
    pub fn parameters_mut(&mut self) -> &mut [Vec<T>] {
        self.values.get_mut(..self.n_parameters).unwrap_or_default()
    }
}

/// Buffers for one thread.
#[derive(Debug)]
pub struct Workspace<T> {
    buffers: Vec<Buffer<T>>,
}

/// Sums over images, and what is computed from them: gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Sums<T> {
    values: Vec<Vec<T>>,
}

impl<T: Element> Program<T> {
    /// What a run takes, in the order of the graph's inputs.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// What a run gives, in the order of the graph's outputs.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = &Port> {
        self.outputs.iter().map(|(port, _)| port)
    }

    /// The constants that may be changed between runs, in the order asked for.
    pub fn parameters(&self) -> &[Port] {
        &self.parameters
    }

    /// Bytes of one [`Workspace`]; there is one for each thread.
    pub fn workspace_bytes(&self) -> usize {
        self.buffers.iter().sum::<usize>() * LANES * size_of::<T>()
    }

    /// Bytes of one [`Sums`].
    pub fn sums_bytes(&self) -> usize {
        self.late.iter().sum::<usize>() * size_of::<T>()
    }

    /// The parameters as the graph has them.
    pub fn shared(&self) -> Shared<T> {
        let mut shared = Shared { values: self.shared.clone(), n_parameters: self.parameters.len() };
        self.prepare(&mut shared);
        shared
    }

    /// Computes what depends on parameters only. To be called when they have changed.
    pub fn prepare(&self, shared: &mut Shared<T>) {
        for step in &self.before {
            self.run_flat(step, &mut shared.values, &mut []);
        }
    }

    /// Buffers to run in.
    pub fn workspace(&self) -> Workspace<T> {
        Workspace { buffers: self.buffers.iter().map(|&n| Buffer::zeros(n * LANES)).collect() }
    }

    /// Sums over no images yet.
    pub fn sums(&self) -> Sums<T> {
        Sums { values: self.late.iter().map(|&n| vec![T::ZERO; n]).collect() }
    }

    /// Runs [`LANES`] images. Inputs are lane tensors; outputs that differ from image to image are then in the
    /// workspace ([`Program::output`]), sums are added to.
    pub fn run(&self, inputs: &[&[T]], shared: &Shared<T>, workspace: &mut Workspace<T>, sums: &mut Sums<T>) {
        for step in &self.body {
            self.run_lanes(step, inputs, shared, workspace, sums);
        }
    }

    /// Output i of the last run, if it differs from image to image: a lane tensor.
    pub fn output<'w>(&self, i: usize, workspace: &'w Workspace<T>) -> Option<&'w [T]> {
        let (_, operand) = self.outputs.get(i)?;
        let Place::Lane(b) = operand.place else { return None };
        workspace.buffers.get(b)?.as_slice().get(..operand.len * LANES)
    }

    /// Adds sums over other images.
    pub fn merge(&self, into: &mut Sums<T>, from: &Sums<T>) {
        for &s in &self.sums {
            if let (Some(into), Some(from)) = (into.values.get_mut(s), from.values.get(s)) {
                into.iter_mut().zip(from).for_each(|(a, &b)| *a += b);
            }
        }
    }

    /// Computes what depends on complete sums.
    pub fn finish(&self, sums: &mut Sums<T>, shared: &mut Shared<T>) {
        for step in &self.after {
            self.run_flat(step, &mut shared.values, &mut sums.values);
        }
    }

    /// Output i, if it is a sum over images or computed from such sums.
    pub fn total<'s>(&self, i: usize, sums: &'s Sums<T>) -> Option<&'s [T]> {
        let (_, operand) = self.outputs.get(i)?;
        let Place::Late(l) = operand.place else { return None };
        sums.values.get(l).map(Vec::as_slice)
    }

    /// Sets sums back to none.
    pub fn clear(&self, sums: &mut Sums<T>) {
        sums.values.iter_mut().for_each(|v| v.fill(T::ZERO));
    }

    fn run_lanes(
        &self,
        step: &Step<T>,
        inputs: &[&[T]],
        shared: &Shared<T>,
        workspace: &mut Workspace<T>,
        sums: &mut Sums<T>,
    ) {
        // What is written is taken out, so that the rest can be read.
        let mut outs: Vec<Buffer<T>> = Vec::with_capacity(step.writes.len());
        for write in &step.writes {
            outs.push(match write.place {
                Place::Lane(b) => workspace.buffers.get_mut(b).map(std::mem::take).unwrap_or_default(),
                _ => Buffer::default(),
            });
        }
        let buffers = &workspace.buffers;
        let slice = |o: &Operand| -> &[T] {
            let (data, len): (&[T], usize) = match o.place {
                Place::Absent | Place::Late(_) => (&[], 0),
                Place::Input(i) => (inputs.get(i).copied().unwrap_or_default(), o.len * LANES),
                Place::Lane(b) => (buffers.get(b).map_or(&[][..], Buffer::as_slice), o.len * LANES),
                Place::Shared(s) => (shared.values.get(s).map_or(&[][..], Vec::as_slice), o.len),
            };
            data.get(..len).unwrap_or_default()
        };
        match &step.kind {
            StepKind::Conv { conv, product, fused } => {
                let [x, w, bias, add, mask] = &step.reads[..] else { return };
                let present = |o: &Operand| o.place != Place::Absent;
                let bound = |v: f64| T::from_f64(v);
                let epilogue = Epilogue {
                    bias: present(bias).then(|| slice(bias)),
                    add: match (fused.add_output, present(add)) {
                        (true, _) => Add::Output,
                        (_, true) => Add::Tensor(slice(add)),
                        _ => Add::None,
                    },
                    clamp: fused.clamp.map(|(a, b)| (bound(a), bound(b))),
                    mask: fused.mask.map(|(a, b)| (slice(mask), bound(a), bound(b))),
                };
                if let Some(out) = outs.first_mut() {
                    match product {
                        Product::Forward => conv.forward(slice(x), slice(w), out.as_mut_slice(), &epilogue),
                        Product::InputGrad => {
                            conv.input_grad(slice(x), slice(w), out.as_mut_slice(), &epilogue);
                        }
                    }
                }
            }
            StepKind::WeightGrad { conv } => {
                if let ([dy, x], Some(dw)) = (&step.reads[..], late(step, sums)) {
                    conv.weight_grad(slice(dy), slice(x), dw);
                }
            }
            StepKind::LaneSum => {
                if let ([x], Some(sum)) = (&step.reads[..], late(step, sums)) {
                    for (sum, lanes) in sum.iter_mut().zip(slice(x).chunks_exact(LANES)) {
                        *sum += pairwise(lanes);
                    }
                }
            }
            StepKind::Kernel(kernel) => {
                let args: Vec<Arg<'_, T>> = step
                    .reads
                    .iter()
                    .map(|o| Arg {
                        data: slice(o),
                        batched: matches!(o.place, Place::Input(_) | Place::Lane(_)),
                    })
                    .collect();
                let mut slices: Vec<&mut [T]> = outs
                    .iter_mut()
                    .zip(&step.writes)
                    .map(|(b, w)| b.as_mut_slice().get_mut(..w.len * LANES).unwrap_or_default())
                    .collect();
                kernel.run(&args, &mut slices, LANES);
            }
        }
        for (write, out) in step.writes.iter().zip(outs) {
            if let Place::Lane(b) = write.place
                && let Some(buffer) = workspace.buffers.get_mut(b)
            {
                *buffer = out;
            }
        }
    }

    /// Runs a step on values without lanes.
    fn run_flat(&self, step: &Step<T>, shared: &mut [Vec<T>], late: &mut [Vec<T>]) {
        let StepKind::Kernel(kernel) = &step.kind else { return };
        let mut outs: Vec<Vec<T>> = Vec::with_capacity(step.writes.len());
        for write in &step.writes {
            let values = match write.place {
                Place::Shared(s) => shared.get_mut(s),
                Place::Late(l) => late.get_mut(l),
                _ => None,
            };
            outs.push(values.map_or_else(|| vec![T::ZERO; write.len], std::mem::take));
        }
        let args: Vec<Arg<'_, T>> = step
            .reads
            .iter()
            .map(|o| {
                let values = match o.place {
                    Place::Shared(s) => shared.get(s),
                    Place::Late(l) => late.get(l),
                    _ => None,
                };
                Arg { data: values.map_or(&[][..], Vec::as_slice), batched: false }
            })
            .collect();
        let mut slices: Vec<&mut [T]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
        kernel.run(&args, &mut slices, 1);
        for (write, out) in step.writes.iter().zip(outs) {
            let values = match write.place {
                Place::Shared(s) => shared.get_mut(s),
                Place::Late(l) => late.get_mut(l),
                _ => None,
            };
            if let Some(values) = values {
                *values = out;
            }
        }
    }
}

/// The sum that a step adds to.
fn late<'s, T>(step: &Step<T>, sums: &'s mut Sums<T>) -> Option<&'s mut [T]> {
    let Place::Late(l) = step.writes.first()?.place else { return None };
    sums.values.get_mut(l).map(Vec::as_mut_slice)
}

/// Pairwise, so that rounding does not grow with the number of lanes.
fn pairwise<T: Element>(lanes: &[T]) -> T {
    match lanes {
        [] => T::ZERO,
        [one] => *one,
        _ => {
            let (a, b) = lanes.split_at(lanes.len() / 2);
            pairwise(a) + pairwise(b)
        }
    }
}

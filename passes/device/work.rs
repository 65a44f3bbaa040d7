//! What a node of a network asks of a device, as far as its time depends on it.

use serde::{Deserialize, Serialize};

/// A node, or a pair of factors that runs as one operator. Sizes are per image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Work {
    /// A convolution in one group, with bias and ReLU.
    Conv {
        /// Kernel size; a 1-D convolution has height 1.
        kernel: [usize; 2],
        /// Strides.
        strides: [usize; 2],
        /// Input channels.
        n_in: usize,
        /// Output channels.
        n_out: usize,
        /// Output size.
        output: [usize; 2],
    },
    /// A basis convolution and its 1×1 convolution as one operator.
    Pair {
        /// Kernel size of the basis.
        kernel: [usize; 2],
        /// Strides.
        strides: [usize; 2],
        /// Input channels.
        n_in: usize,
        /// Basis filters.
        rank: usize,
        /// Output channels.
        n_out: usize,
        /// Output size.
        output: [usize; 2],
    },
    /// A convolution with a filter per channel.
    Depthwise {
        /// Kernel size.
        kernel: [usize; 2],
        /// Strides.
        strides: [usize; 2],
        /// Channels.
        n_channels: usize,
        /// Output size.
        output: [usize; 2],
    },
    /// A matrix that is multiplied with so many vectors.
    Linear {
        /// Input features.
        n_in: usize,
        /// Output features.
        n_out: usize,
        /// Vectors.
        n_rows: usize,
    },
    /// The largest or the mean of a window.
    Pool {
        /// Window.
        kernel: [usize; 2],
        /// Strides.
        strides: [usize; 2],
        /// Channels.
        n_channels: usize,
        /// Output size.
        output: [usize; 2],
    },
    /// Simple arithmetic on every element: an addition, a ReLU by itself.
    Map {
        /// Elements of the output.
        n_elements: usize,
        /// Tensors that are read.
        n_operands: usize,
    },
    /// A factor and a summand for every channel: a normalisation that no layer takes in.
    Scale {
        /// Channels.
        n_channels: usize,
        /// Image size.
        output: [usize; 2],
    },
    /// An exponential of every element: Sigmoid, Tanh, Softmax.
    Exp {
        /// Elements of the output.
        n_elements: usize,
    },
    /// A local response normalisation, over neighbouring channels.
    Lrn {
        /// Channels.
        n_channels: usize,
        /// Channels that are added up.
        size: usize,
        /// Image size.
        output: [usize; 2],
    },
    /// Elements that move: Concat, Transpose, Pad.
    Copy {
        /// Elements of the output.
        n_elements: usize,
    },
}

/// Kinds of work that are fitted by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    Conv,
    Pointwise,
    Pair,
    Depthwise,
    Linear,
    Pool,
    Map,
    Scale,
    Exp,
    Lrn,
    Copy,
}

impl Family {
    /// As people would say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Conv => "convolutions",
            Self::Pointwise => "1×1 convolutions",
            Self::Pair => "factorised pairs",
            Self::Depthwise => "depthwise convolutions",
            Self::Linear => "linear layers",
            Self::Pool => "pooling",
            Self::Map => "arithmetic",
            Self::Scale => "channel-wise arithmetic",
            Self::Exp => "exponentials",
            Self::Lrn => "response normalisations",
            Self::Copy => "copies",
        }
    }
}

impl Work {
    pub(crate) fn family(&self) -> Family {
        match self {
            Self::Conv { kernel: [1, 1], .. } => Family::Pointwise,
            Self::Conv { .. } => Family::Conv,
            Self::Pair { .. } => Family::Pair,
            Self::Depthwise { .. } => Family::Depthwise,
            Self::Linear { .. } => Family::Linear,
            Self::Pool { .. } => Family::Pool,
            Self::Map { .. } => Family::Map,
            Self::Scale { .. } => Family::Scale,
            Self::Exp { .. } => Family::Exp,
            Self::Lrn { .. } => Family::Lrn,
            Self::Copy { .. } => Family::Copy,
        }
    }

    /// Multiply-adds.
    pub fn macs(&self) -> u64 {
        let product = |sizes: &[usize]| sizes.iter().fold(1u64, |n, &s| n.saturating_mul(s as u64));
        match *self {
            Self::Conv { kernel: [kh, kw], n_in, n_out, output: [h, w], .. } => {
                product(&[kh, kw, n_in, n_out, h, w])
            }
            Self::Pair { kernel: [kh, kw], n_in, rank, n_out, output: [h, w], .. } => {
                product(&[kh, kw, n_in, rank, h, w]).saturating_add(product(&[rank, n_out, h, w]))
            }
            Self::Depthwise { kernel: [kh, kw], n_channels, output: [h, w], .. }
            | Self::Pool { kernel: [kh, kw], n_channels, output: [h, w], .. } => {
                product(&[kh, kw, n_channels, h, w])
            }
            Self::Lrn { n_channels, size, output: [h, w] } => product(&[n_channels, size, h, w]),
            Self::Scale { n_channels, output: [h, w] } => product(&[n_channels, h, w]),
            Self::Linear { n_in, n_out, n_rows } => product(&[n_in, n_out, n_rows]),
            Self::Map { n_elements, n_operands } => product(&[n_elements, n_operands]),
            Self::Exp { n_elements } | Self::Copy { n_elements } => n_elements as u64,
        }
    }

    /// Whether all sizes are such as layers have: none is 0, none so large that counting overflows.
    pub(crate) fn is_sound(&self) -> bool {
        const LARGEST: usize = 1 << 24;
        let sizes: Vec<usize> = match *self {
            Self::Conv { kernel: [a, b], strides: [c, d], n_in, n_out, output: [e, f] } => {
                vec![a, b, c, d, n_in, n_out, e, f]
            }
            Self::Pair { kernel: [a, b], strides: [c, d], n_in, rank, n_out, output: [e, f] } => {
                vec![a, b, c, d, n_in, rank, n_out, e, f]
            }
            Self::Depthwise { kernel: [a, b], strides: [c, d], n_channels, output: [e, f] }
            | Self::Pool { kernel: [a, b], strides: [c, d], n_channels, output: [e, f] } => {
                vec![a, b, c, d, n_channels, e, f]
            }
            Self::Linear { n_in, n_out, n_rows } => vec![n_in, n_out, n_rows],
            Self::Lrn { n_channels, size, output: [e, f] } => vec![n_channels, size, e, f],
            Self::Scale { n_channels, output: [e, f] } => vec![n_channels, e, f],
            // Elements are a product already.
            Self::Map { n_elements, n_operands } => {
                return (1..1 << 40).contains(&n_elements) && (1..=LARGEST).contains(&n_operands);
            }
            Self::Exp { n_elements } | Self::Copy { n_elements } => {
                return (1..1 << 40).contains(&n_elements);
            }
        };
        sizes.iter().all(|size| (1..=LARGEST).contains(size)) && self.macs() < 1 << 50
    }
}

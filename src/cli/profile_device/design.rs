//! What a profile measures, and in which order.
//!
//! Sizes are spread evenly over what networks have, on a logarithmic scale, by an additive recurrence (Roberts' R
//! sequence: multiples of the powers of a generalised golden ratio, modulo 1). Any beginning of it covers the whole
//! range, so a profile that was broken off is coarser, and not one-sided.

use basisopt_passes::device::Work;

/// Multiply-adds of what is measured, at most: a large layer's time follows from smaller ones.
const MOST_MACS: u64 = 1_000_000_000;
/// Elements of a weight, at most.
const MOST_WEIGHTS: usize = 5_000_000;
/// Filters of the longest staircase.
const STAIRS: usize = 48;

/// What every batch measures as well, so that a device that slows down is seen: something for the arithmetic, something
/// for the memory.
pub(super) fn references(pairs: bool) -> Vec<Work> {
    let (kernel, strides, n_in, n_out, output) = ([3, 3], [1, 1], 64, 64, [28, 28]);
    vec![
        Work::Conv { kernel, strides, n_in, n_out, output },
        match pairs {
            true => Work::Pair { kernel, strides, n_in, rank: 24, n_out, output },
            false => Work::Conv { kernel: [1, 1], strides, n_in, n_out, output },
        },
        Work::Depthwise { kernel, strides, n_channels: n_in, output },
        Work::Linear { n_in: 1024, n_out: 256, n_rows: 1 },
    ]
}

/// Whose turn it is, over and over: what matters most is measured most. The rest follows whole convolutions, as in
/// networks: some kernels leave the processor in a state in which scalar code is several times slower.
const TURNS: [Turn; 20] = {
    use Turn::{Conv, Depthwise, Linear, Pair, Pointwise, Rest, Stair};
    [
        Conv, Pair, Stair, Conv, Pointwise, Pair, Conv, Rest, Pair, Stair, Depthwise, Conv, Pair, Linear,
        Pointwise, Stair, Depthwise, Pair, Conv, Rest,
    ]
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Conv,
    Pair,
    Pointwise,
    Depthwise,
    Linear,
    Rest,
    Stair,
}

/// The work to measure at this place of the order. Without `pairs` none are pairs.
pub(super) fn work(i: usize, pairs: bool) -> Work {
    let (round, place) = (i / TURNS.len(), i % TURNS.len());
    let mut turn = TURNS[place];
    // How many of the same turn came before.
    let count = |until: usize| TURNS[..until].iter().filter(|t| **t == turn).count();
    let i = round * count(TURNS.len()) + count(place);
    let n_stairs = if pairs { 2 * STAIRS } else { STAIRS };
    if turn == Turn::Stair && i < n_stairs {
        return stair(i, pairs);
    }
    if turn == Turn::Stair || turn == Turn::Pair && !pairs {
        turn = Turn::Conv;
    }
    // A sequence of its own each.
    let mut at = Point { i: i + 1000 * place, axis: 0 };
    match turn {
        Turn::Conv | Turn::Stair => conv(&mut at),
        Turn::Pair => pair(&mut at),
        Turn::Pointwise => pointwise(&mut at),
        Turn::Depthwise => depthwise(&mut at),
        Turn::Linear => linear(&mut at),
        Turn::Rest => rest(i, &mut at),
    }
}

/// One layer with 1, 2, 3 … filters, and a pair of it: what tiles of kernels make of them is a staircase. The steps are
/// measured in an order that spreads them.
fn stair(i: usize, pairs: bool) -> Work {
    let (step, is_pair) = if pairs { (i / 2, i % 2 == 1) } else { (i, false) };
    // 29 and 48 have no common factor.
    let n = (step * 29) % STAIRS + 1;
    let (kernel, strides, n_in, output) = ([3, 3], [1, 1], 64, [14, 14]);
    match is_pair {
        true => Work::Pair { kernel, strides, n_in, rank: n, n_out: 64, output },
        false => Work::Conv { kernel, strides, n_in, n_out: n, output },
    }
}

/// A point of the sequence, whose coordinates are taken one after another.
struct Point {
    i: usize,
    axis: i32,
}

impl Point {
    /// The next coordinate, in 0…1.
    fn next(&mut self) -> f64 {
        /// The root of x⁹ = x + 1: eight coordinates.
        const RATIO: f64 = 1.085_070_245_491_450_8;
        self.axis += 1;
        (0.5 + (self.i + 1) as f64 * RATIO.powi(-self.axis)).fract()
    }

    fn below(&mut self, n: usize) -> usize {
        ((self.next() * n as f64) as usize).min(n - 1)
    }

    /// A size in this range, evenly on a logarithmic scale.
    fn size(&mut self, from: usize, to: usize) -> usize {
        let (from, to) = (from as f64, to as f64);
        (from * (to / from).powf(self.next())).round() as usize
    }

    /// Channels: as networks have them, mostly multiples of 8 where there are many.
    fn channels(&mut self, from: usize, to: usize) -> usize {
        let n = self.size(from, to);
        if n > 24 && !n.is_multiple_of(3) { n.next_multiple_of(8) } else { n }
    }
}

/// Kernel and strides, and whether it is a signal and no image.
fn window(at: &mut Point) -> ([usize; 2], [usize; 2], bool) {
    const KERNELS: [[usize; 2]; 20] = [
        [3, 3],
        [3, 3],
        [3, 3],
        [3, 3],
        [3, 3],
        [3, 3],
        [3, 3],
        [3, 3],
        [3, 3],
        [3, 3],
        [3, 3],
        [3, 3],
        [5, 5],
        [5, 5],
        [7, 7],
        [2, 2],
        [1, 3],
        [3, 1],
        [1, 7],
        [1, 5],
    ];
    let kind = at.below(24);
    let kernel = KERNELS.get(kind).copied().unwrap_or([3, 3]);
    // Of the last, the plain 3×3 ones, all have strides; of the signals every one is of height 1.
    let strides = if kind >= KERNELS.len() || kernel[1] == 7 { [2, 2] } else { [1, 1] };
    let is_signal = kernel == [1, 5];
    (kernel, if kernel[0] == 1 { [1, strides[1]] } else { strides }, is_signal)
}

/// Output sizes that keep the work within bounds, `per_position` being multiply-adds.
fn output(at: &mut Point, per_position: usize, is_signal: bool) -> [usize; 2] {
    let most = (MOST_MACS / per_position.max(1) as u64) as usize;
    if is_signal {
        return [1, at.size(16, 4096).min(most.max(16))];
    }
    let side = at.size(4, 160).min((most as f64).sqrt() as usize).max(4);
    [side, side]
}

fn conv(at: &mut Point) -> Work {
    let (kernel, strides, is_signal) = window(at);
    let n_in = if at.below(12) == 0 { 3 } else { at.channels(8, 768) };
    let area = kernel[0] * kernel[1];
    let n_out = at.channels(8, 768).min(MOST_WEIGHTS / (area * n_in));
    Work::Conv { kernel, strides, n_in, n_out, output: output(at, area * n_in * n_out, is_signal) }
}

fn pair(at: &mut Point) -> Work {
    let (kernel, strides, is_signal) = match at.below(8) {
        0 => ([1, 1], [1, 1], false),
        _ => window(at),
    };
    let n_in = if at.below(12) == 0 { 3 } else { at.channels(8, 768) };
    let n_out = at.channels(8, 768);
    let area = kernel[0] * kernel[1];
    let full = n_out.min(area * n_in);
    let rank = at.size(2, (full * 4 / 5).max(2)).min(MOST_WEIGHTS / (area * n_in));
    let output = output(at, area * n_in * rank + rank * n_out, is_signal);
    Work::Pair { kernel, strides, n_in, rank, n_out, output }
}

fn pointwise(at: &mut Point) -> Work {
    let strides = if at.below(8) == 0 { [2, 2] } else { [1, 1] };
    let (n_in, n_out) = (at.channels(8, 1280), at.channels(8, 1280));
    Work::Conv { kernel: [1, 1], strides, n_in, n_out, output: output(at, n_in * n_out, false) }
}

fn depthwise(at: &mut Point) -> Work {
    let kernel = if at.below(4) == 0 { [5, 5] } else { [3, 3] };
    let strides = if at.below(4) == 0 { [2, 2] } else { [1, 1] };
    let n_channels = at.channels(8, 960);
    // Memory, not multiply-adds, bounds what has no channels to add over.
    Work::Depthwise { kernel, strides, n_channels, output: output(at, 400 * n_channels, false) }
}

fn pool(at: &mut Point) -> Work {
    let kernel = if at.below(2) == 0 { [2, 2] } else { [3, 3] };
    let strides = if at.below(4) == 0 { [1, 1] } else { [2, 2] };
    let n_channels = at.channels(8, 768);
    Work::Pool { kernel, strides, n_channels, output: output(at, 400 * n_channels, false) }
}

/// Mostly one vector, sometimes many of them.
fn linear(at: &mut Point) -> Work {
    let n_rows = if at.below(3) == 0 { at.size(8, 512) } else { 1 };
    let (n_in, n_out) = (at.size(16, 4096), at.size(10, 1024));
    Work::Linear { n_in, n_out, n_rows: n_rows.min((MOST_MACS as usize / (n_in * n_out)).max(1)) }
}

fn rest(i: usize, at: &mut Point) -> Work {
    let n_elements = at.size(100, 2_000_000);
    let n_channels = at.channels(16, 512);
    let image = output(at, 4000 * n_channels, false);
    match i % 6 {
        0 => pool(at),
        1 => Work::Map { n_elements, n_operands: 1 + at.below(2) },
        2 => Work::Copy { n_elements },
        3 => Work::Scale { n_channels, output: image },
        4 => Work::Exp { n_elements: n_elements.min(300_000) },
        _ => Work::Lrn { n_channels, size: 3 + 2 * at.below(3), output: image },
    }
}

/// A small network, the `i`-th: what layers take among others.
pub(super) fn chain(i: usize, pairs: bool) -> Vec<Work> {
    let mut at = Point { i, axis: 0 };
    let n_layers = 4 + at.below(8);
    let kind = at.below(3);
    let (mut n_in, mut n_out) = (3, at.channels(8, 64));
    let mut side = at.size(24, 128);
    let mut works = Vec::new();
    for layer in 0..n_layers {
        // Half the size and twice the channels every third layer, as networks go.
        let strides = if layer > 0 && layer % 3 == 0 && side >= 8 { [2, 2] } else { [1, 1] };
        if strides == [2, 2] {
            side = side.div_ceil(2);
            n_out = (2 * n_out).min(512);
        }
        let (kernel, output) = ([3, 3], [side, side]);
        match kind {
            0 if layer > 0 => {
                works.push(Work::Depthwise { kernel, strides, n_channels: n_in, output });
                works.push(Work::Conv { kernel: [1, 1], strides: [1, 1], n_in, n_out, output });
            }
            1 if layer > 0 && pairs => {
                works.push(Work::Pair { kernel, strides, n_in, rank: n_out.div_ceil(3), n_out, output });
            }
            _ => works.push(Work::Conv { kernel, strides, n_in, n_out, output }),
        }
        n_in = n_out;
    }
    works
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// In whatever part of the whole, there are enough of each kind to predict from.
    #[test]
    fn every_kind_and_every_stair_is_measured() {
        type Kind = fn(&Work) -> bool;
        let kinds: [(Kind, usize); 9] = [
            (|w| matches!(w, Work::Conv { kernel: [1, 1], .. }), 20),
            (|w| matches!(w, Work::Conv { .. }), 60),
            (|w| matches!(w, Work::Depthwise { .. }), 20),
            (|w| matches!(w, Work::Linear { .. }), 10),
            (|w| matches!(w, Work::Pool { .. }), 4),
            (|w| matches!(w, Work::Map { .. }), 4),
            (|w| matches!(w, Work::Exp { .. }), 4),
            (|w| matches!(w, Work::Scale { .. }), 4),
            (|w| matches!(w, Work::Copy { .. }), 4),
        ];
        for pairs in [true, false] {
            let works: Vec<Work> = (0..240).map(|i| work(i, pairs)).collect();
            for (i, (is, least)) in kinds.iter().enumerate() {
                let n = works.iter().filter(|w| is(w)).count();
                assert!(n >= *least, "kind {i}: {n}");
            }
            let n_pairs = works.iter().filter(|w| matches!(w, Work::Pair { .. })).count();
            assert_eq!(n_pairs > 70, pairs);
        }
        let stairs = |pairs: bool| {
            let ranks = (0..720).filter_map(|i| match work(i, pairs) {
                Work::Pair { kernel: [3, 3], n_in: 64, n_out: 64, output: [14, 14], rank, .. } => Some(rank),
                Work::Conv { kernel: [3, 3], n_in: 64, output: [14, 14], n_out, .. } if !pairs => Some(n_out),
                _ => None,
            });
            ranks.collect::<BTreeSet<usize>>()
        };
        assert!((1..=STAIRS).all(|n| stairs(true).contains(&n) && stairs(false).contains(&n)));
    }

    #[test]
    fn nothing_is_empty_or_takes_for_ever() {
        for work in (0..3000).map(|i| work(i, true)) {
            assert!((1..=2 * MOST_MACS).contains(&work.macs()), "{work:?}");
            if let Work::Pair { kernel: [kh, kw], n_in, rank, n_out, .. } = work {
                assert!((1..=n_out.min(kh * kw * n_in)).contains(&rank), "{work:?}");
            }
        }
    }
}

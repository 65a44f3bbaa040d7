//! Images to learn from, changed a little each time they are seen, in the layout that kernels take.

use basisopt_kernels::LANES;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// How the elements of one image lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// Channels.
    pub n_channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Whether the channels of a pixel lie side by side.
    pub channels_last: bool,
}

impl ImageShape {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.n_channels * self.height * self.width
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn at(&self, c: usize, y: usize, x: usize) -> usize {
        match self.channels_last {
            true => (y * self.width + x) * self.n_channels + c,
            false => (c * self.height + y) * self.width + x,
        }
    }
}

/// Images that can be read in any order, by any thread.
pub trait Examples: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How each of them lies.
    fn shape(&self) -> ImageShape;

    /// Reads one as the network takes it.
    ///
    /// # Errors
    /// In words, where it cannot be read.
    fn read(&self, index: usize, into: &mut [f32]) -> Result<(), String>;

    /// Its class, if it has a label.
    fn label(&self, index: usize) -> Option<usize>;

    /// What a black pixel is to the network, by channel: what a shifted image is filled up with.
    fn blank(&self) -> Vec<f32>;

    /// What the network is to give for it, where that is known beforehand.
    fn target(&self, _index: usize) -> Option<&[f32]> {
        None
    }
}

/// Random changes that leave the class of an image as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Augmentation {
    /// Shifts by up to this many pixels along each axis: a random crop of the padded image.
    pub shift: usize,
    /// Mirrors every other image.
    pub flip: bool,
}

/// Images for one run of a program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// The images as a lane tensor.
    pub images: Vec<f32>,
    /// Labels of the first lanes; the other lanes repeat the last image, and count for nothing but in the statistics of
    /// batch normalisation.
    pub labels: Vec<Option<usize>>,
    /// What the network is to give, as a lane tensor, where the examples know it.
    pub targets: Vec<f32>,
}

/// A number that depends on all of its parts and looks random (SplitMix64).
pub(crate) fn mix(parts: &[u64]) -> u64 {
    parts.iter().fold(0x9E37_79B9_7F4A_7C15, |state, &part| {
        let mut z = (state ^ part).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// Indices of so many images from all over a set, at most: sets are often sorted by class.
pub fn spread(examples: &dyn Examples, n_images: usize) -> Vec<usize> {
    let mut indices = order(examples.len(), 0, 0);
    indices.truncate(n_images);
    indices
}

/// The order in which images are seen in an epoch.
pub(crate) fn order(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(mix(&[seed, epoch, 1]));
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.random_range(0..=i));
    }
    order
}

impl Chunk {
    /// Reads these images. Each is changed at random by the seed and its own index, whatever else is read.
    ///
    /// # Errors
    /// As [`Examples::read`].
    pub fn read(
        examples: &dyn Examples,
        indices: &[usize],
        augmentation: Augmentation,
        seed: u64,
    ) -> Result<Self, String> {
        let shape = examples.shape();
        let blank = examples.blank();
        let mut images = vec![0.0f32; shape.len() * LANES];
        let mut image = vec![0.0f32; shape.len()];
        for (lane, &index) in indices.iter().take(LANES).enumerate() {
            examples.read(index, &mut image)?;
            let mut rng = ChaCha8Rng::seed_from_u64(mix(&[seed, index as u64]));
            let range = 0..=augmentation.shift.saturating_mul(2);
            let (dy, dx) = (rng.random_range(range.clone()), rng.random_range(range));
            let mirror = rng.random::<bool>() && augmentation.flip;
            for c in 0..shape.n_channels {
                let blank = blank.get(c).copied().unwrap_or(0.0);
                for y in 0..shape.height {
                    for x in 0..shape.width {
                        let column = if mirror { shape.width - 1 - x } else { x };
                        let from_y = (y + dy).checked_sub(augmentation.shift).filter(|&y| y < shape.height);
                        let from_x =
                            (column + dx).checked_sub(augmentation.shift).filter(|&x| x < shape.width);
                        let value = match (from_y, from_x) {
                            (Some(y), Some(x)) => image.get(shape.at(c, y, x)).copied().unwrap_or(blank),
                            _ => blank,
                        };
                        if let Some(slot) = images.get_mut(shape.at(c, y, x) * LANES + lane) {
                            *slot = value;
                        }
                    }
                }
            }
        }
        // Lanes without an image run on a copy of one: on numbers that the network is made for.
        let n = indices.len().min(LANES);
        repeat_last(&mut images, n);
        let indices = || indices.iter().take(LANES).copied();
        let labels = indices().map(|i| examples.label(i)).collect();
        let mut targets = Vec::new();
        for (lane, target) in indices().map(|i| examples.target(i)).enumerate() {
            let Some(target) = target else { break };
            targets.resize(target.len() * LANES, 0.0);
            for (slot, &value) in targets.iter_mut().skip(lane).step_by(LANES).zip(target) {
                *slot = value;
            }
        }
        repeat_last(&mut targets, n);
        Ok(Self { images, labels, targets })
    }

    /// Reads some images from all over a set ([`spread`]), as they are, in chunks.
    ///
    /// # Errors
    /// As [`Examples::read`].
    pub fn some(examples: &dyn Examples, n_images: usize) -> Result<Vec<Self>, String> {
        spread(examples, n_images)
            .chunks(LANES)
            .map(|c| Self::read(examples, c, Augmentation::default(), 0))
            .collect()
    }
}

/// Fills the lanes behind the first n with the last one of these.
fn repeat_last(values: &mut [f32], n: usize) {
    if n > 0 {
        for lanes in values.chunks_exact_mut(LANES) {
            let last = lanes[n - 1];
            lanes[n..].fill(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Image i is i·100 + position, in two channels of 3×4.
    struct Counting;

    impl Examples for Counting {
        fn len(&self) -> usize {
            40
        }
        fn shape(&self) -> ImageShape {
            ImageShape { n_channels: 2, height: 3, width: 4, channels_last: false }
        }
        fn read(&self, index: usize, into: &mut [f32]) -> Result<(), String> {
            for (i, v) in into.iter_mut().enumerate() {
                *v = (index * 100 + i) as f32;
            }
            Ok(())
        }
        fn label(&self, index: usize) -> Option<usize> {
            Some(index % 10)
        }
        fn blank(&self) -> Vec<f32> {
            vec![-1.0, -2.0]
        }
    }

    fn lane(chunk: &Chunk, lane: usize) -> Vec<f32> {
        chunk.images.chunks_exact(LANES).map(|l| l[lane]).collect()
    }

    #[test]
    fn lanes_hold_the_images_and_the_rest_repeats_the_last() {
        let chunk = Chunk::read(&Counting, &[7, 3], Augmentation::default(), 0).unwrap();
        let expected = |i: usize| (0..24).map(|p| (i * 100 + p) as f32).collect::<Vec<_>>();
        assert_eq!(lane(&chunk, 0), expected(7));
        assert_eq!(lane(&chunk, 1), expected(3));
        assert_eq!(lane(&chunk, 15), expected(3));
        assert_eq!(chunk.labels, [Some(7), Some(3)]);
    }

    /// Whatever the change, an image depends on the seed and its index only, holds no other image's pixels, and
    /// what came from outside is black.
    #[test]
    fn changes_depend_on_seed_and_index_only() {
        let changes = Augmentation { shift: 1, flip: true };
        let one = Chunk::read(&Counting, &[5, 9, 11], changes, 42).unwrap();
        let other = Chunk::read(&Counting, &[11, 5], changes, 42).unwrap();
        assert_eq!(lane(&one, 2), lane(&other, 0));
        assert_eq!(lane(&one, 0), lane(&other, 1));
        let many: Vec<Vec<f32>> =
            (0..200).map(|seed| lane(&Chunk::read(&Counting, &[0], changes, seed).unwrap(), 0)).collect();
        let distinct = many.iter().map(|v| format!("{v:?}")).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(distinct.len(), 18, "nine shifts, mirrored or not");
        for image in many {
            assert!(image[..12].iter().all(|&v| v == -1.0 || (0.0..12.0).contains(&v)));
            assert!(image[12..].iter().all(|&v| v == -2.0 || (12.0..24.0).contains(&v)));
        }
    }

    #[test]
    fn an_epoch_sees_every_image_once_in_an_order_of_its_own() {
        let (a, b) = (order(100, 1, 0), order(100, 1, 1));
        assert_ne!(a, b);
        assert_eq!(a, order(100, 1, 0));
        let mut sorted = b.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }
}

//! Devices that are somewhere else: what convolutions take there, from a profile that was measured there.
//!
//! A [`DeviceProfile`] is a list of pieces of [`Work`] with the time that each took, as `basisopt profile-device` writes
//! it. A [`DeviceModel`] predicts from it the time of any other work, and of a network as the sum over its nodes.

mod fit;
mod network;
mod work;

pub use network::works;
pub use work::Work;

use basisopt_ir::Graph;
use fit::Fit;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use work::Family;

/// The format of profiles that this version writes and reads.
pub const FORMAT: u32 = 1;
/// More samples than this no device is asked for.
const MOST_SAMPLES: usize = 20_000;
/// Bounds for what networks cost beyond their layers: whatever is outside was not measured right.
const IN_NETWORK: [f64; 2] = [0.3, 4.0];
/// Every one of so many samples is kept out in turn to see how far predictions are off.
const FOLDS: usize = 5;

/// Times that were measured on a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceProfile {
    /// [`FORMAT`].
    pub basisopt_device: u32,
    /// The processor, the engine, its threads, in words: profiles of the same words are of the same device.
    pub device: String,
    /// Whether factorised pairs run as one operator.
    pub fused: bool,
    /// What was measured of single layers.
    pub samples: Vec<Sample>,
    /// What was measured of small networks.
    pub chains: Vec<Chain>,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Of what.
    #[serde(flatten)]
    pub work: Work,
    /// What a network of it alone took, the median, in milliseconds.
    pub ms: f64,
    /// What some work took that is measured along with everything else, in milliseconds: a device that was slower
    /// meanwhile, being hot or busy, was slower for both.
    pub pace_ms: f64,
}

/// A small network: layers one after another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chain {
    /// The layers.
    pub works: Vec<Work>,
    /// As [`Sample::ms`].
    pub ms: f64,
    /// As [`Sample::pace_ms`].
    pub pace_ms: f64,
}

/// Why a profile is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// It is not a profile.
    #[error("not a device profile: {0}; `basisopt profile-device -o FILE` makes one")]
    Malformed(String),
    /// Another version of this program wrote it.
    #[error("a device profile of format {0}; this version reads format {FORMAT}: measure it again")]
    Format(u32),
    /// It lacks measurements that are needed.
    #[error(
        "the profile has too few measurements of {0}; run `basisopt profile-device` on the device again with more --samples, it goes on where it stopped"
    )]
    TooFew(&'static str),
    /// A network whose sizes are open.
    #[error(
        "the time of node {0:?} cannot be predicted: a size of it is not known; give open sizes with --dim NAME=N"
    )]
    OpenSize(String),
    /// An operator whose time its sizes do not tell.
    #[error("the time of node {node:?} cannot be predicted: {op_type} is nothing that a profile knows")]
    Unknown {
        /// Label of the node.
        node: String,
        /// Its operator.
        op_type: String,
    },
}

/// How far predictions are off for samples that they were not made from, as shares of the time measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KeptOut {
    /// What these are, in words.
    pub family: &'static str,
    /// Samples that were predicted; 0 if there were too few to predict any.
    pub n: usize,
    /// Mean of the absolute error.
    pub mean: Option<f64>,
    /// Its median.
    pub median: Option<f64>,
}

impl DeviceProfile {
    /// Reads a profile as it was written.
    ///
    /// # Errors
    /// [`DeviceError`] if it is none, is of another version, or has numbers that no measurement gives.
    pub fn parse(text: &str) -> Result<Self, DeviceError> {
        #[derive(Deserialize)]
        struct Head {
            basisopt_device: u32,
        }
        let malformed = |e: serde_json::Error| DeviceError::Malformed(e.to_string());
        let head: Head = serde_json::from_str(text).map_err(malformed)?;
        if head.basisopt_device != FORMAT {
            return Err(DeviceError::Format(head.basisopt_device));
        }
        let profile: Self = serde_json::from_str(text).map_err(malformed)?;
        let times = profile.samples.iter().flat_map(|s| [s.ms, s.pace_ms]);
        let chains = profile.chains.iter().flat_map(|c| [c.ms, c.pace_ms]);
        if let Some(ms) = times.chain(chains).find(|ms| !(1e-7..1e8).contains(ms)) {
            return Err(DeviceError::Malformed(format!("a time of {ms} ms")));
        }
        let chained = profile.chains.iter().flat_map(|c| &c.works);
        if let Some(work) = profile.samples.iter().map(|s| &s.work).chain(chained).find(|w| !w.is_sound()) {
            return Err(DeviceError::Malformed(format!("work of impossible size: {work:?}")));
        }
        match profile.samples.len().max(profile.chains.len()) > MOST_SAMPLES {
            true => Err(DeviceError::Malformed(format!("more than {MOST_SAMPLES} samples"))),
            false => Ok(profile),
        }
    }

    /// The usual pace of the device: the median of [`Sample::pace_ms`].
    pub fn pace_ms(&self) -> f64 {
        let mut paces: Vec<f64> = self.samples.iter().map(|s| s.pace_ms).collect();
        paces.sort_by(f64::total_cmp);
        paces.get(paces.len() / 2).copied().unwrap_or(1.0)
    }

    /// What running a network of nothing takes, in milliseconds: the least that anything took.
    fn overhead_ms(&self) -> f64 {
        let pace = self.pace_ms();
        let least = self.samples.iter().map(|s| s.ms * pace / s.pace_ms).reduce(f64::min);
        0.9 * least.unwrap_or(0.0)
    }

    /// The samples of every family at the usual pace, with the time that the work itself took.
    fn families<'a>(
        &self,
        samples: impl Iterator<Item = &'a Sample>,
    ) -> BTreeMap<Family, Vec<(&'a Work, f64)>> {
        let (pace, overhead) = (self.pace_ms(), self.overhead_ms());
        let mut families: BTreeMap<Family, Vec<(&Work, f64)>> = BTreeMap::new();
        for sample in samples {
            let ms = sample.ms * pace / sample.pace_ms - overhead;
            families.entry(sample.work.family()).or_default().push((&sample.work, ms));
        }
        families
    }

    fn fits<'a>(&self, samples: impl Iterator<Item = &'a Sample>) -> BTreeMap<Family, Fit> {
        let (families, overhead) = (self.families(samples), self.overhead_ms());
        families
            .into_iter()
            .filter_map(|(family, samples)| Some((family, Fit::new(&samples, overhead)?)))
            .collect()
    }

    /// How far predictions are off for samples that they were not made from, by family: a fifth of the samples at
    /// a time is kept out. Layers of staircases do not count: each has neighbours that differ by one filter.
    pub fn kept_out(&self) -> Vec<KeptOut> {
        let overhead = self.overhead_ms();
        let all: Vec<(&Work, f64)> = self.samples.iter().map(|s| (&s.work, s.ms)).collect();
        let is_stair = |work: &Work| fit::stairs(work, &all).len() >= fit::STAIRS / 2;
        let mut errors: BTreeMap<Family, Vec<f64>> =
            self.samples.iter().map(|s| (s.work.family(), Vec::new())).collect();
        for fold in 0..FOLDS {
            // Kinds of work take turns in the order of samples: the second term takes the folds out of step with them.
            let is_out = |i: usize| (i + i / (4 * FOLDS)) % FOLDS == fold;
            let inside = self.samples.iter().enumerate().filter(|(i, _)| !is_out(*i)).map(|(_, s)| s);
            let fits = self.fits(inside);
            let outside = self.samples.iter().enumerate().filter(|(i, _)| is_out(*i)).map(|(_, s)| s);
            for (family, samples) in self.families(outside.filter(|s| !is_stair(&s.work))) {
                let Some(fit) = fits.get(&family) else { continue };
                // Of the whole time, overhead included: that is what was measured.
                let error = |(work, ms): &(&Work, f64)| (fit.at(work) - ms).abs() / (ms + overhead);
                errors.entry(family).or_default().extend(samples.iter().map(error));
            }
        }
        let of = |(family, mut errors): (Family, Vec<f64>)| {
            errors.sort_by(f64::total_cmp);
            KeptOut {
                family: family.name(),
                n: errors.len(),
                mean: (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64),
                median: errors.get(errors.len() / 2).copied(),
            }
        };
        errors.into_iter().map(of).collect()
    }
}

/// Predicts times on a device.
#[derive(Clone, Debug)]
pub struct DeviceModel {
    fits: BTreeMap<Family, Fit>,
    overhead_ms: f64,
    fused: bool,
    /// What layers take in a network, where each finds the caches as the others left them, by what they take alone.
    in_network: f64,
}

impl DeviceModel {
    /// From what was measured.
    pub fn new(profile: &DeviceProfile) -> Self {
        let mut model = Self {
            fits: profile.fits(profile.samples.iter()),
            overhead_ms: profile.overhead_ms(),
            fused: profile.fused,
            in_network: 1.0,
        };
        let pace = profile.pace_ms();
        let ratio = |chain: &Chain| -> Option<f64> {
            let works: Result<f64, DeviceError> = chain.works.iter().map(|w| model.work_ms(w)).sum();
            // An empty chain gives infinity, which is left out.
            Some((chain.ms * pace / chain.pace_ms - model.overhead_ms).max(0.0) / works.ok()?)
        };
        let mut ratios: Vec<f64> =
            profile.chains.iter().filter_map(ratio).filter(|r| r.is_finite()).collect();
        ratios.sort_by(f64::total_cmp);
        let ratio = ratios.get(ratios.len() / 2).copied().unwrap_or(1.0);
        model.in_network = ratio.clamp(IN_NETWORK[0], IN_NETWORK[1]);
        model
    }

    /// Milliseconds that the work takes in a network.
    ///
    /// # Errors
    /// [`DeviceError::TooFew`].
    pub fn work_ms(&self, work: &Work) -> Result<f64, DeviceError> {
        let family = work.family();
        self.fits
            .get(&family)
            .map(|fit| self.in_network * fit.at(work))
            .ok_or(DeviceError::TooFew(family.name()))
    }

    /// Milliseconds that a network takes for one image: a graph whose types are inferred and whose sizes are known.
    ///
    /// # Errors
    /// [`DeviceError::OpenSize`], [`DeviceError::Unknown`], [`DeviceError::TooFew`].
    pub fn network_ms(&self, graph: &Graph) -> Result<f64, DeviceError> {
        let works = works(graph, self.fused)?;
        let nodes: Result<f64, DeviceError> = works.iter().map(|(_, work)| self.work_ms(work)).sum();
        Ok(self.overhead_ms + nodes?)
    }

    /// Whether there are measurements of everything that a factored layer may become.
    ///
    /// # Errors
    /// [`DeviceError::TooFew`].
    pub fn check_factors(&self) -> Result<(), DeviceError> {
        let needed: &[Family] = if self.fused { &[Family::Pair] } else { &[Family::Conv, Family::Pointwise] };
        let missing = needed.iter().find(|f| !self.fits.contains_key(f));
        missing.map_or(Ok(()), |f| Err(DeviceError::TooFew(f.name())))
    }

    /// What layers take in a network by what they take alone.
    pub fn in_network(&self) -> f64 {
        self.in_network
    }

    /// Filters that the kernels compute together, as far as the staircases tell: of whole convolutions, of pairs.
    pub fn tiles(&self) -> [Option<usize>; 2] {
        [Family::Conv, Family::Pair].map(|f| self.fits.get(&f).map(Fit::tile).filter(|&t| t > 1))
    }
}

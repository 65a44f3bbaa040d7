//! Data sets: opened from a path, read in a fixed order, streamed in batches.

mod cifar;
pub mod config;
mod image_folder;
mod labels;
mod npy;
pub mod preprocess;

pub use config::ModelConfig;
pub use npy::read_arrays;
pub use preprocess::{Channels, Layout, Preprocess};

use crate::{InputInfo, RuntimeError};
use basisopt_ir::Tensor;
use cifar::{CifarFiles, CifarReader};
use image::DynamicImage;
use labels::{LABEL_KEYS, LabelFile};
use npy::{ArrayFile, ArrayReader};
use preprocess::{Geometry, tensor_of};
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};

/// Names under which an `.npz` may hold its images.
const IMAGE_KEYS: &[&str] = &["images", "x", "data", "inputs"];

/// Which part of a data set to use, and where its labels are.
#[derive(Clone, Debug, Default)]
pub struct DatasetOptions {
    /// Labels in a file of their own: `.npy`, `.npz`, or text with one integer or one `file,label` per line.
    /// They replace those the data set has itself.
    pub labels: Option<PathBuf>,
    /// Leaves out the first so many samples.
    pub skip: usize,
    /// Of the rest, uses at most so many.
    pub samples: Option<usize>,
    /// Draws the `samples` at random, the same ones for the same seed; `None` takes the first ones. Either
    /// way they are read in the order of the data set.
    pub seed: Option<u64>,
}

/// Where the labels of a data set come from; for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LabelSource {
    /// There are none.
    None,
    /// The sub-folders of an image folder, in the order of the classes.
    Folders(Vec<String>),
    /// The integer that opens each file name.
    FileNames,
    /// A file beside the data or given by the user.
    File(PathBuf),
    /// The data file itself.
    Embedded,
}

impl std::fmt::Display for LabelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("no labels"),
            Self::Folders(names) => write!(f, "labels from {} sub-folders", names.len()),
            Self::FileNames => f.write_str("labels from the file names"),
            Self::File(path) => write!(f, "labels from {}", path.display()),
            Self::Embedded => f.write_str("labels with the data"),
        }
    }
}

/// A data set, opened but not read.
#[derive(Clone, Debug)]
pub struct Dataset {
    path: PathBuf,
    records: Records,
    /// One per record; `None` if there are none or if each record carries its own.
    labels: Option<Vec<i64>>,
    label_source: LabelSource,
    /// The records in use, ascending.
    chosen: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Records {
    Files(Vec<PathBuf>),
    Cifar(CifarFiles),
    Array(ArrayFile),
}

/// One record, before preprocessing.
pub(crate) enum Sample {
    /// 8-bit pixels, which the preprocessing turns into numbers.
    Image(DynamicImage),
    /// Numbers that are network inputs already.
    Values { shape: Vec<usize>, values: Vec<f32> },
}

/// Some images for one run of a network.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Of the input's shape and type.
    pub inputs: Tensor,
    /// The labels of the first `n_valid` images, as the data set has them (no offset added).
    pub labels: Option<Vec<i64>>,
    /// How many images are real. The last batch is filled up with copies of its last image, because the
    /// batch size of a [`Session`](crate::Session) is fixed.
    pub n_valid: usize,
}

impl Dataset {
    /// Opens what is at `path`:
    ///
    /// - a folder of JPEG or PNG images. The class is the sub-folder (its number if all sub-folders are
    ///   numbers, else its place in sorted order), or the integer that opens each file name
    ///   (`506_n03065424_coil.jpg`), or given by a `labels.csv` or `labels.txt` in the folder;
    /// - a CIFAR-10 or CIFAR-100 binary, or a folder of them (the training files, if there are any);
    /// - an `.npy` of images: `uint8` `[N,H,W]`, `[N,H,W,C]` or `[N,C,H,W]`, or floats, taken to be
    ///   preprocessed already; an `.npz` with the same under `images`, `x`, `data` or `inputs` and labels
    ///   under `labels`, `label`, `y` or `targets`.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] and [`RuntimeError::Data`] name the file, and the record where it is one.
    pub fn open(path: impl AsRef<Path>, options: &DatasetOptions) -> Result<Self, RuntimeError> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(RuntimeError::io(path))?;
        let (records, mut labels, mut label_source) = if metadata.is_dir() {
            match image_folder::scan(path)? {
                Some(scan) => (Records::Files(scan.files), scan.labels, scan.source),
                None => {
                    let files = CifarFiles::in_folder(path)?;
                    if files.is_empty() {
                        return Err(RuntimeError::data(
                            path,
                            "holds neither images (JPEG, PNG) nor CIFAR .bin files",
                        ));
                    }
                    (Records::Cifar(CifarFiles::open(files)?), None, LabelSource::Embedded)
                }
            }
        } else if npy::is_numpy(path) {
            open_array(path)?
        } else if path.extension().is_some_and(|e| e == "bin") {
            (Records::Cifar(CifarFiles::open(vec![path.to_owned()])?), None, LabelSource::Embedded)
        } else {
            let reason = "is no data set this program reads: give a folder of images, a CIFAR .bin, an .npy or an .npz file";
            return Err(RuntimeError::data(path, reason));
        };
        let n = records.len();
        if n == 0 {
            return Err(RuntimeError::data(path, "holds no samples"));
        }
        if let Some(file) = &options.labels {
            let read = LabelFile::read(file)?;
            labels = Some(match &records {
                Records::Files(files) => read.for_files(path, files)?,
                _ => read.in_order(n)?,
            });
            label_source = LabelSource::File(file.clone());
        }
        if let Some(labels) = &labels
            && labels.len() != n
        {
            return Err(RuntimeError::data(path, format!("holds {n} images and {} labels", labels.len())));
        }
        let chosen = choose(n, options);
        if chosen.is_empty() {
            let reason = format!("no samples are left of {n} after skipping {}", options.skip);
            return Err(RuntimeError::data(path, reason));
        }
        Ok(Self { path: path.to_owned(), records, labels, label_source, chosen })
    }

    /// Samples that are in memory: bytes (`u8`, images: `[N,H,W]`, `[N,H,W,C]` or `[N,C,H,W]`, which are preprocessed) or
    /// floats `[N,…]`, taken to be preprocessed already, with a label each or none. `name` stands for them in messages.
    ///
    /// # Errors
    /// [`RuntimeError::Data`] for other types, no samples, or another number of labels.
    pub fn in_memory(name: &str, samples: &Tensor, labels: Option<Vec<i64>>) -> Result<Self, RuntimeError> {
        let array = ArrayFile::in_memory(name, samples)?;
        let (path, n) = (PathBuf::from(name), array.len());
        if n == 0 {
            return Err(RuntimeError::data(&path, "holds no samples"));
        }
        if let Some(labels) = &labels
            && labels.len() != n
        {
            return Err(RuntimeError::data(&path, format!("holds {n} images and {} labels", labels.len())));
        }
        let label_source = if labels.is_some() { LabelSource::Embedded } else { LabelSource::None };
        Ok(Self { path, records: Records::Array(array), labels, label_source, chosen: (0..n).collect() })
    }

    /// Two parts that share no sample: `n` drawn at random, the same ones for the same seed, and the rest.
    /// Both are read in the order of the data set.
    pub fn split(self, n: usize, seed: u64) -> (Self, Self) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut drawn = vec![false; self.chosen.len()];
        index::sample(&mut rng, self.chosen.len(), n.min(self.chosen.len()))
            .into_iter()
            .for_each(|i| drawn[i] = true);
        let part = |is_drawn: bool| -> Vec<usize> {
            self.chosen.iter().zip(&drawn).filter(|&(_, &d)| d == is_drawn).map(|(&i, _)| i).collect()
        };
        let (first, second) = (part(true), part(false));
        (Self { chosen: first, ..self.clone() }, Self { chosen: second, ..self })
    }

    /// Number of samples in use.
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    /// Whether there is no sample; [`Dataset::open`] never returns such a data set.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// Whether every sample has a label.
    pub fn is_labelled(&self) -> bool {
        self.label_source != LabelSource::None
    }

    /// The label of the sample at this place, where it is known without reading the sample.
    pub fn label(&self, place: usize) -> Option<i64> {
        let index = *self.chosen.get(place)?;
        self.labels.as_ref()?.get(index).copied()
    }

    /// Which sample of the whole data set this one is, before any were left out.
    pub fn record(&self, place: usize) -> Option<usize> {
        self.chosen.get(place).copied()
    }

    /// Whether samples can only be read in their order.
    pub fn is_compressed(&self) -> bool {
        matches!(&self.records, Records::Array(array) if array.is_compressed())
    }

    /// Where the labels come from.
    pub fn label_source(&self) -> &LabelSource {
        &self.label_source
    }

    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One line for reports: how many samples of what, with which labels.
    pub fn describe(&self) -> String {
        let kind = match &self.records {
            Records::Files(_) => "image files".to_owned(),
            Records::Cifar(files) => files.describe().to_owned(),
            Records::Array(array) => array.describe(),
        };
        format!("{} of {} samples ({kind}, {})", self.chosen.len(), self.records.len(), self.label_source)
    }

    /// Streams the samples as batches for `input`, whose first axis must be the batch. Memory holds one batch.
    ///
    /// # Errors
    /// At once, [`RuntimeError::Preprocess`] for a bad setting, [`RuntimeError::Data`] if `input` has no leading
    /// batch axis, [`RuntimeError::Io`] if the file is gone; from the iterator, an error naming the corrupt
    /// file or record, after which it ends.
    pub fn batches<'a>(
        &'a self,
        preprocess: &'a Preprocess,
        input: &InputInfo,
    ) -> Result<Batches<'a>, RuntimeError> {
        self.batches_from(preprocess, input, 0)
    }

    /// Whether the channels of a pixel lie side by side in an input with four axes.
    ///
    /// # Errors
    /// As for reading images: if the settings do not fit the input. Numbers that are fed as they are fit whatever it has;
    /// without a `layout`, they have channels last where only the last axis can be a gray or coloured pixel.
    pub fn is_channels_last(&self, preprocess: &Preprocess, input: &InputInfo) -> Result<bool, RuntimeError> {
        let is_fed_as_it_is = matches!(&self.records, Records::Array(array) if array.is_float());
        if !is_fed_as_it_is {
            return Ok(preprocess.geometry(input)?.layout == Layout::Nhwc);
        }
        let is_pixel = |axis: usize| matches!(input.shape.get(axis), Some(1 | 3));
        Ok(preprocess.layout.map_or(is_pixel(3) && !is_pixel(1), |layout| layout == Layout::Nhwc))
    }

    /// As [`Dataset::batches`], without the first so many batches, which are not read.
    ///
    /// # Errors
    /// As [`Dataset::batches`].
    pub fn batches_from<'a>(
        &'a self,
        preprocess: &'a Preprocess,
        input: &InputInfo,
        first: usize,
    ) -> Result<Batches<'a>, RuntimeError> {
        preprocess.validate()?;
        if input.batch_axis != Some(0) || input.shape.first().is_none_or(|&n| n == 0) {
            let reason = format!(
                "images cannot be given to input `{}` of shape {:?}: axis 0 is not the batch",
                input.name, input.shape
            );
            return Err(RuntimeError::data(&self.path, reason));
        }
        let next = first.saturating_mul(input.shape.first().copied().unwrap_or(1)).min(self.chosen.len());
        let reader = match &self.records {
            Records::Files(files) => Reader::Files(files),
            Records::Cifar(files) => Reader::Cifar(files.reader()),
            Records::Array(array) => Reader::Array(array.reader()?),
        };
        Ok(Batches { dataset: self, preprocess, input: input.clone(), geometry: None, reader, next })
    }
}

impl Records {
    fn len(&self) -> usize {
        match self {
            Self::Files(files) => files.len(),
            Self::Cifar(files) => files.len(),
            Self::Array(array) => array.len(),
        }
    }
}

fn open_array(path: &Path) -> Result<(Records, Option<Vec<i64>>, LabelSource), RuntimeError> {
    let Some(keys) = npy::keys(path)? else {
        return Ok((Records::Array(ArrayFile::open(path, "")?), None, LabelSource::None));
    };
    let images = labels::pick(path, &keys, IMAGE_KEYS, "images")?;
    let records = Records::Array(ArrayFile::open(path, &images)?);
    if !keys.iter().any(|k| LABEL_KEYS.contains(&k.as_str())) {
        return Ok((records, None, LabelSource::None));
    }
    let key = labels::pick(path, &keys, LABEL_KEYS, "labels")?;
    Ok((records, Some(ArrayFile::open(path, &key)?.integers()?), LabelSource::Embedded))
}

/// The records in use, ascending: compressed arrays can only be read forward.
fn choose(n: usize, options: &DatasetOptions) -> Vec<usize> {
    let first = options.skip.min(n);
    let amount = options.samples.map_or(n - first, |s| s.min(n - first));
    match options.seed {
        None => (first..first + amount).collect(),
        Some(seed) => {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut chosen: Vec<usize> =
                index::sample(&mut rng, n - first, amount).into_iter().map(|i| first + i).collect();
            chosen.sort_unstable();
            chosen
        }
    }
}

enum Reader<'a> {
    Files(&'a [PathBuf]),
    Cifar(CifarReader<'a>),
    Array(ArrayReader<'a>),
}

/// The batches of a data set; see [`Dataset::batches`].
pub struct Batches<'a> {
    dataset: &'a Dataset,
    preprocess: &'a Preprocess,
    input: InputInfo,
    /// Worked out at the first image: floating-point data need none.
    geometry: Option<Geometry>,
    reader: Reader<'a>,
    /// Place in `dataset.chosen`.
    next: usize,
}

impl Batches<'_> {
    /// Appends the numbers of the sample at this place of the data set, and gives its label. Samples may be read
    /// in any order, but for compressed arrays ([`Dataset::is_compressed`]), which can only be read forward.
    ///
    /// # Errors
    /// [`RuntimeError`] naming the corrupt file or record.
    pub fn read(&mut self, place: usize, values: &mut Vec<f32>) -> Result<Option<i64>, RuntimeError> {
        let index = self.dataset.chosen.get(place).copied();
        let gone = || RuntimeError::data(&self.dataset.path, format!("has no sample {place}"));
        self.sample(index.ok_or_else(gone)?, values)
    }

    fn batch(&mut self) -> Result<Batch, RuntimeError> {
        let size = self.input.shape.first().copied().unwrap_or(1);
        let per_image: usize = self.input.shape.iter().skip(1).product();
        let mut values: Vec<f32> = Vec::with_capacity(size * per_image);
        let chosen = &self.dataset.chosen;
        let indices = &chosen[self.next..chosen.len().min(self.next + size)];
        let mut labels = Vec::with_capacity(indices.len());
        for &index in indices {
            let label = self.sample(index, &mut values)?;
            labels.extend(label);
        }
        let n_valid = indices.len();
        self.next += n_valid;
        if n_valid > 0 {
            let last = values.len() - per_image;
            for _ in n_valid..size {
                values.extend_from_within(last..last + per_image);
            }
        }
        let inputs = tensor_of(self.input.dtype, self.input.shape.clone(), &values)?;
        Ok(Batch { inputs, labels: (labels.len() == n_valid).then_some(labels), n_valid })
    }

    /// Appends the numbers of one sample; returns its label.
    fn sample(&mut self, index: usize, values: &mut Vec<f32>) -> Result<Option<i64>, RuntimeError> {
        let own = |dataset: &Dataset| dataset.labels.as_ref().and_then(|l| l.get(index).copied());
        let (sample, label) = match &mut self.reader {
            Reader::Files(files) => (Sample::Image(image_folder::decode(&files[index])?), own(self.dataset)),
            Reader::Cifar(reader) => {
                let (sample, embedded) = reader.read(index)?;
                (sample, own(self.dataset).or(Some(embedded)))
            }
            Reader::Array(reader) => (reader.read(index)?, own(self.dataset)),
        };
        match sample {
            Sample::Image(image) => {
                let geometry = match self.geometry {
                    Some(geometry) => geometry,
                    None => *self.geometry.insert(self.preprocess.geometry(&self.input)?),
                };
                self.preprocess
                    .apply(&image, geometry, values)
                    .map_err(|reason| self.wrong(index, &reason))?;
            }
            Sample::Values { shape, values: own } => {
                let wanted = self.input.shape.get(1..).unwrap_or(&[]);
                if shape != wanted {
                    let reason = format!(
                        "floats of shape {shape:?} do not fit input `{}`, which takes {wanted:?} per image; floats are taken as they are, only uint8 images are resized and reordered",
                        self.input.name
                    );
                    return Err(self.wrong(index, &reason));
                }
                // One such value would spread over all that is computed from the image, and all that is learnt from it.
                if let Some(value) = own.iter().find(|v| !v.is_finite()) {
                    return Err(
                        self.wrong(index, &format!("a value of it is {value}; images have finite values"))
                    );
                }
                values.extend(own);
            }
        }
        Ok(label)
    }

    fn wrong(&self, index: usize, reason: &str) -> RuntimeError {
        match &self.dataset.records {
            Records::Files(files) => RuntimeError::data(&files[index], reason),
            _ => RuntimeError::data(&self.dataset.path, format!("record {index}: {reason}")),
        }
    }
}

impl std::fmt::Debug for Batches<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches")
            .field("path", &self.dataset.path)
            .field("input", &self.input)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, RuntimeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.dataset.chosen.len() {
            return None;
        }
        let batch = self.batch();
        if batch.is_err() {
            self.next = self.dataset.chosen.len();
        }
        Some(batch)
    }
}

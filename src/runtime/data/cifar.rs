//! The binary files of CIFAR-10 and CIFAR-100.
//!
//! A record is the label (CIFAR-100: coarse label, then fine label), then 1024 red, 1024 green and 1024
//! blue bytes, row by row. Nothing in the file says which of the two it is; the length does.

use super::Sample;
use crate::RuntimeError;
use image::{DynamicImage, RgbImage};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const SIDE: usize = 32;
const N_PIXELS: usize = SIDE * SIDE;
const RECORD_10: usize = 1 + 3 * N_PIXELS;
const RECORD_100: usize = 2 + 3 * N_PIXELS;

/// One or several files of records, in order.
#[derive(Clone, Debug)]
pub(crate) struct CifarFiles {
    files: Vec<(PathBuf, usize)>,
    record: usize,
}

impl CifarFiles {
    /// Looks at the lengths of the files; all must be of one kind.
    pub(crate) fn open(paths: Vec<PathBuf>) -> Result<Self, RuntimeError> {
        let mut files = Vec::new();
        let mut record = None;
        for path in paths {
            let len = std::fs::metadata(&path).map_err(RuntimeError::io(&path))?.len();
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            // A length that fits both (a multiple of 3073 · 3074) would be 9 MB of records or more; CIFAR-10 is
            // the commoner of the two.
            let kinds: &[usize] = match record {
                Some(RECORD_100) => &[RECORD_100],
                Some(_) => &[RECORD_10],
                None => &[RECORD_10, RECORD_100],
            };
            let Some(&kind) = kinds.iter().find(|&&r| len > 0 && len.is_multiple_of(r)) else {
                let reason = format!(
                    "{len} bytes are not a whole number of CIFAR records of {} bytes; the file is cut short or not a CIFAR binary",
                    kinds.iter().map(usize::to_string).collect::<Vec<_>>().join(" or ")
                );
                return Err(RuntimeError::data(&path, reason));
            };
            record = Some(kind);
            files.push((path, len / kind));
        }
        Ok(Self { files, record: record.unwrap_or(RECORD_10) })
    }

    /// The training files of a folder, or the test file if there is nothing else: the two must not be mixed
    /// by accident. Empty if the folder holds no `.bin` file.
    pub(crate) fn in_folder(dir: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(RuntimeError::io(dir))? {
            let path = entry.map_err(RuntimeError::io(dir))?.path();
            if path.extension().is_some_and(|e| e == "bin") {
                paths.push(path);
            }
        }
        paths.sort();
        let is_test = |p: &PathBuf| p.file_stem().is_some_and(|s| s.to_string_lossy().starts_with("test"));
        if paths.iter().any(|p| !is_test(p)) {
            paths.retain(|p| !is_test(p));
        }
        Ok(paths)
    }

    pub(crate) fn len(&self) -> usize {
        self.files.iter().map(|(_, n)| n).sum()
    }

    pub(crate) fn describe(&self) -> &'static str {
        if self.record == RECORD_100 { "CIFAR-100 records" } else { "CIFAR-10 records" }
    }

    pub(crate) fn reader(&self) -> CifarReader<'_> {
        CifarReader { files: self, open: None }
    }
}

pub(crate) struct CifarReader<'a> {
    files: &'a CifarFiles,
    open: Option<(usize, File)>,
}

impl CifarReader<'_> {
    pub(crate) fn read(&mut self, index: usize) -> Result<(Sample, i64), RuntimeError> {
        let (mut which, mut local) = (0, index);
        while let Some((_, n)) = self.files.files.get(which)
            && local >= *n
        {
            local -= n;
            which += 1;
        }
        let Some((path, _)) = self.files.files.get(which) else {
            let path = self.files.files.last().map_or(Path::new(""), |(p, _)| p);
            return Err(RuntimeError::data(path, format!("there is no record {index}")));
        };
        if self.open.as_ref().is_none_or(|(w, _)| *w != which) {
            self.open = Some((which, File::open(path).map_err(RuntimeError::io(path))?));
        }
        let mut bytes = vec![0; self.files.record];
        if let Some((_, file)) = &mut self.open {
            let at = local as u64 * self.files.record as u64;
            file.seek(SeekFrom::Start(at))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(RuntimeError::io(path))?;
        }
        let (label, n_classes) =
            if self.files.record == RECORD_100 { (bytes[1], 100) } else { (bytes[0], 10) };
        if label >= n_classes {
            let reason = format!(
                "record {local} has the label {label}, above {}; this is no CIFAR-{n_classes} binary",
                n_classes - 1
            );
            return Err(RuntimeError::data(path, reason));
        }
        let planes = &bytes[self.files.record - 3 * N_PIXELS..];
        let pixels =
            (0..N_PIXELS).flat_map(|i| [planes[i], planes[N_PIXELS + i], planes[2 * N_PIXELS + i]]).collect();
        let image = RgbImage::from_raw(SIDE as u32, SIDE as u32, pixels)
            .ok_or_else(|| RuntimeError::data(path, format!("record {local} is no 32×32 image")))?;
        Ok((Sample::Image(DynamicImage::ImageRgb8(image)), i64::from(label)))
    }
}

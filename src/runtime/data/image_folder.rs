//! A folder of JPEG and PNG images, and the ways such folders say what is in them.

use super::LabelSource;
use super::labels::LabelFile;
use crate::RuntimeError;
use image::{DynamicImage, ImageReader};
use std::path::{Path, PathBuf};

/// The images of a folder in their fixed order, with their labels if the folder gives any.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) labels: Option<Vec<i64>>,
    pub(crate) source: LabelSource,
}

/// Looks through a folder. In order of precedence the labels come from `labels.csv` or `labels.txt`, from the
/// sub-folders, from the integer that opens every file name. `None` if it holds no image.
pub(crate) fn scan(dir: &Path) -> Result<Option<Scan>, RuntimeError> {
    let (images, folders) = list(dir)?;
    let mut scan = if images.is_empty() {
        let mut classes = Vec::new();
        for folder in folders {
            let mut files = Vec::new();
            walk(&folder, &mut files)?;
            classes.push((folder, files));
        }
        if classes.iter().all(|(_, files)| files.is_empty()) {
            return unreadable_kinds(dir).map_or(Ok(None), Err);
        }
        by_class(dir, classes)?
    } else {
        for folder in folders {
            let mut files = Vec::new();
            walk(&folder, &mut files)?;
            if !files.is_empty() {
                let reason = format!(
                    "holds images both directly and in the sub-folder {}; point at one of the two",
                    file_name(&folder)
                );
                return Err(RuntimeError::data(dir, reason));
            }
        }
        by_file_name(images)
    };
    for name in ["labels.csv", "labels.txt"] {
        let path = dir.join(name);
        if path.is_file() {
            scan.labels = Some(LabelFile::read(&path)?.for_files(dir, &scan.files)?);
            scan.source = LabelSource::File(path);
            break;
        }
    }
    Ok(Some(scan))
}

/// Decodes one image.
pub(crate) fn decode(path: &Path) -> Result<DynamicImage, RuntimeError> {
    let reader = ImageReader::open(path).map_err(RuntimeError::io(path))?;
    // By content: data sets are full of PNGs called .jpg.
    let reader = reader.with_guessed_format().map_err(RuntimeError::io(path))?;
    reader.decode().map_err(|e| RuntimeError::data(path, format!("cannot be decoded: {e}")))
}

/// One class per sub-folder: its own number if all are numbers, else its place in the sorted order.
fn by_class(dir: &Path, classes: Vec<(PathBuf, Vec<PathBuf>)>) -> Result<Scan, RuntimeError> {
    let names: Vec<String> = classes.iter().map(|(folder, _)| file_name(folder)).collect();
    let numbers: Option<Vec<i64>> = names.iter().map(|n| n.parse().ok()).collect();
    let numbers = match numbers {
        Some(numbers) => numbers,
        None => (0..).take(names.len()).collect(),
    };
    let (mut files, mut labels) = (Vec::new(), Vec::new());
    for ((_, of_class), number) in classes.into_iter().zip(numbers) {
        labels.extend(std::iter::repeat_n(number, of_class.len()));
        files.extend(of_class);
    }
    if files.is_empty() {
        return Err(RuntimeError::data(dir, "holds no image"));
    }
    Ok(Scan { files, labels: Some(labels), source: LabelSource::Folders(names) })
}

fn by_file_name(files: Vec<PathBuf>) -> Scan {
    let labels: Option<Vec<i64>> = files.iter().map(|f| leading_class(&file_name(f))).collect();
    let source = if labels.is_some() { LabelSource::FileNames } else { LabelSource::None };
    Scan { files, labels, source }
}

/// 506 for `506_n03065424_coil.jpg`. A mere number, `0506.jpg`, counts images rather than classes.
fn leading_class(name: &str) -> Option<i64> {
    let digits = name.len() - name.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, rest) = name.split_at(digits);
    if rest.starts_with(['_', '-']) { number.parse().ok() } else { None }
}

/// The images and the folders directly in `dir`, each sorted by name; hidden ones are left out.
fn list(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), RuntimeError> {
    let (mut images, mut folders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(dir).map_err(RuntimeError::io(dir))? {
        let path = entry.map_err(RuntimeError::io(dir))?.path();
        if file_name(&path).starts_with('.') {
            continue;
        }
        if path.is_dir() {
            folders.push(path);
        } else if is_image(&path) {
            images.push(path);
        }
    }
    images.sort();
    folders.sort();
    Ok((images, folders))
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), RuntimeError> {
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        let (images, folders) = list(&dir)?;
        files.extend(images);
        pending.extend(folders.into_iter().filter(|f| !f.is_symlink()));
    }
    files.sort();
    Ok(())
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    matches!(extension.as_deref(), Some("jpg" | "jpeg" | "png"))
}

/// If the folder has images of kinds this build does not read, the error that says so.
fn unreadable_kinds(dir: &Path) -> Option<RuntimeError> {
    const KINDS: &[&str] = &["webp", "bmp", "gif", "tif", "tiff", "ppm", "avif", "heic"];
    let entries = std::fs::read_dir(dir).ok()?;
    let kind = entries.flatten().find_map(|e| {
        let extension = e.path().extension()?.to_string_lossy().to_ascii_lowercase();
        KINDS.contains(&extension.as_str()).then_some(extension)
    })?;
    Some(RuntimeError::data(dir, format!("holds .{kind} images; only JPEG and PNG are read, convert them")))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::leading_class;

    #[test]
    fn a_class_opens_the_name_and_ends_with_a_separator() {
        assert_eq!(leading_class("506_n03065424_coil.jpg"), Some(506));
        assert_eq!(leading_class("007-bond.png"), Some(7));
        for name in ["0506.jpg", "coil_506.jpg", "_1.jpg", "12a_b.jpg"] {
            assert_eq!(leading_class(name), None, "{name}");
        }
    }
}

//! Every kind of data set, and what is said of broken ones.
#![allow(clippy::unwrap_used, reason = "tests")]

use basisopt_ir::DType;
use basisopt_runtime::{Batch, Dataset, DatasetOptions, InputInfo, LabelSource, Preprocess, RuntimeError};
use std::io::Write;
use std::path::Path;

fn input(shape: &[usize]) -> InputInfo {
    InputInfo { name: "x".to_owned(), dtype: DType::F32, shape: shape.to_vec(), batch_axis: Some(0) }
}

/// Bytes as they are, so that expected values are whole numbers.
fn raw() -> Preprocess {
    Preprocess { scale: 1.0, ..Preprocess::default() }
}

fn open(path: &Path) -> Dataset {
    Dataset::open(path, &DatasetOptions::default()).unwrap()
}

fn read(dataset: &Dataset, shape: &[usize]) -> Result<Vec<Batch>, RuntimeError> {
    dataset.batches(&raw(), &input(shape))?.collect()
}

fn npy(descriptor: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descriptor}', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn npz(path: &Path, method: zip::CompressionMethod, entries: &[(&str, Vec<u8>)]) {
    let mut writer = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in entries {
        writer.start_file(format!("{name}.npy"), options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap();
}

fn png(path: &Path, side: u32, grey: u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::RgbImage::from_pixel(side, side, image::Rgb([grey; 3])).save(path).unwrap();
}

fn firsts(batches: &[Batch]) -> Vec<f32> {
    let mut all = Vec::new();
    for b in batches {
        let values = b.inputs.to_f32s().unwrap();
        let per_image = values.len() / b.inputs.shape()[0];
        all.extend(values.chunks(per_image).take(b.n_valid).map(|c| c[0]));
    }
    all
}

#[test]
fn cifar_records_are_planes_after_a_label() {
    let dir = tempfile::tempdir().unwrap();
    let record = |label: &[u8], base: u8| {
        let mut bytes = label.to_vec();
        for channel in 0..3u8 {
            bytes.extend((0..1024u32).map(|i| base.wrapping_add(channel).wrapping_add((i / 32) as u8)));
        }
        bytes
    };
    let ten = dir.path().join("ten.bin");
    std::fs::write(&ten, [record(&[3], 10), record(&[7], 50)].concat()).unwrap();
    let batches = read(&open(&ten), &[2, 3, 32, 32]).unwrap();
    assert_eq!(batches[0].labels.as_deref(), Some(&[3, 7][..]));
    let values = batches[0].inputs.to_f32s().unwrap();
    // Second record, blue, third row.
    assert_eq!(values[3 * 1024 + 2 * 1024 + 2 * 32 + 5], 54.0);

    let hundred = dir.path().join("hundred.bin");
    std::fs::write(&hundred, record(&[19, 99], 0)).unwrap();
    let batches = read(&open(&hundred), &[1, 3, 32, 32]).unwrap();
    assert_eq!(batches[0].labels.as_deref(), Some(&[99][..]));

    std::fs::write(&ten, &record(&[3], 10)[..3000]).unwrap();
    let error = Dataset::open(&ten, &DatasetOptions::default()).unwrap_err().to_string();
    assert!(error.contains("ten.bin") && error.contains("3000 bytes"), "{error}");
    std::fs::write(&ten, [record(&[3], 0), record(&[200], 0)].concat()).unwrap();
    let error = read(&open(&ten), &[1, 3, 32, 32]).unwrap_err().to_string();
    assert!(error.contains("record 1 has the label 200"), "{error}");
}

#[test]
fn a_cifar_folder_does_not_mix_training_and_test() {
    let dir = tempfile::tempdir().unwrap();
    let record = |label: u8| [vec![label], vec![0; 3072]].concat();
    std::fs::write(dir.path().join("data_batch_2.bin"), record(2)).unwrap();
    std::fs::write(dir.path().join("data_batch_1.bin"), [record(1), record(1)].concat()).unwrap();
    std::fs::write(dir.path().join("test_batch.bin"), record(9)).unwrap();
    let batches = read(&open(dir.path()), &[4, 3, 32, 32]).unwrap();
    assert_eq!(batches[0].labels.as_deref(), Some(&[1, 1, 2][..]));
    assert_eq!((batches.len(), batches[0].n_valid), (1, 3));
}

#[test]
fn npz_stored_or_deflated_reads_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let pixels: Vec<u8> = (0..5u8).flat_map(|i| [i * 10; 2 * 2 * 3]).collect();
    let images = npy("|u1", "(5, 2, 2, 3)", &pixels);
    let labels = npy("<i8", "(5,)", &(0..5i64).rev().flat_map(i64::to_le_bytes).collect::<Vec<_>>());
    for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
        let path = dir.path().join("set.npz");
        npz(&path, method, &[("images", images.clone()), ("labels", labels.clone())]);
        let dataset = open(&path);
        assert_eq!(*dataset.label_source(), LabelSource::Embedded);
        let batches = read(&dataset, &[2, 3, 2, 2]).unwrap();
        assert_eq!(firsts(&batches), [0.0, 10.0, 20.0, 30.0, 40.0]);
        let all: Vec<i64> = batches.iter().flat_map(|b| b.labels.clone().unwrap()).collect();
        assert_eq!(all, [4, 3, 2, 1, 0]);
        let last = batches.last().unwrap();
        assert_eq!((last.n_valid, last.inputs.shape()), (1, &[2, 3, 2, 2][..]));

        let options = DatasetOptions { skip: 1, samples: Some(2), ..DatasetOptions::default() };
        let dataset = Dataset::open(&path, &options).unwrap();
        assert_eq!(firsts(&read(&dataset, &[1, 3, 2, 2]).unwrap()), [10.0, 20.0]);
        let options = DatasetOptions { samples: Some(3), seed: Some(5), ..DatasetOptions::default() };
        let drawn = || firsts(&read(&Dataset::open(&path, &options).unwrap(), &[2, 3, 2, 2]).unwrap());
        let first = drawn();
        assert_eq!(first, drawn());
        assert!(first.len() == 3 && first.is_sorted(), "{first:?}");
    }
    let path = dir.path().join("odd.npz");
    npz(&path, zip::CompressionMethod::Stored, &[("arr_0", images)]);
    let error = Dataset::open(&path, &DatasetOptions::default()).unwrap_err().to_string();
    assert!(error.contains("images, x, data") && error.contains("arr_0"), "{error}");
}

#[test]
fn floats_pass_through_and_bytes_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    let floats: Vec<u8> = [0.5f32, -1.5, 2.5, 3.5].iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(&path, npy("<f4", "(2, 1, 1, 2)", &floats)).unwrap();
    let preprocess = Preprocess { scale: 9.0, mean: vec![7.0], ..Preprocess::default() };
    let dataset = open(&path);
    let batches: Vec<Batch> =
        dataset.batches(&preprocess, &input(&[2, 1, 1, 2])).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(batches[0].inputs.to_f32s().unwrap(), [0.5, -1.5, 2.5, 3.5]);
    assert_eq!(batches[0].labels, None);
    let error = read(&dataset, &[2, 2, 1, 1]).unwrap_err().to_string();
    assert!(error.contains("record 0") && error.contains("[2, 1, 1]"), "{error}");
    // Floats have whatever channels the network takes; only bytes have gray or coloured pixels.
    let is_last =
        |dataset: &Dataset, shape: &[usize]| dataset.is_channels_last(&Preprocess::default(), &input(shape));
    assert_eq!([[1, 7, 4, 4], [1, 4, 4, 3]].map(|s| is_last(&dataset, &s).unwrap()), [false, true]);

    let damaged: Vec<u8> = [0.5f32, -1.5, f32::NAN, 3.5].iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(&path, npy("<f4", "(2, 1, 1, 2)", &damaged)).unwrap();
    let error = read(&open(&path), &[1, 1, 1, 2]).unwrap_err().to_string();
    assert!(error.contains("x.npy") && error.contains("record 1: a value of it is NaN"), "{error}");

    // Channels first, one image of two by one pixels.
    std::fs::write(&path, npy("|u1", "(1, 3, 1, 2)", &[1, 2, 3, 4, 5, 6])).unwrap();
    assert!(is_last(&open(&path), &[1, 7, 4, 4]).is_err());
    let batches = read(&open(&path), &[1, 3, 1, 2]).unwrap();
    assert_eq!(batches[0].inputs.to_f32s().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);

    std::fs::write(&path, npy("|u1", "(9, 3, 1, 2)", &[1, 2, 3])).unwrap();
    let error = Dataset::open(&path, &DatasetOptions::default()).unwrap_err().to_string();
    assert!(error.contains("x.npy") && error.contains("cut short"), "{error}");
    std::fs::write(&path, b"not numpy").unwrap();
    let error = Dataset::open(&path, &DatasetOptions::default()).unwrap_err().to_string();
    assert!(error.contains("x.npy") && error.contains("header"), "{error}");
}

#[test]
fn labels_may_stand_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    std::fs::write(&path, npy("|u1", "(3, 1, 1, 3)", &[0; 9])).unwrap();
    let labels = dir.path().join("labels.txt");
    std::fs::write(&labels, "4\n5\n6\n").unwrap();
    let options = DatasetOptions { labels: Some(labels.clone()), ..DatasetOptions::default() };
    let dataset = Dataset::open(&path, &options).unwrap();
    assert_eq!(read(&dataset, &[2, 3, 1, 1]).unwrap()[1].labels.as_deref(), Some(&[6][..]));
    std::fs::write(&labels, "4\n5\n").unwrap();
    let error = Dataset::open(&path, &options).unwrap_err().to_string();
    assert!(error.contains("2 labels") && error.contains("3 records"), "{error}");
    let array = dir.path().join("y.npy");
    std::fs::write(&array, npy("<i4", "(3, 1)", &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])).unwrap();
    let options = DatasetOptions { labels: Some(array), ..DatasetOptions::default() };
    let dataset = Dataset::open(&path, &options).unwrap();
    assert_eq!(read(&dataset, &[3, 3, 1, 1]).unwrap()[0].labels.as_deref(), Some(&[1, 2, 3][..]));
}

#[test]
fn image_folders_are_labelled_three_ways() {
    let dir = tempfile::tempdir().unwrap();
    let by_folder = dir.path().join("by_folder");
    png(&by_folder.join("dog/1.png"), 4, 30);
    png(&by_folder.join("cat/b.png"), 4, 20);
    png(&by_folder.join("cat/a.png"), 4, 10);
    let dataset = open(&by_folder);
    assert_eq!(*dataset.label_source(), LabelSource::Folders(vec!["cat".to_owned(), "dog".to_owned()]));
    let batches = read(&dataset, &[2, 3, 4, 4]).unwrap();
    assert_eq!(firsts(&batches), [10.0, 20.0, 30.0]);
    assert_eq!(batches[1].labels.as_deref(), Some(&[1][..]));

    let by_number = dir.path().join("by_number");
    png(&by_number.join("10/x.png"), 4, 1);
    png(&by_number.join("2/x.png"), 4, 2);
    assert_eq!(read(&open(&by_number), &[2, 3, 4, 4]).unwrap()[0].labels.as_deref(), Some(&[10, 2][..]));

    let by_name = dir.path().join("by_name");
    png(&by_name.join("506_coil.png"), 4, 1);
    png(&by_name.join("007_x.png"), 4, 2);
    let dataset = open(&by_name);
    assert_eq!(*dataset.label_source(), LabelSource::FileNames);
    assert_eq!(read(&dataset, &[2, 3, 4, 4]).unwrap()[0].labels.as_deref(), Some(&[7, 506][..]));
    std::fs::write(by_name.join("labels.csv"), "file,label\n506_coil.png,1\n007_x,2\n").unwrap();
    let dataset = open(&by_name);
    assert_eq!(read(&dataset, &[2, 3, 4, 4]).unwrap()[0].labels.as_deref(), Some(&[2, 1][..]));

    png(&by_name.join("plain.png"), 4, 3);
    let error = Dataset::open(&by_name, &DatasetOptions::default()).unwrap_err().to_string();
    assert!(error.contains("no label for") && error.contains("plain.png"), "{error}");
    std::fs::remove_file(by_name.join("labels.csv")).unwrap();
    assert!(!open(&by_name).is_labelled());
}

#[test]
fn a_corrupt_image_is_named() {
    let dir = tempfile::tempdir().unwrap();
    png(&dir.path().join("a.png"), 4, 1);
    std::fs::write(dir.path().join("b.jpg"), b"\xff\xd8\xff\xe0 then nothing").unwrap();
    let dataset = open(dir.path());
    let mut batches = Vec::new();
    let preprocess = raw();
    for batch in dataset.batches(&preprocess, &input(&[1, 3, 4, 4])).unwrap() {
        batches.push(batch);
    }
    assert_eq!(batches.len(), 2);
    let error = batches[1].as_ref().unwrap_err().to_string();
    assert!(error.contains("b.jpg"), "{error}");

    let empty = tempfile::tempdir().unwrap();
    let error = Dataset::open(empty.path(), &DatasetOptions::default()).unwrap_err().to_string();
    assert!(error.contains("neither images"), "{error}");
    std::fs::write(empty.path().join("a.webp"), b"").unwrap();
    let error = Dataset::open(empty.path(), &DatasetOptions::default()).unwrap_err().to_string();
    assert!(error.contains(".webp"), "{error}");
}

/// 0, 1, 2, … as little-endian floats.
fn numbers(n: u16) -> Vec<u8> {
    (0..n).flat_map(|i| f32::from(i).to_le_bytes()).collect()
}

#[test]
fn the_two_parts_of_a_split_share_nothing_and_leave_nothing_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    std::fs::write(&path, npy("<f4", "(20, 1, 1, 1)", &numbers(20))).unwrap();
    let values = |d: &Dataset| firsts(&read(d, &[1, 1, 1, 1]).unwrap());
    let (a, b) = open(&path).split(7, 3);
    assert_eq!((a.len(), b.len()), (7, 13));
    assert!(values(&a).is_sorted() && values(&b).is_sorted());
    let mut all = [values(&a), values(&b)].concat();
    all.sort_by(f32::total_cmp);
    assert_eq!(all, (0..20).map(|i| i as f32).collect::<Vec<_>>());
    // The same for the same seed, of the rest as well; other ones for another.
    assert_eq!(values(&open(&path).split(7, 3).0), values(&a));
    assert_ne!(values(&open(&path).split(7, 4).0), values(&a));
    let (c, d) = b.split(100, 0);
    assert_eq!((c.len(), d.len()), (13, 0));
}

#[test]
fn reading_can_begin_at_any_batch() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    std::fs::write(&path, npy("<f4", "(7, 1, 1, 1)", &numbers(7))).unwrap();
    let dataset = open(&path);
    let from = |first| -> Vec<f32> {
        let (preprocess, input) = (raw(), input(&[2, 1, 1, 1]));
        let batches: Vec<Batch> =
            dataset.batches_from(&preprocess, &input, first).unwrap().collect::<Result<_, _>>().unwrap();
        firsts(&batches)
    };
    assert_eq!(from(0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(from(2), [4.0, 5.0, 6.0]);
    assert_eq!(from(9), [] as [f32; 0]);
}

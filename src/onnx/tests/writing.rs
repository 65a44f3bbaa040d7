//! Files are written whole or not at all, and never over the input.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use basisopt_onnx::{Model, Problem};
use common::*;
use std::fs;

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let proto = model(graph(vec![node("Identity", &["x"], &["y"])], vec![]));
    fs::write(dir.path().join("m.onnx"), encode(&proto)).unwrap();
    dir
}

fn assert_refused(model: &Model, path: &std::path::Path) {
    let error = model.write(path).unwrap_err();
    assert!(matches!(error.problem(), Problem::Overwrite { .. }), "{error}");
    assert!(error.to_string().contains("the input model"), "{error}");
}

#[test]
fn the_input_is_never_the_output() {
    let dir = folder();
    let path = dir.path().join("m.onnx");
    let before = fs::read(&path).unwrap();
    let model = Model::read(&path).unwrap();
    assert_refused(&model, &path);
    assert_refused(&model, &dir.path().join(".").join("m.onnx"));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&path, dir.path().join("link.onnx")).unwrap();
        assert_refused(&model, &dir.path().join("link.onnx"));
        fs::hard_link(&path, dir.path().join("hard.onnx")).unwrap();
        assert_refused(&model, &dir.path().join("hard.onnx"));
    }
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn an_existing_output_is_replaced_and_nothing_else_appears() {
    let dir = folder();
    let out = dir.path().join("out.onnx");
    fs::write(&out, "old").unwrap();
    let model = Model::read(dir.path().join("m.onnx")).unwrap();
    model.write(&out).unwrap();
    assert_eq!(fs::read(&out).unwrap(), fs::read(dir.path().join("m.onnx")).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_failed_write_leaves_nothing_behind() {
    let dir = folder();
    let model = Model::read(dir.path().join("m.onnx")).unwrap();
    let error = model.write(dir.path().join("no/such/folder/out.onnx")).unwrap_err();
    assert!(matches!(error.problem(), Problem::Io { .. }), "{error}");
    fs::create_dir(dir.path().join("taken")).unwrap();
    assert!(model.write(dir.path().join("taken")).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let dir = folder();
    let path = dir.path().join("m.onnx");
    let before = fs::read(&path).unwrap();
    let error = Model::read(&path).unwrap().write("/dev/full").unwrap_err();
    assert!(error.to_string().contains("cannot write /dev/full"), "{error}");
    assert!(
        matches!(error.problem(), Problem::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull)
    );
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(fs::metadata("/dev/full").is_ok_and(|m| !m.is_file()), "the device is still a device");
}

#[test]
#[cfg(unix)]
fn new_files_have_ordinary_permissions() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = folder();
    let plain = dir.path().join("plain");
    fs::write(&plain, "").unwrap();
    Model::read(dir.path().join("m.onnx")).unwrap().write(dir.path().join("out.onnx")).unwrap();
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("out.onnx"), mode("plain"));
}

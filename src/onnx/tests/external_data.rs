//! Tensors whose values lie in files beside the model.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use basisopt_ir::{Op, Rewrite, Tensor};
use basisopt_onnx::proto::{ModelProto, TensorProto};
use basisopt_onnx::{Model, Problem};
use common::*;
use prost::Message as _;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A folder with `m.onnx` and `m.data`: u = [1, 2] at 0, v = [3, 4] at 64, w = [5, 6] at 128.
fn folder() -> (TempDir, ModelProto) {
    let dir = tempfile::tempdir().unwrap();
    let mut data = vec![0u8; 136];
    for (offset, values) in [(0, [1f32, 2.0]), (64, [3.0, 4.0]), (128, [5.0, 6.0])] {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        data[offset..offset + 8].copy_from_slice(&bytes);
    }
    // Bytes between tensors are carried too.
    data[40] = 0xaa;
    let proto = model(graph(
        vec![
            node("Add", &["x", "u"], &["a"]),
            node("Add", &["a", "v"], &["b"]),
            node("Add", &["b", "w"], &["y"]),
        ],
        vec![external("u", 2, "m.data", 0), external("v", 2, "m.data", 64), external("w", 2, "m.data", 128)],
    ));
    fs::write(dir.path().join("m.data"), data).unwrap();
    fs::write(dir.path().join("m.onnx"), encode(&proto)).unwrap();
    (dir, proto)
}

fn values(model: &Model, name: &str) -> Vec<f64> {
    model.graph.constant(model.graph.find_value(name).unwrap()).unwrap().to_f64s().unwrap()
}

/// y = (x + u) + v: without the last addition, w goes.
fn drop_w(model: &mut Model) {
    let y = model.graph.find_value("y").unwrap();
    let b = model.graph.node_input(y.node, 0).unwrap();
    let mut rewrite = Rewrite::at(y.node);
    rewrite.replace(y, b);
    rewrite.apply(&mut model.graph).unwrap();
}

/// y = x + v: without the first addition, u goes.
fn drop_u(model: &mut Model) {
    let a = model.graph.find_value("a").unwrap();
    let x = model.graph.node_input(a.node, 0).unwrap();
    let mut rewrite = Rewrite::at(a.node);
    rewrite.replace(a, x);
    rewrite.apply(&mut model.graph).unwrap();
}

#[test]
fn values_are_read_from_the_data_file() {
    let (dir, _) = folder();
    let model = Model::read(dir.path().join("m.onnx")).unwrap();
    assert_eq!((values(&model, "u"), values(&model, "w")), (vec![1.0, 2.0], vec![5.0, 6.0]));
    assert_eq!(model.source().data_files(), ["m.data"]);
}

#[test]
fn another_folder_gets_the_same_files() {
    let (dir, proto) = folder();
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("small.onnx");
    Model::read(dir.path().join("m.onnx")).unwrap().write(&target).unwrap();
    assert_eq!(fs::read(&target).unwrap(), encode(&proto));
    assert_eq!(fs::read(out.path().join("m.data")).unwrap(), fs::read(dir.path().join("m.data")).unwrap());
    // A second run replaces what the first one wrote.
    Model::read(dir.path().join("m.onnx")).unwrap().write(&target).unwrap();
}

#[test]
fn the_same_folder_gets_a_data_file_named_after_the_output() {
    let (dir, proto) = folder();
    let before = fs::read(dir.path().join("m.data")).unwrap();
    let model = Model::read(dir.path().join("m.onnx")).unwrap();
    model.write(dir.path().join("out.onnx")).unwrap();
    assert_eq!(fs::read(dir.path().join("m.data")).unwrap(), before);
    assert_eq!(fs::read(dir.path().join("out.data")).unwrap(), before);
    let mut expected = proto;
    for tensor in &mut expected.graph.as_mut().unwrap().initializer {
        tensor.external_data[0].value = text("out.data");
    }
    assert_eq!(fs::read(dir.path().join("out.onnx")).unwrap(), encode(&expected));
    assert_eq!(values(&Model::read(dir.path().join("out.onnx")).unwrap(), "v"), [3.0, 4.0]);
}

#[test]
fn a_strangers_data_file_is_not_replaced() {
    let (dir, _) = folder();
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("m.data"), "precious").unwrap();
    let error = Model::read(dir.path().join("m.onnx")).unwrap().write(out.path().join("m.onnx")).unwrap_err();
    assert!(matches!(error.problem(), Problem::Overwrite { .. }), "{error}");
    assert_eq!(fs::read(out.path().join("m.data")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1, "nothing else is left behind");
    // Under another name there is room for both.
    let other = out.path().join("other.onnx");
    Model::read(dir.path().join("m.onnx")).unwrap().write(&other).unwrap();
    assert_eq!(fs::read(out.path().join("m.data")).unwrap(), b"precious");
    assert!(out.path().join("other.data").exists());
    assert_eq!(values(&Model::read(&other).unwrap(), "v"), vec![3.0, 4.0]);
}

#[test]
fn removed_tensors_leave_the_data_file_and_the_alignment_stays() {
    let (dir, _) = folder();
    let out = tempfile::tempdir().unwrap();
    let mut model = Model::read(dir.path().join("m.onnx")).unwrap();
    drop_u(&mut model);
    let target = out.path().join("m.onnx");
    model.write(&target).unwrap();
    let written = ModelProto::decode(&fs::read(&target).unwrap()[..]).unwrap().graph.unwrap();
    assert_eq!(written.initializer, [external("v", 2, "m.data", 0), external("w", 2, "m.data", 64)]);
    assert_eq!(fs::metadata(out.path().join("m.data")).unwrap().len(), 72);
    let again = Model::read(&target).unwrap();
    assert_eq!((values(&again, "v"), values(&again, "w")), (vec![3.0, 4.0], vec![5.0, 6.0]));
}

#[test]
fn large_new_constants_go_external_and_small_ones_inline() {
    let (dir, _) = folder();
    let mut model = Model::read(dir.path().join("m.onnx")).unwrap();
    drop_w(&mut model);
    let y = model.graph.find_value("y").unwrap();
    let v = model.graph.node_input(y.node, 0).unwrap();
    let mut rewrite = Rewrite::at(y.node);
    let big: Vec<f32> = (0..256).map(|i| i as f32).collect();
    let big = rewrite.constant("big", Tensor::from_f32s(vec![256], &big).unwrap());
    let small = rewrite.constant("small", Tensor::from_f32s(vec![1], &[7.0]).unwrap());
    let sum = rewrite.node("sum", Op::from_attrs("Sum", basisopt_ir::Attrs::new()), &[v.into(), big, small]);
    rewrite.replace(y, sum);
    rewrite.apply(&mut model.graph).unwrap();
    let target = dir.path().join("out.onnx");
    model.write(&target).unwrap();
    let again = Model::read(&target).unwrap();
    assert_eq!(values(&again, "big")[255], 255.0);
    assert_eq!(values(&again, "small"), [7.0]);
    let graph = ModelProto::decode(&fs::read(&target).unwrap()[..]).unwrap().graph.unwrap();
    let external: Vec<(&str, bool)> =
        graph.initializer.iter().map(|t| (t.name(), t.data_location == Some(1))).collect();
    assert!(external.contains(&("big", true)) && external.contains(&("small", false)), "{external:?}");

    // For a runtime nothing moves: the old tensors stay where they are, new ones are inside.
    let (bytes, folder) = model.to_executable(&model.graph).unwrap();
    assert_eq!(folder.as_deref(), Some(dir.path()));
    let run = Model::from_bytes("run", bytes, folder.as_deref()).unwrap();
    assert_eq!((values(&run, "u"), values(&run, "big")[255]), (vec![1.0, 2.0], 255.0));
    assert_eq!(run.source().data_files(), ["m.data"]);
}

fn problem(dir: &Path, tensor: TensorProto) -> String {
    let proto = model(graph(vec![node("Add", &["x", "u"], &["y"])], vec![tensor]));
    let path = dir.join("bad.onnx");
    fs::write(&path, encode(&proto)).unwrap();
    let error = Model::read(&path).expect_err("it was accepted");
    assert!(matches!(error.problem(), Problem::External { .. } | Problem::Invalid { .. }), "{error}");
    error.to_string()
}

#[test]
fn bad_locations_are_refused_by_name() {
    let (dir, _) = folder();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), [0; 8]).unwrap();
    let secret = outside.path().join("secret");
    for location in ["../secret", "a/../../secret", secret.to_str().unwrap(), "", "..\\secret", "C:\\secret"]
    {
        let message = problem(dir.path(), external("u", 2, location, 0));
        assert!(message.contains("relative path") && message.contains("initializer \"u\""), "{message}");
    }
    let message = problem(dir.path(), external("u", 2, "gone.data", 0));
    assert!(message.contains("gone.data") && message.contains("looked in"), "{message}");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&secret, dir.path().join("link")).unwrap();
        let message = problem(dir.path(), external("u", 2, "link", 0));
        assert!(message.contains("symbolic link"), "{message}");
        std::os::unix::fs::symlink("m.data", dir.path().join("inside")).unwrap();
        let proto = model(graph(vec![node("Add", &["x", "u"], &["y"])], vec![external("u", 2, "inside", 0)]));
        assert!(Model::from_bytes("m", encode(&proto), Some(dir.path())).is_ok());
    }
}

#[test]
fn bad_ranges_are_refused_by_name() {
    let (dir, _) = folder();
    let message = problem(dir.path(), external("u", 2, "m.data", 132));
    assert!(message.contains("8 bytes at offset 132") && message.contains("136 bytes"), "{message}");
    let message = problem(dir.path(), external("u", 2, "m.data", u64::MAX));
    assert!(message.contains("offset 18446744073709551615"), "{message}");
    let mut tensor = external("u", 2, "m.data", 0);
    tensor.dims = vec![3];
    let message = problem(dir.path(), tensor.clone());
    assert!(message.contains("length is 8 bytes, but the tensor needs 12"), "{message}");
    tensor.external_data.truncate(2);
    tensor.dims = vec![1 << 40, 1 << 40];
    assert!(
        Model::from_bytes(
            "m",
            encode(&model(graph(vec![node("Add", &["x", "u"], &["y"])], vec![tensor]))),
            Some(dir.path())
        )
        .is_err()
    );
    let mut tensor = external("u", 2, "m.data", 0);
    tensor.external_data[1].value = text("-4");
    assert!(problem(dir.path(), tensor).contains("offset \"-4\""));
    let mut tensor = external("u", 2, "m.data", 0);
    tensor.external_data.clear();
    assert!(problem(dir.path(), tensor).contains("no location"));
}

#[test]
fn a_type_nobody_knows_is_carried_by_its_length() {
    let (dir, mut proto) = folder();
    let graph = proto.graph.as_mut().unwrap();
    // FLOAT6E2M3, 6 bits each.
    graph.initializer.push(TensorProto {
        data_type: Some(27),
        dims: vec![7],
        ..external("f6", 2, "m.data", 40)
    });
    fs::write(dir.path().join("m.onnx"), encode(&proto)).unwrap();
    let mut model = Model::read(dir.path().join("m.onnx")).unwrap();
    drop_u(&mut model);
    model.write(dir.path().join("out.onnx")).unwrap();
    let data = fs::read(dir.path().join("out.data")).unwrap();
    assert_eq!((data[0], data.len()), (0xaa, 24), "f6 at 0, v at 8, w at 16: offset 40 is aligned to 8");
}

#[test]
fn without_a_folder_external_data_is_an_error() {
    let (_dir, proto) = folder();
    let message = Model::from_reader("standard input", &encode(&proto)[..]).unwrap_err().to_string();
    assert!(
        message.contains("standard input") && message.contains("read the model by its path"),
        "{message}"
    );
}

#[test]
fn tensors_inside_bodies_and_attributes_move_too() {
    let (dir, _) = folder();
    let mut body = graph(vec![node("Add", &["x", "v"], &["r"])], vec![external("v", 2, "m.data", 64)]);
    (body.input, body.output) = (vec![], vec![info("r", &[2])]);
    let mut choice = node("If", &["x"], &["y"]);
    choice.attribute.push(body_attribute("then_branch", body));
    let path = dir.path().join("m.onnx");
    fs::write(&path, encode(&model(graph(vec![choice], vec![])))).unwrap();
    let read = Model::read(&path).unwrap();
    read.write(dir.path().join("out.onnx")).unwrap();
    let bytes = fs::read(dir.path().join("out.onnx")).unwrap();
    assert!(contains(&bytes, b"out.data") && !contains(&bytes, b"m.data"));
    assert!(Model::read(dir.path().join("out.onnx")).is_ok());
}

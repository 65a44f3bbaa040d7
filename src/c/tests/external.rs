//! External data: a model's other files come out as it does, and may be written over those that it was read from.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(unsafe_code, reason = "calls the library as C does")]

use basisopt_c::options::{BASISOPT_UNCHECKED, BasisoptOptions};
use basisopt_c::result::{
    BasisoptResult, basisopt_result_data_file, basisopt_result_error, basisopt_result_free,
    basisopt_result_model, basisopt_result_n_data_files,
};
use basisopt_c::run::basisopt_optimize;
use basisopt_c::status::BasisoptStatus;
use basisopt_onnx::Model;
use basisopt_onnx::proto::{ModelProto, StringStringEntryProto, tensor_proto::DataLocation};
use prost::Message as _;
use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::{fs, slice};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/glyphnet.onnx");

/// The network in `fixtures/` with its largest weight in a file of its own; gives the bytes of the model.
fn with_data_file(folder: &Path) -> Vec<u8> {
    let mut model = ModelProto::decode(&fs::read(MODEL).unwrap()[..]).unwrap();
    let weights = &mut model.graph.as_mut().unwrap().initializer;
    let largest = weights.iter_mut().max_by_key(|w| w.raw_data().len()).unwrap();
    fs::write(folder.join("weights.data"), largest.raw_data.take().unwrap()).unwrap();
    largest.data_location = Some(DataLocation::External as i32);
    largest.external_data = vec![StringStringEntryProto {
        key: Some("location".to_owned()),
        value: Some("weights.data".to_owned()),
    }];
    model.encode_to_vec()
}

fn optimized(model: &[u8], pipeline: &CStr, dir: Option<&Path>) -> (BasisoptStatus, *mut BasisoptResult) {
    let dir = dir.map(|d| CString::new(d.to_str().unwrap()).unwrap());
    // SAFETY: zeros are a value of every field.
    let mut options: BasisoptOptions = unsafe { std::mem::zeroed() };
    options.size = size_of::<BasisoptOptions>();
    options.flags = BASISOPT_UNCHECKED;
    options.dir = dir.as_ref().map_or(null(), |d| d.as_ptr());
    let mut result = null_mut();
    // SAFETY: everything lives to the end of the call.
    let status = unsafe {
        basisopt_optimize(model.as_ptr(), model.len(), pipeline.as_ptr(), null(), &options, &raw mut result)
    };
    (status, result)
}

/// What a pipeline makes of the network with its weights inside.
fn inline(pipeline: &CStr) -> String {
    let (status, result) = optimized(&fs::read(MODEL).unwrap(), pipeline, None);
    assert_eq!(status, BasisoptStatus::Ok);
    // SAFETY: the result is read before it is freed, once.
    unsafe {
        assert_eq!(basisopt_result_n_data_files(result), 0);
        let mut n = 0;
        let bytes = basisopt_result_model(result, &raw mut n);
        let bytes = slice::from_raw_parts(bytes, n).to_vec();
        basisopt_result_free(result);
        Model::from_bytes("inline", bytes.into(), None).unwrap().graph.to_string()
    }
}

#[test]
fn data_files_come_out_and_may_replace_those_that_came_in() {
    // The first leaves the file as it was mapped, the second makes new weights.
    for pipeline in [c"dead-code", c"@fold,dead-code"] {
        let folder = tempfile::tempdir().unwrap();
        let given = with_data_file(folder.path());
        let (status, result) = optimized(&given, pipeline, Some(folder.path()));
        assert_eq!(status, BasisoptStatus::Ok);
        // SAFETY: as above.
        let model = unsafe {
            assert_eq!(basisopt_result_n_data_files(result), 1);
            let (mut location, mut n): (*const c_char, usize) = (null(), 0);
            let data = basisopt_result_data_file(result, 0, &raw mut location, &raw mut n);
            assert_eq!(CStr::from_ptr(location), c"weights.data");
            // In place: the file that was mapped shrinks to nothing and grows again.
            fs::write(folder.path().join("weights.data"), slice::from_raw_parts(data, n)).unwrap();
            let model = basisopt_result_model(result, &raw mut n);
            let model = slice::from_raw_parts(model, n).to_vec();
            assert!(basisopt_result_data_file(result, 1, null_mut(), null_mut()).is_null());
            basisopt_result_free(result);
            model
        };
        let model = Model::from_bytes("external", model.into(), Some(folder.path())).unwrap();
        // Norms of weights included.
        assert_eq!(model.graph.to_string(), inline(pipeline), "{pipeline:?}");
    }
}

#[test]
fn without_a_folder_they_are_missed() {
    let folder = tempfile::tempdir().unwrap();
    let (status, result) = optimized(&with_data_file(folder.path()), c"@fold", None);
    // SAFETY: as above.
    unsafe {
        assert_eq!(status, BasisoptStatus::Model);
        assert!(CStr::from_ptr(basisopt_result_error(result)).to_str().unwrap().contains("weights.data"));
        basisopt_result_free(result);
    }
}

//! Any bytes: an error or a graph, and what is a graph survives the exact passes and export.
#![no_main]

use basisopt_onnx::Model;
use basisopt_passes::{Manager, NoObserver, Pipeline, Registry};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut model) = Model::from_bytes("fuzz", data.to_vec().into(), None) else { return };
    let pipeline = Pipeline::parse("@fold,merge-factors", &Registry::builtin()).expect("a fixed pipeline");
    let broken = |e: &basisopt_passes::ManagerError| {
        !matches!(e, basisopt_passes::ManagerError::Input(_) | basisopt_passes::ManagerError::Types(_))
    };
    match Manager::default().run(&mut model.graph, &pipeline, &mut NoObserver) {
        Ok(_) => {
            let bytes = model.to_bytes().map(|encoded| encoded.concat());
            if let Ok(bytes) = bytes {
                Model::from_bytes("again", bytes, None).expect("what was written can be read");
            }
        }
        Err(e) => assert!(!broken(&e), "{e}"),
    }
});

//! Any bytes: an error or a graph, and what is a graph survives the exact passes and export.
#![no_main]

use basisopt_onnx::Model;
use basisopt_passes::{Manager, ManagerError, NoObserver, Pipeline, Registry};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut model) = Model::from_bytes("fuzz", data.to_vec().into(), None) else { return };
    let pipeline = Pipeline::parse("@fold,merge-factors", &Registry::builtin()).expect("a fixed pipeline");
    // Shapes that contradict each other may show only once constants are folded.
    let contradiction = |e: &ManagerError| match e {
        ManagerError::Input(_) | ManagerError::Types(_) => true,
        ManagerError::Broken { violations, .. } => violations.iter().all(|v| (7..=9).contains(&v.invariant)),
        _ => false,
    };
    match Manager::default().run(&mut model.graph, &pipeline, &mut NoObserver) {
        Ok(_) => {
            let bytes = model.to_bytes().map(|encoded| encoded.concat());
            if let Ok(bytes) = bytes {
                Model::from_bytes("again", bytes, None).expect("what was written can be read");
            }
        }
        Err(e) => assert!(contradiction(&e), "{e}"),
    }
});

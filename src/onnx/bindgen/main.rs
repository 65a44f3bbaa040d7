//! Writes `src/onnx/proto.rs` from the `onnx-ml.proto` beside this file, without `protoc`.
//!
//! ```text
//! cargo run --manifest-path src/onnx/bindgen/Cargo.toml
//! ```
//!
//! To move to a newer ONNX, replace `onnx-ml.proto` by the one in the new `onnx` wheel
//! (`site-packages/onnx/onnx-ml.proto`), update [`ONNX_VERSION`], run the command above, and raise
//! `NEWEST_OPSET` in `src/onnx/lib.rs`.

use std::error::Error;
use std::path::Path;
use std::process::Command;

/// The release of the `onnx` wheel that `onnx-ml.proto` came from.
const ONNX_VERSION: &str = "1.23.2";

fn main() -> Result<(), Box<dyn Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile([here.join("onnx-ml.proto")], [here])?;
    let folder = std::env::temp_dir().join(format!("basisopt-bindgen-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    prost_build::Config::new()
        // Weights stay slices of the file they were read from.
        .bytes(["."])
        // The comments are in the .proto; rustdoc would take their indented text for examples.
        .disable_comments(["."])
        .out_dir(&folder)
        .compile_fds(descriptors)?;
    let code = std::fs::read_to_string(folder.join("onnx.rs"))?;
    std::fs::remove_dir_all(&folder)?;
    let header = format!(
        "//! Protobuf bindings of ONNX (IR 14, opset 28).\n//!\n\
         //! Generated from `bindgen/onnx-ml.proto` (onnx {ONNX_VERSION}, Copyright (c) ONNX Project\n\
         //! Contributors, Apache-2.0) with protox and prost-build. Do not edit; run\n\
         //! `cargo run --manifest-path src/onnx/bindgen/Cargo.toml` instead.\n\n\
         #![allow(clippy::all, missing_docs, rustdoc::all, reason = \"generated\")]\n\n"
    );
    let target = here.join("../proto.rs");
    std::fs::write(&target, header + &code)?;
    let status = Command::new("rustfmt").args(["--edition", "2024"]).arg(&target).status()?;
    if !status.success() {
        return Err("rustfmt failed".into());
    }
    Ok(())
}

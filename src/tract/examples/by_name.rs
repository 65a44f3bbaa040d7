//! Loads an ONNX file with tract, factorises it by the name of the transform, runs it.
//!
//! `cargo run -p basisopt-tract --example by_name -- model.onnx "factorize-conv(energy: 0.9)"`
#![allow(clippy::print_stdout, reason = "an example")]

use basisopt_tract as _; // so that the linker keeps it
use tract_onnx::prelude::*;
use tract_onnx::tract_core::transform::{get_transform_with_params, split_spec};

fn main() -> TractResult<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or_else(|| "fixtures/models/glyphnet.onnx".to_owned());
    let spec = arguments.next().unwrap_or_else(|| "factorize-conv(energy: 0.9)".to_owned());

    let mut model = tract_onnx::onnx().model_for_path(path)?.into_typed()?;
    let (name, parameters) = split_spec(&spec);
    let parameters = if parameters.is_empty() { "()" } else { parameters };
    let mut parameters = ron::Deserializer::from_str(parameters)?;
    let transform =
        get_transform_with_params(&name, &mut <dyn erased_serde::Deserializer>::erase(&mut parameters))?;
    transform.ok_or_else(|| TractError::msg(format!("no transform {name}")))?.transform(&mut model)?;
    let pairs = model.nodes().iter().filter(|node| node.name.ends_with(".basis") && !node.inputs.is_empty());
    println!("{spec}: {} layers became pairs", pairs.count());

    // One image, of zeros.
    let symbols = model.input_fact(0)?.shape.iter().flat_map(|dim| dim.symbols()).collect::<Vec<_>>();
    let model = model.set_symbols(&symbols.into_iter().map(|s| (s, TDim::Val(1))).collect())?;
    let shape: Vec<usize> = model.input_fact(0)?.shape.as_concrete().unwrap_or_default().to_vec();
    let outputs = model.into_optimized()?.into_runnable()?.run(tvec!(Tensor::zero::<f32>(&shape)?.into()))?;
    println!("{:?}", outputs[0]);
    Ok(())
}

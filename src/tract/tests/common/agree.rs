//! The same file by the command line's way — import, passes, export, tract — and by the transform inside tract.

#![allow(dead_code, reason = "each program uses its part")]

use basisopt_onnx::Model;
use basisopt_passes::{Manager, NoObserver, Pipeline, Registry};
use basisopt_tract::{FactorizeConv, Report};
use std::error::Error;
use std::path::Path;
use tract_onnx::prelude::*;

/// Layers and ranks, sorted by name.
pub type Ranks = Vec<(String, usize)>;

/// What came out of one of the two ways.
pub struct Way {
    pub ranks: Ranks,
    pub outputs: Vec<Tensor>,
}

/// By import, `@fold,factorize-conv` and export, and run by tract.
pub fn by_passes(path: &Path, energy: f64) -> Result<Way, Box<dyn Error>> {
    let mut model = Model::read(path)?;
    let pipeline = format!("@fold,factorize-conv:energy={energy}");
    let pipeline = Pipeline::parse(&pipeline, &Registry::builtin())?;
    let report = Manager::default().run(&mut model.graph, &pipeline, &mut NoObserver)?;
    let factored = report.remarks().filter(|r| r.code == "factored");
    let mut ranks: Ranks = factored.map(|r| (r.node.clone(), r.values["rank"] as usize)).collect();
    ranks.sort();
    let bytes = model.to_bytes()?.concat();
    Ok(Way { ranks, outputs: run(reader().model_for_read(&mut &bytes[..])?.into_typed()?)? })
}

/// By tract and the transform, of the model as it was loaded or decluttered.
pub fn by_transform(path: &Path, energy: f64, declutter: bool) -> Result<(Way, Report), Box<dyn Error>> {
    let mut model = reader().model_for_path(path)?.into_typed()?;
    if declutter {
        model = model.into_decluttered()?;
    }
    let report = FactorizeConv { energy: Some(energy), ..FactorizeConv::default() }.apply(&mut model)?;
    model.check_consistency()?;
    let mut ranks: Ranks = report.ranks().map(|(name, rank)| (name.to_owned(), rank)).collect();
    ranks.sort();
    Ok((Way { ranks, outputs: run(model)? }, report))
}

/// The network as it is.
pub fn whole(path: &Path) -> Result<Vec<Tensor>, Box<dyn Error>> {
    Ok(run(reader().model_for_path(path)?.into_typed()?)?)
}

fn reader() -> tract_onnx::Onnx {
    let mut onnx = tract_onnx::onnx();
    // Recorded shapes of inner values may be those of another batch.
    onnx.ignore_value_info = true;
    onnx
}

/// One image of noise through a model, with 1 for every symbol.
fn run(model: TypedModel) -> TractResult<Vec<Tensor>> {
    let mut symbols = std::collections::HashMap::new();
    for outlet in model.input_outlets()? {
        let shape = &model.outlet_fact(*outlet)?.shape;
        symbols.extend(shape.iter().flat_map(|d| d.symbols()).map(|s| (s, TDim::Val(1))));
    }
    let model = model.set_symbols(&symbols)?;
    let mut inputs = tvec![];
    for outlet in model.input_outlets()? {
        let shape = model.outlet_fact(*outlet)?.shape.as_concrete().unwrap_or_default().to_vec();
        let generator = basisopt_ir::Generator::Randn { seed: 7 };
        let noise = basisopt_ir::Tensor::generated(basisopt_ir::DType::F32, shape.clone(), generator)?;
        inputs.push(tract_onnx::tract_core::internal::tensor1(&noise.to_f32s()?).into_shape(&shape)?.into());
    }
    let outputs = model.into_decluttered()?.into_optimized()?.into_runnable()?.run(inputs)?;
    Ok(outputs.into_iter().map(TValue::into_tensor).collect())
}

/// The largest difference, by the largest value.
pub fn difference(a: &[Tensor], b: &[Tensor]) -> Result<f64, Box<dyn Error>> {
    let mut largest = 0.0f64;
    for (a, b) in a.iter().zip(b) {
        if a.shape() != b.shape() {
            return Err(format!("an output of shape {:?} for one of {:?}", b.shape(), a.shape()).into());
        }
        let (a, b) = (a.cast_to::<f64>()?, b.cast_to::<f64>()?);
        let (a, b) = (a.try_as_plain_ram()?, b.try_as_plain_ram()?);
        let (a, b) = (a.as_slice::<f64>()?, b.as_slice::<f64>()?);
        // Maxima pass over what is not a number.
        if a.iter().chain(b).any(|v| !v.is_finite()) {
            return Err("an output is not finite".into());
        }
        let scale = a.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
        let moved = a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        largest = largest.max(moved / scale);
    }
    Ok(largest)
}

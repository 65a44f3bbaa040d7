//! The factorisations of `basisopt` inside [tract](https://github.com/sonos/tract): a transform of a
//! [`TypedModel`], whatever file the model was loaded from.
//!
//! tract reads ONNX, NNEF and TensorFlow Lite into one kind of model. This crate registers two transforms for it,
//! [`FactorizeConv`] and [`FactorizeLinear`]; a program that links the crate finds them by name:
//!
//! ```
//! use basisopt_tract as _; // so that the linker keeps it
//! use tract_core::transform::{get_transform_with_params, split_spec};
//!
//! # fn transform(model: &mut tract_core::internal::TypedModel) -> tract_core::internal::TractResult<()> {
//! let (name, parameters) = split_spec("factorize-conv(energy: 0.9)");
//! let mut parameters = ron::Deserializer::from_str(parameters)?;
//! let mut parameters = <dyn erased_serde::Deserializer>::erase(&mut parameters);
//! if let Some(factorize) = get_transform_with_params(&name, &mut parameters)? {
//!     factorize.transform(model)?;
//! }
//! # Ok(())
//! # }
//! # transform(&mut Default::default())?;
//! # tract_core::internal::TractResult::Ok(())
//! ```
//!
//! or uses them as the types that they are, and reads why layers stayed whole:
//!
//! ```
//! use basisopt_tract::FactorizeConv;
//!
//! # let mut model = tract_core::internal::TypedModel::default();
//! let report = FactorizeConv { energy: Some(0.9), ..Default::default() }.apply(&mut model)?;
//! for remark in &report.remarks {
//!     println!("{remark}");
//! }
//! # tract_core::internal::TractResult::Ok(())
//! ```
//!
//! ## How
//!
//! There is one implementation of the factorisation, the passes of `basisopt-passes`. The layers of the model are
//! copied into a [`basisopt_ir::Graph`], each with its weight, which the passes work on; the pairs that come out take
//! the places of the layers. So ranks, break-even, numerics and remarks are those of the command line.
//!
//! ```text
//! TypedModel ─► layers, each with what scales and shifts its channels ─► ir::Graph ─► passes ─► patches
//! ```
//!
//! tract has no batch normalisation: its readers make a product and a sum of it. Constants by which the channels
//! behind a convolution are scaled and shifted are folded into the convolution first (the pass
//! `fold-batch-norm` does that), so that they count in the energies; `fold: false` leaves them out.
//!
//! A factorised model runs as two convolutions per layer. The transform `fuse-basis-conv` of `basisopt-runtime` makes
//! one operator of each such pair, which is faster.

mod affine;
mod convert;
mod islands;
mod layer;
mod options;
mod patch;
mod report;
mod run;

pub use options::{FactorizeConv, FactorizeLinear};
pub use report::{Factored, Report};
pub use run::TransformError;

use tract_core::internal::{StaticName, TractResult, TypedModel};
use tract_core::transform::ModelTransform;

impl ModelTransform for FactorizeConv {
    fn name(&self) -> StaticName {
        "factorize_conv".into()
    }

    fn transform(&self, model: &mut TypedModel) -> TractResult<()> {
        self.apply(model).map(|report| report.log())
    }
}

impl ModelTransform for FactorizeLinear {
    fn name(&self) -> StaticName {
        "factorize_linear".into()
    }

    fn transform(&self, model: &mut TypedModel) -> TractResult<()> {
        self.apply(model).map(|report| report.log())
    }
}

// tract turns hyphens into underscores in a name that stands alone, and leaves them in one with parameters.
tract_core::register_model_transform!("factorize_conv", FactorizeConv, |config| config.checked());
tract_core::register_model_transform!("factorize-conv", FactorizeConv, |config| config.checked());
tract_core::register_model_transform!("factorize_linear", FactorizeLinear, |config| config.checked());
tract_core::register_model_transform!("factorize-linear", FactorizeLinear, |config| config.checked());

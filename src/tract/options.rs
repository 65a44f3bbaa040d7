//! What the transforms can be told.
//!
//! The options are those of the passes that need no data. Values are handed to the passes as they are given, so that
//! what they refuse they refuse in their own words.

use crate::report::Report;
use crate::run::{self, Kind, TransformError};
use basisopt_passes::Item;
use serde::{Deserialize, Deserializer};
use tract_core::internal::{TractResult, TypedModel};
use tract_core::transform::ModelTransform;

/// A value that is there, written bare: `energy: 0.9`, not `energy: Some(0.9)`, in every format.
fn bare<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

macro_rules! options {
    ($(#[$doc:meta])* $name:ident, $pass:literal { $($(#[$more_doc:meta])* $more:ident: $more_ty:ty),* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            /// The smallest rank that keeps this share of the squared singular values, 0 to 1. This is the rule,
            /// with 0.9, where none is given; of `energy`, `ratio`, `rank` and `ranks` only one may be.
            #[serde(deserialize_with = "bare")]
            pub energy: Option<f64>,
            /// The rank as a share of the full rank, 0 to 1, rounded up.
            #[serde(deserialize_with = "bare")]
            pub ratio: Option<f64>,
            /// The same rank everywhere, at most the full one.
            #[serde(deserialize_with = "bare")]
            pub rank: Option<usize>,
            /// A file with a line `RANK NAME` per layer, as the command line reads and `sweep` writes them; layers
            /// that are not in it stay whole.
            #[serde(deserialize_with = "bare")]
            pub ranks: Option<String>,
            /// Ranks are rounded up to a multiple of this; 1 if not given.
            #[serde(deserialize_with = "bare")]
            pub multiple: Option<usize>,
            /// Whether layers whose factors would need as many multiply-adds stay whole, which they do if nothing is
            /// said.
            #[serde(deserialize_with = "bare")]
            pub guard: Option<bool>,
            /// Only layers whose names match: globs joined by `|`.
            #[serde(deserialize_with = "bare")]
            pub include: Option<String>,
            /// Not the layers whose names match.
            #[serde(deserialize_with = "bare")]
            pub exclude: Option<String>,
            $($(#[$more_doc])* #[serde(deserialize_with = "bare")] pub $more: Option<$more_ty>,)*
        }

        impl $name {
            /// The options in the words of the pass.
            fn given(&self) -> Vec<(String, String)> {
                let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
                [
                    ("energy", self.energy.map(|v| v.to_string())),
                    ("ratio", self.ratio.map(|v| v.to_string())),
                    ("rank", self.rank.map(|v| v.to_string())),
                    ("ranks", self.ranks.clone()),
                    ("multiple", self.multiple.map(|v| v.to_string())),
                    ("guard", self.guard.map(switch)),
                    ("include", self.include.clone()),
                    ("exclude", self.exclude.clone()),
                ]
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                .collect()
            }

            fn item(&self) -> Result<Item, TransformError> {
                run::item($pass, self.given())
            }

            /// The transform, if its options make sense.
            pub(crate) fn checked(self) -> TractResult<Box<dyn ModelTransform>> {
                self.item()?;
                Ok(Box::new(self))
            }
        }
    };
}

options! {
    /// The transform `factorize-conv`: a convolution becomes a few orthonormal basis filters and 1×1 filters that
    /// express the original ones in that basis.
    ///
    /// The names are `conv1.basis` for the first of the pair and `conv1` for the second, which gives what `conv1`
    /// gave. Convolutions may be in any of tract's formats of images and kernels, grouped, strided, dilated and padded
    /// in any way, and of any rank; batch and image sizes may be symbols.
    FactorizeConv, "factorize-conv" {
        /// Whether constants that scale and shift the channels of a convolution's result, such as a batch
        /// normalisation, are folded into it before it is factorised, which they are if nothing is said.
        fold: bool
    }
}

options! {
    /// The transform `factorize-linear`: a product with a constant matrix becomes two.
    ///
    /// Names and options are as for [`FactorizeConv`].
    FactorizeLinear, "factorize-linear" {}
}

impl FactorizeConv {
    /// Factorises the convolutions of a model, decluttered or not. On an error the model is as it was.
    ///
    /// # Errors
    /// A [`TransformError`] if an option or its value is refused, if a ranks file cannot be read, or if a
    /// decomposition fails; tract's own if the model is not well formed.
    pub fn apply(&self, model: &mut TypedModel) -> TractResult<Report> {
        run::run(model, Kind::Conv { fold: self.fold.unwrap_or(true) }, self.item()?)
    }
}

impl FactorizeLinear {
    /// Factorises the linear layers of a model, decluttered or not. On an error the model is as it was.
    ///
    /// # Errors
    /// As [`FactorizeConv::apply`].
    pub fn apply(&self, model: &mut TypedModel) -> TractResult<Report> {
        run::run(model, Kind::Linear, self.item()?)
    }
}

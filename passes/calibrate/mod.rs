//! Learning from data what a layer should do: activations, their moments, and factors fitted to them.
//!
//! | module | what it does |
//! |---|---|
//! | [`rows`] | reads the rows of a layer's regression off its input and output |
//! | [`moments`] | adds up first and second moments |
//! | [`fit`] | turns moments into maps and factors |
//! | [`observe`] | looks at the outputs of all layers of the original in one run |
//! | [`walk`] | keeps the activations at the frontier |
//! | [`refit`] | fits what stays whole |
//! | [`sequential`] | fits layer after layer to what the compressed prefix feeds it |

use crate::driver::check::ExecutorError;
use basisopt_ir::Tensor;

pub(crate) mod bias;
pub(crate) mod fit;
pub(crate) mod moments;
pub(crate) mod observe;
pub(crate) mod refit;
pub(crate) mod rows;
pub(crate) mod sequential;
pub(crate) mod walk;

/// Rows that a layer's moments are made of, if there are so many: some hundred for every direction of
/// most layers, and no more work than a few forward passes.
pub(crate) const N_ROWS: usize = 32_768;

/// Elements of rows that are kept at a time: half a gigabyte.
pub(crate) const MAX_ROW_ELEMENTS: usize = 1 << 27;

/// Executors of others may give anything.
pub(crate) fn check_count(outputs: &[Tensor], n: usize) -> Result<(), ExecutorError> {
    match outputs.len() == n {
        true => Ok(()),
        false => {
            Err(ExecutorError(format!("{n} outputs were expected, the executor gave {}", outputs.len())))
        }
    }
}

/// A seed of its own for every layer and batch.
pub(crate) fn seed_of(seed: u64, layer: usize, batch: usize) -> u64 {
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((layer as u64) << 40) ^ batch as u64
}

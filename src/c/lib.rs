//! The C library: a network in memory is optimised or compressed, ONNX bytes in, ONNX bytes out.
//!
//! C has neither results nor destructors, so every run hands out one object that holds whatever there is: the bytes
//! and the report, or the text of the error. It is freed by one function, and everything that was read from it lives
//! as long as it does. Options are structs that begin with their own size and may be zero throughout, so that fields
//! can be added at their end without breaking programs that were compiled before.
//!
//! *Invariant:* no panic crosses the border: every function that C calls runs inside `catch_unwind`.
//!
//! *Invariant:* what C gives is copied before any work begins, and checked before it is copied: null and misaligned
//! pointers, sizes whose product overflows, text that is no UTF-8, codes that mean nothing. What cannot be checked, a
//! pointer to freed memory for one, is the caller's promise (`# Safety`).
//!
//! `include/basisopt.h` is made from this source by cbindgen; a test compares them. `docs/c.md` is for users.
//!
//! | module | what it holds |
//! |---|---|
//! | [`run`] | the two functions that do the work |
//! | [`result`] | what a run hands out |
//! | [`options`], [`data`], [`recipe`] | structs that C fills in, and what they become |
//! | [`status`] | codes of failures |
//! | `read` | whatever dereferences a pointer of the caller's |
//! | `world` | the caller's callback, as passes see it |

#![allow(
    unsafe_code,
    reason = "C gives pointers; `read` is where they are checked, and each use says why it may"
)]

pub mod data;
pub mod options;
mod read;
pub mod recipe;
pub mod result;
pub mod run;
pub mod status;
mod world;

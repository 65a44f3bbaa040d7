//! What a run hands out, and what can be read from it.

use crate::status::{BasisoptStatus, Failure};
use crate::world::c_text;
use basisopt_onnx::Model;
use bytes::Bytes;
use serde::Serialize;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null;

/// What a run hands out: a model and a report, or the text of an error. It belongs to the caller, who frees it with
/// `basisopt_result_free`. It never changes, so several threads may read it at once.
#[derive(Debug)]
pub struct BasisoptResult {
    content: Result<Done, CString>,
}

/// A model that was changed, encoded.
#[derive(Debug)]
pub(crate) struct Done {
    model: Bytes,
    data_files: Vec<(CString, Vec<u8>)>,
    report: CString,
}

impl Done {
    /// Encodes the model and its report.
    pub(crate) fn new(model: &Model, report: &impl Serialize) -> Result<Self, Failure> {
        let encoded = model.to_bytes()?;
        // Copies: the pieces may lie in the mapped data files of the input, which the caller may write over.
        let data_files =
            encoded.data_files().iter().map(|(location, pieces)| (c_text(location), pieces.concat()));
        let data_files = data_files.collect();
        Ok(Self { model: encoded.concat(), data_files, report: c_text(&serde_json::to_string(report)?) })
    }
}

impl BasisoptResult {
    pub(crate) fn new(content: Result<Done, Failure>) -> (BasisoptStatus, Self) {
        match content {
            Ok(done) => (BasisoptStatus::Ok, Self { content: Ok(done) }),
            Err(failure) => (failure.status(), Self { content: Err(c_text(&failure.to_string())) }),
        }
    }
}

/// Reads from a result; a null pointer has nothing of anything.
///
/// # Safety
/// The pointer is null or a result that is not freed.
unsafe fn from_result<'a, T>(
    result: *const BasisoptResult,
    nothing: T,
    read: impl FnOnce(&'a Result<Done, CString>) -> T,
) -> T {
    // SAFETY: the caller's promise.
    let Some(result) = (unsafe { result.as_ref() }) else { return nothing };
    catch_unwind(AssertUnwindSafe(|| read(&result.content))).unwrap_or(nothing)
}

/// Writes through a pointer, unless it is null: C need not ask for everything.
///
/// # Safety
/// The pointer is null, or leads to a `T` that may be written.
unsafe fn put<T>(ptr: *mut T, value: T) {
    if !ptr.is_null() {
        // SAFETY: not null, and the caller's promise.
        unsafe { ptr.write(value) }
    }
}

/// The bytes of the new model, and how many they are in `n_bytes` (which may be NULL). They live as long as the
/// result. NULL and 0 if the run failed.
///
/// # Safety
/// `result` is NULL or not freed; `n_bytes` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basisopt_result_model(
    result: *const BasisoptResult,
    n_bytes: *mut usize,
) -> *const u8 {
    // SAFETY: the caller's promises.
    unsafe {
        let (bytes, n) = from_result(result, (null(), 0), |content| match content {
            Ok(done) => (done.model.as_ptr(), done.model.len()),
            Err(_) => (null(), 0),
        });
        put(n_bytes, n);
        bytes
    }
}

/// How many files of external data belong to the new model; 0 for nearly all models, and if the run failed.
///
/// # Safety
/// `result` is NULL or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basisopt_result_n_data_files(result: *const BasisoptResult) -> usize {
    // SAFETY: the caller's promise.
    unsafe { from_result(result, 0, |content| content.as_ref().map_or(0, |done| done.data_files.len())) }
}

/// The contents of a file of external data: how many bytes in `n_bytes`, and in `location` where the model expects
/// it, relative to its own folder (both may be NULL). They live as long as the result. NULL if there is no such file.
///
/// # Safety
/// `result` is NULL or not freed; `location` and `n_bytes` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basisopt_result_data_file(
    result: *const BasisoptResult,
    index: usize,
    location: *mut *const c_char,
    n_bytes: *mut usize,
) -> *const u8 {
    // SAFETY: the caller's promises.
    unsafe {
        let nothing = (null(), null(), 0);
        let (bytes, name, n) = from_result(result, nothing, |content| {
            let file = content.as_ref().ok().and_then(|done| done.data_files.get(index));
            file.map_or(nothing, |(name, bytes)| (bytes.as_ptr(), name.as_ptr(), bytes.len()))
        });
        put(location, name);
        put(n_bytes, n);
        bytes
    }
}

/// What was done, as JSON: sizes before and after, passes or layers, remarks. The text lives as long as the result.
/// NULL if the run failed.
///
/// # Safety
/// `result` is NULL or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basisopt_result_report(result: *const BasisoptResult) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe {
        from_result(result, null(), |content| content.as_ref().map_or(null(), |done| done.report.as_ptr()))
    }
}

/// Why the run failed, for people. The text lives as long as the result. NULL if it did not fail.
///
/// # Safety
/// `result` is NULL or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basisopt_result_error(result: *const BasisoptResult) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe {
        from_result(result, null(), |content| content.as_ref().err().map_or(null(), |text| text.as_ptr()))
    }
}

/// Frees a result and everything that was read from it. NULL is left alone.
///
/// # Safety
/// `result` is NULL or not freed, and nothing that was read from it is used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basisopt_result_free(result: *mut BasisoptResult) {
    if !result.is_null() {
        // SAFETY: it was made by `Box::into_raw`, and the caller gives it back once.
        let result = unsafe { Box::from_raw(result) };
        drop(catch_unwind(AssertUnwindSafe(|| drop(result))));
    }
}

//! Pointers of the caller's, checked as far as a pointer can be, and copied.
//!
//! Every function here dereferences memory that it cannot know to be there. What it asks of its caller is the same each
//! time and is what the header asks of C: the pointer is null, or leads to as many readable bytes as its type or length
//! says, which nobody writes to during the call.

use crate::status::Failure;
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

/// Structs larger than this are no struct of any version: their size was never set.
const MAX_STRUCT: usize = 4096;

/// A struct that begins with its size and that C fills in.
///
/// # Safety
/// It is `repr(C)`, its first field is a `usize`, and any bytes at all are a valid value of it.
pub(crate) unsafe trait Versioned: Copy {
    /// Its name in C.
    const NAME: &'static str;
    /// Its size in the first version that had it. Fields that came later are zero where a program does not know them.
    const FIRST_SIZE: usize;
}

/// The elements behind a pointer, or none if there are to be none.
///
/// # Safety
/// As the module says, for as long as the slice is used.
pub(crate) unsafe fn slice<'a, T>(ptr: *const T, n: usize, what: &str) -> Result<&'a [T], Failure> {
    let what = || what.to_owned();
    if n == 0 {
        return Ok(&[]);
    }
    if ptr.is_null() {
        return Err(Failure::Null { what: what(), wanted: "its length is not zero" });
    }
    if !ptr.is_aligned() {
        return Err(Failure::Misaligned { what: what(), align: align_of::<T>() });
    }
    if n.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Failure::TooLong { what: what(), n, size: size_of::<T>() });
    }
    // SAFETY: not null, aligned, of a length that a slice may have; the caller promises the rest.
    Ok(unsafe { std::slice::from_raw_parts(ptr, n) })
}

/// Text that ends in a zero, or `None` for a null pointer.
///
/// # Safety
/// As the module says; the text ends in a zero.
pub(crate) unsafe fn text(ptr: *const c_char, what: &str) -> Result<Option<String>, Failure> {
    if ptr.is_null() {
        return Ok(None);
    }
    // SAFETY: not null; the caller promises that a zero ends it.
    let text = unsafe { CStr::from_ptr(ptr) };
    match text.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(e) => Err(Failure::Text { what: what.to_owned(), at: e.valid_up_to() }),
    }
}

/// A struct of this or another version, or `None` for a null pointer. What an older program does not set is zero;
/// what a newer one sets and this version does not know is refused.
///
/// # Safety
/// As the module says, for as many bytes as the struct itself says that it has.
pub(crate) unsafe fn versioned<T: Versioned>(
    ptr: *const T,
    what: &'static str,
) -> Result<Option<T>, Failure> {
    if ptr.is_null() {
        return Ok(None);
    }
    if !ptr.is_aligned() {
        return Err(Failure::Misaligned { what: what.to_owned(), align: align_of::<T>() });
    }
    // SAFETY: not null, aligned, and every such struct begins with its size.
    let size = unsafe { ptr.cast::<usize>().read() };
    if !(T::FIRST_SIZE..=MAX_STRUCT).contains(&size) {
        return Err(Failure::Size { what, type_name: T::NAME, found: size, expected: size_of::<T>() });
    }
    // SAFETY: the caller promises as many bytes as the struct says.
    let bytes = unsafe { std::slice::from_raw_parts(ptr.cast::<u8>(), size) };
    let n = size.min(size_of::<T>());
    if bytes[n..].iter().any(|&b| b != 0) {
        return Err(Failure::Newer { what, version: env!("CARGO_PKG_VERSION") });
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `n` is no more than either of them has, a new value overlaps with nothing, and any bytes are a `T`.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast::<u8>(), n);
        Ok(Some(value.assume_init()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was the whole struct once, and what came later.
    #[repr(C)]
    #[derive(Clone, Copy, Debug)]
    struct Grown {
        size: usize,
        first: usize,
        later: usize,
    }

    // SAFETY: three integers.
    unsafe impl Versioned for Grown {
        const NAME: &'static str = "Grown";
        const FIRST_SIZE: usize = 2 * size_of::<usize>();
    }

    fn read(words: &[usize]) -> Result<[usize; 2], String> {
        // SAFETY: no test says that there is more than there is.
        let grown = unsafe { versioned(words.as_ptr().cast::<Grown>(), "grown") };
        grown.map(|g| g.map(|g| [g.first, g.later]).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn programs_compiled_before_and_after_are_understood() {
        const W: usize = size_of::<usize>();
        assert_eq!(read(&[2 * W, 5, 99]), Ok([5, 0]), "an old program's memory ends where it says");
        assert_eq!(read(&[3 * W, 5, 6]), Ok([5, 6]));
        assert_eq!(read(&[4 * W, 5, 6, 0]), Ok([5, 6]), "a new program that asks for nothing new");
        assert!(read(&[4 * W, 5, 6, 1]).unwrap_err().contains("older than the header"));
        for size in [0, W, usize::MAX] {
            assert!(read(&[size, 5, 6]).unwrap_err().contains("sizeof(Grown), which is"));
        }
    }

    #[test]
    fn what_no_slice_may_be_is_refused() {
        let values = [1u64, 2];
        let off = values.as_ptr().cast::<u8>().wrapping_add(1).cast::<u64>();
        // SAFETY: each of them is refused before it is read, and the last one is whole.
        unsafe {
            assert!(slice(off, 1, "v").unwrap_err().to_string().contains("aligned to 8"));
            assert!(
                slice(values.as_ptr(), usize::MAX / 8, "v").unwrap_err().to_string().contains("more than")
            );
            assert!(slice(values.as_ptr(), usize::MAX, "v").unwrap_err().to_string().contains("more than"));
            assert!(slice(std::ptr::null::<u64>(), 1, "v").unwrap_err().to_string().contains("v is NULL"));
            assert!(slice(std::ptr::null::<u64>(), 0, "v").unwrap().is_empty());
            assert_eq!(slice(values.as_ptr(), 2, "v").unwrap(), &values);
        }
    }
}

//! Memory of a running program: aligned buffers, and who has which when.

use basisopt_kernels::Real;

/// Bytes of a cache line, and of the widest vector: a buffer that starts elsewhere costs two loads for one.
const ALIGNMENT: usize = 64;

/// A slice that starts on a cache line.
#[derive(Debug, Default)]
pub(crate) struct Buffer<T> {
    storage: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Real> Buffer<T> {
    pub fn zeros(len: usize) -> Self {
        let storage = vec![T::ZERO; len + ALIGNMENT / size_of::<T>()];
        // On an allocator that cannot say, any start is right, if slower.
        let start = match storage.as_ptr().align_offset(ALIGNMENT) {
            offset if offset + len <= storage.len() => offset,
            _ => 0,
        };
        Self { storage, start, len }
    }

    pub fn as_slice(&self) -> &[T] {
        self.storage.get(self.start..self.start + self.len).unwrap_or_default()
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        self.storage.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }
}

/// Hands out buffers at planning time, and takes them back when their value is not read any more.
#[derive(Debug, Default)]
pub(crate) struct Allocator {
    /// Elements of each buffer.
    sizes: Vec<usize>,
    /// Free buffers, the one freed last at the end: it is the likeliest to be in the cache.
    free: Vec<usize>,
}

impl Allocator {
    /// A buffer for this many elements.
    pub fn take(&mut self, len: usize) -> usize {
        let size = |&b: &usize| self.sizes.get(b).copied().unwrap_or(0);
        // A buffer that is large enough, but not more than twice as large; else one that has to grow by less
        // than half.
        let fits = |b: &usize| (len..=2 * len).contains(&size(b));
        let grows = |b: &usize| (len / 2..len).contains(&size(b));
        let found = self.free.iter().rposition(fits).or_else(|| self.free.iter().rposition(grows));
        match found {
            Some(i) => {
                let buffer = self.free.remove(i);
                if let Some(size) = self.sizes.get_mut(buffer) {
                    *size = (*size).max(len);
                }
                buffer
            }
            None => {
                self.sizes.push(len);
                self.sizes.len() - 1
            }
        }
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: usize) {
        self.free.push(buffer);
    }

    /// Elements of each buffer.
    pub fn into_sizes(self) -> Vec<usize> {
        self.sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_on_a_cache_line() {
        for len in [1, 16, 1000, 1 << 20] {
            let mut b = Buffer::<f32>::zeros(len);
            assert_eq!(b.as_slice().len(), len);
            assert_eq!(b.as_mut_slice().as_ptr() as usize % ALIGNMENT, 0);
        }
    }

    #[test]
    fn a_freed_buffer_is_used_again_if_its_size_is_near() {
        let mut a = Allocator::default();
        let (x, y) = (a.take(100), a.take(100));
        assert_ne!(x, y);
        a.give(x);
        assert_eq!(a.take(60), x);
        a.give(y);
        assert_eq!(a.take(120), y, "grown");
        assert_eq!(a.take(10), 2, "a large buffer is not spent on a small value");
        assert_eq!(a.into_sizes(), [100, 120, 10]);
    }
}

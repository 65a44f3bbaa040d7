//! How much memory a piece of work takes, as the kernel counts it.
//!
//! The counters are those of the whole process, so the work must run alone. Linux only; elsewhere there is
//! nothing comparable and every function gives `None`.

/// The peak of the resident memory during some work, above what was resident before it.
#[derive(Debug)]
pub(crate) struct PeakMeter {
    before: u64,
}

impl PeakMeter {
    /// Hands free memory back to the system, so that it is counted again when it is used again, and resets
    /// the kernel's peak.
    pub(crate) fn start() -> Option<Self> {
        release_free_memory();
        reset_peak()?;
        Some(Self { before: status("VmRSS:")? })
    }

    /// Resets the peak but keeps the base line: what counts from here on is the peak of the next phase.
    pub(crate) fn next_phase(&self) -> Option<()> {
        release_free_memory();
        reset_peak()
    }

    /// Bytes above the base line at the highest point since the last reset.
    pub(crate) fn peak(&self) -> Option<u64> {
        Some(status("VmHWM:")?.saturating_sub(self.before))
    }
}

/// Writing 5 to `clear_refs` sets `VmHWM` back to the present size (proc(5), since Linux 4.0). Containers
/// may forbid it; then there is no measurement rather than a wrong one.
fn reset_peak() -> Option<()> {
    if cfg!(target_os = "linux") { std::fs::write("/proc/self/clear_refs", "5").ok() } else { None }
}

/// Bytes that inputs may take: half of the machine's memory, or 8 GiB where that is not known. What a
/// network makes of its inputs takes memory too.
pub(crate) fn input_limit() -> u64 {
    total_memory().map_or(8 << 30, |total| total / 2)
}

/// Bytes of memory that the machine has, where that is known.
pub fn total_memory() -> Option<u64> {
    field("/proc/meminfo", "MemTotal:")
}

/// A field of `/proc/self/status`, in bytes.
fn status(name: &str) -> Option<u64> {
    field("/proc/self/status", name)
}

/// A field in kB of one of the kernel's tables, in bytes.
fn field(table: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(table).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "a call into the C library, which has no safe wrapper")]
fn release_free_memory() {
    // SAFETY: `malloc_trim` may be called at any time from any thread; it touches free memory only.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn release_free_memory() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_buffer_shows_up() {
        let Some(meter) = PeakMeter::start() else { return };
        const N: usize = 64 << 20;
        let buffer: Vec<u8> = (0..N).map(|i| i as u8).collect();
        assert_eq!(buffer.len(), N);
        // Other tests run in this process too, so only the lower bound holds.
        assert!(meter.peak().unwrap() >= (N as u64) * 9 / 10);
    }
}

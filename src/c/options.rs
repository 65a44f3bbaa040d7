//! How work is done: seed, sizes, threads, the caller's callback.

use crate::read::{Versioned, slice, text, versioned};
use crate::status::Failure;
use crate::world::World;
use basisopt_embed::{Settings, Stop};
use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;
use std::path::PathBuf;
use std::sync::Arc;

/// `BasisoptOptions.flags`: `basisopt_optimize` leaves the numerical check out. The network is then run only where data
/// or a pass need that.
pub const BASISOPT_UNCHECKED: u64 = 1;
/// `BasisoptOptions.flags`: `basisopt_compress` leaves latency unmeasured.
pub const BASISOPT_UNTIMED: u64 = 2;
/// `BasisoptOptions.flags`: `basisopt_compress` measures nothing but sizes.
pub const BASISOPT_UNMEASURED: u64 = 4;

/// Called as work goes on: `done` of `total` (zeros where that is not known) of `what`, which is valid during the
/// call. Return 0 to go on, anything else to stop: the run ends as soon as it can with `BASISOPT_STATUS_STOPPED`, or
/// is over before. It is also called, with what it was told before, only to ask that.
///
/// It is called by whichever thread is at work, never by two at once. It must return: no `longjmp`, no C++ exception.
pub type BasisoptProgress =
    Option<unsafe extern "C" fn(what: *const c_char, done: usize, total: usize, user: *mut c_void) -> c_int>;

/// A size for an open dimension of the inputs.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BasisoptDim {
    /// Its name in the model, as in `batch`, or `INPUT:AXIS`, as in `image:2`.
    pub name: *const c_char,
    /// Its size.
    pub size: usize,
}

/// How work is done. Set it to zero throughout, `size` to `sizeof(BasisoptOptions)`, and then what you want otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BasisoptOptions {
    /// `sizeof(BasisoptOptions)`.
    pub size: usize,
    /// Seed for everything random.
    pub seed: u64,
    /// `BASISOPT_UNCHECKED` and the like, joined by `|`.
    pub flags: u64,
    /// What exact passes may move outputs by in `basisopt_optimize`, relative; 0: 1e-4.
    pub tolerance: f64,
    /// Threads that work at once, 1024 at most; 0: one per processor, shared by all such runs. A number gets threads
    /// of its own, which end with the run. Networks that are timed have as many, or one where this is 0. Results do
    /// not depend on it, but for times.
    pub threads: usize,
    /// What messages call the model; NULL: `model`.
    pub name: *const c_char,
    /// Folder of the model's external data; NULL: it has none.
    pub dir: *const c_char,
    /// Sizes for open dimensions of the inputs. An open batch is 1 without.
    pub dims: *const BasisoptDim,
    /// How many sizes there are.
    pub n_dims: usize,
    /// Images per run where `basisopt_compress` measures networks; 0: what the model fixes, or else 1.
    pub batch: usize,
    /// Called as work goes on; NULL: it goes on in silence.
    pub progress: BasisoptProgress,
    /// Passed to `progress`.
    pub user: *mut c_void,
}

// SAFETY: integers, numbers, pointers, and a function pointer or none; zeros are a value of each.
unsafe impl Versioned for BasisoptOptions {
    const NAME: &'static str = "BasisoptOptions";
    const FIRST_SIZE: usize = offset_of!(Self, user) + size_of::<*mut c_void>();
}
// A field that a later version adds must not lie where this one has padding, which C leaves as it was.
const _: () = assert!(size_of::<BasisoptOptions>() == BasisoptOptions::FIRST_SIZE);

/// What messages call a model that was given no name.
const NAME: &str = "model";
/// More threads than this are a slip.
const MAX_THREADS: usize = 1024;

/// Which options a function knows: what it would not follow is refused.
pub(crate) struct Suited {
    flags: u64,
    flags_in_words: &'static str,
    has_tolerance: bool,
}

/// Those of `basisopt_optimize`.
pub(crate) const OPTIMIZE: Suited =
    Suited { flags: BASISOPT_UNCHECKED, flags_in_words: "0 or BASISOPT_UNCHECKED", has_tolerance: true };
/// Those of `basisopt_compress`.
pub(crate) const COMPRESS: Suited = Suited {
    flags: BASISOPT_UNTIMED | BASISOPT_UNMEASURED,
    flags_in_words: "a sum of BASISOPT_UNTIMED and BASISOPT_UNMEASURED",
    has_tolerance: false,
};

/// The options, read and checked.
pub(crate) struct Options {
    pub name: String,
    pub dir: Option<PathBuf>,
    pub seed: u64,
    pub threads: usize,
    pub tolerance: Option<f64>,
    pub flags: u64,
    pub world: Arc<World>,
    pub dims: Vec<(String, usize)>,
    pub batch: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: NAME.to_owned(),
            dir: None,
            seed: 0,
            threads: 0,
            tolerance: None,
            flags: 0,
            world: Arc::new(World::new(None, std::ptr::null_mut())),
            dims: Vec::new(),
            batch: None,
        }
    }
}

impl Options {
    /// # Safety
    /// As in `read`: for the struct and everything that it points to.
    pub(crate) unsafe fn read(ptr: *const BasisoptOptions, suited: &Suited) -> Result<Self, Failure> {
        // SAFETY: the caller's promise.
        let Some(given) = (unsafe { versioned(ptr, "options")? }) else {
            return Ok(Self::default());
        };
        let wrong = |what, found: String, expected| Err(Failure::Code { what, found, expected });
        if given.flags & !suited.flags != 0 {
            return wrong("options.flags", given.flags.to_string(), suited.flags_in_words);
        }
        let tolerance = given.tolerance;
        if tolerance != 0.0 && !suited.has_tolerance {
            return wrong("options.tolerance", tolerance.to_string(), "0: only basisopt_optimize has one");
        }
        if !tolerance.is_finite() || tolerance < 0.0 {
            return wrong("options.tolerance", tolerance.to_string(), "a number of 0 or more");
        }
        if given.threads > MAX_THREADS {
            return wrong("options.threads", given.threads.to_string(), "0 to 1024");
        }
        // SAFETY: the caller's promise, for what the struct points to.
        let (name, dir, dims) = unsafe {
            let name = text(given.name, "options.name")?;
            let dir = text(given.dir, "options.dir")?;
            (name, dir, slice(given.dims, given.n_dims, "options.dims")?)
        };
        let mut sizes = Vec::with_capacity(dims.len());
        for (i, dim) in dims.iter().enumerate() {
            let what = format!("options.dims[{i}].name");
            // SAFETY: the caller's promise.
            let name = unsafe { text(dim.name, &what)? };
            let wanted = "give the name of a dimension, or INPUT:AXIS";
            sizes.push((name.ok_or(Failure::Null { what, wanted })?, dim.size));
        }
        Ok(Self {
            name: name.unwrap_or_else(|| NAME.to_owned()),
            dir: dir.map(PathBuf::from),
            seed: given.seed,
            threads: given.threads,
            tolerance: (tolerance > 0.0).then_some(tolerance),
            flags: given.flags,
            world: Arc::new(World::new(given.progress, given.user)),
            dims: sizes,
            batch: (given.batch > 0).then_some(given.batch),
        })
    }

    pub(crate) fn settings(&self) -> Settings<'_> {
        let world = self.world.clone();
        let stop: Stop = Arc::new(move || world.stops());
        Settings {
            seed: self.seed,
            dims: self.dims.clone(),
            batch: self.batch,
            threads: self.threads.max(1),
            host: &*self.world,
            stop,
            ..Settings::default()
        }
    }

    pub(crate) fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }
}

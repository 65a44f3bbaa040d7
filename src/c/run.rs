//! The two functions that do the work.

use crate::data::{BasisoptData, Images};
use crate::options::{
    BASISOPT_UNCHECKED, BASISOPT_UNMEASURED, BASISOPT_UNTIMED, BasisoptOptions, COMPRESS, OPTIMIZE, Options,
    Suited,
};
use crate::read::{slice, text};
use crate::recipe::{self, BasisoptRecipe};
use crate::result::{BasisoptResult, Done};
use crate::status::{BasisoptStatus, Failure};
use crate::world::Training;
use basisopt_embed::optimize::train_and_validate;
use basisopt_embed::{
    CompressOptions, Compressed, DataSamples, OptimizeOptions, Recipe, TractExecutor, TrainOn, compress,
    optimize, parse,
};
use basisopt_onnx::Model;
use basisopt_passes::{Fidelity, Samples, panic_message};
use bytes::Bytes;
use serde::Serialize;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// Stack of the threads of a run, as much as the main thread has.
const STACK: usize = 8 << 20;

/// The version of the library, as `0.1.0`. The text is never freed.
#[unsafe(no_mangle)]
pub extern "C" fn basisopt_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => c"",
        };
    VERSION.as_ptr()
}

/// Runs a pipeline over a model, as `basisopt opt -p` does: `@fold,factorize-conv:energy=0.9`, for example. Every
/// step is checked by running the network before and after, unless `BASISOPT_UNCHECKED` is set.
///
/// `model` are the `n_bytes` bytes of an ONNX file. `data` are images for passes that learn from some or train; NULL:
/// none. `options` may be NULL. Nothing that is given is used after the call.
///
/// Whatever is returned, `*result` is a new result that the caller frees with `basisopt_result_free`; it has the text
/// of the error where there is one. Only where `result` itself is NULL there is none, and nothing is done.
///
/// # Safety
/// Every pointer is NULL or leads to what its type, length or terminating zero says, which nobody writes to during the
/// call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basisopt_optimize(
    model: *const u8,
    n_bytes: usize,
    pipeline: *const c_char,
    data: *const BasisoptData,
    options: *const BasisoptOptions,
    result: *mut *mut BasisoptResult,
) -> BasisoptStatus {
    let work = || {
        // SAFETY: the caller's promise.
        let (job, pipeline) =
            unsafe { (Job::read(model, n_bytes, data, options, &OPTIMIZE)?, text(pipeline, "pipeline")?) };
        let wanted = "give passes, as in \"@fold,factorize-conv:energy=0.9\"";
        let pipeline = pipeline.ok_or(Failure::Null { what: "pipeline".to_owned(), wanted })?;
        job.on_threads(|job| job.optimize(&pipeline))
    };
    // SAFETY: the caller's promise.
    unsafe { answer(result, work) }
}

/// Compresses a model, as `basisopt compress` does: folds what can be folded, chooses ranks for the budget,
/// factorises, trains if that is wanted, and measures the network before and after.
///
/// `recipe` says what is wanted; NULL: the defaults. The images of `data` (NULL: none) are shared out at random, to
/// learn from, to choose by and to report on. The report has `ranks_file`, the text of a file for `recipe.ranks`.
/// Everything else is as in `basisopt_optimize`.
///
/// # Safety
/// As in `basisopt_optimize`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basisopt_compress(
    model: *const u8,
    n_bytes: usize,
    recipe: *const BasisoptRecipe,
    data: *const BasisoptData,
    options: *const BasisoptOptions,
    result: *mut *mut BasisoptResult,
) -> BasisoptStatus {
    let work = || {
        // SAFETY: the caller's promise.
        let (job, recipe) =
            unsafe { (Job::read(model, n_bytes, data, options, &COMPRESS)?, recipe::read(recipe)?) };
        job.on_threads(|job| job.compress(&recipe))
    };
    // SAFETY: the caller's promise.
    unsafe { answer(result, work) }
}

/// Does the work, contains its panics, and hands out what came of it.
///
/// # Safety
/// `result` is null, or leads to a pointer that may be written.
unsafe fn answer(
    result: *mut *mut BasisoptResult,
    work: impl FnOnce() -> Result<Done, Failure>,
) -> BasisoptStatus {
    if result.is_null() || !result.is_aligned() {
        return BasisoptStatus::Argument;
    }
    // Nothing that the work has borrowed is used after a panic: the model is a copy, and the lock of the callback's
    // state is taken whether it is poisoned or not.
    let content = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(Failure::Panic(panic_message(&*payload))));
    let (status, handed_out) = BasisoptResult::new(content);
    // SAFETY: not null, aligned, and the caller's promise.
    unsafe { result.write(Box::into_raw(Box::new(handed_out))) };
    status
}

/// Whether this process was forked after a run in the one before: the shared threads did not come along, and work that is
/// given to them would wait for ever.
fn is_forked() -> bool {
    static FIRST: OnceLock<u32> = OnceLock::new();
    *FIRST.get_or_init(std::process::id) != std::process::id()
}

/// Everything that a run needs, copied from the caller's memory.
struct Job {
    model: Bytes,
    images: Option<Images>,
    options: Options,
}

impl Job {
    /// # Safety
    /// As in the module `read`, for all pointers.
    unsafe fn read(
        model: *const u8,
        n_bytes: usize,
        data: *const BasisoptData,
        options: *const BasisoptOptions,
        suited: &Suited,
    ) -> Result<Self, Failure> {
        if model.is_null() {
            return Err(Failure::Null { what: "model".to_owned(), wanted: "give the bytes of an ONNX file" });
        }
        // SAFETY: the caller's promise.
        unsafe {
            let options = Options::read(options, suited)?;
            let images = Images::read(data)?;
            Ok(Self { model: Bytes::copy_from_slice(slice(model, n_bytes, "model")?), images, options })
        }
    }

    /// Does the work on as many threads as were asked for. They are the run's own, and are gone when it ends.
    fn on_threads(self, work: impl FnOnce(Self) -> Result<Done, Failure> + Send) -> Result<Done, Failure> {
        let n = match self.options.threads {
            0 if is_forked() => std::thread::available_parallelism().map_or(1, usize::from),
            0 => return work(self),
            n => n,
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).stack_size(STACK).build();
        let pool = pool.map_err(|e| Failure::Threads { n, reason: e.to_string() })?;
        pool.install(|| work(self))
    }

    fn load(&self) -> Result<Model, Failure> {
        let Options { name, dir, .. } = &self.options;
        Ok(Model::from_bytes(name.clone(), self.model.clone(), dir.as_deref())?)
    }

    fn optimize(self, pipeline: &str) -> Result<Done, Failure> {
        let pipeline = parse(pipeline)?;
        let mut model = self.load()?;
        let Self { images, options, .. } = self;
        let settings = options.settings();
        let trains = pipeline.items.iter().any(|item| item.info.fidelity == Fidelity::Trained);
        let calibration = match &images {
            None => None,
            Some(images) => {
                let executor = TractExecutor::with_settings(model.source().clone(), &settings);
                // What versions are chosen by is not calibrated on.
                let dataset = match trains {
                    true => train_and_validate(images.dataset.clone(), settings.seed).1,
                    false => images.dataset.clone(),
                };
                let dataset = dataset.split(images.n_samples, settings.seed).0;
                let samples = DataSamples::new(dataset, images.preprocess.clone(), &model.graph, &executor);
                Some(samples.map_err(|e| Failure::Images(e.to_string()))?)
            }
        };
        let mut session = Training::new(options.world.clone());
        let train = images.filter(|_| trains).map(|images| TrainOn {
            dataset: images.dataset,
            preprocess: images.preprocess,
            original: None,
            session: &mut session,
        });
        let done = optimize(
            &mut model,
            &pipeline,
            OptimizeOptions {
                settings: settings.clone(),
                unchecked: options.has(BASISOPT_UNCHECKED),
                tolerance: options.tolerance,
                calibration: calibration.as_ref().map(|samples| samples as &dyn Samples),
                train,
                ..OptimizeOptions::default()
            },
        )?;
        Done::new(&model, &done.summary())
    }

    fn compress(self, recipe: &Recipe) -> Result<Done, Failure> {
        /// The report, with what the command line writes to files beside it.
        #[derive(Serialize)]
        struct Report<'a> {
            #[serde(flatten)]
            done: &'a Compressed,
            ranks_file: String,
        }
        let mut model = self.load()?;
        let Self { images, options, .. } = self;
        let mut session = Training::new(options.world.clone());
        let mut how = CompressOptions {
            settings: options.settings(),
            untimed: options.has(BASISOPT_UNTIMED),
            unmeasured: options.has(BASISOPT_UNMEASURED),
            session: Some(&mut session),
            ..CompressOptions::default()
        };
        if let Some(Images { dataset, preprocess, n_samples }) = images {
            how.share(recipe, Some(dataset), preprocess, Some(n_samples))?;
        }
        let done = compress(&mut model, recipe, how)?;
        Done::new(&model, &Report { ranks_file: done.ranks_file(), done: &done })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{basisopt_result_error, basisopt_result_free, basisopt_result_model};

    /// Runs work as C would, and gives the code and the text.
    fn of(work: impl FnOnce() -> Result<Done, Failure>) -> (BasisoptStatus, String) {
        let mut result = std::ptr::null_mut();
        // SAFETY: the result is read while it lives and freed once.
        unsafe {
            let status = answer(&raw mut result, work);
            assert!(basisopt_result_model(result, std::ptr::null_mut()).is_null());
            let text = CStr::from_ptr(basisopt_result_error(result)).to_str().unwrap().to_owned();
            basisopt_result_free(result);
            (status, text)
        }
    }

    #[test]
    fn a_panic_is_an_error_of_its_own() {
        let (status, text) = of(|| panic!("the basis is gone"));
        assert_eq!(status, BasisoptStatus::Panic);
        assert_eq!(text, "a panic, which is a bug in basisopt: the basis is gone");
    }

    #[test]
    fn a_panic_on_a_thread_of_the_run_is_one_too() {
        let options = Options { threads: 2, ..Options::default() };
        let job = Job { model: Bytes::new(), images: None, options };
        let (status, text) = of(|| {
            job.on_threads(|_| {
                rayon::join(|| (), || panic!("on {} threads", rayon::current_num_threads()));
                Err(Failure::Panic("not reached".to_owned()))
            })
        });
        assert_eq!((status, text.ends_with(": on 2 threads")), (BasisoptStatus::Panic, true), "{text}");
    }

    #[test]
    fn zeros_in_a_text_do_not_end_it_early() {
        let (status, text) = of(|| Err(Failure::Images("a\0b".to_owned())));
        assert_eq!((status, &text[..]), (BasisoptStatus::Data, "data: a\u{fffd}b"));
    }
}

/*
 * basisopt: trained convolutional networks made smaller and faster, ONNX in, ONNX out.
 *
 *     BasisoptResult *result;
 *     BasisoptStatus status = basisopt_optimize(bytes, n, "@fold,factorize-conv:energy=0.9", NULL, NULL, &result);
 *     if (status == BASISOPT_STATUS_OK)
 *         small = basisopt_result_model(result, &n_small);
 *     else
 *         fprintf(stderr, "%s\n", basisopt_result_error(result));
 *     basisopt_result_free(result);
 *
 * Every function may be called from any thread, and runs do not know of each other. Text is UTF-8 and ends in a zero. Structs
 * begin with their own size and may be zero throughout: programs compiled against an older header go on working.
 *
 * Made by cbindgen from src/c; change it there. docs/c.md says how to link.
 */

#ifndef BASISOPT_H
#define BASISOPT_H

#include <stddef.h>
#include <stdint.h>

/*
 `BasisoptOptions.flags`: `basisopt_optimize` leaves the numerical check out. The network is then run only where data
 or a pass need that.
 */
#define BASISOPT_UNCHECKED 1

/*
 `BasisoptOptions.flags`: `basisopt_compress` leaves latency unmeasured.
 */
#define BASISOPT_UNTIMED 2

/*
 `BasisoptOptions.flags`: `basisopt_compress` measures nothing but sizes.
 */
#define BASISOPT_UNMEASURED 4

/*
 `BasisoptData.dtype`: `float`. The values are taken as they are: the network's own inputs, without the batch.
 */
#define BASISOPT_F32 1

/*
 `BasisoptData.dtype`: `uint8_t`, pixels 0 to 255. They are scaled to the network's size and preprocessed.
 */
#define BASISOPT_U8 2

/*
 `BasisoptData.layout`: channels first.
 */
#define BASISOPT_NCHW 1

/*
 `BasisoptData.layout`: channels last.
 */
#define BASISOPT_NHWC 2

/*
 `BasisoptData.channels`: blue, green, red.
 */
#define BASISOPT_BGR 1

/*
 `BasisoptData.channels`: luminance.
 */
#define BASISOPT_GRAY 2

/*
 How a run ended. Later versions may add codes: treat those that you do not know as a failure.
 */
enum BasisoptStatus
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /*
     The result has a model and a report.
     */
    BASISOPT_STATUS_OK = 0,
    /*
     An argument or an option is wrong: a null pointer, text that is not UTF-8, an unknown code or dimension.
     */
    BASISOPT_STATUS_ARGUMENT = 1,
    /*
     The bytes are no ONNX model, or one that is damaged or not supported.
     */
    BASISOPT_STATUS_MODEL = 2,
    /*
     The pipeline or the recipe cannot be read, or asks for what does not exist.
     */
    BASISOPT_STATUS_PIPELINE = 3,
    /*
     The images do not suit the network, or there are none where some are needed.
     */
    BASISOPT_STATUS_DATA = 4,
    /*
     A pass failed or did not keep its promise, or the network could not be run.
     */
    BASISOPT_STATUS_RUN = 5,
    /*
     The callback asked to stop.
     */
    BASISOPT_STATUS_STOPPED = 6,
    /*
     A bug in this library. It was contained: the process may go on.
     */
    BASISOPT_STATUS_PANIC = 7,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum BasisoptStatus BasisoptStatus;
#else
typedef int32_t BasisoptStatus;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/*
 What a run hands out: a model and a report, or the text of an error. It belongs to the caller, who frees it with
 `basisopt_result_free`. It never changes, so several threads may read it at once.
 */
typedef struct BasisoptResult BasisoptResult;

/*
 Images to learn from, to choose by and to measure with. Set it to zero throughout, `size` to `sizeof(BasisoptData)`,
 then `dtype`, `values`, `shape` and `n_axes`, and the rest as needed. Everything is copied during the call.

 Pixels become inputs by `(x / scale - mean) / std`; what is said of that does not concern `BASISOPT_F32`.
 */
typedef struct BasisoptData {
    /*
     `sizeof(BasisoptData)`.
     */
    size_t size;
    /*
     `BASISOPT_F32` or `BASISOPT_U8`.
     */
    uint32_t dtype;
    /*
     Order of the axes that the network takes; 0: told from the shape of its input.
     */
    uint32_t layout;
    /*
     Colour channels that the network takes; 0: red, green, blue.
     */
    uint32_t channels;
    /*
     What divides pixels first; 0: 255.
     */
    float scale;
    /*
     The values of all images, in the order of `shape`, the last axis fastest.
     */
    const void *values;
    /*
     Sizes of the axes: `BASISOPT_F32` has the number of images and then the shape of one as the network takes it,
     `BASISOPT_U8` is `[N,H,W]`, `[N,H,W,C]` or `[N,C,H,W]`.
     */
    const size_t *shape;
    /*
     How many axes there are.
     */
    size_t n_axes;
    /*
     The class of each image; NULL: not known.
     */
    const int64_t *labels;
    /*
     How many labels there are: as many as images, or 0.
     */
    size_t n_labels;
    /*
     Images that are calibrated on, at most; 0: 1000.
     */
    size_t n_samples;
    /*
     Added to labels: 1 for networks whose class 0 is the background.
     */
    int64_t label_offset;
    /*
     One number, or one per channel; NULL: 0.
     */
    const float *mean;
    /*
     How many there are.
     */
    size_t n_mean;
    /*
     One number, or one per channel; NULL: 1.
     */
    const float *std;
    /*
     How many there are.
     */
    size_t n_std;
    /*
     Shorter side after scaling, in pixels; 0: such that an eighth is cut off, or nothing if the image has the
     network's size.
     */
    size_t resize;
    /*
     Side of the square that is cut from the centre, in pixels; 0: the network's size.
     */
    size_t crop;
} BasisoptData;

/*
 A size for an open dimension of the inputs.
 */
typedef struct BasisoptDim {
    /*
     Its name in the model, as in `batch`, or `INPUT:AXIS`, as in `image:2`.
     */
    const char *name;
    /*
     Its size.
     */
    size_t size;
} BasisoptDim;

/*
 Called as work goes on: `done` of `total` (zeros where that is not known) of `what`, which is valid during the
 call. Return 0 to go on, anything else to stop: the run ends as soon as it can with `BASISOPT_STATUS_STOPPED`, or
 is over before. It is also called, with what it was told before, only to ask that.

 It is called by whichever thread is at work, never by two at once. It must return: no `longjmp`, no C++ exception.
 */
typedef int (*BasisoptProgress)(const char *what, size_t done, size_t total, void *user);

/*
 How work is done. Set it to zero throughout, `size` to `sizeof(BasisoptOptions)`, and then what you want otherwise.
 */
typedef struct BasisoptOptions {
    /*
     `sizeof(BasisoptOptions)`.
     */
    size_t size;
    /*
     Seed for everything random.
     */
    uint64_t seed;
    /*
     `BASISOPT_UNCHECKED` and the like, joined by `|`.
     */
    uint64_t flags;
    /*
     What exact passes may move outputs by in `basisopt_optimize`, relative; 0: 1e-4.
     */
    double tolerance;
    /*
     Threads that work at once, 1024 at most; 0: one per processor, shared by all such runs. A number gets threads
     of its own, which end with the run. Networks that are timed have as many, or one where this is 0. Results do
     not depend on it, but for times.
     */
    size_t threads;
    /*
     What messages call the model; NULL: `model`.
     */
    const char *name;
    /*
     Folder of the model's external data; NULL: it has none.
     */
    const char *dir;
    /*
     Sizes for open dimensions of the inputs. An open batch is 1 without.
     */
    const struct BasisoptDim *dims;
    /*
     How many sizes there are.
     */
    size_t n_dims;
    /*
     Images per run where `basisopt_compress` measures networks; 0: what the model fixes, or else 1.
     */
    size_t batch;
    /*
     Called as work goes on; NULL: it goes on in silence.
     */
    BasisoptProgress progress;
    /*
     Passed to `progress`.
     */
    void *user;
} BasisoptOptions;

/*
 What the network is to become, as the options of `basisopt compress` say it. Set it to zero throughout, `size` to
 `sizeof(BasisoptRecipe)`, and then what you want. NULL is always: not given.

 At most one of `budget`, `energy` and `ranks` may be given. With none of them at most one point of accuracy is
 given up where there are images, and 95 % of every layer's energy kept where there are none.
 */
typedef struct BasisoptRecipe {
    /*
     `sizeof(BasisoptRecipe)`.
     */
    size_t size;
    /*
     What to aim for: `macs=0.36`, `params=0.5`, `bytes=0.5`, `latency=0.6`, `energy=0.9`, `drop=1.0`.
     */
    const char *budget;
    /*
     Share of the energy that every factored layer keeps, 0 to 1.
     */
    const char *energy;
    /*
     A file of ranks: `ranks_file` of an earlier report, perhaps edited.
     */
    const char *ranks;
    /*
     Whose time a budget of latency is of: `here`, or the file of a device's profile.
     */
    const char *device;
    /*
     What factors are made from: `weights`, `output` or `sequential`; NULL: sequential with images, weights without.
     */
    const char *method;
    /*
     Ranks are rounded to multiples of this.
     */
    const char *multiple;
    /*
     Only layers whose node name matches these globs, joined by `|`.
     */
    const char *include;
    /*
     Not the layers whose node name matches these globs, joined by `|`.
     */
    const char *exclude;
    /*
     Train, with these options of `fine-tune`, joined by colons, as in `epochs=10:flip=on`; empty text: with its
     defaults.
     */
    const char *fine_tune;
    /*
     With training: stop when no more than so many points of accuracy are lost, as in `1.0`.
     */
    const char *goal;
    /*
     Other than 0: ranks are chosen by the paper's greedy rule.
     */
    size_t greedy;
} BasisoptRecipe;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 The version of the library, as `0.1.0`. The text is never freed.
 */
const char *basisopt_version(void);

/*
 Runs a pipeline over a model, as `basisopt opt -p` does: `@fold,factorize-conv:energy=0.9`, for example. Every
 step is checked by running the network before and after, unless `BASISOPT_UNCHECKED` is set.

 `model` are the `n_bytes` bytes of an ONNX file. `data` are images for passes that learn from some or train; NULL:
 none. `options` may be NULL. Nothing that is given is used after the call.

 Whatever is returned, `*result` is a new result that the caller frees with `basisopt_result_free`; it has the text
 of the error where there is one. Only where `result` itself is NULL there is none, and nothing is done.

 # Safety
 Every pointer is NULL or leads to what its type, length or terminating zero says, which nobody writes to during the
 call.
 */
BasisoptStatus basisopt_optimize(const uint8_t *model,
                                 size_t n_bytes,
                                 const char *pipeline,
                                 const struct BasisoptData *data,
                                 const struct BasisoptOptions *options,
                                 struct BasisoptResult **result);

/*
 Compresses a model, as `basisopt compress` does: folds what can be folded, chooses ranks for the budget,
 factorises, trains if that is wanted, and measures the network before and after.

 `recipe` says what is wanted; NULL: the defaults. The images of `data` (NULL: none) are shared out at random, to
 learn from, to choose by and to report on. The report has `ranks_file`, the text of a file for `recipe.ranks`.
 Everything else is as in `basisopt_optimize`.

 # Safety
 As in `basisopt_optimize`.
 */
BasisoptStatus basisopt_compress(const uint8_t *model,
                                 size_t n_bytes,
                                 const struct BasisoptRecipe *recipe,
                                 const struct BasisoptData *data,
                                 const struct BasisoptOptions *options,
                                 struct BasisoptResult **result);

/*
 The bytes of the new model, and how many they are in `n_bytes` (which may be NULL). They live as long as the
 result. NULL and 0 if the run failed.

 # Safety
 `result` is NULL or not freed; `n_bytes` is NULL or may be written.
 */
const uint8_t *basisopt_result_model(const struct BasisoptResult *result, size_t *n_bytes);

/*
 How many files of external data belong to the new model; 0 for nearly all models, and if the run failed.

 # Safety
 `result` is NULL or not freed.
 */
size_t basisopt_result_n_data_files(const struct BasisoptResult *result);

/*
 The contents of a file of external data: how many bytes in `n_bytes`, and in `location` where the model expects
 it, relative to its own folder (both may be NULL). They live as long as the result. NULL if there is no such file.

 # Safety
 `result` is NULL or not freed; `location` and `n_bytes` are NULL or may be written.
 */
const uint8_t *basisopt_result_data_file(const struct BasisoptResult *result,
                                         size_t index,
                                         const char **location,
                                         size_t *n_bytes);

/*
 What was done, as JSON: sizes before and after, passes or layers, remarks. The text lives as long as the result.
 NULL if the run failed.

 # Safety
 `result` is NULL or not freed.
 */
const char *basisopt_result_report(const struct BasisoptResult *result);

/*
 Why the run failed, for people. The text lives as long as the result. NULL if it did not fail.

 # Safety
 `result` is NULL or not freed.
 */
const char *basisopt_result_error(const struct BasisoptResult *result);

/*
 Frees a result and everything that was read from it. NULL is left alone.

 # Safety
 `result` is NULL or not freed, and nothing that was read from it is used again.
 */
void basisopt_result_free(struct BasisoptResult *result);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* BASISOPT_H */

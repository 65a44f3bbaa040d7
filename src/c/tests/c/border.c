/*
 * The border between C and the library: every slip that C can make and the library can notice is an error that says so, and
 * the process goes on. Run by main.rs, and under valgrind.
 *
 *     border MODEL.onnx                  slips, and runs that need no runtime
 *     border MODEL.onnx OUT.onnx         also on several threads at once, and with images; compresses to OUT.onnx
 *
 * MODEL.onnx takes images [N,3,32,32], with N open. Exits with 1 if anything is not as expected.
 */
#include <basisopt.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FACTORIZE "@fold,factorize-conv:energy=0.9,dead-code"
#define N_IMAGES 64
#define PER_IMAGE (3 * 32 * 32)

static uint8_t *model;
static size_t n_model;
static int n_wrong, n_cases;

static void check(int is_right, const char *what)
{
    n_cases++;
    if (!is_right) {
        n_wrong++;
        printf("WRONG: %s\n", what);
    }
}

/*
 * Takes a result that should be a failure of this kind whose text has these words, and frees it. By its address: the call that
 * sets it is an argument too, and C does not say which argument is evaluated first.
 */
static void fails(BasisoptStatus status, BasisoptStatus wanted, BasisoptResult **taken, const char *words)
{
    BasisoptResult *result = *taken;
    const char *text = basisopt_result_error(result);
    size_t n = 99;
    n_cases++;
    if (status != wanted || text == NULL || strstr(text, words) == NULL) {
        n_wrong++;
        printf("WRONG: status %d, expected %d; \"%s\", expected \"%s\"\n", (int)status, (int)wanted, text ? text : "", words);
    }
    check(basisopt_result_model(result, &n) == NULL && n == 0, "a failure has no model");
    check(basisopt_result_report(result) == NULL, "a failure has no report");
    basisopt_result_free(result);
    *taken = NULL;
}

static BasisoptOptions unchecked(void)
{
    BasisoptOptions options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.flags = BASISOPT_UNCHECKED;
    return options;
}

static void optimize_fails(const char *pipeline, const BasisoptData *data, const BasisoptOptions *options,
                           BasisoptStatus wanted, const char *words)
{
    BasisoptResult *result = NULL;
    fails(basisopt_optimize(model, n_model, pipeline, data, options, &result), wanted, &result, words);
}

static void slips_in_models(void)
{
    BasisoptOptions options = unchecked();
    BasisoptResult *result = NULL;
    uint8_t text[] = "this is no model";
    size_t n;
    check(basisopt_optimize(model, n_model, FACTORIZE, NULL, NULL, NULL) == BASISOPT_STATUS_ARGUMENT, "no place for the result");
    fails(basisopt_optimize(NULL, 0, FACTORIZE, NULL, NULL, &result), BASISOPT_STATUS_ARGUMENT, &result, "model is NULL");
    fails(basisopt_optimize(NULL, 5, FACTORIZE, NULL, NULL, &result), BASISOPT_STATUS_ARGUMENT, &result, "model is NULL");
    fails(basisopt_compress(NULL, 5, NULL, NULL, NULL, &result), BASISOPT_STATUS_ARGUMENT, &result, "model is NULL");
    fails(basisopt_optimize(model, 0, FACTORIZE, NULL, NULL, &result), BASISOPT_STATUS_MODEL, &result, "empty");
    fails(basisopt_optimize(model, SIZE_MAX, FACTORIZE, NULL, NULL, &result), BASISOPT_STATUS_ARGUMENT, &result,
          "more than memory can hold");
    options.name = "letter.txt";
    fails(basisopt_optimize(text, sizeof text - 1, FACTORIZE, NULL, &options, &result), BASISOPT_STATUS_MODEL, &result,
          "letter.txt: ");
    for (n = 1; n < n_model; n += n_model / 7)
        fails(basisopt_optimize(model, n, FACTORIZE, NULL, &options, &result), BASISOPT_STATUS_MODEL, &result, "letter.txt: ");
}

static void slips_in_pipelines(void)
{
    BasisoptOptions options = unchecked();
    optimize_fails(NULL, NULL, &options, BASISOPT_STATUS_ARGUMENT, "pipeline is NULL");
    optimize_fails("@fold,\xff", NULL, &options, BASISOPT_STATUS_ARGUMENT, "pipeline is not UTF-8, from byte 6 on");
    optimize_fails("factorise-conv", NULL, &options, BASISOPT_STATUS_PIPELINE, "factorise-conv");
    optimize_fails("factorize-conv:energy=2", NULL, &options, BASISOPT_STATUS_PIPELINE, "energy");
    optimize_fails("fine-tune", NULL, &options, BASISOPT_STATUS_DATA, "no images to train on");
    optimize_fails("factorize-conv:include=zzz", NULL, &options, BASISOPT_STATUS_RUN, "matches the name of no layer");
    optimize_fails("allocate-ranks:ranks=no/such/file,factorize-conv", NULL, &options, BASISOPT_STATUS_RUN, "no/such/file");
}

static void slips_in_options(void)
{
    BasisoptOptions options = unchecked();
    BasisoptDim dim = {"N", 1};
    BasisoptResult *result = NULL;
    struct {
        BasisoptOptions known;
        size_t later;
    } newer;
    char *bytes = malloc(sizeof options + 1);

    options.size = 0;
    optimize_fails(FACTORIZE, NULL, &options, BASISOPT_STATUS_ARGUMENT, "sizeof(BasisoptOptions)");
    options.size = SIZE_MAX;
    optimize_fails(FACTORIZE, NULL, &options, BASISOPT_STATUS_ARGUMENT, "sizeof(BasisoptOptions)");
    if (bytes != NULL) {
        options = unchecked();
        memcpy(bytes + 1, &options, sizeof options);
        optimize_fails(FACTORIZE, NULL, (const BasisoptOptions *)(const void *)(bytes + 1), BASISOPT_STATUS_ARGUMENT, "aligned");
    }
    free(bytes);

    memset(&newer, 0, sizeof newer);
    newer.known = unchecked();
    newer.known.size = sizeof newer;
    newer.later = 1;
    optimize_fails(FACTORIZE, NULL, &newer.known, BASISOPT_STATUS_ARGUMENT, "older than the header");
    newer.later = 0;
    check(basisopt_optimize(model, n_model, "dead-code", NULL, &newer.known, &result) == BASISOPT_STATUS_OK,
          "a newer program that asks for nothing new");
    basisopt_result_free(result);

    options = unchecked();
    options.flags = 1024;
    optimize_fails(FACTORIZE, NULL, &options, BASISOPT_STATUS_ARGUMENT, "options.flags is 1024");
    options.flags = BASISOPT_UNCHECKED;
    fails(basisopt_compress(model, n_model, NULL, NULL, &options, &result), BASISOPT_STATUS_ARGUMENT, &result, "BASISOPT_UNTIMED");
    options.tolerance = -1;
    optimize_fails(FACTORIZE, NULL, &options, BASISOPT_STATUS_ARGUMENT, "options.tolerance is -1");
    options.tolerance = NAN;
    optimize_fails(FACTORIZE, NULL, &options, BASISOPT_STATUS_ARGUMENT, "options.tolerance is NaN");
    options.tolerance = 0;
    options.threads = SIZE_MAX;
    optimize_fails(FACTORIZE, NULL, &options, BASISOPT_STATUS_ARGUMENT, "options.threads");
    options.threads = 0;
    options.name = "\xc3";
    optimize_fails(FACTORIZE, NULL, &options, BASISOPT_STATUS_ARGUMENT, "options.name is not UTF-8");
    options.name = NULL;
    options.n_dims = 1;
    optimize_fails(FACTORIZE, NULL, &options, BASISOPT_STATUS_ARGUMENT, "options.dims is NULL");
    options.dims = &dim;
    dim.name = NULL;
    optimize_fails(FACTORIZE, NULL, &options, BASISOPT_STATUS_ARGUMENT, "options.dims[0].name is NULL");
    dim.name = "M";
    optimize_fails(FACTORIZE, NULL, &options, BASISOPT_STATUS_ARGUMENT, "\"M\"");
}

/* Noise in [0, 1), the same everywhere. */
static float noise(uint32_t i)
{
    return (float)((i * 2654435761u) >> 8) / 16777216.0f;
}

static void slips_in_data(void)
{
    static float values[2 * PER_IMAGE];
    const size_t shape[] = {2, 3, 32, 32}, huge[] = {SIZE_MAX, SIZE_MAX}, large[] = {SIZE_MAX / 16, 3}, none[] = {0, 3, 32, 32};
    const size_t flat[] = {2, PER_IMAGE};
    const int64_t labels[] = {0, 1, 2};
    const float mean[] = {0.5f, 0.5f};
    BasisoptOptions options = unchecked();
    BasisoptData data;
    memset(&data, 0, sizeof data);
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_ARGUMENT, "sizeof(BasisoptData)");
    data.size = sizeof data;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_ARGUMENT, "data.dtype is 0");
    data.dtype = 77;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_ARGUMENT, "data.dtype is 77");
    data.dtype = BASISOPT_F32;
    data.n_axes = 4;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_ARGUMENT, "data.shape is NULL");
    data.shape = none;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_DATA, "no values");
    data.shape = shape;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_ARGUMENT, "data.values is NULL");
    data.values = values;
    data.n_axes = 0;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_DATA, "data.shape is []");
    data.n_axes = 1;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_DATA, "expected the number of images");
    data.n_axes = 2;
    data.shape = huge;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_DATA, "more values than memory can hold");
    data.shape = large;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_DATA, "more values than memory can hold");
    data.shape = flat;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_DATA, "[3, 32, 32]");
    data.shape = shape;
    data.n_axes = 4;
    data.n_labels = 2;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_ARGUMENT, "data.labels is NULL");
    data.labels = labels;
    data.n_labels = 3;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_DATA, "2 images and 3 labels");
    data.n_labels = 2;
    data.layout = 9;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_ARGUMENT, "data.layout is 9");
    data.layout = 0;
    data.channels = 9;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_ARGUMENT, "data.channels is 9");
    data.channels = 0;
    data.mean = mean;
    data.n_mean = 2;
    optimize_fails(FACTORIZE, &data, &options, BASISOPT_STATUS_DATA, "mean");
}

static void slips_in_recipes(void)
{
    BasisoptRecipe recipe;
    BasisoptResult *result = NULL;
#define COMPRESS_FAILS(status, words) \
    fails(basisopt_compress(model, n_model, &recipe, NULL, NULL, &result), status, &result, words)
    memset(&recipe, 0, sizeof recipe);
    COMPRESS_FAILS(BASISOPT_STATUS_ARGUMENT, "sizeof(BasisoptRecipe)");
    recipe.size = sizeof recipe;
    recipe.budget = "speed=2";
    COMPRESS_FAILS(BASISOPT_STATUS_PIPELINE, "speed=2");
    recipe.budget = "macs=0.5";
    recipe.energy = "0.9";
    COMPRESS_FAILS(BASISOPT_STATUS_PIPELINE, "exclude each other");
    recipe.energy = NULL;
    recipe.method = "magic";
    COMPRESS_FAILS(BASISOPT_STATUS_ARGUMENT, "weights, output or sequential");
    recipe.method = NULL;
    recipe.goal = "some";
    COMPRESS_FAILS(BASISOPT_STATUS_ARGUMENT, "recipe.goal");
    recipe.goal = NULL;
    recipe.exclude = "\x80";
    COMPRESS_FAILS(BASISOPT_STATUS_ARGUMENT, "recipe.exclude is not UTF-8");
    recipe.exclude = NULL;
    recipe.fine_tune = "";
    COMPRESS_FAILS(BASISOPT_STATUS_DATA, "no images to train on");
}

/* What has no result. */
static void nothing(void)
{
    const char *location = "";
    size_t n = 99;
    check(basisopt_result_model(NULL, &n) == NULL && n == 0, "no result, no model");
    check(basisopt_result_model(NULL, NULL) == NULL, "nowhere to put the length");
    check(basisopt_result_report(NULL) == NULL && basisopt_result_error(NULL) == NULL, "no result, no text");
    check(basisopt_result_n_data_files(NULL) == 0, "no result, no files");
    check(basisopt_result_data_file(NULL, 0, &location, &n) == NULL && location == NULL, "no result, no file");
    basisopt_result_free(NULL);
    check(strlen(basisopt_version()) >= 5, "a version");
}

/* Stops when it was called as often as the number behind `user` says. */
static int countdown(const char *what, size_t done, size_t total, void *user)
{
    int *left = user;
    check(what != NULL && (total == 0 || done <= total), "progress that makes sense");
    return --*left <= 0;
}

static void stopping(void)
{
    BasisoptOptions options = unchecked();
    BasisoptResult *result = NULL;
    int left = 1;
    options.progress = countdown;
    options.user = &left;
    optimize_fails(FACTORIZE, NULL, &options, BASISOPT_STATUS_STOPPED, "interrupted");
    left = 1000000;
    check(basisopt_optimize(model, n_model, FACTORIZE, NULL, &options, &result) == BASISOPT_STATUS_OK, "it is not stopped");
    check(left > 0 && left < 1000000, "it is asked");
    basisopt_result_free(result);
}

/* A run that works; NULL if it does not. */
static BasisoptResult *factorized(size_t threads)
{
    BasisoptOptions options = unchecked();
    BasisoptResult *result = NULL;
    options.threads = threads;
    if (basisopt_optimize(model, n_model, FACTORIZE, NULL, &options, &result) == BASISOPT_STATUS_OK)
        return result;
    printf("%s\n", basisopt_result_error(result));
    basisopt_result_free(result);
    return NULL;
}

static int is_same(const BasisoptResult *a, const BasisoptResult *b)
{
    size_t n, m;
    const uint8_t *x = basisopt_result_model(a, &n), *y = basisopt_result_model(b, &m);
    return x != NULL && y != NULL && n == m && memcmp(x, y, n) == 0;
}

static void runs(void)
{
    BasisoptResult *a = factorized(0), *b = factorized(1), *c = factorized(3);
    const char *location = "";
    size_t n = 99;
    check(a != NULL && basisopt_result_error(a) == NULL, "a run that works has no error");
    check(is_same(a, b) && is_same(a, c), "threads do not change the result");
    check(basisopt_result_model(a, &n) != NULL && n < n_model, "it is smaller");
    check(strstr(basisopt_result_report(a), "\"pipeline\"") != NULL, "a report");
    check(basisopt_result_n_data_files(a) == 0, "no external data");
    check(basisopt_result_data_file(a, 0, &location, &n) == NULL && location == NULL && n == 0, "no such file");
    basisopt_result_free(a);
    basisopt_result_free(b);
    basisopt_result_free(c);
}

static void *on_thread(void *unused)
{
    (void)unused;
    return factorized(0);
}

static void several_at_once(void)
{
    BasisoptResult *alone = factorized(0);
    pthread_t threads[4];
    int i;
    for (i = 0; i < 4; i++)
        check(pthread_create(&threads[i], NULL, on_thread, NULL) == 0, "a thread");
    for (i = 0; i < 4; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        check(is_same(alone, result), "runs do not know of each other");
        basisopt_result_free(result);
    }
    basisopt_result_free(alone);
}

static void compresses(const char *path)
{
    static float values[N_IMAGES * PER_IMAGE];
    const size_t shape[] = {N_IMAGES, 3, 32, 32};
    BasisoptOptions options;
    BasisoptRecipe recipe;
    BasisoptData data;
    BasisoptResult *result = NULL;
    const uint8_t *bytes;
    size_t n;
    uint32_t i;
    FILE *file;
    for (i = 0; i < N_IMAGES * PER_IMAGE; i++)
        values[i] = noise(i);
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.flags = BASISOPT_UNTIMED;
    options.seed = 7;
    memset(&recipe, 0, sizeof recipe);
    recipe.size = sizeof recipe;
    recipe.budget = "macs=0.5";
    memset(&data, 0, sizeof data);
    data.size = sizeof data;
    data.dtype = BASISOPT_F32;
    data.values = values;
    data.shape = shape;
    data.n_axes = 4;
    check(basisopt_compress(model, n_model, &recipe, &data, &options, &result) == BASISOPT_STATUS_OK, "it is compressed");
    if (basisopt_result_error(result) != NULL) {
        printf("%s\n", basisopt_result_error(result));
        basisopt_result_free(result);
        return;
    }
    check(strstr(basisopt_result_report(result), "\"ranks_file\"") != NULL, "ranks to be edited");
    bytes = basisopt_result_model(result, &n);
    file = fopen(path, "wb");
    check(file != NULL && fwrite(bytes, 1, n, file) == n && fclose(file) == 0, "it is written");
    basisopt_result_free(result);
}

/* Says whether training was seen, and stops it if it is to. */
struct trainer {
    int has_trained, stops;
};

static int watch(const char *what, size_t done, size_t total, void *user)
{
    struct trainer *trainer = user;
    if (strcmp(what, "training") == 0 && done > 0 && done <= total)
        trainer->has_trained = 1;
    return trainer->has_trained && trainer->stops;
}

/* Pixels and labels: to calibrate on, and to train on. */
static void learns(void)
{
    static uint8_t pixels[N_IMAGES * PER_IMAGE];
    static int64_t labels[N_IMAGES];
    const size_t shape[] = {N_IMAGES, 32, 32, 3};
    const float mean[] = {0.5f, 0.5f, 0.5f}, std = 0.3f;
    BasisoptResult *weights = factorized(0), *result = NULL;
    BasisoptOptions options = unchecked();
    struct trainer trainer = {0, 0};
    BasisoptRecipe recipe;
    BasisoptData data;
    uint32_t i;
    for (i = 0; i < N_IMAGES * PER_IMAGE; i++)
        pixels[i] = (uint8_t)(noise(i) * 256);
    for (i = 0; i < N_IMAGES; i++)
        labels[i] = i % 3;
    memset(&data, 0, sizeof data);
    data.size = sizeof data;
    data.dtype = BASISOPT_U8;
    data.values = pixels;
    data.shape = shape;
    data.n_axes = 4;
    data.labels = labels;
    data.n_labels = N_IMAGES;
    data.mean = mean;
    data.n_mean = 3;
    data.std = &std;
    data.n_std = 1;
    data.n_samples = 16;
    check(basisopt_optimize(model, n_model, FACTORIZE, &data, &options, &result) == BASISOPT_STATUS_OK, "it is calibrated");
    check(!is_same(weights, result), "images make a difference");
    basisopt_result_free(result);
    basisopt_result_free(weights);

    memset(&recipe, 0, sizeof recipe);
    recipe.size = sizeof recipe;
    recipe.budget = "macs=0.5";
    recipe.fine_tune = "epochs=1:batch=16";
    options.flags = BASISOPT_UNMEASURED;
    options.progress = watch;
    options.user = &trainer;
    check(basisopt_compress(model, n_model, &recipe, &data, &options, &result) == BASISOPT_STATUS_OK, "it is trained");
    check(trainer.has_trained, "and tells so");
    basisopt_result_free(result);
    trainer.has_trained = 0;
    trainer.stops = 1;
    fails(basisopt_compress(model, n_model, &recipe, &data, &options, &result), BASISOPT_STATUS_STOPPED, &result, "interrupted");
    labels[5] = 1000;
    options.progress = NULL;
    fails(basisopt_compress(model, n_model, &recipe, &data, &options, &result), BASISOPT_STATUS_DATA, &result, "label 1000");
}

int main(int argc, char **argv)
{
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    long size;
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) <= 0) {
        fprintf(stderr, "usage: %s MODEL.onnx [OUT.onnx]\n", argv[0]);
        return 2;
    }
    rewind(file);
    n_model = (size_t)size;
    model = malloc(n_model);
    if (model == NULL || fread(model, 1, n_model, file) != n_model)
        return 2;
    fclose(file);
    nothing();
    slips_in_models();
    slips_in_pipelines();
    slips_in_options();
    slips_in_data();
    slips_in_recipes();
    stopping();
    runs();
    if (argc > 2) {
        several_at_once();
        compresses(argv[2]);
        learns();
    }
    free(model);
    printf("%d of %d cases as expected\n", n_cases - n_wrong, n_cases);
    return n_wrong != 0;
}

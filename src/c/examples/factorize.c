/*
 * Factorises a network in memory:
 *
 *     factorize IN.onnx OUT.onnx [PIPELINE]
 *
 * The report goes to standard output, as JSON. docs/c.md says how to compile this.
 */
#include <basisopt.h>
#include <stdio.h>
#include <stdlib.h>

/* The contents of a file, to be freed; NULL if it cannot be read. */
static uint8_t *read_file(const char *path, size_t *n)
{
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = NULL;
    long size;
    if (file == NULL)
        return NULL;
    if (fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0) {
        bytes = malloc((size_t)size + 1);
        if (bytes != NULL && fread(bytes, 1, (size_t)size, file) != (size_t)size) {
            free(bytes);
            bytes = NULL;
        }
        *n = (size_t)size;
    }
    fclose(file);
    return bytes;
}

static int write_file(const char *path, const uint8_t *bytes, size_t n)
{
    FILE *file = fopen(path, "wb");
    int is_written;
    if (file == NULL)
        return 0;
    is_written = fwrite(bytes, 1, n, file) == n;
    return (fclose(file) == 0) & is_written;
}

int main(int argc, char **argv)
{
    const char *pipeline = argc > 3 ? argv[3] : "freeze-weights,@fold,factorize-conv:energy=0.9,dead-code";
    BasisoptOptions options = {0};
    BasisoptResult *result = NULL;
    uint8_t *model;
    size_t n = 0;
    int code = 1;

    if (argc < 3) {
        fprintf(stderr, "usage: %s IN.onnx OUT.onnx [PIPELINE]\n", argv[0]);
        return 2;
    }
    model = read_file(argv[1], &n);
    if (model == NULL) {
        perror(argv[1]);
        return 1;
    }
    options.size = sizeof options;
    options.name = argv[1];
    if (basisopt_optimize(model, n, pipeline, NULL, &options, &result) != BASISOPT_STATUS_OK) {
        fprintf(stderr, "%s\n", basisopt_result_error(result));
    } else {
        size_t n_small;
        const uint8_t *small = basisopt_result_model(result, &n_small);
        if (write_file(argv[2], small, n_small)) {
            puts(basisopt_result_report(result));
            code = 0;
        } else {
            perror(argv[2]);
        }
    }
    basisopt_result_free(result);
    free(model);
    return code;
}

/* A plugin for QEMU's user mode: counts the instructions that a program executes, over all its threads, and
 * writes the number to a file at exit.
 *
 *   gcc -O2 -shared -fPIC -DAPI=1 -o instructions.so instructions.c
 *   qemu-aarch64 -plugin ./instructions.so,out=FILE PROGRAM ...
 *
 * API is QEMU's plugin interface: 1 before QEMU 9, 2 from then on. What is used of it is the same in both, and
 * declared here, because Debian does not package the header. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct qemu_plugin_tb;                 /* a block of translated instructions without a branch inside */
enum cb_flags { NO_REGISTERS = 0 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), enum cb_flags,
                                                 void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

EXPORT int qemu_plugin_version = API;

static uint64_t count;
static const char *path;

/* QEMU's own inline counter is faster, but loses counts where two threads run at once. */
static void executed(unsigned cpu, void *n_instructions)
{
    (void)cpu;
    __atomic_fetch_add(&count, (uint64_t)(uintptr_t)n_instructions, __ATOMIC_RELAXED);
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    (void)id;
    void *n_instructions = (void *)(uintptr_t)qemu_plugin_tb_n_insns(block);
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, n_instructions);
}

static void at_exit(plugin_id id, void *data)
{
    (void)id, (void)data;
    FILE *file = fopen(path, "w");
    if (!file || fprintf(file, "%llu\n", (unsigned long long)count) < 0 || fclose(file) != 0)
        perror(path);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (strncmp(argv[i], "out=", 4) == 0)
            path = strdup(argv[i] + 4);
    if (!path) {
        fprintf(stderr, "instructions: give the file to write to, as out=FILE\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, at_exit, NULL);
    return 0;
}

// A driver without a GPU, under CUDA's own bindings for Python: what afn_kernels/_cuda.py asks of libcuda.so.1. A
// launch runs the same kernel compiled for the host, whose library the process has loaded with RTLD_GLOBAL, on the
// parameters' bytes as they arrive. What is asked goes to stdout, a line a call.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NO_BINARY = 209, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

struct Function {
    char name[200];
    int most_shared;
};
static void* context;

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }
int cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}
int cuCtxGetCurrent(void** found) {
    *found = context;
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** found, int device) {
    printf("retain %d\n", device);
    *found = &context;
    return SUCCESS;
}
int cuCtxSetCurrent(void* wanted) {
    context = wanted;
    return SUCCESS;
}
int cuGetErrorString(int code, const char** text) {
    *text = code == NO_BINARY ? "no kernel image" : "the stub's words";
    return SUCCESS;
}
int cuLibraryLoadData(void** library, const void* code, void* jit, void** values, unsigned n, void* options,
                      void** option_values, unsigned m) {
    (void)jit, (void)values, (void)options, (void)option_values;
    if (n || m) return INVALID_VALUE;
    if (memcmp(code,
               "\x7f"
               "ELF",
               4))
        return NO_BINARY;
    *library = malloc(1);
    return SUCCESS;
}
int cuLibraryGetKernel(void** kernel, void* library, const char* name) {
    struct Function* found = calloc(1, sizeof *found);
    if (!library || strlen(name) >= sizeof found->name) return INVALID_VALUE;
    strcpy(found->name, name);
    *kernel = found;
    return SUCCESS;
}
int cuKernelGetFunction(void** function, void* kernel) {
    *function = kernel;
    return SUCCESS;
}
int cuFuncSetAttribute(struct Function* function, int attribute, int value) {
    if (attribute != 8) return INVALID_VALUE;
    function->most_shared = value;
    printf("attribute %s %d\n", function->name, value);
    return SUCCESS;
}

static void* symbol(const char* kind, const char* name) {
    char text[400];
    snprintf(text, sizeof text, "afn_%s_%s", kind, name);
    return dlsym(RTLD_DEFAULT, text);
}

int cuLaunchKernel(struct Function* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared, void* stream, void** parameters, void** extra) {
    int (*of_block)(void) = (int (*)(void))symbol("threads", function->name);
    const char* (*run)(int, int, uint64_t, const void*, int) =
        (const char* (*)(int, int, uint64_t, const void*, int))symbol("host", function->name);
    if (!context || !run || extra || z != 1 || threads_y != 1 || threads_z != 1) return INVALID_VALUE;
    if ((int)threads != of_block() || (int)shared > function->most_shared) return INVALID_VALUE;
    printf("launch %s %u %u %u %u %zu\n", function->name, x, y, threads, shared, (size_t)stream);
    const char* wrong = run(x, y, shared, parameters[0], 0);
    if (wrong) printf("wrong %s\n", wrong);
    fflush(stdout);
    return wrong ? LAUNCH_FAILED : SUCCESS;
}

// As tests/cuda/tensor_map.py has a map, for the emulation.
int cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address, const uint64_t* sizes,
                           const uint64_t* strides, const uint32_t* box, const uint32_t* steps, int interleave,
                           int swizzle, int promotion, int fill) {
    static const uint32_t bytes[] = {[0] = 1, [6] = 2, [7] = 4, [9] = 2}, swizzles[] = {0, 3, 2, 1};
    if (!rank || rank > 5 || type < 0 || type > 9 || !bytes[type] || interleave || fill || promotion > 3)
        return INVALID_VALUE;
    struct {
        void* address;
        uint32_t magic, rank, element, swizzle, sizes[5], box[5];
        uint64_t strides[4], rest[4];
    } made = {.address = address, .magic = 0x70616d74, .rank = rank, .element = bytes[type]};
    made.swizzle = swizzles[swizzle];
    for (unsigned i = 0; i < rank; ++i) {
        if (steps[i] != 1) return INVALID_VALUE;
        made.sizes[i] = sizes[i];
        made.box[i] = box[i];
        if (i) made.strides[i - 1] = strides[i - 1];
    }
    memcpy(map, &made, 128);
    return SUCCESS;
}

int cuGetProcAddress_v2(const char* name, void** found, int version, uint64_t flags, int* status) {
    (void)version, (void)flags;
    *found = dlsym(RTLD_DEFAULT, name);
    if (status) *status = *found ? 0 : 1;
    return *found ? SUCCESS : NOT_FOUND;
}

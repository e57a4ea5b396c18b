// What csrc/include/afn/device.cuh offers, for a host compiler: the CUDA sources run as they are, the threads of a
// block as fibers, blocks one after another (run.cpp), and every access is checked (check.h). Slow, and strict where a
// GPU may be lenient. What is read must have been ordered behind what was written: in a block by a barrier, between
// blocks by a release and an acquire. Shared memory begins unwritten, and reading it so is an error. An asynchronous
// copy comes no earlier than its wait. A launch ends with a sentence that names the place, or with nothing.
//
// The compiler hands over the accesses themselves: sources are compiled with -fsanitize=thread, whose hooks are ours.
//
// A kernel must not let single threads return before the others' last barrier. Blocks are a multiple of 32 threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define AFN_DEVICE inline
#define AFN_INLINE [[gnu::always_inline]] inline  // so that a fault is in the kernel's line
#define AFN_KERNEL(name, Parameters, threads, blocks)                                                              \
    static void name(const Parameters& p);                                                                         \
    extern "C" uint64_t afn_size_##name() { return sizeof(Parameters); }                                           \
    extern "C" int afn_threads_##name() { return threads; }                                                        \
    extern "C" const char* afn_host_##name(int x, int y, uint64_t shared, const void* parameters, int backwards) { \
        auto kernel = [](const void* p) { name(*static_cast<const Parameters*>(p)); };                             \
        return afn::host::run({kernel, parameters, sizeof(Parameters), x, y, threads, shared, backwards, blocks}); \
    }                                                                                                              \
    static void name(const Parameters& p)

using std::max;
using std::min;

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) int4 {
    int32_t x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace afn {

namespace host {

struct Launch {
    void (*kernel)(const void*);
    const void* parameters;
    uint64_t size;  // of the parameters
    int x, y, threads;
    uint64_t shared;
    int backwards;
    int blocks;  // at once on a multiprocessor
};
// What was wrong; null if nothing was.
const char* run(const Launch& launch);

// Whether this place is the one to be left out: see mutants.py.
bool omitted(int place);

uint32_t shuffle(uint32_t x, int lane);
void load(void* to, const void* from, int bytes);
int atomic(int* p, int x, int (*now)(int, int), bool acquire, bool release);
void wait_for(const int* p, int x, bool acquire);
void copy_wait(unsigned n);
void load_rows(uint32_t (&x)[4], const void* row, bool transposed);
void mma(float (&d)[4], const float (&own)[12]);

inline int add(int before, int x) { return before + x; }

inline float half_of(uint16_t bits) {
    _Float16 x;
    std::memcpy(&x, &bits, 2);
    return static_cast<float>(x);
}

}  // namespace host

[[gnu::const]] unsigned char* shared_memory();
[[gnu::const]] int thread_index();
[[gnu::const]] int block_index();
[[gnu::const]] int block_index_y();
[[gnu::const]] int grid_size();

void sync_block();
void sync_warp();
void fence();

AFN_INLINE uint32_t shuffle(uint32_t x, int lane) { return host::shuffle(x, lane); }
AFN_INLINE float shuffle(float x, int lane) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits = host::shuffle(bits, lane);
    std::memcpy(&x, &bits, 4);
    return x;
}
template <class T>
AFN_INLINE T shuffle_xor(T x, int mask) {
    return shuffle(x, thread_index() % 32 ^ mask);
}

AFN_INLINE int atomic_add(int* p, int x) { return host::atomic(p, x, host::add, false, false); }
AFN_INLINE int atomic_add_release_acquire(int* p, int x) { return host::atomic(p, x, host::add, true, true); }
AFN_INLINE void atomic_add_release(int* p, int x) { host::atomic(p, x, host::add, false, true); }
AFN_INLINE void wait_for(const int* p, int x) { host::wait_for(p, x, true); }
AFN_INLINE int atomic_exchange(int* p, int x) {
    return host::atomic(p, x, [](int, int x) { return x; }, false, false);
}
AFN_INLINE int atomic_max(int* p, int x) {
    return host::atomic(p, x, [](int a, int b) { return max(a, b); }, false, false);
}
template <class T>
AFN_INLINE T load_global(const T* p) {
    T x;
    host::load(&x, p, sizeof x);
    return x;
}
template <class T>
AFN_INLINE T load_once(const T* p) {
    return load_global(p);
}

inline int bits_of(float x) {
    int y;
    std::memcpy(&y, &x, 4);
    return y;
}
inline float float_of(int x) {
    float y;
    std::memcpy(&y, &x, 4);
    return y;
}
inline float exp2_fast(float x) { return std::exp2(x); }
inline float log2_fast(float x) { return std::log2(x); }
inline float fma_of(float a, float b, float c) { return std::fma(a, b, c); }

inline uint32_t permute_bytes(uint32_t x, uint32_t selector) {
    uint32_t y = 0;
    for (int i = 0; i < 4; ++i) y |= (x >> 8 * (selector >> 4 * i & 3) & 255) << 8 * i;
    return y;
}

inline float from_bf16(uint16_t x) { return float_of(static_cast<int>(x) << 16); }
inline float from_f16(uint16_t x) { return host::half_of(x); }
inline uint32_t bf16_bits(float x) {
    uint32_t bits = bits_of(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t f16_bits(float x) {
    _Float16 y = static_cast<_Float16>(x);
    uint16_t bits;
    std::memcpy(&bits, &y, 2);
    return bits;
}
inline uint32_t pack_bf16(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }
inline uint32_t pack_f16(float low, float high) { return f16_bits(low) | f16_bits(high) << 16; }
inline uint32_t f16_of_e4m3(uint16_t x) {
    auto one = [](uint32_t bits) {
        uint32_t exponent = bits >> 3 & 15, fraction = bits & 7;
        float size = exponent ? std::ldexp(1 + fraction / 8.0f, exponent - 7) : std::ldexp(fraction / 8.0f, -6);
        if ((bits & 127) == 127) size = NAN;
        return bits & 128 ? -size : size;
    };
    return pack_f16(one(x & 255), one(x >> 8));
}

inline uint32_t e4m3_bits(float x) {
    if (std::isnan(x)) return 0x7f;
    float size = std::min(std::fabs(x), 448.0f);
    int exponent = size < 0x1p-6f ? -6 : std::ilogb(size);
    float eighths = std::nearbyint(std::ldexp(size, 3 - exponent));  // of 2^exponent; 8 to 16, or fewer if subnormal
    uint32_t bits = static_cast<uint32_t>((exponent + 6) * 8 + static_cast<int>(eighths));
    return std::signbit(x) ? bits | 128 : bits;
}
inline uint16_t pack_e4m3(float low, float high) {
    return static_cast<uint16_t>(e4m3_bits(low) | e4m3_bits(high) << 8);
}

void copy_async(void* to, const void* from, int bytes = 16);
void copy_commit();
template <int n>
AFN_INLINE void copy_wait() {
    host::copy_wait(n);
}

AFN_INLINE void load_matrices(uint32_t (&x)[4], const void* row) { host::load_rows(x, row, false); }
AFN_INLINE void load_matrices_transposed(uint32_t (&x)[4], const void* row) { host::load_rows(x, row, true); }

template <float (*number)(uint16_t)>
AFN_INLINE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
    float own[12];
    for (int i = 0; i < 12; ++i) own[i] = number(static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2)));
    host::mma(d, own);
}
AFN_INLINE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma<from_bf16>(d, a, b0, b1);
}
AFN_INLINE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma<from_f16>(d, a, b0, b1);
}

constexpr bool has_bulk_copies() { return true; }
void bulk_start(uint64_t* barrier);
void bulk_expect(uint64_t* barrier, uint32_t bytes);
void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier);
void bulk_wait(uint64_t* barrier, uint32_t phase);

}  // namespace afn

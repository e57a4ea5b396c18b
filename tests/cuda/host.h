// What csrc/include/afn/device.cuh offers, for a host compiler: the CUDA sources run as they are, a block as a group of
// real threads, blocks one after another. Slow, and strict where a GPU may be lenient: shared memory begins as NaN, an
// asynchronous copy of a thread happens no earlier than its wait, a copy that is not aligned aborts. Barriers that are
// missing are found by the thread sanitiser (test_cuda.py). What it cannot show: the order of memory between blocks
// that run at the same time, and a bulk copy that has not come yet.
//
// A kernel must not let single threads return before the others' last barrier. Blocks are a multiple of 32 threads.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#define AFN_DEVICE inline
#define AFN_KERNEL(name, Parameters, threads, blocks)                                                        \
    static void name(const Parameters& p);                                                                   \
    extern "C" uint64_t afn_size_##name() { return sizeof(Parameters); }                                     \
    extern "C" int afn_threads_##name() { return threads; }                                                  \
    extern "C" void afn_host_##name(int x, int y, uint64_t shared, const void* parameters, int backwards) {  \
        afn::host::run(name, *static_cast<const Parameters*>(parameters), x, y, threads, shared, backwards); \
    }                                                                                                        \
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

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "host kernel: %s\n", what);
    std::abort();
}

struct Barrier {
    pthread_barrier_t barrier;
    explicit Barrier(int count) { pthread_barrier_init(&barrier, nullptr, count); }
    ~Barrier() { pthread_barrier_destroy(&barrier); }
    Barrier(const Barrier&) = delete;
    void wait() { pthread_barrier_wait(&barrier); }
};

struct Warp {
    Barrier barrier{32};
    uint32_t words[32][8];
    const unsigned char* rows[32];
};

struct Block {
    Barrier barrier;
    std::vector<std::unique_ptr<Warp>> warps;
    unsigned char* shared;
    explicit Block(int threads) : barrier(threads) {
        for (int i = 0; i < threads; i += 32) warps.push_back(std::make_unique<Warp>());
    }
};

struct Copy {
    void* to;
    const void* from;
    int bytes;
};

struct Thread {
    Block* block;
    int index, x, y, grid;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
    Warp& warp() { return *block->warps[index / 32]; }
    int lane() const { return index % 32; }
};

inline thread_local Thread* here;

template <class Parameters>
struct Launch {
    void (*kernel)(const Parameters&);
    const Parameters* parameters;
    Block* block;
    int x, y, index, backwards;
    uint64_t shared;
};

template <class Parameters>
void* work(void* argument) {
    auto& launch = *static_cast<Launch<Parameters>*>(argument);
    Thread self{launch.block, launch.index, 0, 0, launch.x, {}, {}};
    here = &self;
    for (int i = 0; i < launch.x * launch.y; ++i) {
        int number = launch.backwards ? launch.x * launch.y - 1 - i : i;
        self.x = number % launch.x;
        self.y = number / launch.x;
        if (self.index == 0) std::memset(launch.block->shared, 0xff, launch.shared);
        launch.block->barrier.wait();
        launch.kernel(*launch.parameters);
        if (!self.open.empty() || !self.groups.empty()) fail("a copy was never waited for");
        launch.block->barrier.wait();
    }
    return nullptr;
}

template <class Parameters>
void run(void (*kernel)(const Parameters&), const Parameters& parameters, int x, int y, int threads, uint64_t shared,
         int backwards) {
    Block block(threads);
    void* memory;  // exactly as much as was asked for, so that the sanitiser sees what lies beyond
    if (posix_memalign(&memory, 128, shared ? shared : 1)) fail("no more memory");
    block.shared = static_cast<unsigned char*>(memory);
    std::vector<Launch<Parameters>> launches;
    std::vector<pthread_t> found(threads);
    for (int i = 0; i < threads; ++i) launches.push_back({kernel, &parameters, &block, x, y, i, backwards, shared});
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 1 << 19);
    for (int i = 0; i < threads; ++i)
        if (pthread_create(&found[i], &attributes, work<Parameters>, &launches[i])) fail("no more threads");
    for (pthread_t thread : found) pthread_join(thread, nullptr);
    std::free(memory);
}

// Every lane's words to all lanes of the warp; what is done with them comes before the next exchange.
template <class Word, class Use>
auto exchange(const Word* words, int count, Use use) {
    Warp& warp = here->warp();
    std::memcpy(warp.words[here->lane()], words, count * sizeof(Word));
    warp.barrier.wait();
    auto found = use(warp);
    warp.barrier.wait();
    return found;
}

inline float half_of(uint16_t bits) {
    _Float16 x;
    std::memcpy(&x, &bits, 2);
    return static_cast<float>(x);
}

}  // namespace host

inline unsigned char* shared_memory() { return host::here->block->shared; }
inline int thread_index() { return host::here->index; }
inline int block_index() { return host::here->x; }
inline int block_index_y() { return host::here->y; }
inline int grid_size() { return host::here->grid; }

inline void sync_block() { host::here->block->barrier.wait(); }
inline void sync_warp() { host::here->warp().barrier.wait(); }
inline void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

template <class T>
T shuffle(T x, int lane) {
    return host::exchange(&x, 1, [&](host::Warp& warp) {
        T y;
        std::memcpy(&y, warp.words[lane & 31], sizeof y);
        return y;
    });
}
template <class T>
T shuffle_xor(T x, int mask) {
    return shuffle(x, host::here->lane() ^ mask);
}

inline int atomic_add(int* p, int x) { return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST); }
inline int atomic_add_release_acquire(int* p, int x) { return atomic_add(p, x); }
inline int atomic_exchange(int* p, int x) { return __atomic_exchange_n(p, x, __ATOMIC_SEQ_CST); }
inline int atomic_max(int* p, int x) {
    int before = __atomic_load_n(p, __ATOMIC_SEQ_CST);
    while (before < x && !__atomic_compare_exchange_n(p, &before, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return before;
}
template <class T>
T load_global(const T* p) {
    if (reinterpret_cast<uintptr_t>(p) % sizeof(T)) host::fail("a load is not aligned");
    return *p;
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

inline void copy_async(void* to, const void* from, int bytes = 16) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16)
        host::fail("copy_async: not aligned");
    host::here->open.push_back({to, from, bytes});
}
inline void copy_commit() {
    host::here->groups.push_back(std::move(host::here->open));
    host::here->open.clear();
}
template <int n>
void copy_wait() {
    auto& groups = host::here->groups;
    for (; groups.size() > n; groups.pop_front())
        for (const host::Copy& copy : groups.front()) {
            std::memset(copy.to, 0, 16);
            std::memcpy(copy.to, copy.from, copy.bytes);
        }
}

inline void load_rows(uint32_t (&x)[4], const void* row, bool transposed) {
    host::Warp& warp = host::here->warp();
    int lane = host::here->lane();
    if (reinterpret_cast<uintptr_t>(row) % 16) host::fail("load_matrices: a row is not aligned");
    warp.rows[lane] = static_cast<const unsigned char*>(row);
    warp.barrier.wait();
    for (int matrix = 0; matrix < 4; ++matrix) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
            int r = transposed ? lane % 4 * 2 + i : lane / 4, c = transposed ? lane / 4 : lane % 4 * 2 + i;
            std::memcpy(&pair[i], warp.rows[8 * matrix + r] + 2 * c, 2);
        }
        std::memcpy(&x[matrix], pair, 4);
    }
    warp.barrier.wait();
}
inline void load_matrices(uint32_t (&x)[4], const void* row) { load_rows(x, row, false); }
inline void load_matrices_transposed(uint32_t (&x)[4], const void* row) { load_rows(x, row, true); }

template <float (*number)(uint16_t)>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
    int group = host::here->lane() / 4, pair = host::here->lane() % 4;
    host::exchange(words, 6, [&](host::Warp& warp) {
        auto element = [&](int lane, int word, int half) {
            return number(static_cast<uint16_t>(warp.words[lane][word] >> 16 * half));
        };
        for (int i = 0; i < 4; ++i) {
            int row = group + 8 * (i / 2), column = 2 * pair + i % 2;
            for (int k = 0; k < 16; ++k) {
                int inner = k % 8 / 2, word = k / 8;
                d[i] += element(row % 8 * 4 + inner, row / 8 + 2 * word, k % 2) *
                        element(column * 4 + inner, 4 + word, k % 2);
            }
        }
        return 0;
    });
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma<from_bf16>(d, a, b0, b1); }
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma<from_f16>(d, a, b0, b1); }

constexpr bool has_bulk_copies() { return true; }
// A barrier counts the bytes to come, times two, and the phase.
inline void bulk_start(uint64_t* barrier) { __atomic_store_n(barrier, 0, __ATOMIC_SEQ_CST); }
inline void bulk_expect(uint64_t* barrier, uint32_t bytes) {
    if (__atomic_load_n(barrier, __ATOMIC_SEQ_CST) > 1) host::fail("bulk_expect: bytes are still to come");
    __atomic_fetch_add(barrier, 2 * static_cast<uint64_t>(bytes), __ATOMIC_SEQ_CST);
}
inline void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
    uintptr_t places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
    if ((places | bytes) % 16) host::fail("bulk_copy: not a multiple of 16");
    if (__atomic_load_n(barrier, __ATOMIC_SEQ_CST) / 2 < bytes) host::fail("bulk_copy: more bytes than expected");
    std::memcpy(to, from, bytes);
    uint64_t before = __atomic_fetch_sub(barrier, 2 * static_cast<uint64_t>(bytes), __ATOMIC_SEQ_CST);
    if (before / 2 == bytes) __atomic_fetch_xor(barrier, 1, __ATOMIC_SEQ_CST);
}
inline void bulk_wait(uint64_t* barrier, uint32_t phase) {
    while ((__atomic_load_n(barrier, __ATOMIC_SEQ_CST) & 1) == phase) sched_yield();
}

}  // namespace afn

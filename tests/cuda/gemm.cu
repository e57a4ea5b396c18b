// c [m, n] = a b by tiles, for the tests of tests/cuda: one warpgroup fetches, others multiply, a ring of stages lies
// between them. Tensor maps come from tests/cuda/gemm.py.
#include "afn/hopper.cuh"

namespace afn {

struct Gemm {
    TensorMap a, b;
    const uint16_t* raw_a;  // where threads fetch a
    float* c;
    int m, n, k;
};

enum class From { shared, registers, threads };  // where products have a from; threads: who fetches it

template <Number number_, int columns, int consumers_, int stages_, Swizzle swizzle_, Major a_major_, Major b_major_,
          From from_>
struct Tile {
    static constexpr Number number = number_;
    static constexpr Swizzle swizzle = swizzle_;
    static constexpr Major a_major = a_major_, b_major = b_major_;
    static constexpr From from = from_;
    static constexpr int consumers = consumers_, stages = stages_;
    static constexpr int element = number == Number::e4m3 ? 1 : 2, width = 256 >> static_cast<int>(swizzle);  // bytes
    static constexpr int m = 64 * consumers, n = columns, k = width / element;
    static constexpr int a_bytes = m * width, stage_bytes = a_bytes + n * width;
    static constexpr int results = stages * stage_bytes, row = n + 4;  // of results, in floats
    static constexpr int barriers = results + 4 * m * row;
    static constexpr int fetchers = from == From::threads ? 128 : 0;
    static constexpr int readers = from == From::registers ? 128 : 1;  // who lets know that a stage was read
};

// Of an operand with mn rows whose tile begins at start: the product of step k. A box is a swizzle wide.
template <class T, Major major>
AFN_DEVICE uint64_t part(const unsigned char* start, int first, int step) {
    constexpr int width = T::width;
    if (major == Major::k) return descriptor(start + first * width + 32 * step, 16, 8 * width, T::swizzle);
    return descriptor(start + first / (width / T::element) * width * T::k + 16 * step * width, width * T::k, 8 * width,
                      T::swizzle);
}

template <class T, Major major>
AFN_DEVICE void fetch(unsigned char* to, const TensorMap* map, uint64_t* full, int mn, int rows, int k) {
    constexpr int across = T::width / T::element;
    if (major == Major::k)
        tensor_copy(to, map, full, k, mn);
    else
        for (int box = 0; box < rows / across; ++box)
            tensor_copy(to + box * T::width * T::k, map, full, mn + box * across, k);
}

// A 16-bit element of a K-major tile.
template <class T>
AFN_DEVICE int place(int row, int k) {
    int byte = row * T::width + 2 * k;
    return byte ^ (byte >> 3 & (T::width / 16 - 1) << 4);
}

template <class T>
AFN_DEVICE void write_a(const Gemm& p, unsigned char* to, int first, int k) {
    for (int i = thread_index(); i < T::m * T::k; i += 128) {
        int row = i / T::k, column = i % T::k;
        bool there = first + row < p.m && k + column < p.k;
        uint16_t x = there ? p.raw_a[static_cast<int64_t>(first + row) * p.k + k + column] : 0;
        *reinterpret_cast<uint16_t*>(to + place<T>(row, column)) = x;
    }
}

template <class T>
AFN_DEVICE void produce(const Gemm& p, unsigned char* shared, uint64_t* full, uint64_t* empty, int m, int n) {
    if (T::from != From::threads && thread_index() != 0) return;
    for (int i = 0; i * T::k < p.k; ++i) {
        int stage = i % T::stages;
        unsigned char* to = shared + stage * T::stage_bytes;
        barrier_wait(empty + stage, ~(i / T::stages) & 1);
        if (thread_index() == 0) {
            barrier_expect(full + stage, T::from == From::threads ? T::n * T::width : T::stage_bytes);
            if (T::from != From::threads) fetch<T, T::a_major>(to, &p.a, full + stage, m, T::m, i * T::k);
            fetch<T, T::b_major>(to + T::a_bytes, &p.b, full + stage, n, T::n, i * T::k);
        }
        if (T::from == From::threads) {
            write_a<T>(p, to, m, i * T::k);
            fence_async();
            barrier_arrive(full + stage);
        }
    }
}

// Rows of this thread in a product's layout.
AFN_DEVICE int row_of(int half) { return thread_index() % 128 / 32 * 16 + thread_index() % 32 / 4 + 8 * half; }

template <class T>
AFN_DEVICE void load_a(uint32_t (&a)[T::k / 16][4], const unsigned char* tile, int first) {
    for (int step = 0; step < T::k / 16; ++step)
        for (int i = 0; i < 4; ++i)
            a[step][i] = *reinterpret_cast<const uint32_t*>(
                tile + place<T>(first + row_of(i % 2), 16 * step + thread_index() % 4 * 2 + i / 2 * 8));
}

template <class T>
AFN_DEVICE void consume(const Gemm& p, unsigned char* shared, uint64_t* full, uint64_t* empty, int m, int n) {
    int group = thread_index() / 128 - 1, thread = thread_index() % 128;
    float d[T::n / 2];
    [[maybe_unused]] uint32_t a[T::k / 16][4];
    for (int i = 0; i * T::k < p.k; ++i) {
        int stage = i % T::stages;
        const unsigned char* tile = shared + stage * T::stage_bytes;
        barrier_wait(full + stage, i / T::stages & 1);
        if constexpr (T::from == From::registers) load_a<T>(a, tile, 64 * group);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < T::width / 32; ++step) {
            uint64_t b = part<T, T::b_major>(tile + T::a_bytes, 0, step);
            if constexpr (T::from == From::registers)
                wgmma<T::number, T::n, T::b_major>(d, a[step], b, i + step > 0);
            else
                wgmma<T::number, T::n, T::a_major, T::b_major>(d, part<T, T::a_major>(tile, 64 * group, step), b,
                                                               i + step > 0);
        }
        wgmma_commit();
        if constexpr (T::from == From::registers) {
            wgmma_wait<0>();
            barrier_arrive(empty + stage);
        } else {
            wgmma_wait<1>();
            if (i && thread == 0) barrier_arrive(empty + (i - 1) % T::stages);
        }
    }
    if constexpr (T::from != From::registers) wgmma_wait<0>();
    float* results = reinterpret_cast<float*>(shared + T::results) + 64 * group * T::row;
    for (int i = 0; i < T::n / 2; ++i) results[row_of(i / 2 % 2) * T::row + i / 4 * 8 + thread % 4 * 2 + i % 2] = d[i];
    named_sync(1 + group, 128);
    for (int i = thread; i < 64 * T::n; i += 128) {
        int row = m + 64 * group + i / T::n, column = n + i % T::n;
        if (row < p.m && column < p.n)
            p.c[static_cast<int64_t>(row) * p.n + column] = results[i / T::n * T::row + i % T::n];
    }
}

template <class T>
AFN_DEVICE void multiply(const Gemm& p) {
    unsigned char* shared = shared_memory();
    uint64_t* full = reinterpret_cast<uint64_t*>(shared + T::barriers);
    uint64_t* empty = full + T::stages;
    int m = block_index_y() * T::m, n = block_index() * T::n;
    if (thread_index() == 0) {
        for (int i = 0; i < T::stages; ++i) {
            barrier_start(full + i, 1 + T::fetchers);
            barrier_start(empty + i, T::readers * T::consumers);
        }
        barriers_started();
    }
    sync_block();
    if (thread_index() < 128) {
        if constexpr (T::consumers == 2) registers_less<40>();
        produce<T>(p, shared, full, empty, m, n);
    } else {
        if constexpr (T::consumers == 2) registers_more<232>();
        consume<T>(p, shared, full, empty, m, n);
    }
}

}  // namespace afn

#define GEMM(name, consumers, ...)                                 \
    AFN_KERNEL(gemm_##name, afn::Gemm, 128 * (1 + consumers), 1) { \
        using namespace afn;                                       \
        multiply<Tile<__VA_ARGS__>>(p);                            \
    }
using afn::From;
using afn::Major;
using afn::Number;
using afn::Swizzle;
GEMM(bf16, 2, Number::bf16, 128, 2, 3, Swizzle::bytes_128, Major::k, Major::k, From::shared)
GEMM(bf16_turned, 1, Number::bf16, 64, 1, 2, Swizzle::bytes_128, Major::mn, Major::mn, From::shared)
GEMM(f16_narrow, 1, Number::f16, 64, 1, 4, Swizzle::bytes_64, Major::k, Major::mn, From::shared)
GEMM(f16_registers, 1, Number::f16, 256, 1, 2, Swizzle::bytes_64, Major::k, Major::k, From::registers)
GEMM(bf16_threads, 1, Number::bf16, 64, 1, 2, Swizzle::bytes_32, Major::k, Major::k, From::threads)
GEMM(e4m3, 2, Number::e4m3, 128, 2, 3, Swizzle::bytes_128, Major::k, Major::k, From::shared)

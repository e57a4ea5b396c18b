// c [m, n] = a b by tiles, for the tests of tests/cuda: one warpgroup fetches, others multiply, a ring of stages lies
// between them. A block takes as many tiles as there are for it. Tensor maps come from tests/cuda/gemm.py.
#include "afn/hopper.cuh"

namespace afn {

struct Gemm {
    TensorMap a, b, out;    // out: of c
    const uint16_t* raw_a;  // where threads fetch a
    float* c;
    int m, n, k, parts;  // of k, at most its tiles, which are added
};

enum class From { shared, registers, threads };  // where products have a from; threads: who fetches it
enum class To { threads, store, add };           // how sums come into c

template <Number number_, int columns, int consumers_, int stages_, Swizzle swizzle_, Major a_major_, Major b_major_,
          From from_, To to_ = To::threads>
struct Tile {
    static constexpr Number number = number_;
    static constexpr Swizzle swizzle = swizzle_;
    static constexpr Major a_major = a_major_, b_major = b_major_;
    static constexpr From from = from_;
    static constexpr To to = to_;
    static constexpr int consumers = consumers_, stages = stages_;
    static constexpr int element = number == Number::e4m3 ? 1 : 2, width = 256 >> static_cast<int>(swizzle);  // bytes
    static constexpr int m = 64 * consumers, n = columns, k = width / element;
    static constexpr int a_bytes = m * width, stage_bytes = a_bytes + n * width;
    static constexpr int results = stages * stage_bytes, row = to == To::threads ? n + 4 : n;  // of results, in floats
    static constexpr int barriers = results + 4 * m * row;
    static constexpr int fetchers = from == From::threads ? 128 : 0;
    static constexpr int readers = from == From::registers ? 128 : 1;  // who lets know that a stage was read
};

// Of a block: one tile after the other.
template <class T>
struct Work {
    int next, end, m, n, first, last;  // of c, and of k in tiles

    AFN_DEVICE explicit Work(const Gemm& p)
        : next(block_index()), end((p.m + T::m - 1) / T::m * ((p.n + T::n - 1) / T::n) * p.parts) {}
    AFN_DEVICE bool take(const Gemm& p) {
        if (next >= end) return false;
        int across = (p.n + T::n - 1) / T::n, part = next % p.parts, steps = (p.k + T::k - 1) / T::k;
        m = next / p.parts / across * T::m;
        n = next / p.parts % across * T::n;
        first = part * steps / p.parts;
        last = (part + 1) * steps / p.parts;
        next += grid_size();
        return true;
    }
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
AFN_DEVICE void produce(const Gemm& p, unsigned char* shared, uint64_t* full, uint64_t* empty) {
    if (T::from != From::threads && thread_index() != 0) return;
    int i = 0;
    for (Work<T> work(p); work.take(p);)
        for (int k = work.first; k < work.last; ++k, ++i) {
            int stage = i % T::stages;
            unsigned char* to = shared + stage * T::stage_bytes;
            barrier_wait(empty + stage, ~(i / T::stages) & 1);
            if (thread_index() == 0) {
                barrier_expect(full + stage, T::from == From::threads ? T::n * T::width : T::stage_bytes);
                if (T::from != From::threads) fetch<T, T::a_major>(to, &p.a, full + stage, work.m, T::m, k * T::k);
                fetch<T, T::b_major>(to + T::a_bytes, &p.b, full + stage, work.n, T::n, k * T::k);
            }
            if (T::from == From::threads) {
                write_a<T>(p, to, work.m, k * T::k);
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

// The sums of a warpgroup to where they belong; results are of the warpgroup alone.
template <class T>
AFN_DEVICE void write(const Gemm& p, float* results, const float (&d)[T::n / 2], int m, int n) {
    int group = thread_index() / 128 - 1, thread = thread_index() % 128;
    if (T::to != To::threads && thread == 0) store_wait_read<0>();
    named_sync(1 + group, 128);
    for (int i = 0; i < T::n / 2; ++i) results[row_of(i / 2 % 2) * T::row + i / 4 * 8 + thread % 4 * 2 + i % 2] = d[i];
    if constexpr (T::to == To::threads) {
        named_sync(1 + group, 128);
        for (int i = thread; i < 64 * T::n; i += 128) {
            int row = m + i / T::n, column = n + i % T::n;
            if (row < p.m && column < p.n)
                p.c[static_cast<int64_t>(row) * p.n + column] = results[i / T::n * T::row + i % T::n];
        }
    } else {
        fence_async();
        named_sync(1 + group, 128);
        if (thread == 0) {
            if constexpr (T::to == To::store)
                tensor_store(&p.out, results, n, m);
            else
                tensor_add(&p.out, results, n, m);
            store_commit();
        }
    }
}

template <class T>
AFN_DEVICE void consume(const Gemm& p, unsigned char* shared, uint64_t* full, uint64_t* empty) {
    int group = thread_index() / 128 - 1, thread = thread_index() % 128, i = 0;
    float d[T::n / 2];
    [[maybe_unused]] uint32_t a[T::k / 16][4];
    for (Work<T> work(p); work.take(p);) {
        for (int k = work.first; k < work.last; ++k, ++i) {
            int stage = i % T::stages;
            const unsigned char* tile = shared + stage * T::stage_bytes;
            barrier_wait(full + stage, i / T::stages & 1);
            if constexpr (T::from == From::registers) load_a<T>(a, tile, 64 * group);
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < T::width / 32; ++step) {
                uint64_t b = part<T, T::b_major>(tile + T::a_bytes, 0, step);
                bool more = k > work.first || step > 0;
                if constexpr (T::from == From::registers)
                    wgmma<T::number, T::n, T::b_major>(d, a[step], b, more);
                else
                    wgmma<T::number, T::n, T::a_major, T::b_major>(d, part<T, T::a_major>(tile, 64 * group, step), b,
                                                                   more);
            }
            wgmma_commit();
            if constexpr (T::from == From::registers) {
                wgmma_wait<0>();
                barrier_arrive(empty + stage);
            } else {
                wgmma_wait<1>();
                if (k > work.first && thread == 0) barrier_arrive(empty + (i - 1) % T::stages);
            }
        }
        if constexpr (T::from != From::registers) {
            wgmma_wait<0>();
            if (thread == 0) barrier_arrive(empty + (i - 1) % T::stages);
        }
        float* results = reinterpret_cast<float*>(shared + T::results) + 64 * group * T::row;
        write<T>(p, results, d, work.m + 64 * group, work.n);
    }
    if (T::to != To::threads && thread == 0) store_wait_read<0>();
}

template <class T>
AFN_DEVICE void multiply(const Gemm& p) {
    unsigned char* shared = shared_memory();
    uint64_t* full = reinterpret_cast<uint64_t*>(shared + T::barriers);
    uint64_t* empty = full + T::stages;
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
        if constexpr (T::consumers == 3) registers_less<32>();
        produce<T>(p, shared, full, empty);
    } else {
        if constexpr (T::consumers == 2) registers_more<232>();
        if constexpr (T::consumers == 3) registers_more<160>();
        consume<T>(p, shared, full, empty);
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
using afn::To;
GEMM(bf16, 2, Number::bf16, 128, 2, 3, Swizzle::bytes_128, Major::k, Major::k, From::shared)
GEMM(bf16_turned, 1, Number::bf16, 64, 1, 2, Swizzle::bytes_128, Major::mn, Major::mn, From::shared)
GEMM(f16_narrow, 1, Number::f16, 64, 1, 4, Swizzle::bytes_64, Major::k, Major::mn, From::shared)
GEMM(f16_registers, 1, Number::f16, 256, 1, 2, Swizzle::bytes_64, Major::k, Major::k, From::registers)
GEMM(bf16_threads, 1, Number::bf16, 64, 1, 2, Swizzle::bytes_32, Major::k, Major::k, From::threads)
GEMM(e4m3, 2, Number::e4m3, 128, 2, 3, Swizzle::bytes_128, Major::k, Major::k, From::shared)
GEMM(bf16_three, 3, Number::bf16, 64, 3, 3, Swizzle::bytes_128, Major::k, Major::k, From::shared, To::store)
GEMM(f16_parts, 1, Number::f16, 64, 1, 2, Swizzle::bytes_128, Major::k, Major::k, From::shared, To::add)

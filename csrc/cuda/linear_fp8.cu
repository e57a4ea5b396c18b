// y = x wᵀ of e4m3 codes with their scales, for Hopper. One warpgroup fetches tiles of 128 of K into a ring of stages,
// others multiply them and add each block, times its scales, to sums in registers: the matrix unit itself keeps only
// about 14 bits of a sum. Blocks go on from tile to tile, and what is fetched is a tile ahead of what is written.
#include "afn/hopper.cuh"

namespace afn {

struct LinearFp8 {
    TensorMap x, w;  // boxes of a tile's rows by 128 of K
    const float *scale_x, *scale_w;
    const void *bias, *residual;
    void* y;
    int64_t x_row, x_block, w_row, w_block;  // strides of the scales, and
    int64_t residual_row, residual_column;   // of the residual, in elements
    int m, n, k, tiles;
    int bias_type, residual_type, y_type, wide;  // wide: four columns of y of 16 bits, two of 32, lie where 8 divides
};

// Which scales a block has to be multiplied by: none, so that they come at the end; one of each row of x and one of the
// tile of w; one of each row of both.
enum class Scaled { at_end, by_tile, by_row };
enum Type { kFloat32, kBfloat16, kFloat16 };

constexpr int kBlock = 128;  // of K, in elements and bytes
constexpr int kAbove = 8;    // tiles above one another that are taken before the next column of tiles

template <int waves_, int consumers_, int columns, int stages_, Scaled scaled_>
struct Fp8Tile {
    static constexpr Scaled scaled = scaled_;
    static constexpr int waves = waves_, consumers = consumers_, stages = stages_;
    static constexpr int m = 64 * waves * consumers, n = columns;
    static constexpr int x_bytes = m * kBlock, stage_bytes = x_bytes + n * kBlock;
    static constexpr int scales = stages * stage_bytes, scales_bytes = 4 * (m + n);  // of a stage
    static constexpr int barriers = scales + (scaled == Scaled::at_end ? 0 : stages * scales_bytes);
    static constexpr int fetchers = scaled == Scaled::at_end ? 0 : 128, warps = 4 * consumers;
};

struct Corner {
    int m, n;
};

// Where a tile begins. Tiles that run at the same time share rows of both operands in L2.
template <class T>
AFN_DEVICE Corner corner(const LinearFp8& p, int tile) {
    int down = (p.m + T::m - 1) / T::m, across = (p.n + T::n - 1) / T::n;
    int first = tile / (kAbove * across) * kAbove, within = tile % (kAbove * across);
    int height = down - first < kAbove ? down - first : kAbove;
    return {(first + within % height) * T::m, within / height * T::n};
}

template <class T>
AFN_DEVICE float* scales_of(unsigned char* shared, int stage) {
    return reinterpret_cast<float*>(shared + T::scales + stage * T::scales_bytes);
}

template <class T>
AFN_DEVICE void fetch_scales(const LinearFp8& p, float* to, Corner at, int block) {
    int thread = thread_index();
#pragma unroll
    for (int i = 0; i < T::m; i += 128) {
        int row = at.m + i + thread;
        if (T::m < 128 && thread >= T::m) break;
        to[i + thread] = row < p.m ? p.scale_x[row * p.x_row + block * p.x_block] : 0;
    }
    int column = at.n + thread;
    if (T::scaled == Scaled::by_row) {
        if (thread < T::n) to[T::m + thread] = column < p.n ? p.scale_w[column * p.w_row + block * p.w_block] : 0;
    } else if (thread == 0) {
        to[T::m] = p.scale_w[at.n / kBlock * p.w_row + block * p.w_block];
    }
}

template <class T>
AFN_DEVICE void fetch(const LinearFp8& p, unsigned char* shared, uint64_t* full, uint64_t* empty) {
    if (T::scaled == Scaled::at_end && thread_index() != 0) return;
    int step = 0;
    for (int tile = block_index(); tile < p.tiles; tile += grid_size()) {
        Corner at = corner<T>(p, tile);
        for (int block = 0; block * kBlock < p.k; ++block, ++step) {
            int stage = step % T::stages;
            unsigned char* to = shared + stage * T::stage_bytes;
            barrier_wait(empty + stage, ~(step / T::stages) & 1);
            if (thread_index() == 0) {
                barrier_expect(full + stage, T::stage_bytes);
                tensor_copy(to, &p.x, full + stage, block * kBlock, at.m);
                tensor_copy(to + T::x_bytes, &p.w, full + stage, block * kBlock, at.n);
            }
            if constexpr (T::scaled != Scaled::at_end) {
                fetch_scales<T>(p, scales_of<T>(shared, stage), at, block);
                barrier_arrive(full + stage);
            }
        }
    }
}

// Row of this thread within 64 of a product, and the first of its two columns within eight.
AFN_DEVICE int row_of(int half) { return thread_index() % 128 / 32 * 16 + thread_index() % 32 / 4 + 8 * half; }
AFN_DEVICE int column_of() { return thread_index() % 4 * 2; }

AFN_DEVICE float element(const void* p, int type, int64_t i) {
    if (type == kFloat32) return static_cast<const float*>(p)[i];
    uint16_t bits = static_cast<const uint16_t*>(p)[i];
    return type == kBfloat16 ? from_bf16(bits) : from_f16(bits);
}

AFN_DEVICE uint32_t packed(float low, float high, int type) {
    return type == kBfloat16 ? pack_bf16(low, high) : pack_f16(low, high);
}

template <class T>
struct alignas(2 * sizeof(T)) Pair {
    T low, high;
};

// Two pairs of this thread, which are eight columns apart, to y. Of 16 bits threads of even and odd numbers exchange one
// first, so that each has four columns in a row, and four threads of a row have 32 bytes.
AFN_DEVICE void write(const LinearFp8& p, int row, int column, const float (&z)[2][2]) {
    int64_t begin = static_cast<int64_t>(row) * p.n;
    if (!p.wide) {
        for (int i = 0; i < 4; ++i) {
            int at = column + column_of() + 8 * (i / 2) + i % 2;
            if (row >= p.m || at >= p.n) continue;
            if (p.y_type == kFloat32)
                static_cast<float*>(p.y)[begin + at] = z[i / 2][i % 2];
            else
                static_cast<uint16_t*>(p.y)[begin + at] =
                    static_cast<uint16_t>(packed(z[i / 2][i % 2], 0, p.y_type));
        }
    } else if (p.y_type == kFloat32) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            int at = column + column_of() + 8 * i;
            if (row < p.m && at < p.n)
                *reinterpret_cast<Pair<float>*>(static_cast<float*>(p.y) + begin + at) = {z[i][0], z[i][1]};
        }
    } else {
        uint32_t first = packed(z[0][0], z[0][1], p.y_type), second = packed(z[1][0], z[1][1], p.y_type);
        bool odd = thread_index() & 1;
        uint32_t other = shuffle_xor(odd ? first : second, 1);
        int at = column + 8 * odd + thread_index() % 4 / 2 * 4;
        if (row < p.m && at < p.n)
            *reinterpret_cast<Pair<uint32_t>*>(static_cast<uint16_t*>(p.y) + begin + at) = {odd ? other : first,
                                                                                           odd ? second : other};
    }
}

// Scales that all blocks share, bias and residual.
template <class T>
AFN_DEVICE float finished(const LinearFp8& p, float sum, int row, int column) {
    if (row >= p.m || column >= p.n) return 0;
    if (T::scaled == Scaled::at_end) sum *= p.scale_x[row * p.x_row] * p.scale_w[column * p.w_row];
    if (p.bias) sum += element(p.bias, p.bias_type, column);
    if (p.residual)
        sum += element(p.residual, p.residual_type, row * p.residual_row + column * p.residual_column);
    return sum;
}

template <class T>
AFN_DEVICE void finish(const LinearFp8& p, Corner at, const float (&sums)[T::waves][T::n / 2]) {
    int group = thread_index() / 128 - 1;
#pragma unroll
    for (int wave = 0; wave < T::waves; ++wave)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int eight = 0; eight < T::n / 8; eight += 2) {
                int row = at.m + 64 * (group * T::waves + wave) + row_of(half), column = at.n + 8 * eight;
                float z[2][2];
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    z[i / 2][i % 2] = finished<T>(p, sums[wave][4 * (eight + i / 2) + 2 * half + i % 2], row,
                                                  column + column_of() + 8 * (i / 2) + i % 2);
                write(p, row, column, z);
            }
}

// Adds a block's products to the sums.
template <class T>
AFN_DEVICE void add(float (&sums)[T::n / 2], const float (&d)[T::n / 2], const float* scales, int first) {
    if constexpr (T::scaled == Scaled::at_end) {
#pragma unroll
        for (int i = 0; i < T::n / 2; ++i) sums[i] += d[i];
        return;
    }
    float rows[2] = {scales[first + row_of(0)], scales[first + row_of(1)]};
    if constexpr (T::scaled == Scaled::by_tile) {
        rows[0] *= scales[T::m];
        rows[1] *= scales[T::m];
#pragma unroll
        for (int i = 0; i < T::n / 2; ++i) sums[i] = fma_of(d[i], rows[i / 2 % 2], sums[i]);
    } else {
#pragma unroll
        for (int eight = 0; eight < T::n / 8; ++eight) {
            auto columns = *reinterpret_cast<const Pair<float>*>(scales + T::m + 8 * eight + column_of());
#pragma unroll
            for (int i = 0; i < 4; ++i)
                sums[4 * eight + i] =
                    fma_of(d[4 * eight + i], rows[i / 2] * (i % 2 ? columns.high : columns.low), sums[4 * eight + i]);
        }
    }
}

template <class T>
AFN_DEVICE void multiply(const LinearFp8& p, unsigned char* shared, uint64_t* full, uint64_t* empty) {
    int group = thread_index() / 128 - 1, step = 0;
    float d[T::n / 2];
    for (int tile = block_index(); tile < p.tiles; tile += grid_size()) {
        float sums[T::waves][T::n / 2] = {};
        for (int block = 0; block * kBlock < p.k; ++block, ++step) {
            int stage = step % T::stages;
            const unsigned char* x = shared + stage * T::stage_bytes;
            barrier_wait(full + stage, step / T::stages & 1);
#pragma unroll
            for (int wave = 0; wave < T::waves; ++wave) {
                int first = 64 * (group * T::waves + wave);
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < kBlock / 32; ++i)
                    wgmma<Number::e4m3, T::n>(d, descriptor(x + first * kBlock + 32 * i, 16, 1024, Swizzle::bytes_128),
                                              descriptor(x + T::x_bytes + 32 * i, 16, 1024, Swizzle::bytes_128), i > 0);
                wgmma_commit();
                wgmma_wait<0>();
                add<T>(sums[wave], d, scales_of<T>(shared, stage), first);
            }
            sync_warp();
            if (thread_index() % 32 == 0) barrier_arrive(empty + stage);
        }
        finish<T>(p, corner<T>(p, tile), sums);
    }
}

template <class T>
AFN_DEVICE void linear_fp8(const LinearFp8& p) {
    unsigned char* shared = shared_memory();
    uint64_t* full = reinterpret_cast<uint64_t*>(shared + T::barriers);
    uint64_t* empty = full + T::stages;
    if (thread_index() == 0) {
        for (int i = 0; i < T::stages; ++i) {
            barrier_start(full + i, 1 + T::fetchers);
            barrier_start(empty + i, T::warps);
        }
        barriers_started();
    }
    sync_block();
    if (thread_index() < 128) {
        if constexpr (T::waves > 1) registers_less<40>();
        fetch<T>(p, shared, full, empty);
    } else {
        if constexpr (T::waves > 1) registers_more<232>();
        multiply<T>(p, shared, full, empty);
    }
}

}  // namespace afn

#define LINEAR_FP8(name, scaled, consumers, ...)                                                     \
    AFN_KERNEL(linear_fp8_##name##_##scaled, afn::LinearFp8, 128 * (1 + consumers), 1) {             \
        afn::linear_fp8<afn::Fp8Tile<__VA_ARGS__, afn::Scaled::scaled>>(p);                          \
    }
#define LINEAR_FP8_TILES(scaled)                                  \
    LINEAR_FP8(256x128, scaled, 2, /*waves*/ 2, 2, 128, 4)        \
    LINEAR_FP8(128x128, scaled, 2, /*waves*/ 1, 2, 128, 6)        \
    LINEAR_FP8(64x64, scaled, 1, /*waves*/ 1, 1, 64, 8)
LINEAR_FP8_TILES(at_end)
LINEAR_FP8_TILES(by_tile)
LINEAR_FP8_TILES(by_row)

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
    int bias_type, residual_type, y_type;
    int wide, wide_residual;  // four columns of y, of the residual, can be moved at once
};

// Which scales a block has to be multiplied by: none, so that they come at the end; one of each row of x and one of the
// tile of w; one of each row of both.
enum class Scaled { at_end, by_tile, by_row };
enum Type { kFloat32, kBfloat16, kFloat16 };

constexpr int kBlock = 128;    // of K, in elements and bytes
constexpr int kAbove = 8;      // tiles above one another that are taken before the next column of tiles
constexpr int kPieceRow = 40;  // floats from row to row of a piece of 16 by 32: no two threads meet at a bank

template <int waves_, int consumers_, int columns, int stages_, Scaled scaled_>
struct Fp8Tile {
    static constexpr Scaled scaled = scaled_;
    static constexpr int waves = waves_, consumers = consumers_, stages = stages_;
    static constexpr int m = 64 * waves * consumers, n = columns;
    static constexpr int x_bytes = m * kBlock, stage_bytes = x_bytes + n * kBlock;
    static constexpr int scales = stages * stage_bytes, scales_bytes = 4 * (m + n);  // of a stage
    static constexpr int pieces = scales + (scaled == Scaled::at_end ? 0 : stages * scales_bytes);
    static constexpr int piece = 16 * kPieceRow;  // of a warp, in floats
    static constexpr int barriers = pieces + 4 * consumers * 4 * piece;
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

// Row of this thread within 64 of a product.
AFN_DEVICE int row_of(int half) { return thread_index() % 128 / 32 * 16 + thread_index() % 32 / 4 + 8 * half; }

AFN_DEVICE float element(const void* p, int type, int64_t i) {
    if (type == kFloat32) return static_cast<const float*>(p)[i];
    uint16_t bits = static_cast<const uint16_t*>(p)[i];
    return type == kBfloat16 ? from_bf16(bits) : from_f16(bits);
}

struct alignas(16) Four {
    float x[4];
};
struct alignas(8) FourOf16 {
    uint32_t x[2];
};
struct alignas(8) Two {
    float x, y;
};

// Four columns of a row, as many of them as there are. Wide: they are adjacent, and begin where the copy of all
// divides.
AFN_DEVICE Four load(const void* p, int type, int64_t i, int64_t stride, int count, bool wide) {
    Four y = {};
    if (wide && type == kFloat32) {
        y = *reinterpret_cast<const Four*>(static_cast<const float*>(p) + i);
    } else if (wide) {
        FourOf16 bits = *reinterpret_cast<const FourOf16*>(static_cast<const uint16_t*>(p) + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            auto own = static_cast<uint16_t>(bits.x[j / 2] >> 16 * (j % 2));
            y.x[j] = type == kBfloat16 ? from_bf16(own) : from_f16(own);
        }
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (j < count) y.x[j] = element(p, type, i + j * stride);
    }
    return y;
}

AFN_DEVICE void store(void* p, int type, int64_t i, int count, bool wide, const Four& y) {
    if (type == kFloat32) {
        float* to = static_cast<float*>(p) + i;
        if (wide) *reinterpret_cast<Four*>(to) = y;
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (!wide && j < count) to[j] = y.x[j];
        return;
    }
    uint16_t* to = static_cast<uint16_t*>(p) + i;
    FourOf16 bits;
#pragma unroll
    for (int j = 0; j < 2; ++j)
        bits.x[j] = type == kBfloat16 ? pack_bf16(y.x[2 * j], y.x[2 * j + 1]) : pack_f16(y.x[2 * j], y.x[2 * j + 1]);
    if (wide) *reinterpret_cast<FourOf16*>(to) = bits;
#pragma unroll
    for (int j = 0; j < 4; ++j)
        if (!wide && j < count) to[j] = static_cast<uint16_t>(bits.x[j / 2] >> 16 * (j % 2));
}

// What is the same for all rows of four columns: the scales of w that all blocks share, and the bias.
struct Columns {
    Four scale, bias;
};

template <class T>
AFN_DEVICE Columns columns_at(const LinearFp8& p, int column) {
    Columns y = {};
    int count = p.n - column;
    if (T::scaled == Scaled::at_end) y.scale = load(p.scale_w, kFloat32, column * p.w_row, p.w_row, count, false);
    if (p.bias) y.bias = load(p.bias, p.bias_type, column, 1, count, false);
    return y;
}

template <int n>
AFN_DEVICE void put(float* to, const float (&sums)[n], int first) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
        *reinterpret_cast<Two*>(to + i % 2 * 8 * kPieceRow + i / 2 * 8) = {sums[first + 2 * i],
                                                                           sums[first + 2 * i + 1]};
}

// A tile to y: each warp takes 16 rows of 32 columns at a time through its own piece of shared memory, behind which a
// thread has four columns in a row. One loop for all of them: as straight code it would not stay in the caches.
template <class T>
AFN_DEVICE void finish(const LinearFp8& p, unsigned char* shared, Corner at, const float (&sums)[T::waves][T::n / 2]) {
    int warp = thread_index() / 32 - 4, lane = thread_index() % 32;
    auto* piece = reinterpret_cast<float*>(shared + T::pieces) + warp * T::piece;
    int own = at.n + lane % 8 * 4, first = at.m + warp / 4 * 64 * T::waves + warp % 4 * 16 + lane / 8;
    Columns next = columns_at<T>(p, own);
#pragma unroll 1
    for (int part = 0; part < T::n / 32; ++part) {
        int column = own + 32 * part, count = p.n - column;
        Columns now = next;
        next = columns_at<T>(p, column + 32);
#pragma unroll 1
        for (int wave = 0; wave < T::waves; ++wave) {
#pragma unroll
            for (int i = 0; i < T::n / 32; ++i)  // registers cannot be numbered when it runs
#pragma unroll
                for (int j = 0; j < T::waves; ++j)
                    if (i == part && j == wave) put(piece + lane / 4 * kPieceRow + lane % 4 * 2, sums[j], 16 * i);
            sync_warp();
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int64_t row = first + 64 * wave + 4 * i;
                Four z = *reinterpret_cast<const Four*>(piece + (lane / 8 + 4 * i) * kPieceRow + lane % 8 * 4),
                     more = {};
                if (row >= p.m || count <= 0) continue;
                float scale = T::scaled == Scaled::at_end ? p.scale_x[row * p.x_row] : 1;
                if (p.residual)
                    more = load(p.residual, p.residual_type, row * p.residual_row + column * p.residual_column,
                                p.residual_column, count, p.wide_residual);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if (T::scaled == Scaled::at_end) z.x[j] *= scale * now.scale.x[j];
                    z.x[j] += now.bias.x[j] + more.x[j];
                }
                store(p.y, p.y_type, row * p.n + column, count, p.wide, z);
            }
            sync_warp();
        }
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
            auto columns = *reinterpret_cast<const Two*>(scales + T::m + 8 * eight + thread_index() % 4 * 2);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                sums[4 * eight + i] =
                    fma_of(d[4 * eight + i], rows[i / 2] * (i % 2 ? columns.y : columns.x), sums[4 * eight + i]);
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
                hold(d);
                add<T>(sums[wave], d, scales_of<T>(shared, stage), first);
            }
            sync_warp();
            if (thread_index() % 32 == 0) barrier_arrive(empty + stage);
        }
        finish<T>(p, shared, corner<T>(p, tile), sums);
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

#define LINEAR_FP8(name, scaled, consumers, ...)                                         \
    AFN_KERNEL(linear_fp8_##name##_##scaled, afn::LinearFp8, 128 * (1 + consumers), 1) { \
        afn::linear_fp8<afn::Fp8Tile<__VA_ARGS__, afn::Scaled::scaled>>(p);              \
    }
#define LINEAR_FP8_TILES(scaled)                           \
    LINEAR_FP8(256x128, scaled, 2, /*waves*/ 2, 2, 128, 4) \
    LINEAR_FP8(128x128, scaled, 2, /*waves*/ 1, 2, 128, 6) \
    LINEAR_FP8(64x64, scaled, 1, /*waves*/ 1, 1, 64, 8)
LINEAR_FP8_TILES(at_end)
LINEAR_FP8_TILES(by_tile)
LINEAR_FP8_TILES(by_row)

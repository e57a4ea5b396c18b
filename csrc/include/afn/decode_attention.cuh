// Attention of a few new tokens over a long KV cache, in one launch.
//
// A block walks its range of the list of all keys (decode_list.cuh) in tiles of at most 32 KB of keys and of values,
// copied ahead into a ring. A (sequence, KV head) that lies in several ranges or splits has a part in each; the last
// block to arrive there merges them.
//
// The query rows of a KV head, new tokens x heads of its group, are padded to 1, 2 or 4 tiles of 16. A warp has one
// tile of rows and every G-th run of a tile of keys, G = 8 / tiles of rows, with its own maximum, sum and accumulator.
// Heads wider than 128 are halved: two warps with the same scores have half of the columns of values each.
#pragma once

#include "afn/decode_list.cuh"

namespace afn {

constexpr int kStages = 3, kMostRows = 64;

// Rows of 16-byte pieces in shared memory, eight of one piece in different banks: swapped where a row is a multiple of
// 128 bytes, and an odd number of pieces apart elsewhere.
template <int pieces>
struct Pieces {
    static constexpr bool swaps = pieces % 8 == 0;
    static constexpr int bytes = 16 * (swaps ? pieces : pieces | 1);
    static AFN_DEVICE int at(int row, int piece) { return row * bytes + ((swaps ? piece ^ (row & 7) : piece) << 4); }
};

AFN_DEVICE constexpr int power_of_two(int least) {
    int power = 1;
    while (power < least) power *= 2;
    return power;
}
AFN_DEVICE constexpr int larger(int a, int b) { return a > b ? a : b; }
AFN_DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }

template <int D, bool fp8>
struct Tile {
    static constexpr int row_bytes = fp8 ? D : 2 * D, pieces = row_bytes / 16;
    using Row = Pieces<pieces>;   // of keys and values
    using Query = Pieces<D / 8>;  // 16-bit
    using Sums = Pieces<D / 4>;   // float
    static constexpr int halves = D > 128 ? 2 : 1, columns = D / halves, warps = kWarps / halves;
    static constexpr int keys = smaller(256, 32768 / power_of_two(row_bytes)), runs = keys / kRun;
    static constexpr int rows_a_pass = kThreads / pieces, passes = (keys + rows_a_pass - 1) / rows_a_pass;
    static constexpr int side = keys * Row::bytes, stage = larger(2 * side, 16 * warps * Sums::bytes);
    // Parts that a warp copies at once to merge them, with two rows of buffers: of the whole ring, or of one stage.
    static constexpr int merged = smaller(32, kStages* stage / (2 * kWarps * 4 * D));
    static constexpr int merged_ahead = smaller(32, stage / (2 * kWarps * 4 * D));
    static constexpr int vectors = (D + 127) / 128;  // of four floats, that a lane has of a row
};

template <int D, bool fp8>
struct Shared {
    unsigned char ring[kStages * Tile<D, fp8>::stage];
    unsigned char queries[kMostRows * Tile<D, fp8>::Query::bytes];
    float factor[kMostRows];    // of each row's scores
    float2 stats[kWarps * 16];  // maximum and sum of each warp's rows
    int last;
};

struct Bfloat16 {
    static constexpr float lift = 0.0f;
    static AFN_DEVICE uint32_t pack(float low, float high) { return pack_bf16(low, high); }
    static AFN_DEVICE float value(uint16_t x) { return from_bf16(x); }
    static AFN_DEVICE void product(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        mma_bf16(d, a, b0, b1);
    }
};
struct Float16 {
    static constexpr float lift = 15.0f;  // weights are at most 2^15, so that small ones are not lost
    static AFN_DEVICE uint32_t pack(float low, float high) { return pack_f16(low, high); }
    static AFN_DEVICE float value(uint16_t x) { return from_f16(x); }
    static AFN_DEVICE void product(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        mma_f16(d, a, b0, b1);
    }
};

AFN_DEVICE float minus_infinity() { return float_of(static_cast<int>(0xff800000)); }
AFN_DEVICE float finite(float top) { return top == minus_infinity() ? 0.0f : top; }

// The pages, and places in them, of the keys that a thread copies next.
template <int passes>
struct Places {
    int page[passes], slot[passes];
};

template <class T>
AFN_DEVICE void find_places(const DecodeAttention& p, const Walk& walk, Places<T::passes>& places) {
    int key = walk.first + walk.run * kRun + thread_index() / T::pieces;
#pragma unroll
    for (int i = 0; i < T::passes; ++i, key += T::rows_a_pass) {
        places.page[i] = walk.sequence;
        places.slot[i] = key;
    }
    if (!p.table || walk.left <= 0) return;
    int64_t table = walk.sequence * p.table_stride;
#pragma unroll
    for (int i = 0; i < T::passes;
         ++i) {  // no load waits for another; behind the length any page that there is will do
        int used = max(min(places.slot[i], walk.first + walk.length - 1), 0);
        int page = static_cast<unsigned>(used) / static_cast<unsigned>(p.page);
        places.page[i] = integer(p.table, table + page, p.wide_table);
        places.slot[i] = used - page * p.page;
    }
}

// Copies the walk's next tile, with zeros behind the length, and goes on to the one after it.
template <class T>
AFN_DEVICE void copy_tile(const DecodeAttention& p, unsigned char* stage, Walk& walk, Places<T::passes>& places) {
    if (walk.left > 0) {
        int row = thread_index() / T::pieces, piece = thread_index() % T::pieces;
        int runs = next_runs(p, walk, T::runs), rows = runs * kRun;
        if (kThreads % T::pieces && row >= T::rows_a_pass) rows = 0;
        const unsigned char* k = static_cast<const unsigned char*>(p.k) + walk.head * p.k_head + 16 * piece;
        const unsigned char* v = static_cast<const unsigned char*>(p.v) + walk.head * p.v_head + 16 * piece;
#pragma unroll
        for (int i = 0; i < T::passes; ++i, row += T::rows_a_pass) {
            if (row >= rows) break;
            bool inside = walk.run * kRun + row < walk.length;
            int64_t page = inside ? places.page[i] : 0, slot = inside ? places.slot[i] : 0;
            unsigned char* to = stage + T::Row::at(row, piece);
            copy_async(to, k + page * p.k_batch + slot * p.k_token, inside ? 16 : 0);
            copy_async(to + T::side, v + page * p.v_batch + slot * p.v_token, inside ? 16 : 0);
        }
        advance(p, walk, runs);
        find_places<T>(p, walk, places);
    }
    copy_commit();
}

// Queries to shared memory, 16-bit, rows of zeros behind them. For FP8 caches they become float16, which holds every
// key but not every query: a row is divided by a power of two, and its columns are in the order of that product.
template <class Query, class Product, int D, bool fp8>
AFN_DEVICE void load_queries(const DecodeAttention& p, Shared<D, fp8>& shared, const Walk& walk, int padded) {
    constexpr int own = (D + 31) / 32;
    int lane = thread_index() % 32;
    float scale = p.k_scales ? p.scale * p.k_scale[p.k_scales > 1 ? walk.head : 0] : p.scale;
    for (int row = thread_index() / 32; row < padded; row += kWarps) {
        uint16_t x[own] = {};
        if (row < p.tokens * p.group) {
            const unsigned char* from = static_cast<const unsigned char*>(p.q) + walk.sequence * p.q_batch +
                                        row / p.group * p.q_token + (walk.head * p.group + row % p.group) * p.q_head;
            for (int i = 0; i < own; ++i)
                if (lane + 32 * i < D) x[i] = reinterpret_cast<const uint16_t*>(from)[lane + 32 * i];
        }
        float power = 1.0f;
        if constexpr (fp8) {
            float top = 0.0f;
            for (uint16_t element : x) {
                float value = Query::value(element);
                top = max(top, value < 0.0f ? -value : value);
            }
            for (int mask = 16; mask; mask /= 2) top = max(top, shuffle_xor(top, mask));
            if (bits_of(top) & 0x7f800000) power = float_of(bits_of(top) & 0x7f800000);
            for (uint16_t& element : x)
                element = static_cast<uint16_t>(Product::pack(Query::value(element) / power, 0.0f));
        }
        for (int i = 0; i < own; ++i) {
            int d = lane + 32 * i;
            if (d >= D) break;
            if constexpr (fp8) d = (d & ~15) | (d & 2) << 2 | (d & 12) >> 1 | (d & 1);
            unsigned char* to = shared.queries + Tile<D, fp8>::Query::at(row, d / 8) + d % 8 * 2;
            *reinterpret_cast<uint16_t*>(to) = x[i];
        }
        if (lane == 0) shared.factor[row] = scale * power;
    }
}

// What a warp keeps of its 16 rows; a lane has rows lane / 4 and 8 more. Accumulators are tiles of 8 columns of values;
// for FP8 the even and the odd ones of 16. Queries of wide heads are read again for every run: registers are full.
template <int D>
struct Rows {
    static constexpr bool keeps = D <= 128;
    uint32_t q[keeps ? D / 16 : 1][4];
    float factor[2], top[2], sum[2], out[D / (D > 128 ? 16 : 8)][4];
    int ahead[2];  // keys that a row does not see at the end of the sequence
};

template <int D, bool fp8>
AFN_DEVICE void begin_rows(const DecodeAttention& p, const Shared<D, fp8>& shared, Rows<D>& rows, int first_row) {
    int lane = thread_index() % 32;
    if constexpr (Rows<D>::keeps) {
#pragma unroll
        for (int i = 0; i < D / 16; ++i)
            load_matrices(rows.q[i],
                          shared.queries + Tile<D, fp8>::Query::at(first_row + lane % 16, 2 * i + lane / 16));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int row = first_row + lane / 4 + 8 * i;
        rows.factor[i] = shared.factor[row];
        rows.ahead[i] = max(p.tokens - 1 - row / p.group, 0);
        rows.top[i] = minus_infinity();
        rows.sum[i] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < Tile<D, fp8>::columns / 8; ++i)
        rows.out[i][0] = rows.out[i][1] = rows.out[i][2] = rows.out[i][3] = 0.0f;
}

AFN_DEVICE uint32_t low_f16(uint32_t four) { return f16_of_e4m3(static_cast<uint16_t>(four)); }
AFN_DEVICE uint32_t high_f16(uint32_t four) { return f16_of_e4m3(static_cast<uint16_t>(four >> 16)); }

// cap * tanh(score / cap), both times log2(e); off by 1e-6 of the cap at most, which is what counts in an exponent.
// The bend is 2 log2(e) / cap.
AFN_DEVICE float capped(float score, float cap, float bend) {
    return fma_of(-2.0f * cap, exp2_fast(-log2_fast(exp2_fast(score * bend) + 1.0f)), cap);
}

// Scores, weights and weighted values of 16 keys.
template <class Product, int D, bool fp8>
AFN_DEVICE void attend(const DecodeAttention& p, Rows<D>& rows, const unsigned char* queries, int first_row,
                       const unsigned char* stage, int run, int key, int length, int half) {
    using T = Tile<D, fp8>;
    constexpr int steps = (T::row_bytes + 31) / 32;  // of 32 bytes of 16 keys: one step of the product, or two of FP8
    int lane = thread_index() % 32, row = run * kRun + lane % 16;
    auto q = [&](int i, uint32_t (&x)[4]) {
        if constexpr (Rows<D>::keeps) {
#pragma unroll
            for (int j = 0; j < 4; ++j) x[j] = rows.q[i][j];
        } else {
            load_matrices(x, queries + T::Query::at(first_row + lane % 16, 2 * i + lane / 16));
        }
    };
    float s[2][4] = {};
#pragma unroll(Rows<D>::keeps ? steps : 4)
    for (int i = 0; i < steps; ++i) {
        int words = 2 * i + 1 < T::pieces ? 4 : 2;  // only half of the last step where pieces are odd in number
        uint32_t x[4], a[4] = {};
        load_matrices(x, stage + T::Row::at(row, words == 4 ? 2 * i + lane / 16 : 2 * i));
        if constexpr (fp8) {
#pragma unroll
            for (int j = 0; j < words; ++j) {
                if (j % 2 == 0) q(2 * i + j / 2, a);
                Product::product(s[j % 2], a, low_f16(x[j]), high_f16(x[j]));
            }
        } else {
            q(i, a);
            Product::product(s[0], a, x[0], x[2]);
            Product::product(s[1], a, x[1], x[3]);
        }
    }
    bool whole = key + kRun <= length - p.tokens + 1 && key >= length - 1 - p.left;
    float keep[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float top = rows.top[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float& score = s[j / 2][2 * i + j % 2];
            score *= rows.factor[i];
            if (p.cap > 0.0f) score = capped(score, p.cap, p.bend);
            int before = length - rows.ahead[i] - 1 - (key + j / 2 * 8 + lane % 4 * 2 + j % 2);
            if (!whole && (before < 0 || before > p.left)) score = minus_infinity();
            top = max(top, score);
        }
        top = max(top, shuffle_xor(top, 1));
        top = max(top, shuffle_xor(top, 2));
        float base = finite(top) - Product::lift;
        keep[i] = exp2_fast(rows.top[i] - finite(top));
        rows.top[i] = top;
        rows.sum[i] *= keep[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float& weight = s[j / 2][2 * i + j % 2];
            weight = exp2_fast(weight - base);
            rows.sum[i] += weight;
        }
    }
    uint32_t weights[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) weights[i] = Product::pack(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int i = 0; i < T::columns / 8; ++i) {
        rows.out[i][0] *= keep[0];
        rows.out[i][1] *= keep[0];
        rows.out[i][2] *= keep[1];
        rows.out[i][3] *= keep[1];
    }
#pragma unroll
    for (int i = 0; i < steps / T::halves; ++i) {
        int words = 2 * i + 1 < T::pieces ? 4 : 2, piece = half * (T::pieces / 2) + 2 * i;
        uint32_t x[4];
        load_matrices_transposed(x, stage + T::side + T::Row::at(row, words == 4 ? piece + lane / 16 : piece));
        if constexpr (fp8) {  // a word has two columns of two keys
#pragma unroll
            for (int j = 0; j < words / 2; ++j) {
                uint32_t a = permute_bytes(x[2 * j], 0x3120), b = permute_bytes(x[2 * j + 1], 0x3120);
                Product::product(rows.out[4 * i + 2 * j], weights, low_f16(a), low_f16(b));
                Product::product(rows.out[4 * i + 2 * j + 1], weights, high_f16(a), high_f16(b));
            }
        } else {
            Product::product(rows.out[2 * i], weights, x[0], x[1]);
            Product::product(rows.out[2 * i + 1], weights, x[2], x[3]);
        }
    }
}

// Four columns of a row, the first of them 4 * vector.
template <class Query, int D>
AFN_DEVICE void store_output(const DecodeAttention& p, const Walk& walk, int row, int vector, float4 x, float sum) {
    float factor = p.v_scales ? p.v_scale[p.v_scales > 1 ? walk.head : 0] : 1.0f;
    factor /= sum == 0.0f ? 1.0f : sum;
    int64_t token = static_cast<int64_t>(walk.sequence) * p.tokens + row / p.group;
    int64_t head = walk.head * p.group + row % p.group;
    int64_t at = (token * p.heads * p.group + head) * (D / 4) + vector;
    static_cast<uint2*>(p.out)[at] = {Query::pack(x.x * factor, x.y * factor), Query::pack(x.z * factor, x.w * factor)};
}

AFN_DEVICE float4 plus_times(float4 sum, float weight, float4 x) {
    return {fma_of(weight, x.x, sum.x), fma_of(weight, x.y, sum.y), fma_of(weight, x.z, sum.z),
            fma_of(weight, x.w, sum.w)};
}

// The parts of a KV head in their order; a warp takes every eighth row, and copies ahead while it adds up. A lane
// copies what it will itself read, so that its own wait is all the order there is to keep.
template <class Query, int D>
AFN_DEVICE void merge(const DecodeAttention& p, const Walk& walk, unsigned char* room, int at_once,
                      const Parts& parts) {
    constexpr int vectors = (D + 127) / 128, width = D / 4;
    int lane = thread_index() % 32, warp = thread_index() / 32, rows = p.tokens * p.group;
    int rounds = (parts.count + at_once - 1) / at_once, steps = (rows - warp + kWarps - 1) / kWarps * rounds;
    const float2* stats = reinterpret_cast<const float2*>(p.parts + p.stored * rows * D);
    float4* own = reinterpret_cast<float4*>(room) + warp * 2 * at_once * width + lane;
    float2 next;
    auto fetch = [&](int step) {
        if (step < steps) {
            int row = warp + step / rounds * kWarps, begin = step % rounds * at_once;
            int n = min(at_once, parts.count - begin);
            for (int i = 0; i < n; ++i)
                for (int v = 0; v < vectors; ++v)
                    if (lane + 32 * v < width)
                        copy_async(own + (step % 2 * at_once + i) * width + 32 * v,
                                   p.parts + (parts.at(begin + i) * rows + row) * D + 4 * (lane + 32 * v));
            next = {minus_infinity(), 0.0f};
            if (lane < n) next = load_global(stats + parts.at(begin + lane) * rows + row);
        }
        copy_commit();
    };
    fetch(0);
    float top = minus_infinity(), sum = 0.0f;
    float4 out[vectors] = {};
    for (int step = 0; step < steps; ++step) {
        float2 stat = next;
        fetch(step + 1);
        float best = max(top, stat.x);
        for (int mask = 16; mask; mask /= 2) best = max(best, shuffle_xor(best, mask));
        float keep = exp2_fast(top - finite(best)), weight = exp2_fast(stat.x - finite(best)), sums = weight * stat.y;
        for (int mask = 16; mask; mask /= 2) sums += shuffle_xor(sums, mask);
        sum = fma_of(sum, keep, sums);
        for (float4& x : out) x = {x.x * keep, x.y * keep, x.z * keep, x.w * keep};
        top = best;
        copy_wait<1>();
        int n = min(at_once, parts.count - step % rounds * at_once);
        for (int i = 0; i < n; ++i) {
            float share = shuffle(weight, i);
            for (int v = 0; v < vectors; ++v)
                if (lane + 32 * v < width)
                    out[v] = plus_times(out[v], share, own[(step % 2 * at_once + i) * width + 32 * v]);
        }
        if ((step + 1) % rounds) continue;
        for (int v = 0; v < vectors; ++v) {
            if (lane + 32 * v < width)
                store_output<Query, D>(p, walk, warp + step / rounds * kWarps, lane + 32 * v, out[v], sum);
            out[v] = {0.0f, 0.0f, 0.0f, 0.0f};
        }
        top = minus_infinity();
        sum = 0.0f;
    }
}

// The warps' rows of a part, of which each warp has its own keys, into the stage.
template <class T, int D, bool fp8>
AFN_DEVICE void gather(const Rows<D>& rows, Shared<D, fp8>& shared, unsigned char* stage) {
    using Sums = typename T::Sums;
    int lane = thread_index() % 32, warp = thread_index() / 32, half = warp % T::halves;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int row = warp / T::halves * 16 + lane / 4 + 8 * i, piece = half * (T::columns / 4);
        float sum = rows.sum[i];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        if (lane % 4 == 0 && half == 0) shared.stats[row] = {rows.top[i], sum};
        if constexpr (fp8) {
#pragma unroll
            for (int j = 0; j < T::columns / 16; ++j)
                *reinterpret_cast<float4*>(stage + Sums::at(row, piece + 4 * j + lane % 4)) = {
                    rows.out[2 * j][2 * i], rows.out[2 * j + 1][2 * i], rows.out[2 * j][2 * i + 1],
                    rows.out[2 * j + 1][2 * i + 1]};
        } else {
#pragma unroll
            for (int j = 0; j < T::columns / 8; ++j)
                *reinterpret_cast<float2*>(stage + Sums::at(row, piece + 2 * j + lane % 4 / 2) + lane % 2 * 8) = {
                    rows.out[j][2 * i], rows.out[j][2 * i + 1]};
        }
    }
}

// A finished part put together: the output where the part is all there is.
template <class Query, int D, bool fp8>
AFN_DEVICE void finish(const DecodeAttention& p, Shared<D, fp8>& shared, Rows<D>& rows, const Walk& walk,
                       unsigned char* stage, int range, int tiles, bool done) {
    using T = Tile<D, fp8>;
    int lane = thread_index() % 32, warp = thread_index() / 32, used = p.tokens * p.group;
    sync_block();  // everybody has read the stage's keys and values
    gather<T, D, fp8>(rows, shared, stage);
    sync_block();
    Parts parts = parts_of(p, walk, range);
    float2* stats = reinterpret_cast<float2*>(p.parts + p.stored * used * D);
    for (int row = warp; row < used; row += kWarps) {
        float top = minus_infinity(), sum = 0.0f;
        for (int i = row; i < 16 * T::warps; i += 16 * tiles) top = max(top, shared.stats[i].x);
        float4 out[T::vectors] = {};
        for (int i = row; i < 16 * T::warps; i += 16 * tiles) {
            float weight = exp2_fast(shared.stats[i].x - finite(top));
            sum = fma_of(weight, shared.stats[i].y, sum);
            for (int v = 0; v < T::vectors; ++v)
                if (lane + 32 * v < D / 4) {
                    const unsigned char* x = stage + T::Sums::at(i, lane + 32 * v);
                    out[v] = plus_times(out[v], weight, *reinterpret_cast<const float4*>(x));
                }
        }
        float4* to = reinterpret_cast<float4*>(p.parts) + (parts.own * used + row) * (D / 4);
        for (int v = 0; v < T::vectors; ++v) {
            int vector = lane + 32 * v;
            if (vector >= D / 4) break;
            if (parts.count == 1)
                store_output<Query, D>(p, walk, row, vector, out[v], sum);
            else
                to[vector] = out[v];
        }
        if (parts.count > 1 && lane == 0) stats[parts.own * used + row] = {top, sum};
    }
    if (parts.count == 1) return;
    bool all = done && !p.split;  // how many parts are merged at once is seen in the last bits
    if (arrive(p.arrived + walk.sequence * p.heads + walk.head, parts.count, &shared.last))
        merge<Query, D>(p, walk, all ? shared.ring : stage, all ? T::merged : T::merged_ahead, parts);
}

template <class Query, class Product, int D, bool fp8>
AFN_DEVICE void decode_attention(const DecodeAttention& p) {
    using T = Tile<D, fp8>;
    auto& shared = *reinterpret_cast<Shared<D, fp8>*>(shared_memory());
    int used = p.tokens * p.group, tiles = used <= 16 ? 1 : used <= 32 ? 2 : 4;
    int half = thread_index() / 32 % T::halves, own = thread_index() / 32 / T::halves, first_row = own % tiles * 16;
    Walk walk;
    int range = find_range(p, walk), stage = 0;
    Walk ahead = walk;
    Places<T::passes> places;
    find_places<T>(p, ahead, places);
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) copy_tile<T>(p, shared.ring + i * T::stage, ahead, places);
    Rows<D> rows;
    for (bool fresh = true; walk.left > 0; stage = (stage + 1) % kStages) {
        if (fresh) load_queries<Query, Product, D, fp8>(p, shared, walk, 16 * tiles);
        copy_wait<kStages - 2>();
        sync_block();
        copy_tile<T>(p, shared.ring + (stage + kStages - 1) % kStages * T::stage, ahead, places);
        if (fresh) begin_rows<D, fp8>(p, shared, rows, first_row);
        unsigned char* here = shared.ring + stage * T::stage;
        int runs = next_runs(p, walk, T::runs);
        for (int run = own / tiles; run < runs; run += T::warps / tiles)
            attend<Product, D, fp8>(p, rows, shared.queries, first_row, here, run, (walk.run + run) * kRun, walk.length,
                                    half);
        fresh = part_ends(p, walk, runs);
        if (fresh) finish<Query, D, fp8>(p, shared, rows, walk, here, range, tiles, walk.left == runs);
        advance(p, walk, runs);
    }
    copy_wait<0>();
}

}  // namespace afn

#define AFN_DECODE_ATTENTION(D)                                                             \
    AFN_KERNEL(decode_attention_bfloat16_##D, afn::DecodeAttention, afn::kThreads, 1) {     \
        afn::decode_attention<afn::Bfloat16, afn::Bfloat16, D, false>(p);                   \
    }                                                                                       \
    AFN_KERNEL(decode_attention_float16_##D, afn::DecodeAttention, afn::kThreads, 1) {      \
        afn::decode_attention<afn::Float16, afn::Float16, D, false>(p);                     \
    }                                                                                       \
    AFN_KERNEL(decode_attention_bfloat16_fp8_##D, afn::DecodeAttention, afn::kThreads, 1) { \
        afn::decode_attention<afn::Bfloat16, afn::Float16, D, true>(p);                     \
    }                                                                                       \
    AFN_KERNEL(decode_attention_float16_fp8_##D, afn::DecodeAttention, afn::kThreads, 1) {  \
        afn::decode_attention<afn::Float16, afn::Float16, D, true>(p);                      \
    }

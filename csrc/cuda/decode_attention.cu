// Attention of a few new tokens over a long KV cache, in one launch.
//
// The keys of all sequences and KV heads, in runs of 16, are one list [sequence][KV head][run], which is cut into equal
// ranges, one for each block. A block walks its range in tiles of 32 KB of keys and of values, copied ahead into a
// ring. A (sequence, KV head) that lies in several ranges has a part in each; the last block to arrive there merges
// them.
//
// The query rows of a KV head, new tokens x heads of its group, are padded to 1, 2 or 4 tiles of 16. A warp has one
// tile of rows and every G-th run of a tile of keys, G = 8 / tiles of rows, with its own maximum, sum and accumulator.
#include "afn/device.cuh"

namespace afn {

constexpr int kThreads = 256, kWarps = kThreads / 32, kD = 128, kRun = 16, kStages = 3;
constexpr int kSide = 32768, kStage = 2 * kSide;  // bytes of a tile's keys, and of keys and values
constexpr int kMostRows = 64;
constexpr int kPasses = kSide / (16 * kThreads);  // copies of 16 bytes that a thread makes of a tile's keys
// Parts that a warp copies at once to merge them, with two rows of buffers: of the whole ring, or of one stage of it.
constexpr int kMerged = kStages * kStage / (2 * kWarps * 4 * kD), kMergedAhead = kMerged / kStages;
static_assert(kMerged <= 32, "a lane has the maximum and the sum of one part");

struct DecodeAttention {
    const void *q, *k, *v;           // [batch, tokens, heads, 128], strides below
    const void *lengths, *table;     // [batch]; [batch, pages] or null; int32, or int64 where wide
    const float *k_scale, *v_scale;  // one, or one a KV head; or null
    void* out;                       // [batch, tokens, heads, 128]
    float* parts;                    // [blocks, 2, rows, 128], then [blocks, 2, rows, 2]: maxima and sums
    int* arrived;                    // [batch, KV heads] zeros, left at zero
    int64_t q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head;  // in bytes
    int64_t table_stride;
    int batch, capacity, heads, group, tokens, page, least, wide_lengths, wide_table, k_scales, v_scales;
    float scale;  // times log2(e)
};

struct Shared {
    unsigned char ring[kStages * kStage];
    unsigned char queries[kMostRows * 2 * kD];
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

// An int32, or the lower half of an int64: one load whichever it is.
AFN_DEVICE int integer(const void* p, int64_t i, int wide) { return static_cast<const int*>(p)[i << wide]; }

// Where a block is on its range.
struct Walk {
    int sequence, head, run;  // the next run to be read
    int length, runs;         // of the sequence: keys, and runs of one head
    int at, left;             // the run's place in the list, and runs left in the range
};

AFN_DEVICE int length_of(const DecodeAttention& p, int sequence) {
    return min(max(integer(p.lengths, sequence, p.wide_lengths), 0), p.capacity);
}
// An empty sequence has a run too, of no keys, so that somebody writes its zeros.
AFN_DEVICE int runs_of(int length) { return max((length + kRun - 1) / kRun, 1); }

AFN_DEVICE void enter(const DecodeAttention& p, Walk& walk) {
    walk.length = length_of(p, walk.sequence);
    walk.runs = runs_of(walk.length);
}

AFN_DEVICE void advance(const DecodeAttention& p, Walk& walk, int runs) {
    walk.run += runs;
    walk.at += runs;
    walk.left -= runs;
    if (walk.run < walk.runs) return;
    walk.run = 0;
    if (++walk.head < p.heads) return;
    walk.head = 0;
    ++walk.sequence;
    if (walk.left > 0) enter(p, walk);
}

AFN_DEVICE uint32_t warp_sum(uint32_t x) {
    for (int mask = 16; mask; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

// The block's range; every warp finds it for itself. Returns the length of a range.
AFN_DEVICE int find_range(const DecodeAttention& p, Walk& walk) {
    int lane = thread_index() % 32;
    uint32_t total = 0;
    if (p.batch == 1) {
        total = runs_of(length_of(p, 0));
    } else {
        for (int b = lane; b < p.batch; b += 32) total += runs_of(length_of(p, b));
        total = warp_sum(total);
    }
    int all = static_cast<int>(total) * p.heads;
    int range = max((all + grid_size() - 1) / grid_size(), p.least);
    int begin = block_index() * range;
    walk = {0, 0, 0, 0, 0, begin, min(range, all - begin)};
    if (walk.left <= 0) return range;
    int before = 0;
    for (int first = 0; p.batch > 1 && first < p.batch; first += 32) {
        uint32_t own = first + lane < p.batch ? runs_of(length_of(p, first + lane)) : 0, upto = own;
        for (int i = 1; i < 32; i *= 2) {
            uint32_t left = shuffle(upto, lane - i);
            upto += lane >= i ? left : 0;
        }
        bool passed = own && before + static_cast<int>(upto) * p.heads <= begin;
        int sequences = static_cast<int>(warp_sum(passed));
        before += static_cast<int>(warp_sum(passed ? own : 0)) * p.heads;
        walk.sequence += sequences;
        if (sequences < 32) break;
    }
    enter(p, walk);
    walk.head = (begin - before) / walk.runs;
    walk.run = (begin - before) % walk.runs;
    return range;
}

// Rows of 16-byte pieces in shared memory, swapped so that eight rows of one piece lie in different banks.
AFN_DEVICE int swapped(int row, int row_bytes, int piece) { return row * row_bytes + ((piece ^ (row & 7)) << 4); }

template <bool fp8>
struct Tile {
    static constexpr int row_bytes = fp8 ? kD : 2 * kD, pieces = row_bytes / 16;
    static constexpr int keys = kSide / row_bytes, runs = keys / kRun, rows_a_pass = kThreads / pieces;

    static AFN_DEVICE int next(const Walk& walk) { return min(min(runs, walk.runs - walk.run), walk.left); }
};

// The pages, and places in them, of the keys that a thread copies next.
struct Places {
    int page[kPasses], slot[kPasses];
};

template <bool fp8>
AFN_DEVICE void find_places(const DecodeAttention& p, const Walk& walk, Places& places) {
    int key = walk.run * kRun + thread_index() / Tile<fp8>::pieces;
#pragma unroll
    for (int i = 0; i < kPasses; ++i, key += Tile<fp8>::rows_a_pass) {
        places.page[i] = walk.sequence;
        places.slot[i] = key;
    }
    if (!p.table || walk.left <= 0) return;
    int64_t table = walk.sequence * p.table_stride;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {  // no load waits for another; behind the length any page that there is will do
        int used = max(min(places.slot[i], walk.length - 1), 0);
        int page = static_cast<unsigned>(used) / static_cast<unsigned>(p.page);
        places.page[i] = integer(p.table, table + page, p.wide_table);
        places.slot[i] = used - page * p.page;
    }
}

// Copies the walk's next tile, with zeros behind the length, and goes on to the one after it.
template <bool fp8>
AFN_DEVICE void copy_tile(const DecodeAttention& p, unsigned char* stage, Walk& walk, Places& places) {
    using T = Tile<fp8>;
    if (walk.left > 0) {
        int row = thread_index() / T::pieces, piece = thread_index() % T::pieces, runs = T::next(walk);
        const unsigned char* k = static_cast<const unsigned char*>(p.k) + walk.head * p.k_head + 16 * piece;
        const unsigned char* v = static_cast<const unsigned char*>(p.v) + walk.head * p.v_head + 16 * piece;
#pragma unroll
        for (int i = 0; i < kPasses; ++i, row += T::rows_a_pass) {
            if (row >= runs * kRun) break;
            bool inside = walk.run * kRun + row < walk.length;
            int64_t page = inside ? places.page[i] : 0, slot = inside ? places.slot[i] : 0;
            unsigned char* to = stage + swapped(row, T::row_bytes, piece);
            copy_async(to, k + page * p.k_batch + slot * p.k_token, inside ? 16 : 0);
            copy_async(to + kSide, v + page * p.v_batch + slot * p.v_token, inside ? 16 : 0);
        }
        advance(p, walk, runs);
        find_places<fp8>(p, walk, places);
    }
    copy_commit();
}

// Queries to shared memory, 16-bit, rows of zeros behind them. For FP8 caches they become float16, which holds every
// key but not every query: a row is divided by a power of two, and its columns are in the order of that product.
template <class Query, class Product, bool fp8>
AFN_DEVICE void load_queries(const DecodeAttention& p, Shared& shared, const Walk& walk, int padded) {
    int lane = thread_index() % 32;
    float scale = p.k_scales ? p.scale * p.k_scale[p.k_scales > 1 ? walk.head : 0] : p.scale;
    for (int row = thread_index() / 32; row < padded; row += kWarps) {
        uint16_t x[kD / 32] = {};
        if (row < p.tokens * p.group) {
            const unsigned char* from = static_cast<const unsigned char*>(p.q) + walk.sequence * p.q_batch +
                                        row / p.group * p.q_token + (walk.head * p.group + row % p.group) * p.q_head;
            for (int i = 0; i < kD / 32; ++i) x[i] = reinterpret_cast<const uint16_t*>(from)[lane + 32 * i];
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
        for (int i = 0; i < kD / 32; ++i) {
            int d = lane + 32 * i;
            if constexpr (fp8) d = (d & ~15) | (d & 2) << 2 | (d & 12) >> 1 | (d & 1);
            *reinterpret_cast<uint16_t*>(shared.queries + swapped(row, 2 * kD, d / 8) + d % 8 * 2) = x[i];
        }
        if (lane == 0) shared.factor[row] = scale * power;
    }
}

// What a warp keeps of its 16 rows; a lane has rows lane / 4 and 8 more. Accumulators are tiles of 8 columns of values;
// for FP8 the even and the odd ones of 16.
struct Rows {
    uint32_t q[kD / 16][4];
    float factor[2], top[2], sum[2], out[kD / 8][4];
    int ahead[2];  // keys that a row does not see at the end of the sequence
};

AFN_DEVICE void begin_rows(const DecodeAttention& p, const Shared& shared, Rows& rows, int first_row) {
    int lane = thread_index() % 32;
#pragma unroll
    for (int i = 0; i < kD / 16; ++i)
        load_matrices(rows.q[i], shared.queries + swapped(first_row + lane % 16, 2 * kD, 2 * i + lane / 16));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int row = first_row + lane / 4 + 8 * i;
        rows.factor[i] = shared.factor[row];
        rows.ahead[i] = max(p.tokens - 1 - row / p.group, 0);
        rows.top[i] = minus_infinity();
        rows.sum[i] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kD / 8; ++i) rows.out[i][0] = rows.out[i][1] = rows.out[i][2] = rows.out[i][3] = 0.0f;
}

AFN_DEVICE uint32_t low_f16(uint32_t four) { return f16_of_e4m3(static_cast<uint16_t>(four)); }
AFN_DEVICE uint32_t high_f16(uint32_t four) { return f16_of_e4m3(static_cast<uint16_t>(four >> 16)); }

// Scores, weights and weighted values of 16 keys.
template <class Product, bool fp8>
AFN_DEVICE void attend(Rows& rows, const unsigned char* stage, int run, int key, int length, int tokens) {
    constexpr int row_bytes = Tile<fp8>::row_bytes;
    int lane = thread_index() % 32, row = run * kRun + lane % 16;
    float s[2][4] = {};
#pragma unroll
    for (int i = 0; i < row_bytes / 32; ++i) {  // 32 bytes of 16 keys: one step of the product, or two of FP8
        uint32_t x[4];
        load_matrices(x, stage + swapped(row, row_bytes, 2 * i + lane / 16));
        if constexpr (fp8) {
#pragma unroll
            for (int j = 0; j < 4; ++j)
                Product::product(s[j % 2], rows.q[2 * i + j / 2], low_f16(x[j]), high_f16(x[j]));
        } else {
            Product::product(s[0], rows.q[i], x[0], x[2]);
            Product::product(s[1], rows.q[i], x[1], x[3]);
        }
    }
    bool whole = key + kRun <= length - tokens + 1;
    float keep[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float top = rows.top[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float& score = s[j / 2][2 * i + j % 2];
            score *= rows.factor[i];
            if (!whole && key + j / 2 * 8 + lane % 4 * 2 + j % 2 >= length - rows.ahead[i]) score = minus_infinity();
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
    for (int i = 0; i < kD / 8; ++i) {
        rows.out[i][0] *= keep[0];
        rows.out[i][1] *= keep[0];
        rows.out[i][2] *= keep[1];
        rows.out[i][3] *= keep[1];
    }
#pragma unroll
    for (int i = 0; i < row_bytes / 32; ++i) {
        uint32_t x[4];
        load_matrices_transposed(x, stage + kSide + swapped(row, row_bytes, 2 * i + lane / 16));
        if constexpr (fp8) {  // a word has two columns of two keys
#pragma unroll
            for (int j = 0; j < 2; ++j) {
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

template <class Query>
AFN_DEVICE void store_output(const DecodeAttention& p, const Walk& walk, int row, float4 x, float sum) {
    float factor = p.v_scales ? p.v_scale[p.v_scales > 1 ? walk.head : 0] : 1.0f;
    factor /= sum == 0.0f ? 1.0f : sum;
    int64_t token = static_cast<int64_t>(walk.sequence) * p.tokens + row / p.group;
    int64_t head = walk.head * p.group + row % p.group;
    int64_t at = (token * p.heads * p.group + head) * (kD / 4) + thread_index() % 32;
    static_cast<uint2*>(p.out)[at] = {Query::pack(x.x * factor, x.y * factor), Query::pack(x.z * factor, x.w * factor)};
}

AFN_DEVICE float4 plus_times(float4 sum, float weight, float4 x) {
    return {fma_of(weight, x.x, sum.x), fma_of(weight, x.y, sum.y), fma_of(weight, x.z, sum.z),
            fma_of(weight, x.w, sum.w)};
}

// The parts of a KV head in their order; a warp takes every eighth row, and copies ahead while it adds up. A lane
// copies what it will itself read.
template <class Query>
AFN_DEVICE void merge(const DecodeAttention& p, const Walk& walk, unsigned char* room, int at_once, int first,
                      int count) {
    int lane = thread_index() % 32, warp = thread_index() / 32, rows = p.tokens * p.group;
    int rounds = (count + at_once - 1) / at_once, steps = (rows - warp + kWarps - 1) / kWarps * rounds;
    const float2* stats = reinterpret_cast<const float2*>(p.parts + static_cast<int64_t>(grid_size()) * 2 * rows * kD);
    float4* own = reinterpret_cast<float4*>(room) + warp * 2 * at_once * 32 + lane;
    float2 next;
    auto fetch = [&](int step) {
        if (step < steps) {
            int row = warp + step / rounds * kWarps, begin = step % rounds * at_once, n = min(at_once, count - begin);
            auto at = [&](int i) {
                return static_cast<int64_t>(2 * (first + begin + i) + (begin + i == 0)) * rows + row;
            };
            for (int i = 0; i < n; ++i)
                copy_async(own + (step % 2 * at_once + i) * 32, p.parts + at(i) * kD + 4 * lane);
            next = {minus_infinity(), 0.0f};
            if (lane < n) next = load_global(stats + at(lane));
        }
        copy_commit();
    };
    fetch(0);
    float top = minus_infinity(), sum = 0.0f;
    float4 out = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int step = 0; step < steps; ++step) {
        float2 stat = next;
        fetch(step + 1);
        float best = max(top, stat.x);
        for (int mask = 16; mask; mask /= 2) best = max(best, shuffle_xor(best, mask));
        float keep = exp2_fast(top - finite(best)), weight = exp2_fast(stat.x - finite(best)), sums = weight * stat.y;
        for (int mask = 16; mask; mask /= 2) sums += shuffle_xor(sums, mask);
        sum = fma_of(sum, keep, sums);
        out = {out.x * keep, out.y * keep, out.z * keep, out.w * keep};
        top = best;
        copy_wait<1>();
        sync_warp();
        int n = min(at_once, count - step % rounds * at_once);
        for (int i = 0; i < n; ++i) out = plus_times(out, shuffle(weight, i), own[(step % 2 * at_once + i) * 32]);
        sync_warp();
        if ((step + 1) % rounds) continue;
        store_output<Query>(p, walk, warp + step / rounds * kWarps, out, sum);
        top = minus_infinity();
        sum = 0.0f;
        out = {0.0f, 0.0f, 0.0f, 0.0f};
    }
    copy_wait<0>();
}

// The warps' rows of a finished part together: the output where the part is all there is.
template <class Query, bool fp8>
AFN_DEVICE void finish(const DecodeAttention& p, Shared& shared, Rows& rows, const Walk& walk, unsigned char* stage,
                       int range, int tiles, bool done) {
    int lane = thread_index() % 32, warp = thread_index() / 32, used = p.tokens * p.group;
    sync_block();  // everybody has read the stage's keys and values
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float sum = rows.sum[i];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        int row = warp * 16 + lane / 4 + 8 * i;
        if (lane % 4 == 0) shared.stats[row] = {rows.top[i], sum};
        if constexpr (fp8) {
#pragma unroll
            for (int j = 0; j < kD / 16; ++j)
                *reinterpret_cast<float4*>(stage + swapped(row, 4 * kD, 4 * j + lane % 4)) = {
                    rows.out[2 * j][2 * i], rows.out[2 * j + 1][2 * i], rows.out[2 * j][2 * i + 1],
                    rows.out[2 * j + 1][2 * i + 1]};
        } else {
#pragma unroll
            for (int j = 0; j < kD / 8; ++j)
                *reinterpret_cast<float2*>(stage + swapped(row, 4 * kD, 2 * j + lane % 4 / 2) + lane % 2 * 8) = {
                    rows.out[j][2 * i], rows.out[j][2 * i + 1]};
        }
    }
    sync_block();
    int column = walk.at - walk.run, first = column / range, count = (column + walk.runs - 1) / range - first + 1;
    int64_t part = 2 * block_index() + (first == block_index());
    float2* stats = reinterpret_cast<float2*>(p.parts + static_cast<int64_t>(grid_size()) * 2 * used * kD);
    for (int row = warp; row < used; row += kWarps) {
        float top = minus_infinity(), sum = 0.0f;
        for (int i = row; i < 16 * kWarps; i += 16 * tiles) top = max(top, shared.stats[i].x);
        float4 out = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int i = row; i < 16 * kWarps; i += 16 * tiles) {
            float weight = exp2_fast(shared.stats[i].x - finite(top));
            sum = fma_of(weight, shared.stats[i].y, sum);
            out = plus_times(out, weight, *reinterpret_cast<const float4*>(stage + swapped(i, 4 * kD, lane)));
        }
        if (count == 1) {
            store_output<Query>(p, walk, row, out, sum);
        } else {
            reinterpret_cast<float4*>(p.parts)[(part * used + row) * (kD / 4) + lane] = out;
            if (lane == 0) stats[part * used + row] = {top, sum};
        }
    }
    if (count == 1) return;
    if (arrive(p.arrived + walk.sequence * p.heads + walk.head, count, &shared.last))
        merge<Query>(p, walk, done ? shared.ring : stage, done ? kMerged : kMergedAhead, first, count);
}

template <class Query, class Product, bool fp8>
AFN_DEVICE void decode_attention(const DecodeAttention& p) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    int used = p.tokens * p.group, tiles = used <= 16 ? 1 : used <= 32 ? 2 : 4, warp = thread_index() / 32;
    Walk walk;
    int range = find_range(p, walk), stage = 0;
    Walk ahead = walk;
    Places places;
    find_places<fp8>(p, ahead, places);
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) copy_tile<fp8>(p, shared.ring + i * kStage, ahead, places);
    Rows rows;
    for (bool fresh = true; walk.left > 0; stage = (stage + 1) % kStages) {
        if (fresh) load_queries<Query, Product, fp8>(p, shared, walk, 16 * tiles);
        copy_wait<kStages - 2>();
        sync_block();
        copy_tile<fp8>(p, shared.ring + (stage + kStages - 1) % kStages * kStage, ahead, places);
        if (fresh) begin_rows(p, shared, rows, warp % tiles * 16);
        unsigned char* here = shared.ring + stage * kStage;
        int runs = Tile<fp8>::next(walk);
        for (int run = warp / tiles; run < runs; run += kWarps / tiles)
            attend<Product, fp8>(rows, here, run, (walk.run + run) * kRun, walk.length, p.tokens);
        Walk part = walk;
        advance(p, walk, runs);
        fresh = walk.run == 0 || walk.left <= 0;
        if (fresh) finish<Query, fp8>(p, shared, rows, part, here, range, tiles, walk.left <= 0);
    }
    copy_wait<0>();
}

}  // namespace afn

AFN_KERNEL(decode_attention_bfloat16, afn::DecodeAttention, afn::kThreads, 1) {
    afn::decode_attention<afn::Bfloat16, afn::Bfloat16, false>(p);
}
AFN_KERNEL(decode_attention_float16, afn::DecodeAttention, afn::kThreads, 1) {
    afn::decode_attention<afn::Float16, afn::Float16, false>(p);
}
AFN_KERNEL(decode_attention_bfloat16_fp8, afn::DecodeAttention, afn::kThreads, 1) {
    afn::decode_attention<afn::Bfloat16, afn::Float16, true>(p);
}
AFN_KERNEL(decode_attention_float16_fp8, afn::DecodeAttention, afn::kThreads, 1) {
    afn::decode_attention<afn::Float16, afn::Float16, true>(p);
}

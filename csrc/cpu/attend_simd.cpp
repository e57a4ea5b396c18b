// Attention of query rows over a KV cache, by an online softmax. CMake compiles this file once per level, with
// AFN_LANES lanes into the namespace AFN_LEVEL.
//
// Steps of kKeys keys begin at multiples of kKeys in the sequence, and a row goes through those that it sees in order:
// every score is a sum over the elements of a head in order, every output one over keys in order. So a row's bits are
// the same alone, beside other rows, from pages of any size, by decoding and by a prefill in chunks of any size.
//
// Keys of a step are transposed, so that lanes are keys while scores are computed, and elements of a head after that.

#include "afn/attend_simd.h"

#include "afn/exp2.h"

namespace afn::attend::AFN_LEVEL {
namespace {

using namespace afn::AFN_LEVEL;

constexpr float kInfinity = __builtin_inff();
static_assert(kKeys % (4 * L) == 0 && kPadding % L == 0);

INLINE Vec tanh(Vec x) {
    const Vec size = x < 0.0f ? -x : x, square = x * x;
    Vec p = all(-5.895158275961876e-3f);
    p = p * square + 2.0795971155166626e-2f;
    p = p * square - 5.3783830255270004e-2f;
    p = p * square + 0.13331924378871918f;
    p = p * square - 0.33333298563957214f;
    const Vec near = x + x * square * p;
    const Vec e = exp2(size * (-2.0f * kLog2e)), far = (1.0f - e) / (1.0f + e);
    return size < 0.6f ? near : x < 0.0f ? -far : far;
}

INLINE float from_bfloat16(uint16_t x) {
    const uint32_t wide = static_cast<uint32_t>(x) << 16;
    float y;
    __builtin_memcpy(&y, &wide, 4);
    return y;
}

INLINE uint16_t to_bfloat16(float x) {
    uint32_t wide;
    __builtin_memcpy(&wide, &x, 4);
    if ((wide & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(wide >> 16 | 0x40);  // a NaN stays one
    return static_cast<uint16_t>((wide + 0x7FFF + (wide >> 16 & 1)) >> 16);                 // ties to even
}

INLINE float element(const void* at, bool bfloat16, int64_t i) {
    return bfloat16 ? from_bfloat16(static_cast<const uint16_t*>(at)[i]) : static_cast<const float*>(at)[i];
}

// Where the keys or values of a step are, padded where vectors would leave a row.
struct Step {
    const float* rows[kKeys];
};

// Entries begin to end of a sequence, of the step that begins at `start`.
void find(const Call& call, const Entries& cache, const Tile& tile, int64_t start, int64_t begin, int64_t end,
          float* copies, Step& step) {
    const int64_t owner = call.owner(tile.sequence), prefix = call.prefix(tile.sequence), wide = padded(call.width);
    const bool direct = !call.bfloat16 && call.width == wide;
    for (int64_t key = begin; key < end;) {
        const int64_t row = key < prefix ? owner : tile.sequence, page = key / call.page;
        int64_t stop = (page + 1) * call.page;
        if (key < prefix && stop > prefix) stop = prefix;
        if (stop > end) stop = end;
        const int64_t block = call.table.at ? call.table[row * call.table_stride + page] : call.key_bounds.at ? 0 : row;
        const int64_t origin =
            block * cache.block + (call.first_key(row) - page * call.page) * cache.token + tile.kv_head * cache.head;
        for (; key < stop; ++key) {
            const int64_t at = origin + key * cache.token;
            if (direct) {
                step.rows[key - start] = static_cast<const float*>(cache.at) + at;
                continue;
            }
            float* copy = copies + (key - start) * wide;
            for (int64_t d = 0; d < call.width; ++d) copy[d] = element(cache.at, call.bfloat16, at + d);
            for (int64_t d = call.width; d < wide; ++d) copy[d] = 0.0f;
            step.rows[key - start] = copy;
        }
    }
}

INLINE void store_column(float* columns, Vec v) {
    store_quarter<0>(columns, v);
    if constexpr (L >= 8) store_quarter<1>(columns + 4 * kKeys, v);
    if constexpr (L >= 16) {
        store_quarter<2>(columns + 8 * kKeys, v);
        store_quarter<3>(columns + 12 * kKeys, v);
    }
}

// keys[n][d] -> columns[d][n] for keys begin to end of a step; columns of others may be anything.
void transpose(const Step& keys, int64_t begin, int64_t end, int64_t wide, float* columns) {
    for (int64_t n = begin / 4 * 4; n < end; n += 4) {
        const float* rows[4];
        for (int i = 0; i < 4; ++i) rows[i] = keys.rows[n + i < begin ? begin : n + i < end ? n + i : end - 1];
        for (int64_t d = 0; d < wide; d += L) {
            const Vec a = load(rows[0] + d), b = load(rows[1] + d), c = load(rows[2] + d), e = load(rows[3] + d);
            const Vec ab_low = unpack<1, 0>(a, b, Lanes()), ab_high = unpack<1, 1>(a, b, Lanes());
            const Vec ce_low = unpack<1, 0>(c, e, Lanes()), ce_high = unpack<1, 1>(c, e, Lanes());
            float* to = columns + d * kKeys + n;
            store_column(to, unpack<2, 0>(ab_low, ce_low, Lanes()));
            store_column(to + kKeys, unpack<2, 1>(ab_low, ce_low, Lanes()));
            store_column(to + 2 * kKeys, unpack<2, 0>(ab_high, ce_high, Lanes()));
            store_column(to + 3 * kKeys, unpack<2, 1>(ab_high, ce_high, Lanes()));
        }
    }
}

// What a group of rows shares in a step.
struct Group {
    float *q, *acc, *scores;  // [rows][wide], [rows][wide], [rows][kKeys]
    int begin[4], end[4];     // keys of the step that each row sees
    int64_t wide;
};

// R rows times C vectors of keys.
template <int R, int C>
INLINE void dot(const Group& g, const float* columns, int from) {
    Vec sum[R][C] = {};
    for (int64_t d = 0; d < g.wide; ++d) {
        Vec key[C];
        UNROLL for (int c = 0; c < C; ++c) key[c] = load(columns + d * kKeys + from + c * L);
        UNROLL for (int r = 0; r < R; ++r) {
            UNROLL for (int c = 0; c < C; ++c) sum[r][c] += key[c] * g.q[r * g.wide + d];
        }
    }
    UNROLL for (int r = 0; r < R; ++r) {
        UNROLL for (int c = 0; c < C; ++c) store(g.scores + r * kKeys + from + c * L, sum[r][c]);
    }
}

// R rows times C vectors of a head's elements, from element d on, over keys begin to end.
template <int R, int C>
INLINE void add(const Group& g, int row, const Step& values, int begin, int end, int64_t d) {
    float* to = g.acc + row * g.wide + d;
    const float* weights = g.scores + row * kKeys;
    Vec sum[R][C];
    UNROLL for (int r = 0; r < R; ++r) { UNROLL for (int c = 0; c < C; ++c) sum[r][c] = load(to + r * g.wide + c * L); }
    for (int n = begin; n < end; ++n) {
        Vec value[C];
        UNROLL for (int c = 0; c < C; ++c) value[c] = load(values.rows[n] + d + c * L);
        UNROLL for (int r = 0; r < R; ++r) {
            UNROLL for (int c = 0; c < C; ++c) sum[r][c] += value[c] * weights[r * kKeys + n];
        }
    }
    UNROLL for (int r = 0; r < R; ++r) { UNROLL for (int c = 0; c < C; ++c) store(to + r * g.wide + c * L, sum[r][c]); }
}

template <int R>
INLINE void add_all(const Group& g, int row, const Step& values, int begin, int end) {
    constexpr int C = R <= 2 || L == 16 ? 4 : 2;  // as many sums as registers hold, and as latencies ask for
    if (begin >= end) return;
    int64_t d = 0, left = g.wide / L;
    for (; left >= 2 * C || left == C; left -= C, d += C * L) add<R, C>(g, row, values, begin, end, d);
    for (; left >= 3; left -= 3, d += 3 * L) add<R, 3>(g, row, values, begin, end, d);
    for (; left >= 2; left -= 2, d += 2 * L) add<R, 2>(g, row, values, begin, end, d);
    if (left) add<R, 1>(g, row, values, begin, end, d);
}

template <int Far, int... I>
INLINE Vec larger(Vec v, Indices<I...>) {
    const Vec beside = __builtin_shufflevector(v, v, (I ^ Far)...);
    return beside > v ? beside : v;
}

INLINE float largest(Vec v) {
    if constexpr (L >= 16) v = larger<8>(v, Lanes());
    if constexpr (L >= 8) v = larger<4>(v, Lanes());
    v = larger<2>(v, Lanes());
    return larger<1>(v, Lanes())[0];
}

INLINE float total(const float* lanes) {
    float sums[L];
    for (int i = 0; i < L; ++i) sums[i] = lanes[i];
    for (int width = L / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
    }
    return sums[0];
}

// Scores of keys begin to end into weights, those beside them within their vectors into 0; the row's maximum, sum and
// output are brought to the new maximum.
__attribute__((noinline)) void weigh(float* scores, int begin, int end, float cap, float& most, float* sums, float* acc,
                                     int64_t wide) {
    const int first = begin / L * L;
    Int lane;
    for (int i = 0; i < L; ++i) lane[i] = i;
    Vec top = all(-kInfinity);
    for (int n = first; n < end; n += L) {
        Vec x = load(scores + n);
        if (cap != 0.0f) x = tanh(x) * cap;
        const Int key = lane + n;
        x = (key >= begin) & (key < end) ? x : all(-kInfinity);
        top = x > top ? x : top;
        store(scores + n, x);
    }
    const float found = largest(top), now = found > most ? found : most;
    const float safe = now == -kInfinity ? 0.0f : now;
    Vec sum = load(sums);
    if (now != most) {
        const Vec keep = exp2(all(most - safe));
        sum *= keep;
        for (int64_t d = 0; d < wide; d += L) store(acc + d, load(acc + d) * keep);
        most = now;
    }
    for (int n = first; n < end; n += L) {
        const Vec p = exp2(load(scores + n) - safe);
        store(scores + n, p);
        sum += p;
    }
    store(sums, sum);
}

template <int R>
void rows(const Group& g, const float* columns, const Step& values, float cap, float* most, float* sums) {
    constexpr int C = R <= 2 || L == 16 ? 4 : 2;
    int low = kKeys, high = 0;
    for (int r = 0; r < R; ++r) {
        if (g.begin[r] >= g.end[r]) continue;
        low = g.begin[r] < low ? g.begin[r] : low;
        high = g.end[r] > high ? g.end[r] : high;
    }
    if (low >= high) return;
    for (int from = low / (C * L) * (C * L); from < high; from += C * L) dot<R, C>(g, columns, from);
    int begin = 0, end = kKeys;  // what every row sees
    for (int r = 0; r < R; ++r) {
        if (g.begin[r] < g.end[r]) {
            weigh(g.scores + r * kKeys, g.begin[r], g.end[r], cap, most[r], sums + r * L, g.acc + r * g.wide, g.wide);
        }
        begin = g.begin[r] > begin ? g.begin[r] : begin;
        end = g.end[r] < end ? g.end[r] : end;
    }
    if (begin >= end) {
        for (int r = 0; r < R; ++r) add_all<1>(g, r, values, g.begin[r], g.end[r]);
        return;
    }
    for (int r = 0; r < R; ++r) add_all<1>(g, r, values, g.begin[r], begin);
    add_all<R>(g, 0, values, begin, end);
    for (int r = 0; r < R; ++r) add_all<1>(g, r, values, end, g.end[r]);
}

INLINE int within(int64_t x) { return static_cast<int>(x < 0 ? 0 : x < kKeys ? x : kKeys); }

void attend(const Call& call, const Tile& tile, float* scratch) {
    const int64_t count = tile.last - tile.first, wide = padded(call.width), group = call.heads / call.kv_heads;
    const int64_t token = call.begin(tile.sequence), fresh = call.begin(tile.sequence + 1) - token;
    const int64_t length = call.length(tile.sequence);
    float* q = scratch;
    float* acc = q + count * wide;
    float* columns = acc + count * wide;
    float* key_copies = columns + kKeys * wide;
    float* value_copies = key_copies + kKeys * wide;
    float* sums = value_copies + kKeys * wide;
    float* most = sums + count * kPadding;
    float* scores = most + count * kPadding;
    int64_t begins[kRows], ends[kRows], low = INT64_MAX, high = 0;

    const float cap = call.softcap * kLog2e;
    const float factor = call.softcap != 0.0f ? call.scale / call.softcap : call.scale * kLog2e;
    for (int64_t r = 0; r < count; ++r) {
        const int64_t row = tile.first + r, own = length - fresh + row / group;
        const int64_t at = ((token + row / group) * call.heads + tile.kv_head * group + row % group) * call.width;
        for (int64_t d = 0; d < wide; ++d) {
            q[r * wide + d] = d < call.width ? element(call.q, call.bfloat16, at + d) * factor : 0.0f;
            acc[r * wide + d] = 0.0f;
        }
        most[r] = -kInfinity;
        for (int i = 0; i < L; ++i) sums[r * L + i] = 0.0f;
        int64_t begin = 0, end = length;
        if (call.left != kUnlimited) {
            begin = own - call.left > 0 ? own - call.left : 0;
            end = own + call.right + 1 < end ? own + call.right + 1 : end;
        }
        if (call.causal && own + 1 < end) end = own + 1;
        begins[r] = begin;
        ends[r] = end;
        if (begin >= end) continue;
        low = begin < low ? begin : low;
        high = end > high ? end : high;
    }

    for (int64_t start = low / kKeys * kKeys; start < high; start += kKeys) {
        const int64_t begin = start > low ? start : low, end = start + kKeys < high ? start + kKeys : high;
        Step keys, values;
        find(call, call.k, tile, start, begin, end, key_copies, keys);
        find(call, call.v, tile, start, begin, end, value_copies, values);
        transpose(keys, begin - start, end - start, wide, columns);
        for (int64_t r = 0; r < count; r += 4) {
            const int R = static_cast<int>(count - r < 4 ? count - r : 4);
            Group g{q + r * wide, acc + r * wide, scores, {}, {}, wide};
            for (int i = 0; i < R; ++i) {
                g.begin[i] = within(begins[r + i] - start);
                g.end[i] = within(ends[r + i] - start);
            }
            if (R == 4) rows<4>(g, columns, values, cap, most + r, sums + r * L);
            if (R == 3) rows<3>(g, columns, values, cap, most + r, sums + r * L);
            if (R == 2) rows<2>(g, columns, values, cap, most + r, sums + r * L);
            if (R == 1) rows<1>(g, columns, values, cap, most + r, sums + r * L);
        }
    }

    for (int64_t r = 0; r < count; ++r) {
        const int64_t row = tile.first + r;
        const int64_t at = ((token + row / group) * call.heads + tile.kv_head * group + row % group) * call.width;
        const float sum = total(sums + r * L), by = sum == 0.0f ? 1.0f : sum;
        for (int64_t d = 0; d < call.width; ++d) {
            const float y = acc[r * wide + d] / by;
            if (call.bfloat16) {
                static_cast<uint16_t*>(call.out)[at + d] = to_bfloat16(y);
            } else {
                static_cast<float*>(call.out)[at + d] = y;
            }
        }
    }
}

}  // namespace

extern const Kernel kernel;
const Kernel kernel = {attend};

}  // namespace afn::attend::AFN_LEVEL

// Products of a few rows with weights, and silu(gate) · up. CMake compiles this file once per level, with AFN_LANES
// lanes into the namespace AFN_LEVEL.
//
// Lane i of a product's vector adds up the elements i, i + L, i + 2L ... of its row in order, and the lanes are added
// as a tree. The end of a row that fills no vector is padded with zeros: no output is computed in another way.

#include "afn/decode_step_simd.h"

#include "afn/exp2.h"

namespace afn::decode_step::AFN_LEVEL {
namespace {

using namespace afn::AFN_LEVEL;

// Lanes whose number has the bit Far come from b, the others from a: each with the lane that far away added.
template <int Far, int... I>
INLINE Vec fold(Vec a, Vec b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I & Far ? L + I : I)...) +
           __builtin_shufflevector(a, b, (I & Far ? L + (I ^ Far) : I ^ Far)...);
}

template <int Far, int N>
INLINE void fold_all(Vec (&v)[N]) {
    UNROLL for (int i = 0; i < N / 2; ++i) v[i] = fold<Far>(v[2 * i], v[2 * i + 1], Lanes());
}

// The place among L of the sum that ends up in a lane: its number's bits in reverse.
INLINE constexpr int place(int lane) {
    int found = 0;
    for (int bit = 1; bit < L; bit *= 2) found = 2 * found + (lane & bit ? 1 : 0);
    return found;
}

// Sums of the lanes of L vectors, each as a tree: halves of it, then halves of what is left.
INLINE void totals(const Vec (&v)[L], float* to) {
    Vec rest[L];
    UNROLL for (int i = 0; i < L; ++i) rest[place(i)] = v[i];
    if constexpr (L >= 16) fold_all<8>(rest);
    if constexpr (L >= 8) fold_all<4>(reinterpret_cast<Vec(&)[L >= 16 ? 8 : L]>(rest));
    fold_all<2>(reinterpret_cast<Vec(&)[4]>(rest));
    fold_all<1>(reinterpret_cast<Vec(&)[2]>(rest));
    store(to, rest[0]);
}

INLINE Vec load_some(const float* p, int64_t count) {
    float lanes[L] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
    return load(lanes);
}

template <int R, int C>
INLINE void block(const Product& p, int64_t row, int64_t column) {
    const float *x = p.x + row * p.in, *w = p.weight + column * p.in;
    Vec sum[R][C] = {};
    int64_t d = 0;
    for (; d + L <= p.in; d += L) {
        Vec weight[C];
        UNROLL for (int c = 0; c < C; ++c) weight[c] = load(w + c * p.in + d);
        UNROLL for (int r = 0; r < R; ++r) {
            const Vec value = load(x + r * p.in + d);
            UNROLL for (int c = 0; c < C; ++c) sum[r][c] += weight[c] * value;
        }
    }
    if (d < p.in) {
        Vec weight[C];
        UNROLL for (int c = 0; c < C; ++c) weight[c] = load_some(w + c * p.in + d, p.in - d);
        UNROLL for (int r = 0; r < R; ++r) {
            const Vec value = load_some(x + r * p.in + d, p.in - d);
            UNROLL for (int c = 0; c < C; ++c) sum[r][c] += weight[c] * value;
        }
    }
    float bias[C];
    UNROLL for (int c = 0; c < C; ++c) bias[c] = p.bias ? p.bias[column + c] : 0.0f;
    UNROLL for (int first = 0; first < R * C; first += L) {
        Vec some[L];
        float found[L];
        UNROLL for (int i = 0; i < L; ++i) some[i] =
            first + i < R * C ? sum[(first + i) / C][(first + i) % C] : all(0.0f);
        totals(some, found);
        UNROLL for (int i = 0; i < L; ++i) {
            if (first + i >= R * C) break;
            const int r = (first + i) / C, c = (first + i) % C;
            p.y[(row + r) * p.y_stride + column + c] = found[i] + bias[c];
        }
    }
}

// Weights are read once from memory, and then from the cache for further rows.
template <int C>
INLINE void columns(const Product& p, int64_t column) {
    int64_t row = 0;
    for (; row + 4 <= p.rows; row += 4) block<4, C>(p, row, column);
    if (p.rows - row == 3) block<3, C>(p, row, column);
    if (p.rows - row == 2) block<2, C>(p, row, column);
    if (p.rows - row == 1) block<1, C>(p, row, column);
}

void product(const Product& p, int64_t begin, int64_t end) {
    constexpr int C = L == 16 ? 4 : 2;  // as many sums as registers hold
    int64_t column = begin;
    if (p.rows == 1) {
        for (; column + 8 <= end; column += 8) block<1, 8>(p, 0, column);
    }
    for (; column + C <= end; column += C) columns<C>(p, column);
    for (; column < end; ++column) columns<1>(p, column);
}

INLINE Vec silu(Vec x) {
    const Vec e = exp2((x < 0.0f ? x : -x) * kLog2e);
    return x * ((x < 0.0f ? e : all(1.0f)) / (1.0f + e));
}

void swiglu(float* gate, const float* up, int64_t rows, int64_t width) {
    for (; rows > 0; --rows, gate += width, up += width) {
        int64_t d = 0;
        for (; d + L <= width; d += L) store(gate + d, silu(load(gate + d)) * load(up + d));
        if (d == width) continue;
        float lanes[L];
        store(lanes, silu(load_some(gate + d, width - d)) * load_some(up + d, width - d));
        for (int64_t i = d; i < width; ++i) gate[i] = lanes[i - d];
    }
}

}  // namespace

extern const Kernel kernel;
const Kernel kernel = {product, swiglu};

}  // namespace afn::decode_step::AFN_LEVEL

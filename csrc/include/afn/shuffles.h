// Loads, bits, complex numbers and the shuffles of a transposition, for what is compiled once per SIMD level.
#pragma once

#include <cstdint>

#include "afn/lanes.h"

namespace afn::AFN_LEVEL {

typedef int32_t Int __attribute__((vector_size(4 * L)));
typedef float Quad __attribute__((vector_size(16)));

template <int... I>
struct Indices {};
template <int N, int... I>
struct CountTo : CountTo<N - 1, N - 1, I...> {};
template <int... I>
struct CountTo<0, I...> {
    typedef Indices<I...> type;
};
typedef CountTo<L>::type Lanes;

struct Complex {
    Vec re, im;
};

INLINE Vec load(const float* p) { return *reinterpret_cast<const VecU*>(p); }
INLINE void store(float* p, Vec v) { *reinterpret_cast<VecU*>(p) = v; }
INLINE Int bits(Vec v) { return (Int)v; }
INLINE Vec from_bits(Int v) { return (Vec)v; }
INLINE Int larger(Int a, Int b) { return a > b ? a : b; }

// x e^(-i angle)
INLINE Complex rotate(Complex x, float cos, float sin) { return {x.re * cos + x.im * sin, x.im * cos - x.re * sin}; }

// Interleave pairs of Width elements from the low (Half = 0) or high (Half = 1) part of each 128-bit quarter.
template <int Width, int Half, int... I>
INLINE Vec unpack(Vec a, Vec b, Indices<I...>) {
    return __builtin_shufflevector(
        a, b,
        ((I & ~3) + 2 * Half + (Width == 1 ? (I & 3) / 2 : (I & 1)) + ((Width == 1 ? I & 1 : (I & 2) / 2) ? L : 0))...);
}

template <int Part>
INLINE void store_quarter(float* p, Vec v) {
    if constexpr (L == 4) {
        store(p, v);
    } else {
        *reinterpret_cast<Quad*>(p) = __builtin_shufflevector(v, v, 4 * Part, 4 * Part + 1, 4 * Part + 2, 4 * Part + 3);
    }
}

}  // namespace afn::AFN_LEVEL

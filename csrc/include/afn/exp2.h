// Powers of two, for what is compiled once per SIMD level.
#pragma once

#include "afn/shuffles.h"

namespace afn::AFN_LEVEL {

constexpr float kLog2e = 1.4426950408889634f;

INLINE Vec all(float x) { return x - Vec{}; }

// 2^x for x <= 0, 0 below -126; 1 at 0. Relative error 1e-7.
INLINE Vec exp2(Vec x) {
    const Vec shift = all(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to a whole number
    const Vec shifted = x + shift, r = x - (shifted - shift);
    Vec p = all(1.5353361959569156e-4f);
    p = p * r + 1.3398873852565885e-3f;
    p = p * r + 9.61843691766262e-3f;
    p = p * r + 5.5503323674201965e-2f;
    p = p * r + 0.24022647738456726f;
    p = p * r + 0.6931471824645996f;
    p = p * r + 1.0f;
    const Vec y = from_bits(bits(p) + (bits(shifted) << 23));
    return x < -126.0f ? Vec{} : x == x ? y : x;
}

}  // namespace afn::AFN_LEVEL

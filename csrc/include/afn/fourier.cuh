// Discrete Fourier transforms of 5, 10 and 20 complex numbers in registers: y[k] = sum_n x[n] exp(-2 pi i n k / N).
// 10 = 2 · 5 and 20 = 4 · 5 have coprime factors: indices are mapped (Good, 1958) and no factors stand between.
#pragma once

#include "afn/device.cuh"

namespace afn {

AFN_DEVICE float2 operator+(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }
AFN_DEVICE float2 operator-(float2 a, float2 b) { return {a.x - b.x, a.y - b.y}; }
AFN_DEVICE float2 times(float2 a, float2 b) { return {fma_of(a.x, b.x, -(a.y * b.y)), fma_of(a.x, b.y, a.y * b.x)}; }

AFN_DEVICE void fourier5(float2 x0, float2 x1, float2 x2, float2 x3, float2 x4, float2 (&y)[5]) {
    constexpr float c1 = 0.30901699437494745f, c2 = -0.8090169943749475f;  // cos(2 pi / 5), cos(4 pi / 5)
    constexpr float s1 = 0.9510565162951535f, s2 = 0.5877852522924731f;    // sines
    float2 p = x1 + x4, m = x1 - x4, q = x2 + x3, n = x2 - x3;
    y[0] = x0 + p + q;
    float2 a = {fma_of(c1, p.x, fma_of(c2, q.x, x0.x)), fma_of(c1, p.y, fma_of(c2, q.y, x0.y))};
    float2 b = {fma_of(c2, p.x, fma_of(c1, q.x, x0.x)), fma_of(c2, p.y, fma_of(c1, q.y, x0.y))};
    float2 c = {fma_of(s1, m.y, s2 * n.y), -fma_of(s1, m.x, s2 * n.x)};  // -i (s1 m + s2 n)
    float2 d = {fma_of(s2, m.y, -(s1 * n.y)), -fma_of(s2, m.x, -(s1 * n.x))};
    y[1] = a + c;
    y[4] = a - c;
    y[2] = b + d;
    y[3] = b - d;
}

AFN_DEVICE void fourier10(const float2 (&x)[10], float2 (&y)[10]) {
    float2 half[2][5];
#pragma unroll
    for (int a = 0; a < 2; ++a)
        fourier5(x[5 * a % 10], x[(5 * a + 2) % 10], x[(5 * a + 4) % 10], x[(5 * a + 6) % 10], x[(5 * a + 8) % 10],
                 half[a]);
#pragma unroll
    for (int k = 0; k < 5; ++k) {
        y[6 * k % 10] = half[0][k] + half[1][k];
        y[(5 + 6 * k) % 10] = half[0][k] - half[1][k];
    }
}

AFN_DEVICE void fourier20(const float2 (&x)[20], float2 (&y)[20]) {
    float2 part[4][5];
#pragma unroll
    for (int a = 0; a < 4; ++a)
        fourier5(x[5 * a % 20], x[(5 * a + 4) % 20], x[(5 * a + 8) % 20], x[(5 * a + 12) % 20], x[(5 * a + 16) % 20],
                 part[a]);
#pragma unroll
    for (int k = 0; k < 5; ++k) {
        float2 even = part[0][k] + part[2][k], other = part[0][k] - part[2][k];
        float2 odd = part[1][k] + part[3][k], turn = part[1][k] - part[3][k];
        y[16 * k % 20] = even + odd;
        y[(5 + 16 * k) % 20] = {other.x + turn.y, other.y - turn.x};  // - i turn
        y[(10 + 16 * k) % 20] = even - odd;
        y[(15 + 16 * k) % 20] = {other.x - turn.y, other.y + turn.x};
    }
}

}  // namespace afn

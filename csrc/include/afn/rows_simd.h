// What is computed row by row on a CPU: root-mean-square norms and rotary positions. Plain data only: rows_simd.cpp is
// compiled once per SIMD level, and an inline library function emitted there could be linked into code for a lesser
// machine.
#pragma once

#include <cstdint>

namespace afn::rows {

constexpr int kMostPairs = 512;  // features of a head that turn are twice as many at most

// y = h / sqrt(mean(h^2) + eps) * weight with h = x + residual, row by row.
struct Norm {
    const float *x, *residual, *weight;  // residual and weight may be null
    float *y, *h;                        // h where there is a residual
    int64_t width, x_stride, residual_stride;
    double eps;
    bool shifted;
    float offset;  // added to the weight, if it is shifted
};

// Heads of tokens: element d of head h of token t is at t * token + h * head + d.
struct Heads {
    const float* at;
    int64_t token, head, count;
};

struct Rotary {
    Heads q, k, v;                   // v where there is a cache
    float *q_out, *k_out;            // contiguous
    const void *positions, *freq;    // [tokens] or [tokens][pairs], [pairs]
    bool wide_positions, wide_freq;  // double, else float
    bool each_pair, interleaved;
    int64_t width, pairs;
    const int64_t* slots;  // null without a cache; negative ones write nothing, nor do those past its rows
    float *k_cache, *v_cache;
    int64_t rows, k_row, k_head, v_row, v_head;
};

// One build of rows_simd.cpp. A row's bits depend on its own values alone.
struct Kernel {
    void (*norm)(const Norm& norm, int64_t begin, int64_t end);
    void (*rotary)(const Rotary& rotary, int64_t begin, int64_t end);
};

}  // namespace afn::rows

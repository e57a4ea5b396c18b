// What a decode step on a CPU computes beside norms, rotary positions and attention. Plain data only:
// decode_step_simd.cpp is compiled once per SIMD level, and an inline library function emitted there could be linked
// into code for a lesser machine.
#pragma once

#include <cstdint>

namespace afn::decode_step {

// y[r][c] = Σ_d x[r][d] · weight[c][d] + bias[c] for all rows.
struct Product {
    const float *x, *weight, *bias;  // [rows][in], [out][in], [out] or null
    float* y;                        // rows y_stride apart
    int64_t rows, in, y_stride;
};

// One build of decode_step_simd.cpp. An output's bits depend on its own row and column alone.
struct Kernel {
    void (*product)(const Product& product, int64_t begin, int64_t end);        // columns begin to end
    void (*swiglu)(float* gate, const float* up, int64_t rows, int64_t width);  // gate becomes silu(gate) up
};

}  // namespace afn::decode_step

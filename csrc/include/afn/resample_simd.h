// Sample-rate conversion on a CPU. Plain data only: resample_simd.cpp is compiled once per SIMD level, and an inline
// library function emitted there could be linked into code for a lesser machine.
#pragma once

#include <cstdint>

namespace afn::resample {

constexpr int kOutputs = 16;  // outputs of a block, side by side in memory
constexpr int kGroups = 8;    // groups computed together

// A polyphase filter bank for a rational ratio. One group of kOutputs * blocks outputs follows `step` input samples
// after the group before. Block b of group g reads `length` samples from x[g * step + first[b]] on.
struct Bank {
    const float* taps;     // [blocks][length][kOutputs]
    const int64_t* first;  // [blocks]
    int64_t blocks, length, step;
};

// A low-pass filter in `phases` steps of the input's sampling interval, for any ratio.
struct Phases {
    const float* taps;  // [phases + 1][length]: row r is the filter for outputs r / phases of a sample late
    int64_t phases;
    int64_t length;  // a multiple of kLanes
};

constexpr int kLanes = 32;

// One build of resample_simd.cpp. An output's bits do not depend on which outputs are computed with it.
struct Kernel {
    // out[(g * blocks + b) * kOutputs + i] = sum over n of x[g * step + first[b] + n] * taps[b][n][i], for groups
    // 0 .. groups - 1, a multiple of kGroups.
    void (*rational)(const float* x, const Bank& bank, int64_t groups, float* out);
    // out[k - first] for outputs k = first .. first + count - 1. Output k lies at input position k * rate / to; x is
    // where the filter of output `first` begins.
    void (*any_ratio)(const float* x, const Phases& filter, int64_t rate, int64_t to, int64_t first, int64_t count,
                      float* out);
};

}  // namespace afn::resample

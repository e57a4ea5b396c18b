// What the driver and the SIMD kernels of log-mel of any size share. Plain data only, for the reason given in
// log_mel_simd.h.
#pragma once

#include <cstdint>

#include "afn/log_mel_simd.h"

namespace afn::log_mel_any {

using log_mel::Pcm;

constexpr int kMaxLanes = 16;

enum class Pad { kNone, kReflect, kZeros };

// One pass of the transform: blocks of ``length`` points become ``radix`` blocks.
struct Stage {
    int radix, length;
    const float* turns;  // [length / radix][radix - 1] cosine and sine of 2 pi j p / length
    const float* roots;  // [radix] cosine and sine of 2 pi j / radix, where the radix is an odd number above 5
};

// A front end, with window, transform and filter bank. Band m weighs the bins first[m] .. first[m] + count[m] - 1.
struct PlanView {
    int n_fft, win, hop, n_mels;
    int before;  // samples of the first frame's window that lie before the row
    Pad pad;
    float emphasis;        // of the whole row: x[n] - emphasis x[n - 1], the first sample as it is
    float frame_emphasis;  // of each frame alone, its first sample standing in for the one before
    bool remove_mean;      // of each frame
    bool magnitude;
    const float* window;  // [win], then zeros up to whole vectors of kMaxLanes
    bool halved;          // n_fft is even: a complex transform of n_fft / 2 points
    int points, bins;
    const Stage* stages;
    int n_stages;
    const int32_t* place;  // [points]: where the transform leaves frequency k
    const float* half;     // [points / 2 + 1] cosine and sine of 2 pi k / n_fft, where halved
    const int32_t* first;
    const int32_t* count;
    const float* weights;
    float log_unit;  // 1 for natural logarithms, log10(e) for common ones, 0 for none
    float floor;     // the logarithm is of max(energy, floor) + guard
    float guard;
};

// Floats of scratch memory that ``energies`` takes, aligned to 64 bytes: samples, transform, power, a generic pass.
struct Sizes {
    int64_t samples, transform, power, pass;
};

// One build of log_mel_any_simd.cpp. A frame's numbers do not depend on which frames are computed with it.
struct Kernel {
    // Logarithms of mel energies of frames begin .. end - 1 into out[m * stride + frame]. Samples from ``valid`` on
    // count as 0. Returns the bit pattern of the largest energy, so that NaN counts as larger than everything.
    int32_t (*energies)(const Pcm& pcm, int64_t valid, int64_t begin, int64_t end, const PlanView& plan,
                        const Sizes& sizes, float* scratch, float* out, int64_t stride);
    // The logarithm of an energy given by its bits.
    float (*log_of)(int32_t energy, const PlanView& plan);
    // (max(x, floor) + offset) / divisor, in place; all NaN where the floor is NaN.
    void (*scale)(float* x, int64_t count, float floor, float offset, float divisor);
    // (x - mean) / (deviation + eps), or / sqrt(variance + eps), with the unbiased variance, in place. One frame has no
    // deviation and becomes 0.
    void (*normalise)(float* x, int64_t count, float eps, bool eps_in_variance);
};

}  // namespace afn::log_mel_any

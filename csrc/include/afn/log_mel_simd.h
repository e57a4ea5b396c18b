// What the driver and the SIMD kernels of log-mel share. Plain data only: log_mel_simd.cpp is compiled once per SIMD
// level, and an inline library function emitted there could be linked into code for a lesser machine.
#pragma once

#include <cstdint>

namespace afn::log_mel {

constexpr int kHop = 160;       // samples between frames, 10 ms at 16 kHz
constexpr int kFft = 400;       // samples per frame, 25 ms
constexpr int kBins = 201;      // one-sided spectrum
constexpr int kPad = kFft / 2;  // reflected samples before and after a row

// One row of audio. Exactly one of the pointers is set; an int16 sample counts 1/32768.
struct Pcm {
    const float* f32;
    const int16_t* i16;
    int64_t samples;
};

// Window and filter bank. Band m weighs the bins first[m] .. first[m] + count[m] - 1; weights holds the bands in turn.
struct PlanView {
    const float* window;  // [kFft]
    const int32_t* first;
    const int32_t* count;
    const float* weights;
    int n_mels;
};

// One build of log_mel_simd.cpp. A frame's numbers do not depend on which frames are computed with it.
struct Kernel {
    // Mel energies of frames begin .. end - 1 into out[m * stride + frame]. Returns the bit pattern of the largest one,
    // sign cleared, so that NaN counts as larger than everything.
    int32_t (*energies)(const Pcm& pcm, int64_t begin, int64_t end, const PlanView& plan, float* out, int64_t stride);
    // (max(log10(max(energy, 1e-10)), log10(largest) - 8) + 4) / 4; in and out may be the same.
    void (*log_scale)(const float* in, float* out, int64_t count, int32_t largest);
};

}  // namespace afn::log_mel

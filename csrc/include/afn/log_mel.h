// Log-mel features of 16 kHz audio on a CPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "afn/log_mel_simd.h"

namespace afn::log_mel {

// Owner of what a PlanView shows.
struct Plan {
    std::vector<float> window;
    std::vector<int32_t> first, count;
    std::vector<float> weights;

    PlanView view() const {
        return {window.data(), first.data(), count.data(), weights.data(), static_cast<int>(first.size())};
    }
};

const Kernel& kernel_of(const std::string& level);

// rows[i], all of the same length -> out[i * n_mels * frames ...], frames = samples / 160.
void log_mel(const std::vector<Pcm>& rows, const Plan& plan, float* out, int threads, const Kernel& kernel);

}  // namespace afn::log_mel

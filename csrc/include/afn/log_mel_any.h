// Log-mel features of any front end on a CPU: any transform size, window, hop and filter bank.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "afn/log_mel_any_simd.h"

namespace afn::log_mel_any {

enum class Top { kNone, kRow, kFixed };  // what the range is below: nothing, the row's maximum, a number

// A front end as its user describes it. ``window`` holds the scale of the samples.
struct Settings {
    int n_fft, win, hop, before;
    int pad;  // 0 none, 1 reflect, 2 zeros
    float emphasis, frame_emphasis;
    bool remove_mean, magnitude;
    float log_unit, floor, guard;
    int top;  // as Top
    float top_value, range, offset, divisor;
    bool normalise;
    float eps;
    bool eps_in_variance;
};

// Owner of what a PlanView shows.
class Plan {
  public:
    Plan(const Settings& settings, const std::vector<double>& window, std::vector<int32_t> first,
         std::vector<int32_t> count, std::vector<float> weights);
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;

    PlanView view() const;
    Sizes sizes() const;
    const Settings settings;

  private:
    std::vector<float> window_, weights_, half_;
    std::vector<int32_t> first_, count_, place_;
    std::vector<std::vector<float>> turns_, roots_;
    std::vector<Stage> stages_;
};

const Kernel& kernel_of(const std::string& level);

// A row, how many of its samples count, and how many of its frames.
struct Row {
    Pcm pcm;
    int64_t valid, frames;
};

// rows[i] -> out[i * n_mels * frames ...]; features from a row's own frames on are 0.
void log_mel(const std::vector<Row>& rows, const Plan& plan, int64_t frames, float* out, int threads,
             const Kernel& kernel);

}  // namespace afn::log_mel_any

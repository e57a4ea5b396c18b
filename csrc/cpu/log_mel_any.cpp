// Tables of a front end, and rows spread over threads.

#include "afn/log_mel_any.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>

#include "afn/simd.h"
#include "parallel.h"

namespace afn::log_mel_any {

AFN_DEFINE_KERNEL_OF

namespace {

const double kTurn = 2 * std::acos(-1.0);

int64_t in_lanes(int64_t n) { return (n + kMaxLanes - 1) / kMaxLanes * kMaxLanes; }

// Radix of each pass over n points, the first pass first.
std::vector<int> radices(int n) {
    int twos = 0;
    std::vector<int> found;
    for (; n % 2 == 0; n /= 2) ++twos;
    for (; twos > 4 || twos == 3; twos -= 3) found.push_back(8);
    for (; twos > 1; twos -= 2) found.push_back(4);
    if (twos) found.push_back(2);
    for (int prime = 3; n > 1; prime += 2) {
        for (; n % prime == 0; n /= prime) found.push_back(prime);
        if (static_cast<int64_t>(prime) * prime > n && n > 1) found.push_back(n), n = 1;
    }
    return found;
}

void push_turn(std::vector<float>& to, int64_t part, int64_t whole) {
    const double angle = kTurn * static_cast<double>(part % whole) / static_cast<double>(whole);
    to.push_back(static_cast<float>(std::cos(angle)));
    to.push_back(static_cast<float>(std::sin(angle)));
}

class Scratch {
    static constexpr std::align_val_t kAligned{64};

  public:
    explicit Scratch(const Sizes& s)
        : memory_(static_cast<float*>(::operator new[](4 * (s.samples + s.transform + s.power + s.pass), kAligned))) {}
    ~Scratch() { ::operator delete[](memory_, kAligned); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    float* get() const { return memory_; }

  private:
    float* memory_;
};

}  // namespace

Plan::Plan(const Settings& s, const std::vector<double>& window, std::vector<int32_t> first, std::vector<int32_t> count,
           std::vector<float> weights)
    : settings(s), weights_(std::move(weights)), first_(std::move(first)), count_(std::move(count)) {
    const bool halved = s.n_fft % 2 == 0;
    const int points = halved ? s.n_fft / 2 : s.n_fft;
    window_.assign(in_lanes(s.win), 0.0f);
    for (int n = 0; n < s.win; ++n) window_[n] = static_cast<float>(window[n] * (halved ? 0.5 : 1.0));
    for (int k = 0; halved && k <= points / 2; ++k) push_turn(half_, k, s.n_fft);

    place_.assign(points, 0);
    int length = points, block = 1;
    for (const int radix : radices(points)) {
        const int step = length / radix;
        std::vector<float> turns, roots;
        for (int j = 0; j < step; ++j) {
            for (int p = 1; p < radix; ++p) push_turn(turns, static_cast<int64_t>(j) * p, length);
        }
        for (int j = 0; j < radix; ++j) push_turn(roots, j, radix);
        for (int k = 0; k < points; ++k) place_[k] += k / block % radix * step;
        turns_.push_back(std::move(turns));
        roots_.push_back(std::move(roots));
        stages_.push_back({radix, length, turns_.back().data(), roots_.back().data()});
        length = step;
        block *= radix;
    }
}

PlanView Plan::view() const {
    const Settings& s = settings;
    const bool halved = s.n_fft % 2 == 0;
    return {s.n_fft,
            s.win,
            s.hop,
            static_cast<int>(first_.size()),
            s.before,
            static_cast<Pad>(s.pad),
            s.emphasis,
            s.frame_emphasis,
            s.remove_mean,
            s.magnitude,
            window_.data(),
            halved,
            static_cast<int>(place_.size()),
            s.n_fft / 2 + 1,
            stages_.data(),
            static_cast<int>(stages_.size()),
            place_.data(),
            half_.data(),
            first_.data(),
            count_.data(),
            weights_.data(),
            s.log_unit,
            s.floor,
            s.guard};
}

Sizes Plan::sizes() const {
    const Settings& s = settings;
    const int64_t padded = in_lanes(s.win), vectors = std::max<int64_t>(s.n_fft, padded) * (s.n_fft % 2 ? 2 : 1);
    int64_t radix = 1;
    for (const Stage& stage : stages_) radix = std::max<int64_t>(radix, stage.radix);
    return {in_lanes((kMaxLanes - 1) * static_cast<int64_t>(s.hop) + padded + 1), vectors * kMaxLanes,
            (s.n_fft / 2 + 1) * kMaxLanes, 2 * (radix + 1) * kMaxLanes};
}

void log_mel(const std::vector<Row>& rows, const Plan& owner, int64_t frames, float* out, int threads,
             const Kernel& kernel) {
    const PlanView plan = owner.view();
    const Sizes sizes = owner.sizes();
    const Settings& s = owner.settings;
    const int64_t n_rows = rows.size(), row_size = plan.n_mels * frames;
    constexpr int64_t kChunk = 128;  // frames
    const int64_t chunks = std::max<int64_t>(1, (frames + kChunk - 1) / kChunk);
    threads = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(1, n_rows * chunks / 2)));

    const auto energies = [&](int64_t r, int64_t begin, int64_t end, const Scratch& scratch) -> int32_t {
        if (begin >= end) return 0;
        float* to = out + r * row_size;
        return kernel.energies(rows[r].pcm, rows[r].valid, begin, end, plan, sizes, scratch.get(), to, frames);
    };
    const auto finish = [&](int64_t r, int64_t band, int32_t largest) {
        float* to = out + r * row_size + band * frames;
        const int64_t count = rows[r].frames;
        float floor = -std::numeric_limits<float>::infinity();
        if (s.top == static_cast<int>(Top::kRow)) floor = kernel.log_of(largest, plan) - s.range;
        if (s.top == static_cast<int>(Top::kFixed)) floor = s.top_value - s.range;
        if (s.top || s.offset != 0.0f || s.divisor != 1.0f) kernel.scale(to, count, floor, s.offset, s.divisor);
        if (s.normalise && count) kernel.normalise(to, count, s.eps, s.eps_in_variance);
        std::fill(to + count, to + frames, 0.0f);
    };

    if (n_rows >= 4 * threads) {
        parallel_for(n_rows, threads, [&](int64_t r) {
            const Scratch scratch(sizes);
            const int32_t largest = energies(r, 0, rows[r].frames, scratch);
            for (int64_t band = 0; band < plan.n_mels; ++band) finish(r, band, largest);
        });
        return;
    }
    std::vector<int32_t> largest(n_rows * chunks);
    parallel_for(n_rows * chunks, threads, [&](int64_t i) {
        const Scratch scratch(sizes);
        const int64_t r = i / chunks, begin = i % chunks * kChunk;
        largest[i] = energies(r, begin, std::min(begin + kChunk, rows[r].frames), scratch);
    });
    constexpr int64_t kBands = 8;
    const int64_t parts = (plan.n_mels + kBands - 1) / kBands;
    parallel_for(n_rows * parts, threads, [&](int64_t i) {
        const int64_t r = i / parts, begin = i % parts * kBands;
        const auto first = largest.begin() + r * chunks;
        const int32_t top = *std::max_element(first, first + chunks);
        for (int64_t band = begin; band < std::min<int64_t>(begin + kBands, plan.n_mels); ++band) finish(r, band, top);
    });
}

}  // namespace afn::log_mel_any

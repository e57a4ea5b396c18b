// Spreads rows over threads.

#include "afn/log_mel.h"

#include "afn/simd.h"
#include "parallel.h"

namespace afn::log_mel {

AFN_DEFINE_KERNEL_OF

void log_mel(const std::vector<Pcm>& rows, const Plan& owner, float* out, int threads, const Kernel& kernel) {
    if (rows.empty()) return;
    const PlanView plan = owner.view();
    const int64_t n_rows = rows.size(), frames = rows[0].samples / kHop, n_mels = plan.n_mels;
    const int64_t row_size = n_mels * frames;
    constexpr int64_t kChunk = 256;  // frames, about 60 us of work
    threads = std::min<int64_t>(threads, std::max<int64_t>(1, n_rows * frames / (2 * kChunk)));

    if (n_rows >= 4 * threads) {
        // A row's energies are still in cache when its logarithms are taken.
        parallel_for(n_rows, threads, [&](int64_t r) {
            float* to = out + r * row_size;
            const int32_t largest = kernel.energies(rows[r], 0, frames, plan, to, frames);
            kernel.log_scale(to, to, row_size, largest);
        });
        return;
    }

    const int64_t chunks = (frames + kChunk - 1) / kChunk;
    std::vector<int32_t> largest(n_rows * chunks);
    parallel_for(n_rows * chunks, threads, [&](int64_t i) {
        const int64_t r = i / chunks, begin = i % chunks * kChunk, end = std::min(begin + kChunk, frames);
        largest[i] = kernel.energies(rows[r], begin, end, plan, out + r * row_size, frames);
    });
    parallel_for(n_rows * chunks, threads, [&](int64_t i) {
        const int64_t r = i / chunks, begin = i % chunks * kChunk * n_mels;
        const auto first = largest.begin() + r * chunks;
        float* to = out + r * row_size + begin;
        kernel.log_scale(to, to, std::min(kChunk * n_mels, row_size - begin), *std::max_element(first, first + chunks));
    });
}

}  // namespace afn::log_mel

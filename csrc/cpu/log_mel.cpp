// Spreads rows over threads.

#include "afn/log_mel.h"

#include <memory>

#include "afn/simd.h"
#include "parallel.h"

namespace afn::log_mel {

AFN_DEFINE_KERNEL_OF

void log_mel(const std::vector<Pcm>& rows, const Plan& owner, float* out, int threads, const Kernel& kernel) {
    if (rows.empty()) return;
    const PlanView plan = owner.view();
    const int64_t n_rows = rows.size(), frames = rows[0].samples / kHop, n_mels = plan.n_mels;
    const int64_t row_size = n_mels * frames;
    constexpr int64_t kChunk = 256;         // frames, some 20 to 60 us of work
    constexpr int64_t kCached = 512 << 10;  // floats, 2 MB
    threads = std::min<int64_t>(threads, std::max<int64_t>(1, n_rows * frames / (2 * kChunk)));

    if (n_rows >= 4 * threads) {
        // Energies are written 64 bytes here and there: into memory that stays in cache from row to row, where it can.
        // Their logarithms go to out one after another.
        parallel_with(n_rows, threads, [&] {
            std::unique_ptr<float[]> kept(row_size <= kCached ? new float[row_size] : nullptr);
            return [&, kept = std::move(kept)](int64_t r) {
                float *to = out + r * row_size, *between = kept ? kept.get() : to;
                const int32_t largest = kernel.energies(rows[r], 0, frames, plan, between, frames);
                kernel.log_scale(between, to, row_size, largest);
            };
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

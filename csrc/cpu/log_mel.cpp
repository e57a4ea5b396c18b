// Chooses the SIMD level and spreads rows over threads.

#include "afn/log_mel.h"

#include <cstdlib>
#include <stdexcept>

#include "parallel.h"

namespace afn::log_mel {

// clang-format off
#define AFN_KERNEL(level) namespace level { extern const Kernel kernel; }
AFN_KERNEL(avx512)
AFN_KERNEL(avx2)
AFN_KERNEL(neon)
AFN_KERNEL(portable)
AFN_KERNEL(portable16)
// clang-format on

namespace {

struct Level {
    const char* name;
    const Kernel* kernel;
    bool runs;
};

const std::vector<Level>& all_levels() {
    static const std::vector<Level> found = {
#ifdef AFN_HAVE_AVX512
        {"avx512", &avx512::kernel,
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")},
#endif
#ifdef AFN_HAVE_AVX2
        {"avx2", &avx2::kernel, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
#ifdef AFN_HAVE_NEON
        {"neon", &neon::kernel, true},
#endif
        {"portable", &portable::kernel, true},
        {"portable16", &portable16::kernel, true},
    };
    return found;
}

const Level& find_level(std::string name) {
    const char* asked = std::getenv("AFN_SIMD");
    if (name.empty() && asked) name = asked;
    for (const Level& level : all_levels()) {
        if (level.runs && (name.empty() || name == level.name)) return level;
    }
    std::string message = "SIMD level '" + name + "' does not run on this machine; it runs";
    for (const std::string& level : levels()) message += " " + level;
    throw std::invalid_argument(message);
}

}  // namespace

std::vector<std::string> levels() {
    std::vector<std::string> names;
    for (const Level& level : all_levels()) {
        if (level.runs) names.push_back(level.name);
    }
    return names;
}

const Kernel& kernel_of(const std::string& level) { return *find_level(level).kernel; }
std::string resolve_level(const std::string& level) { return find_level(level).name; }

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

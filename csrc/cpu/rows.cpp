#include "afn/rows.h"

#include "afn/simd.h"
#include "parallel.h"

namespace afn::rows {

AFN_DEFINE_KERNEL_OF

namespace {

constexpr int64_t kPart = 1 << 16;  // elements that one thread computes before another one could begin

template <class Run>
void shared_out(int64_t rows, int64_t width, int threads, const Run& run) {
    const int64_t part = std::max<int64_t>(1, kPart / std::max<int64_t>(1, width));
    parallel_for((rows + part - 1) / part, threads, [&](int64_t i) { run(i * part, std::min(rows, (i + 1) * part)); },
                 Threads::pooled);
}

}  // namespace

void norm(const Norm& norm, int64_t rows, int threads, const Kernel& kernel) {
    shared_out(rows, norm.width, threads, [&](int64_t begin, int64_t end) { kernel.norm(norm, begin, end); });
}

void rotary(const Rotary& rotary, int64_t tokens, int threads, const Kernel& kernel) {
    shared_out(tokens, (rotary.q.count + 2 * rotary.k.count) * rotary.width, threads,
               [&](int64_t begin, int64_t end) { kernel.rotary(rotary, begin, end); });
}

}  // namespace afn::rows

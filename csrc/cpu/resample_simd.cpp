// Filters of sample-rate conversion. CMake compiles this file once per level, with AFN_LANES lanes into the namespace
// AFN_LEVEL.
//
// A rational ratio is a product of a banded matrix with strided frames of the input. Lanes are neighbouring outputs:
// each tap's row of the bank is loaded once for several groups, and each input sample is broadcast to all lanes.

#include "afn/resample_simd.h"

#include "afn/lanes.h"

namespace afn::resample::AFN_LEVEL {
namespace {

using namespace afn::AFN_LEVEL;

INLINE Vec load(const float* p) { return *reinterpret_cast<const VecU*>(p); }
INLINE void store(float* p, Vec v) { *reinterpret_cast<VecU*>(p) = v; }

// Sums that are kept in registers: eight hide the latency of multiply-add, twice as many would not fit everywhere.
constexpr int kVectors = L == 16 ? 1 : 2;
constexpr int kRows = 8 / kVectors;
constexpr int kPart = kVectors * L;
static_assert(kGroups % kRows == 0 && kOutputs % kPart == 0);

// kPart outputs of a block, for kRows groups.
INLINE void part(const float* x, const float* taps, int64_t length, int64_t step, float* out, int64_t stride) {
    Vec sum[kRows][kVectors] = {};
    for (int64_t n = 0; n < length; ++n) {
        Vec tap[kVectors];
        UNROLL for (int v = 0; v < kVectors; ++v) tap[v] = load(taps + n * kOutputs + v * L);
        UNROLL for (int r = 0; r < kRows; ++r) {
            UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] += tap[v] * x[r * step + n];
        }
    }
    UNROLL for (int r = 0; r < kRows; ++r) {
        UNROLL for (int v = 0; v < kVectors; ++v) store(out + r * stride + v * L, sum[r][v]);
    }
}

void rational(const float* x, const Bank& bank, int64_t groups, float* out) {
    const int64_t stride = bank.blocks * kOutputs;
    for (int64_t b = 0; b < bank.blocks; ++b) {
        const float* taps = bank.taps + b * bank.length * kOutputs;
        for (int64_t g = 0; g < groups; g += kRows) {
            for (int i = 0; i < kOutputs; i += kPart) {
                part(x + g * bank.step + bank.first[b], taps + i, bank.length, bank.step,
                     out + g * stride + b * kOutputs + i, stride);
            }
        }
    }
}

void any_ratio(const float* x, const Phases& filter, int64_t rate, int64_t to, int64_t first, int64_t count,
               float* out) {
    constexpr int kParts = kLanes / L;
    const int64_t origin = first * rate / to;
    for (int64_t k = first; k < first + count; ++k) {
        const int64_t sample = k * rate / to, late = (k * rate - sample * to) * filter.phases;
        const float* low = filter.taps + late / to * filter.length;
        const float* high = low + filter.length;
        const float* from = x + (sample - origin);
        const float weight = static_cast<float>(static_cast<double>(late % to) / static_cast<double>(to));
        Vec sum[kParts] = {};
        for (int64_t n = 0; n < filter.length; n += kLanes) {
            UNROLL for (int p = 0; p < kParts; ++p) {
                const Vec a = load(low + n + p * L), b = load(high + n + p * L);
                sum[p] += (a + (b - a) * weight) * load(from + n + p * L);
            }
        }
        UNROLL for (int p = kParts / 2; p > 0; p /= 2) { UNROLL for (int q = 0; q < p; ++q) sum[q] += sum[q + p]; }
        float lanes[L];
        store(lanes, sum[0]);
        for (int width = L / 2; width > 0; width /= 2) {
            for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
        }
        out[k - first] = lanes[0];
    }
}

}  // namespace

extern const Kernel kernel;
const Kernel kernel = {rational, any_ratio};

}  // namespace afn::resample::AFN_LEVEL

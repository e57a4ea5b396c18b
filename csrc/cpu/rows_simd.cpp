// Root-mean-square norms and rotary positions, row by row. CMake compiles this file once per level, with AFN_LANES
// lanes into the namespace AFN_LEVEL.

#include "afn/rows_simd.h"

#include "afn/lanes.h"

namespace afn::rows::AFN_LEVEL {
namespace {

using namespace afn::AFN_LEVEL;

INLINE Vec load(const float* p) { return *reinterpret_cast<const VecU*>(p); }
INLINE void store(float* p, Vec v) { *reinterpret_cast<VecU*>(p) = v; }

constexpr int64_t kRun = 256;  // elements whose squares are added in float

INLINE double squares(const float* x, int64_t width) {
    double total = 0.0;
    for (int64_t from = 0; from < width; from += kRun) {
        const int64_t end = from + kRun < width ? from + kRun : width;
        Vec sum[2] = {};
        float rest = 0.0f;
        int64_t d = from;
        for (; d + 2 * L <= end; d += 2 * L) {
            UNROLL for (int i = 0; i < 2; ++i) sum[i] += load(x + d + i * L) * load(x + d + i * L);
        }
        for (; d < end; ++d) rest += x[d] * x[d];
        float lanes[L];
        store(lanes, sum[0] + sum[1]);
        for (int width = L / 2; width > 0; width /= 2) {
            for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
        }
        total += static_cast<double>(lanes[0]) + static_cast<double>(rest);
    }
    return total;
}

void norm(const Norm& n, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const float* h = n.x + row * n.x_stride;
        float* y = n.y + row * n.width;
        if (n.residual) {
            const float *x = h, *residual = n.residual + row * n.residual_stride;
            float* sum = n.h + row * n.width;
            for (int64_t d = 0; d < n.width; ++d) sum[d] = x[d] + residual[d];
            h = sum;
        }
        const double mean = squares(h, n.width) / static_cast<double>(n.width);
        const float factor = static_cast<float>(1.0 / __builtin_sqrt(mean + n.eps));
        for (int64_t d = 0; d < n.width; ++d) {
            const float found = h[d] * factor;
            y[d] = !n.weight ? found : n.shifted ? found * (n.offset + n.weight[d]) : found * n.weight[d];
        }
    }
}

INLINE double number(const void* at, bool wide, int64_t i) {
    return wide ? static_cast<const double*>(at)[i] : static_cast<double>(static_cast<const float*>(at)[i]);
}

// Cosine and sine by their series within an eighth of a turn; off by less than 3e-10 there.
INLINE void turn(double angle, float& cosine, float& sine) {
    const double shift = 6755399441055744.0;  // 1.5 * 2^52: what is added to it is rounded to a whole number
    const double shifted = angle * 0.6366197723675814 + shift, quarters = shifted - shift;
    const double x = (angle - quarters * 1.5707963267948966) - quarters * 6.123233995736766e-17, z = x * x;
    const double s =
        x + x * z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 - z * (1.0 / 39916800)))));
    const double c = 1.0 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 - z * (1.0 / 3628800)))));
    int64_t whole;
    __builtin_memcpy(&whole, &shifted, 8);  // its lowest bits are those of the whole number
    const double a = whole & 1 ? s : c, b = whole & 1 ? c : s;
    cosine = static_cast<float>((whole + 1) & 2 ? -a : a);
    sine = static_cast<float>(whole & 2 ? -b : b);
}

INLINE void rotate(const float* x, float* y, const float* cosine, const float* sine, const Rotary& r) {
    const int64_t pairs = r.pairs, far = r.interleaved ? 1 : pairs, step = r.interleaved ? 2 : 1;
    for (int64_t d = 0; d < pairs; ++d) {
        const float a = x[d * step], b = x[d * step + far];
        y[d * step] = a * cosine[d] - b * sine[d];
        y[d * step + far] = b * cosine[d] + a * sine[d];
    }
    for (int64_t d = 2 * pairs; d < r.width; ++d) y[d] = x[d];
}

INLINE void copy(const float* from, float* to, int64_t width) {
    for (int64_t d = 0; d < width; ++d) to[d] = from[d];
}

void rotary(const Rotary& r, int64_t begin, int64_t end) {
    float cosine[kMostPairs], sine[kMostPairs];
    for (int64_t t = begin; t < end; ++t) {
        for (int64_t d = 0; d < r.pairs; ++d) {
            double angle = number(r.positions, r.wide_positions, r.each_pair ? t * r.pairs + d : t);
            const double freq = number(r.freq, r.wide_freq, d);
            // As the reference has it: in the precision of the positions.
            angle = r.wide_positions ? angle * freq : static_cast<float>(angle * static_cast<float>(freq));
            turn(angle, cosine[d], sine[d]);
        }
        for (int64_t h = 0; h < r.q.count; ++h) {
            rotate(r.q.at + t * r.q.token + h * r.q.head, r.q_out + (t * r.q.count + h) * r.width, cosine, sine, r);
        }
        const int64_t slot = r.slots ? r.slots[t] : -1;
        for (int64_t h = 0; h < r.k.count; ++h) {
            float* out = r.k_out + (t * r.k.count + h) * r.width;
            rotate(r.k.at + t * r.k.token + h * r.k.head, out, cosine, sine, r);
            if (slot < 0 || slot >= r.rows) continue;
            copy(out, r.k_cache + slot * r.k_row + h * r.k_head, r.width);
            copy(r.v.at + t * r.v.token + h * r.v.head, r.v_cache + slot * r.v_row + h * r.v_head, r.width);
        }
    }
}

}  // namespace

extern const Kernel kernel;
const Kernel kernel = {norm, rotary};

}  // namespace afn::rows::AFN_LEVEL

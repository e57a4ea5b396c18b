#include "afn/decode_step.h"

#include <cmath>
#include <memory>

#include "afn/attend.h"
#include "afn/rows.h"
#include "afn/simd.h"
#include "parallel.h"

namespace afn::decode_step {

AFN_DEFINE_KERNEL_OF

namespace {

// What one thread computes, and reads from memory, in some ten times what the start of another one takes.
constexpr int64_t kAlone = 1 << 24, kAloneWeights = 1 << 22;
constexpr int64_t kColumns = 32;  // of weights that one thread takes at once, at least

class Run {
  public:
    Run(const Decoder& decoder, const Rows& rows, int threads, const std::string& level)
        : d_(decoder),
          rows_(rows),
          threads_(threads),
          kernel_(kernel_of(level)),
          row_kernel_(afn::rows::kernel_of(level)),
          attend_kernel_(attend::kernel_of(level)) {}

    bool operator()(float* out) {
        const attend::Call call = attention(nullptr, nullptr, 0);
        if (call.begin(0) != 0 || call.begin(rows_.sequences) != rows_.rows || !attend::fits(call, true)) return false;
        const int64_t n = rows_.rows, queries = d_.heads * d_.head_dim, keys = d_.kv_heads * d_.head_dim;
        const int64_t joint = queries + 2 * keys;
        const std::unique_ptr<float[]> memory(new float[n * (4 * d_.width + joint + 2 * queries + keys + 2 * d_.ffn)]);
        float *normed = memory.get(), *change = normed + n * d_.width;
        sum_ = change + n * d_.width;
        next_sum_ = sum_ + n * d_.width;
        float *qkv = next_sum_ + n * d_.width, *q = qkv + n * joint, *attended = q + n * queries;
        float *k = attended + n * queries, *gate = k + n * keys, *up = gate + n * d_.ffn;

        const float *delta = rows_.x, *residual = nullptr;
        for (size_t i = 0; i < d_.layers.size(); ++i) {
            const Layer& layer = d_.layers[i];
            residual = norm(delta, residual, layer.input_norm, normed);
            product(layer.q, normed, d_.width, qkv, queries, joint);
            product(layer.k, normed, d_.width, qkv + queries, keys, joint);
            product(layer.v, normed, d_.width, qkv + queries + keys, keys, joint);
            rotary(qkv, q, k, i);
            attend::attend(attention(q, attended, i), threads_, attend_kernel_);
            product(layer.o, attended, queries, change, d_.width, d_.width);
            residual = norm(change, residual, layer.post_norm, normed);
            product(layer.gate, normed, d_.width, gate, d_.ffn, d_.ffn);
            product(layer.up, normed, d_.width, up, d_.ffn, d_.ffn);
            kernel_.swiglu(gate, up, n, d_.ffn);
            product(layer.down, gate, d_.ffn, change, d_.width, d_.width);
            delta = change;
        }
        norm(delta, residual, d_.norm, out);
        return true;
    }

  private:
    // y = norm(x + residual); returns the sum.
    const float* norm(const float* x, const float* residual, const float* weight, float* y) {
        std::swap(sum_, next_sum_);
        const afn::rows::Norm call{x,        residual, weight, y,   residual ? sum_ : nullptr, d_.width, d_.width,
                                   d_.width, d_.eps,   false,  0.0f};
        row_kernel_.norm(call, 0, rows_.rows);
        return residual ? sum_ : x;
    }

    void product(const Linear& linear, const float* x, int64_t in, float* y, int64_t out, int64_t y_stride) const {
        const Product call{x, linear.weight, linear.bias, y, rows_.rows, in, y_stride};
        const bool alone = rows_.rows * in * out <= kAlone && in * out <= kAloneWeights;
        if (alone || threads_ <= 1) return kernel_.product(call, 0, out);
        const int64_t part = std::max(kColumns, out / (4 * threads_) / kColumns * kColumns);
        parallel_for((out + part - 1) / part, threads_,
                     [&](int64_t i) { kernel_.product(call, i * part, std::min(out, (i + 1) * part)); },
                     Threads::pooled);
    }

    float* cache(size_t layer, int which) const {
        return rows_.kv + (2 * layer + which) * rows_.pages * rows_.page * d_.kv_heads * d_.head_dim;
    }

    void rotary(const float* qkv, float* q, float* k, size_t layer) const {
        const int64_t width = d_.head_dim, joint = (d_.heads + 2 * d_.kv_heads) * width, row = d_.kv_heads * width;
        const float *keys = qkv + d_.heads * width, *values = keys + row;
        const afn::rows::Rotary call{{qkv, joint, width, d_.heads},
                                     {keys, joint, width, d_.kv_heads},
                                     {values, joint, width, d_.kv_heads},
                                     q,
                                     k,
                                     rows_.positions,
                                     d_.inv_freq,
                                     false,
                                     false,
                                     false,
                                     false,
                                     width,
                                     width / 2,
                                     rows_.slots,
                                     cache(layer, 0),
                                     cache(layer, 1),
                                     rows_.pages * rows_.page,
                                     row,
                                     width,
                                     row,
                                     width};
        row_kernel_.rotary(call, 0, rows_.rows);
    }

    attend::Call attention(const float* q, float* out, size_t layer) const {
        const int64_t token = d_.kv_heads * d_.head_dim, block = rows_.page * token;
        return {q,
                out,
                {cache(layer, 0), block, token, d_.head_dim},
                {cache(layer, 1), block, token, d_.head_dim},
                false,
                rows_.pages,
                rows_.page,
                rows_.table,
                rows_.columns,
                rows_.table_stride,
                rows_.bounds,
                1,
                rows_.lengths,
                {nullptr, false},
                {nullptr, false},
                rows_.sequences,
                1,
                d_.heads,
                d_.kv_heads,
                d_.head_dim,
                true,
                attend::kUnlimited,
                0,
                static_cast<float>(1.0 / std::sqrt(static_cast<double>(d_.head_dim))),
                0.0f};
    }

    const Decoder& d_;
    const Rows& rows_;
    int threads_;
    const Kernel& kernel_;
    const afn::rows::Kernel& row_kernel_;
    const attend::Kernel& attend_kernel_;
    float *sum_ = nullptr, *next_sum_ = nullptr;
};

}  // namespace

bool run(const Decoder& decoder, const Rows& rows, float* out, int threads, const std::string& level) {
    return Run(decoder, rows, threads, level)(out);
}

}  // namespace afn::decode_step

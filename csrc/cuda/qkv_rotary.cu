// A decode step's projection in one launch: bias, rotation of q and k, k and v into the cache. A warp takes heads of
// one token and works out the token's angles once; a lane has elements 2 l, 2 l + 1 and the two half a head further.
#include "afn/device.cuh"

namespace afn {

constexpr int kThreads = 128, kWarps = kThreads / 32, kSteps = 2;  // heads of at most 2 x 128 elements

struct QkvRotary {
    const void *qkv, *bias;  // [tokens, (heads + 2 kv_heads) 2 half], rows apart; the same without tokens, or null
    const void *positions, *inv_freq;                    // [tokens], [half]; float32, or float64 where wide
    const int64_t* slots;                                // [tokens] rows of the cache
    const float *k_scale, *v_scale;                      // one, or one a KV head; or null
    void *q, *k_cache, *v_cache;                         // [tokens, heads, 2 half]; [rows, kv_heads, 2 half]
    int64_t stride, rows, k_row, k_head, v_row, v_head;  // in elements
    int heads, kv_heads, half, shares, wide_positions, wide_frequencies, k_scales, v_scales;
};

struct Float32 {
    using Pair = float2;
    static AFN_DEVICE float2 load(float2 x) { return x; }
    static AFN_DEVICE float2 pack(float low, float high) { return {low, high}; }
};
struct Bfloat16 {
    using Pair = uint32_t;
    static AFN_DEVICE float2 load(uint32_t x) {
        return {from_bf16(static_cast<uint16_t>(x)), from_bf16(static_cast<uint16_t>(x >> 16))};
    }
    static AFN_DEVICE uint32_t pack(float low, float high) { return pack_bf16(low, high); }
};
struct Float16 {
    using Pair = uint32_t;
    static AFN_DEVICE float2 load(uint32_t x) {
        return {from_f16(static_cast<uint16_t>(x)), from_f16(static_cast<uint16_t>(x >> 16))};
    }
    static AFN_DEVICE uint32_t pack(float low, float high) { return pack_f16(low, high); }
};
struct Float8 {
    using Pair = uint16_t;
    static AFN_DEVICE uint16_t pack(float low, float high) { return pack_e4m3(low, high); }
};

AFN_DEVICE double number(const void* p, int64_t i, int wide) {
    return wide ? static_cast<const double*>(p)[i] : static_cast<double>(static_cast<const float*>(p)[i]);
}

struct Turn {
    float sin, cos;
};

// Within 2e-7 up to 1e8 rad: the multiple of pi / 2 is taken off in float64, the rest lies within pi / 4 of zero.
AFN_DEVICE Turn turn(double angle) {
    constexpr double shift = 6755399441055744.0;  // 1.5 x 2^52: what is added to it becomes whole
    double turns = angle * 0.63661977236758134308 + shift - shift;
    float r = static_cast<float>(angle - turns * 1.57079632679489661923), z = r * r;
    int quadrant = static_cast<int>(static_cast<int64_t>(turns));
    float s = fma_of(fma_of(z, -1.9515295891e-4f, 8.3321608736e-3f), z, -1.6666654611e-1f);
    s = fma_of(s * z, r, r);
    float c = fma_of(fma_of(z, 2.443315711809948e-5f, -1.388731625493765e-3f), z, 4.166664568298827e-2f);
    c = fma_of(fma_of(c, z, -0.5f), z, 1.0f);
    Turn y = quadrant & 1 ? Turn{c, s} : Turn{s, c};
    return {quadrant & 2 ? -y.sin : y.sin, (quadrant + 1) & 2 ? -y.cos : y.cos};
}

template <class Number, class Entry>
AFN_DEVICE void qkv_rotary(const QkvRotary& p) {
    using Pair = typename Number::Pair;
    int lane = thread_index() % 32, warp = thread_index() / 32, width = 2 * p.half;
    int64_t token = block_index() / p.shares, slot = p.slots[token];
    double position = number(p.positions, token, p.wide_positions);
    Turn turns[kSteps][2] = {};
#pragma unroll
    for (int i = 0; i < kSteps; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            int d = 64 * i + 2 * lane + j;
            if (d < p.half) turns[i][j] = turn(position * number(p.inv_freq, d, p.wide_frequencies));
        }
    bool kept = slot >= 0 && slot < p.rows;
    int q_end = p.heads, k_end = q_end + p.kv_heads, v_end = k_end + p.kv_heads;
    for (int head = block_index() % p.shares * kWarps + warp; head < v_end; head += p.shares * kWarps) {
        bool turned = head < k_end;
        int kv_head = head - (turned ? q_end : k_end);
        const float* scales = turned ? p.k_scale : p.v_scale;
        int count = turned ? p.k_scales : p.v_scales;
        float scale = head >= q_end && count ? scales[count > 1 ? kv_head : 0] : 1.0f;
        const Pair* from = reinterpret_cast<const Pair*>(static_cast<const char*>(p.qkv) +
                                                         (token * p.stride + head * width) * (sizeof(Pair) / 2));
        const Pair* bias = static_cast<const Pair*>(p.bias) + head * p.half;
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
            int d = 32 * i + lane;  // in pairs
            if (2 * d >= p.half) continue;
            float2 a = Number::load(from[d]), b = Number::load(from[d + p.half / 2]);
            if (p.bias) {
                float2 x = Number::load(bias[d]), y = Number::load(bias[d + p.half / 2]);
                a = {a.x + x.x, a.y + x.y};
                b = {b.x + y.x, b.y + y.y};
            }
            if (turned) {
                Turn s = turns[i][0], t = turns[i][1];
                float2 low = {a.x * s.cos - b.x * s.sin, a.y * t.cos - b.y * t.sin};
                b = {b.x * s.cos + a.x * s.sin, b.y * t.cos + a.y * t.sin};
                a = low;
            }
            if (head < q_end) {
                Pair* to = static_cast<Pair*>(p.q) + (token * p.heads + head) * p.half;
                to[d] = Number::pack(a.x, a.y);
                to[d + p.half / 2] = Number::pack(b.x, b.y);
            } else if (kept) {
                int64_t at = turned ? slot * p.k_row + kv_head * p.k_head : slot * p.v_row + kv_head * p.v_head;
                auto* to = static_cast<typename Entry::Pair*>(turned ? p.k_cache : p.v_cache) + at / 2;
                to[d] = Entry::pack(a.x / scale, a.y / scale);
                to[d + p.half / 2] = Entry::pack(b.x / scale, b.y / scale);
            }
        }
    }
}

}  // namespace afn

AFN_KERNEL(qkv_rotary_float32, afn::QkvRotary, afn::kThreads, 4) { afn::qkv_rotary<afn::Float32, afn::Float32>(p); }
AFN_KERNEL(qkv_rotary_bfloat16, afn::QkvRotary, afn::kThreads, 4) { afn::qkv_rotary<afn::Bfloat16, afn::Bfloat16>(p); }
AFN_KERNEL(qkv_rotary_float16, afn::QkvRotary, afn::kThreads, 4) { afn::qkv_rotary<afn::Float16, afn::Float16>(p); }
AFN_KERNEL(qkv_rotary_float32_fp8, afn::QkvRotary, afn::kThreads, 4) { afn::qkv_rotary<afn::Float32, afn::Float8>(p); }
AFN_KERNEL(qkv_rotary_bfloat16_fp8, afn::QkvRotary, afn::kThreads, 4) {
    afn::qkv_rotary<afn::Bfloat16, afn::Float8>(p);
}
AFN_KERNEL(qkv_rotary_float16_fp8, afn::QkvRotary, afn::kThreads, 4) { afn::qkv_rotary<afn::Float16, afn::Float8>(p); }

// What comes before and after attention_backward.cuh: numbers of each query, and dq as the caller wants it.
#pragma once

#include "attention_backward.cuh"

namespace afn {

struct AttentionStats {
    const void *dout, *out;          // [tokens, heads, D], of 16 bits or, where they are wide, of float32
    const float *lse, *dlse;         // [tokens, heads]; dlse may be null
    const float *carry, *carry_lse;  // out and log-sum-exp of the carry, or null
    float *stats, *dcarry, *dcarry_lse;
    int64_t dout_token, dout_head, lse_token, lse_head, dlse_token, dlse_head, carry_token, carry_head;  // strides
    int tokens, heads, padded, wide_dout, wide_out;
};

template <Number number, int n>
AFN_DEVICE void load_row(float (&x)[n], const void* rows, int64_t at, bool wide) {
    if (wide) {
        const float* from = static_cast<const float*>(rows) + at;
#pragma unroll
        for (int i = 0; i < n; i += 2) {
            float2 two = *reinterpret_cast<const float2*>(from + i);
            x[i] = two.x, x[i + 1] = two.y;
        }
        return;
    }
    const uint16_t* from = static_cast<const uint16_t*>(rows) + at;
#pragma unroll
    for (int i = 0; i < n; i += 2) {
        uint32_t two = *reinterpret_cast<const uint32_t*>(from + i);
        uint16_t low = static_cast<uint16_t>(two), high = static_cast<uint16_t>(two >> 16);
        x[i] = number == Number::bf16 ? from_bf16(low) : from_f16(low);
        x[i + 1] = number == Number::bf16 ? from_bf16(high) : from_f16(high);
    }
}

template <int n>
AFN_DEVICE float sum_of_products(const float (&x)[n], const float (&y)[n]) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < n; ++i) sum = fma_of(x[i], y[i], sum);
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) sum += shuffle_xor(sum, lanes);
    return sum;
}

// A warp for each query: its log-sum-exp in base 2, +inf, which makes every p zero, where it sees no key; and
// delta = rowsum(dout out) - dlse. With a carry also the carry's gradients.
template <Number number, int D>
AFN_DEVICE void attention_stats(const AttentionStats& p) {
    constexpr int n = D / 32;
    int token = block_index() * 8 + thread_index() / 32, lane = thread_index() % 32, head = block_index_y();
    if (token >= p.tokens) return;
    float dout[n], out[n];
    int64_t row = (static_cast<int64_t>(token) * p.heads + head) * D + n * lane;
    load_row<number>(dout, p.dout, token * p.dout_token + head * p.dout_head + n * lane, p.wide_dout);
    load_row<number>(out, p.out, row, p.wide_out);
    float lse = p.lse[token * p.lse_token + head * p.lse_head];
    float dlse = p.dlse ? p.dlse[token * p.dlse_token + head * p.dlse_head] : 0;
    float delta = sum_of_products(dout, out) - dlse;
    bool none = lse == float_of(0xff800000);
    if (lane == 0) {
        float* stats = p.stats + 2 * static_cast<int64_t>(head) * p.padded + token;
        // What arrives for a query without keys may be NaN, a logaddexp's.
        stats[0] = none ? float_of(0x7f800000) : lse * 1.4426950408889634f;
        stats[p.padded] = none ? 0 : delta;
    }
    if (!p.carry) return;
    float carry_lse = p.carry_lse[token * p.carry_token + head * p.carry_head];
    float share = carry_lse == float_of(0xff800000) ? 0 : exp2_fast((carry_lse - lse) * 1.4426950408889634f);
    float carry[n];
    load_row<number>(carry, p.carry, row, true);
#pragma unroll
    for (int i = 0; i < n; ++i) {
        p.dcarry[row + i] = share * dout[i];
        carry[i] -= out[i];
    }
    float moved = sum_of_products(dout, carry) + dlse;
    if (lane == 0) p.dcarry_lse[static_cast<int64_t>(head) * p.tokens + token] = share > 0 ? share * moved : 0;
}

struct AttentionDq {
    const float* from;  // as of AttentionBackward
    uint16_t* to;       // [tokens, heads, D]
    float scale;
    int tokens, heads;
};

// A thread for 16 columns.
template <Number number, int D>
AFN_DEVICE void attention_dq(const AttentionDq& p) {
    constexpr int each = D / 16;
    int64_t index = static_cast<int64_t>(block_index()) * 256 + thread_index(), row = index / each;
    if (row >= static_cast<int64_t>(p.tokens) * p.heads) return;
    int column = static_cast<int>(index % each), head = static_cast<int>(row % p.heads);
    int64_t token = row / p.heads;
    // Rows of a sequence count from its first one there as here: what is odd is the row of p.from.
    int64_t from = static_cast<int64_t>(head * (D / 64) + column / 4) * p.tokens + token;
    const unsigned char* start = reinterpret_cast<const unsigned char*>(p.from + 64 * from);
    uint32_t words[8];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        float4 x = *reinterpret_cast<const float4*>(start + place_of_dq(from, column % 4, j));
        words[j] = pack<number>(p.scale * x.x, p.scale * x.y);
        words[4 + j] = pack<number>(p.scale * x.z, p.scale * x.w);
    }
    uint4* to = reinterpret_cast<uint4*>(p.to + 16 * index);
    to[0] = make_uint4(words[0], words[1], words[2], words[3]);
    to[1] = make_uint4(words[4], words[5], words[6], words[7]);
}

}  // namespace afn

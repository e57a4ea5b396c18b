// A few new tokens of sequences through all layers of a decoder, in float32 on a CPU.
#pragma once

#include <string>
#include <vector>

#include "afn/attend_simd.h"
#include "afn/decode_step_simd.h"

namespace afn::decode_step {

// A linear layer: weight [out][in], bias [out] or null.
struct Linear {
    const float *weight, *bias;
};

struct Layer {
    const float* input_norm;
    Linear q, k, v, o;
    const float* post_norm;
    Linear gate, up, down;
};

struct Decoder {
    std::vector<Layer> layers;
    const float *norm, *inv_freq;  // [width], [head_dim / 2]
    int64_t width, heads, kv_heads, head_dim, ffn;
    double eps;
};

// Keys and values: kv [layers][2][pages][page][kv_heads][head_dim]. A row is a token, sequence after sequence.
struct Rows {
    const float *x, *positions;  // [rows][width], [rows]
    const int64_t* slots;        // [rows], the new tokens' places in the pages taken as one run; negative: unwritten
    float* kv;
    int64_t rows, pages, page;
    attend::Numbers table, lengths;  // [sequences][columns], [sequences]
    int64_t columns, table_stride;
    attend::Numbers bounds;  // [sequences + 1] of the rows; null where every sequence has one
    int64_t sequences;
};

// Hidden states [rows][width] behind the last norm, into out. False, with nothing computed or written, where a length
// or a page is not there. A row's bits depend on its own sequence and the SIMD level alone.
bool run(const Decoder& decoder, const Rows& rows, float* out, int threads, const std::string& level);

}  // namespace afn::decode_step

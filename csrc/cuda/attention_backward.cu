// The backward of attention: numbers of each query, then dk, dv and dq by blocks of keys, then dq in 16 bits. Of head
// dimensions 64 and 128, bfloat16 and float16; see the headers.
#include "afn/attention_backward_rows.cuh"

#define BACKWARD(name, number, D)                                                 \
    AFN_KERNEL(attention_stats_##name##_##D, afn::AttentionStats, 256, 4) {       \
        afn::attention_stats<afn::Number::number, D>(p);                          \
    }                                                                             \
    AFN_KERNEL(attention_backward_##name##_##D, afn::AttentionBackward, 384, 1) { \
        afn::attention_backward<afn::BackwardTile<afn::Number::number, D>>(p);    \
    }                                                                             \
    AFN_KERNEL(attention_dq_##name##_##D, afn::AttentionDq, 256, 4) { afn::attention_dq<afn::Number::number, D>(p); }
BACKWARD(bfloat16, bf16, 64)
BACKWARD(bfloat16, bf16, 128)
BACKWARD(float16, f16, 64)
BACKWARD(float16, f16, 128)

// Kernels of afn_kernels/paged_attention/cuda.py, by number and width of heads.
#include "afn/attention_forward.cuh"
#include "afn/hopper.cuh"

#define PAGED_ATTENTION(name, ...)                                                                           \
    AFN_KERNEL(paged_attention_##name, afn::AttentionForward, (afn::ForwardTile<__VA_ARGS__>::threads), 1) { \
        afn::attention_forward<afn::ForwardTile<__VA_ARGS__>>(p);                                            \
    }
PAGED_ATTENTION(bfloat16_128, afn::Number::bf16, 128, 2, 6, true)
PAGED_ATTENTION(float16_128, afn::Number::f16, 128, 2, 6, true)
PAGED_ATTENTION(bfloat16_64, afn::Number::bf16, 64, 3, 8, true)
PAGED_ATTENTION(float16_64, afn::Number::f16, 64, 3, 8, true)

// Heads of 64.
#include "afn/decode_attention.cuh"

AFN_DECODE_ATTENTION(64)

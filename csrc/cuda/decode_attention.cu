// Heads of 128.
#include "afn/decode_attention.cuh"

AFN_DECODE_ATTENTION(128)

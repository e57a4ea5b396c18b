// Heads of 256.
#include "afn/decode_attention.cuh"

AFN_DECODE_ATTENTION(256)

// Heads of 80.
#include "afn/decode_attention.cuh"

AFN_DECODE_ATTENTION(80)

// Heads of 96.
#include "afn/decode_attention.cuh"

AFN_DECODE_ATTENTION(96)

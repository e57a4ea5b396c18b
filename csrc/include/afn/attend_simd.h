// Attention over a KV cache on a CPU. Plain data only: attend_simd.cpp is compiled once per SIMD level, and an inline
// library function emitted there could be linked into code for a lesser machine.
#pragma once

#include <cstdint>

// A copy of its own that a level's build left behind could be linked into another one's.
#define AFN_INLINED __attribute__((always_inline)) inline

namespace afn::attend {

constexpr int kKeys = 64;       // keys of a step; steps begin at multiples of it, whatever is computed
constexpr int kRows = 64;       // query rows computed together at most
constexpr int kWidest = 256;    // of a head
constexpr int kPadding = 16;    // a head's elements are padded to a multiple of it
constexpr int kUnlimited = -1;  // of a window

// Integers of 32 or 64 bits.
struct Numbers {
    const void* at;
    bool wide;

    AFN_INLINED int64_t operator[](int64_t i) const {
        return wide ? static_cast<const int64_t*>(at)[i] : static_cast<const int32_t*>(at)[i];
    }
};

// One of the two caches: entry i of a block, KV head h, is at (block, i, h); strides in elements, those of a head
// are 1.
struct Entries {
    const void* at;
    int64_t block, token, head;
};

struct Call {
    const void* q;  // [tokens][heads][width]
    void* out;      // like q
    Entries k, v;
    bool bfloat16;         // q, out and the caches; else float32
    int64_t blocks, page;  // blocks of the cache and entries of each
    Numbers table;         // [sequences][columns], rows table_stride apart; null where block b is sequence b
    int64_t columns, table_stride;
    Numbers bounds;  // [sequences + 1] of the tokens; null where every sequence has `fresh` of them
    int64_t fresh;
    Numbers lengths;     // [sequences]
    Numbers key_bounds;  // [sequences + 1] of packed keys, which one block holds; null where there are lengths
    Numbers prefixes;    // [groups], null without
    int64_t sequences, members;
    int64_t heads, kv_heads, width;
    bool causal;
    int64_t left, right;  // kUnlimited: no window
    float scale, softcap;

    AFN_INLINED int64_t capacity() const { return table.at ? columns * page : page; }
    AFN_INLINED int64_t begin(int64_t sequence) const { return bounds.at ? bounds[sequence] : sequence * fresh; }
    AFN_INLINED int64_t first_key(int64_t sequence) const { return key_bounds.at ? key_bounds[sequence] : 0; }
    AFN_INLINED int64_t length(int64_t sequence) const {
        return key_bounds.at ? key_bounds[sequence + 1] - key_bounds[sequence] : lengths[sequence];
    }
    // Where its first entries are, and how many those are.
    AFN_INLINED int64_t owner(int64_t sequence) const { return prefixes.at ? sequence / members * members : sequence; }
    AFN_INLINED int64_t prefix(int64_t sequence) const { return prefixes.at ? prefixes[sequence / members] : 0; }
};

// Query rows `first` to `last` of one sequence and KV head; row r is token r / group and query head r % group.
struct Tile {
    int64_t sequence, kv_head, first, last;
};

AFN_INLINED int64_t padded(int64_t width) { return (width + kPadding - 1) / kPadding * kPadding; }

// Floats of memory that tiles of up to `rows` rows need, 64-byte aligned.
AFN_INLINED int64_t scratch_size(int64_t rows, int64_t width) {
    return (2 * rows + 3 * kKeys) * padded(width) + 2 * rows * kPadding + 4 * kKeys;
}

// One build of attend_simd.cpp. A row's bits depend on its query and the entries that it sees, on nothing else.
struct Kernel {
    void (*attend)(const Call& call, const Tile& tile, float* scratch);
};

}  // namespace afn::attend

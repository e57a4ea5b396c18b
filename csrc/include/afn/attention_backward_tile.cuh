// What a block of attention_backward.cuh has to do, and where it keeps it in shared memory.
#pragma once

#include "hopper.cuh"

namespace afn {

struct AttentionBackward {
    TensorMap q, k, v, dout;  // [tokens, heads, D]; boxes of a block of rows by 64 columns
    TensorMap stats;          // [2 heads, tokens] of float32: log-sum-exp in base 2 and delta; boxes of a block of both
    float* dq;                // [heads, D / 64, tokens, 64] that is added to, columns as of place_of_dq; null: unwanted
    uint16_t *dk, *dv;        // [keys, KV heads, D]; null: unwanted
    const int* table;         // [tiles, 5]: first query, queries, first key, keys, block; null: one sequence
    int* turns;               // a ticket and how many have added to each row of dq, zeros; null: in any order
    float scale, scale2;      // of scores, and times log2(e)
    int tokens, keys, kv_heads, group, causal;
};

template <Number number_, int D_>
struct BackwardTile {
    static constexpr Number number = number_;
    static constexpr int D = D_, boxes = D / 64;
    // 128 rows of queries of D 128 would need 256 registers for dk, dv, s and dp alone.
    static constexpr int keys = 128, queries = D == 64 ? 128 : 64;
    static constexpr int q_stages = 3, dout_stages = 2, ds_stages = 2;
    // Whether dk of a step is multiplied under the softmax of the next; 32 more registers that D 64 does not have.
    static constexpr bool dk_late = D == 128;
    static constexpr int key_box = 128 * keys, query_box = 128 * queries;  // bytes of 64 columns
    static constexpr int key_bytes = boxes * key_box, query_bytes = boxes * query_box, stats_bytes = 8 * queries;
    static constexpr int ds_bytes = 2 * keys * queries, dq_bytes = 64 * 64 * 4;  // dq's of a warpgroup
    static constexpr int k = 0, v = key_bytes, q = 2 * key_bytes;
    static constexpr int dout = q + q_stages * query_bytes, ds = dout + dout_stages * query_bytes;
    static constexpr int dq = ds + ds_stages * ds_bytes, stats = dq + 2 * dq_bytes;
    static constexpr int barriers = stats + q_stages * stats_bytes;
    static constexpr int program = barriers + 8 * (2 + 2 * q_stages + 2 * dout_stages + 4);
    static constexpr int bytes = program + 8;
};

struct BackwardBarriers {
    uint64_t *k, *v, *q_full, *q_empty, *dout_full, *dout_empty, *dq_full, *dq_empty;
};
template <class T>
AFN_DEVICE BackwardBarriers barriers_of(unsigned char* shared) {
    uint64_t* first = reinterpret_cast<uint64_t*>(shared + T::barriers);
    uint64_t *q = first + 2, *dout = q + 2 * T::q_stages, *dq = dout + 2 * T::dout_stages;
    return {first, first + 1, q, q + T::q_stages, dout, dout + T::dout_stages, dq, dq + 2};
}

// A block of a sequence's keys and the queries that see any of it: of each head of the group, blocks from first on.
struct KeyTile {
    int q0, nq, k0, nk, block, kv_head;
    int n, upper, first, steps;  // query i sees keys up to i + upper
};

// The compiler then knows it to be the same in all lanes.
AFN_DEVICE int uniform(int x) { return static_cast<int>(shuffle(static_cast<uint32_t>(x), 0)); }

// The block's own; read anew wherever it is asked for, so that no register keeps it.
template <class T>
AFN_DEVICE KeyTile place_keys(const AttentionBackward& p, const unsigned char* shared) {
    int program = uniform(*reinterpret_cast<const int*>(shared + T::program));
    int tile = program / p.kv_heads;
    KeyTile at = {0, p.tokens, 0, p.keys, tile, program % p.kv_heads, 0, 0, 0, 0};
    if (p.table) {
        const int* row = p.table + 5 * static_cast<int64_t>(tile);
        at.q0 = uniform(row[0]), at.nq = uniform(row[1]), at.k0 = uniform(row[2]), at.nk = uniform(row[3]);
        at.block = uniform(row[4]);
    }
    at.n = at.block * T::keys;
    at.upper = at.nk - at.nq;
    at.first = p.causal ? max(at.n - at.upper, 0) / T::queries * T::queries : 0;
    at.steps = max(at.nq - at.first + T::queries - 1, 0) / T::queries * p.group;
    return at;
}

// A block of queries of one head, and the next.
struct QueryStep {
    int head, m;  // within the group, within the sequence
};
template <class T>
AFN_DEVICE QueryStep next_step(const KeyTile& at, QueryStep step) {
    step.m += T::queries;
    if (step.m >= at.nq) step = {step.head + 1, at.first};
    return step;
}

// Of a ring of stages, the one that a turn has and the parity of its phase.
struct Turn {
    int stage, parity;
    AFN_DEVICE Turn(int turn, int stages) : stage(turn % stages), parity(turn / stages & 1) {}
};

}  // namespace afn

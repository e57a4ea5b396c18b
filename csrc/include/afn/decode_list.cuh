// The list of all keys that decode_attention's kernels cut into equal ranges, one for each block.
//
// Keys are counted in runs of 16. The list is [sequence][KV head][run]; a sequence's first run begins where its window
// does. With fixed splits a head's runs are padded to whole splits, and a range has whole splits: then a sequence is
// cut at the same keys whatever else is in the batch and however many blocks there are.
#pragma once

#include "afn/device.cuh"

namespace afn {

constexpr int kThreads = 256, kWarps = kThreads / 32, kRun = 16;

struct DecodeAttention {
    const void *q, *k, *v;           // [batch, tokens, heads, D], strides below
    const void *lengths, *table;     // [batch]; [batch, pages] or null; int32, or int64 where wide
    const float *k_scale, *v_scale;  // one, or one a KV head; or null
    void* out;                       // [batch, tokens, heads, D]
    float* parts;                    // [stored, rows, D], then [stored, rows, 2]: maxima and sums
    int* arrived;                    // [batch, KV heads] zeros, left at zero
    int64_t q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head;  // in bytes
    int64_t table_stride, stored;
    int batch, capacity, heads, group, tokens, page, least, wide_lengths, wide_table, k_scales, v_scales;
    int split;               // runs of a split; 0 where the batch decides
    int left;                // keys before its own that a token sees
    float scale, cap, bend;  // times log2(e); no cap is 0; 2 log2(e) / cap
};

// An int32, or the lower half of an int64: one load whichever it is.
AFN_DEVICE int integer(const void* p, int64_t i, int wide) { return static_cast<const int*>(p)[i << wide]; }

// Where a block is on its range.
struct Walk {
    int sequence, head, run;  // the next run to be read
    int first, length, runs;  // of the sequence: the first key that is read, keys from there on, and their runs
    int at, left;             // the run's place in the list, and places left in the range
};

AFN_DEVICE int length_of(const DecodeAttention& p, int sequence) {
    return min(max(integer(p.lengths, sequence, p.wide_lengths), 0), p.capacity);
}
// An empty sequence has a run too, of no keys, so that somebody writes its zeros.
AFN_DEVICE int runs_of(int length) { return max((length + kRun - 1) / kRun, 1); }

// Places of a head in the list.
AFN_DEVICE int places_of(const DecodeAttention& p, int runs) {
    return p.split ? (runs + p.split - 1) / p.split * p.split : runs;
}
AFN_DEVICE int places_of_sequence(const DecodeAttention& p, int sequence) {
    return places_of(p, runs_of(min(length_of(p, sequence), p.left + p.tokens)));
}

AFN_DEVICE void enter(const DecodeAttention& p, Walk& walk) {
    int length = length_of(p, walk.sequence);
    walk.length = min(length, p.left + p.tokens);
    walk.first = length - walk.length;
    walk.runs = runs_of(walk.length);
}

AFN_DEVICE void advance(const DecodeAttention& p, Walk& walk, int runs) {
    walk.run += runs;
    bool over = walk.run >= walk.runs;
    int places = over ? runs + places_of(p, walk.runs) - walk.runs : runs;
    walk.at += places;
    walk.left -= places;
    if (!over) return;
    walk.run = 0;
    if (++walk.head < p.heads) return;
    walk.head = 0;
    ++walk.sequence;
    if (walk.left > 0) enter(p, walk);
}

// Runs of the walk's next tile, of at most so many.
AFN_DEVICE int next_runs(const DecodeAttention& p, const Walk& walk, int most) {
    int runs = min(min(most, walk.runs - walk.run), walk.left);
    return p.split ? min(runs, p.split - walk.run % p.split) : runs;
}

// Whether a part ends with these runs: at the end of a head, of a split or of the range.
AFN_DEVICE bool part_ends(const DecodeAttention& p, const Walk& walk, int runs) {
    int run = walk.run + runs;
    return run == walk.runs || runs == walk.left || (p.split && run % p.split == 0);
}

AFN_DEVICE uint32_t warp_sum(uint32_t x) {
    for (int mask = 16; mask; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

// The block's range; every warp finds it for itself. Returns the length of a range.
AFN_DEVICE int find_range(const DecodeAttention& p, Walk& walk) {
    int lane = thread_index() % 32;
    uint32_t total = 0;
    if (p.batch == 1) {
        total = places_of_sequence(p, 0);
    } else {
        for (int b = lane; b < p.batch; b += 32) total += places_of_sequence(p, b);
        total = warp_sum(total);
    }
    int all = static_cast<int>(total) * p.heads, unit = max(p.split, 1);
    int range = max((all / unit + grid_size() - 1) / grid_size() * unit, p.least);
    int begin = block_index() * range;
    walk = {0, 0, 0, 0, 0, 0, begin, min(range, all - begin)};
    if (walk.left <= 0) return range;
    int before = 0;
    for (int first = 0; p.batch > 1 && first < p.batch; first += 32) {
        uint32_t own = first + lane < p.batch ? places_of_sequence(p, first + lane) : 0, upto = own;
        for (int i = 1; i < 32; i *= 2) {
            uint32_t left = shuffle(upto, lane - i);
            upto += lane >= i ? left : 0;
        }
        bool passed = own && before + static_cast<int>(upto) * p.heads <= begin;
        int sequences = static_cast<int>(warp_sum(passed));
        before += static_cast<int>(warp_sum(passed ? own : 0)) * p.heads;
        walk.sequence += sequences;
        if (sequences < 32) break;
    }
    enter(p, walk);
    int places = places_of(p, walk.runs);
    walk.head = (begin - before) / places;
    walk.run = (begin - before) % places;
    return range;
}

// The parts of a head, in order, and which of them a walk that stands in it is in.
struct Parts {
    int64_t first;  // of the head's parts, or of the blocks that have one
    int count, split;
    int64_t own;
    // Without fixed splits a block has room for two: of the head that its range begins within, and of the head that
    // begins in it and goes on in the next.
    AFN_DEVICE int64_t at(int i) const { return split ? first + i : 2 * (first + i) + (i == 0); }
};

AFN_DEVICE Parts parts_of(const DecodeAttention& p, const Walk& walk, int range) {
    int column = walk.at - walk.run, places = places_of(p, walk.runs), cut = p.split ? p.split : range;
    Parts parts = {column / cut, (column + places - 1) / cut - column / cut + 1, p.split, 0};
    parts.own = parts.at((p.split ? walk.at / cut : block_index()) - static_cast<int>(parts.first));
    return parts;
}

}  // namespace afn

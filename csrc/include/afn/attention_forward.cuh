// Attention of packed sequences on Hopper, forward: a block keeps to its multiprocessor and takes tiles of queries, the
// longest first. A warpgroup fetches queries and a ring of blocks of keys and values; each of the others has 64
// queries. A block's softmax runs under the products of the next scores and of the values before; and warpgroups take
// turns, so that one computes exponentials while another multiplies. Built for FlashAttention 3's overlap,
// arXiv:2407.08608.
#pragma once

#include "hopper.cuh"

namespace afn {

struct AttentionForward {
    // [tokens, heads, width]; boxes of 64 columns of a head, of a tile's queries or a block's keys. Paged keys and
    // values are [pages, page, heads, width], in boxes of a page or of a block's keys, whichever is smaller.
    TensorMap q, k, v;
    const int* table;            // of tiles, as afn_kernels/attention/schedule.py makes it; null for one sequence
    void* out;                   // [total_q, heads, width], dense; float with a carry
    float* lse;                  // [heads, total_q], or null
    const float *out_c, *lse_c;  // the carry, as out and lse, or null
    const int* pages;            // of paged keys, [sequences, page_row]
    int64_t page_row;
    int total_q, total_k, tiles, heads, group, causal;
    int page, page_count;  // keys of a page, pages
    float scale2;          // of the scores, times log2(e)
};

// By how much in base 2 a row may outgrow its maximum: exponentials are at most 2^8 then, and as exact as below 1.
constexpr float kLazy = 8.0f;

template <Number number_, int width_, int groups_, int stages_, bool paged_ = false>
struct ForwardTile {
    static constexpr Number number = number_;
    static constexpr bool paged = paged_;
    static constexpr int width = width_, groups = groups_, stages = stages_;
    static constexpr int rows = 64 * groups, keys = 128, parts = width / 64;  // a part is 128 bytes wide
    static constexpr int threads = 128 * (1 + groups);
    static constexpr int q_bytes = 2 * rows * width, stage_bytes = 2 * keys * width;
    static constexpr int barriers = q_bytes + stages * stage_bytes;
};

// What a tile is: queries from m on of a sequence, and its blocks of keys, which are taken from the last one on.
struct ForwardWork {
    int q0, nq, k0, nk, m, head;  // with pages k0 is the number of the sequence
    int blocks;                   // of which some query of the tile sees a key
    int masked;                   // of these, the last ones, that not all queries see all of
};

template <class T>
AFN_DEVICE ForwardWork work_of(const AttentionForward& p, int item) {
    int tile = item / p.heads, block = p.causal ? p.tiles - 1 - tile : tile;
    ForwardWork w = {0, p.total_q, 0, p.total_k, 0, item % p.heads, 0, 0};
    if (p.table) {
        const int* row = p.table + 5 * static_cast<int64_t>(tile);
        w.q0 = row[0], w.nq = row[1], w.k0 = row[2], w.nk = row[3], block = row[4];
    }
    w.m = block * T::rows;
    int rows = min(T::rows, w.nq - w.m), every = w.nk, some = w.nk;
    if (p.causal) {
        every = min(max(w.m + 1 + w.nk - w.nq, 0), w.nk);
        some = min(max(w.m + rows + w.nk - w.nq, 0), w.nk);
    }
    w.blocks = rows > 0 ? (some + T::keys - 1) / T::keys : 0;
    w.masked = w.blocks - every / T::keys;
    return w;
}

// The block's item of a round of the grid; every other round goes backwards, so that all have as much to do.
AFN_DEVICE int item_of(int round) {
    return round * grid_size() + (round % 2 ? grid_size() - 1 - block_index() : block_index());
}

// A place in the ring, and the parity of its phase.
template <class T>
struct ForwardStage {
    int slot = 0, phase = 0;
    AFN_DEVICE ForwardStage next() const {
        return slot + 1 < T::stages ? ForwardStage{slot + 1, phase} : ForwardStage{0, phase ^ 1};
    }
};

template <class T>
struct ForwardShared {
    unsigned char* memory;
    AFN_DEVICE unsigned char* stage(int slot) const { return memory + T::q_bytes + slot * T::stage_bytes; }
    AFN_DEVICE uint64_t* full(int slot) const { return reinterpret_cast<uint64_t*>(memory + T::barriers) + slot; }
    AFN_DEVICE uint64_t* empty(int slot) const { return full(T::stages + slot); }
    AFN_DEVICE uint64_t* q_full() const { return full(2 * T::stages); }
    AFN_DEVICE uint64_t* q_empty() const { return full(2 * T::stages + 1); }
};

// A block of keys or of values. A page behind the sequence's end is none at all: its keys become zero.
template <class T>
AFN_DEVICE void fetch_block(const AttentionForward& p, const ForwardWork& w, const ForwardShared<T>& shared,
                            ForwardStage<T>& at, const TensorMap* map, int block) {
    unsigned char* to = shared.stage(at.slot);
    uint64_t* full = shared.full(at.slot);
    int head = w.head / p.group, first = block * T::keys;
    barrier_wait(shared.empty(at.slot), at.phase ^ 1);
    barrier_expect(full, T::stage_bytes);
    if constexpr (T::paged) {
        const int* pages = p.pages + w.k0 * p.page_row;
        for (int row = 0; row < T::keys; row += min(p.page, T::keys)) {
            int key = first + row, page = key < w.nk ? pages[key / p.page] : p.page_count;
            for (int part = 0; part < T::parts; ++part)
                tensor_copy(to + 128 * (part * T::keys + row), map, full, 64 * part, head, key % p.page, page);
        }
    } else {
        for (int part = 0; part < T::parts; ++part)
            tensor_copy(to + 128 * part * T::keys, map, full, 64 * part, head, w.k0 + first);
    }
    at = at.next();
}

// Keys, then queries, and from there on the next keys before the values of the keys before.
template <class T>
AFN_DEVICE void fetch_all(const AttentionForward& p, const ForwardShared<T>& shared) {
    ForwardStage<T> at;
    int items = p.tiles * p.heads, q_phase = 1;
    for (int round = 0, item; (item = item_of(round)) < items; ++round) {
        ForwardWork w = work_of<T>(p, item);
        for (int i = w.blocks - 1; i >= 0; --i) {
            fetch_block(p, w, shared, at, &p.k, i);
            if (i < w.blocks - 1) {
                fetch_block(p, w, shared, at, &p.v, i + 1);
                continue;
            }
            barrier_wait(shared.q_empty(), q_phase);
            q_phase ^= 1;
            barrier_expect(shared.q_full(), T::q_bytes);
            for (int part = 0; part < T::parts; ++part)
                tensor_copy(shared.memory + part * 128 * T::rows, &p.q, shared.q_full(), 64 * part, w.head, w.q0 + w.m);
        }
        if (w.blocks) fetch_block(p, w, shared, at, &p.v, 0);
    }
}

// What a thread has of its two rows: sums of products with values, and of the softmax maximum (base 2) and sum, the
// sum of this thread's columns alone.
template <class T>
struct ForwardRows {
    float o[T::width / 2], m[2], l[2];
};

AFN_DEVICE int forward_group() { return thread_index() / 128 - 1; }
AFN_DEVICE int forward_row(int half) {
    return thread_index() / 32 * 16 - 128 * 16 / 32 + thread_index() % 32 / 4 + 8 * half;
}

template <class T>
AFN_DEVICE void begin_rows(const AttentionForward& p, const ForwardWork& w, ForwardRows<T>& r) {
#pragma unroll
    for (int i = 0; i < T::width / 2; ++i) r.o[i] = 0.0f;
    r.m[0] = r.m[1] = float_of(0xff800000);
    r.l[0] = r.l[1] = 0.0f;
    if (!p.out_c) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int row = w.m + forward_row(half), lane = thread_index() % 4;
        if (row >= w.nq) continue;
        float lse = p.lse_c[static_cast<int64_t>(w.head) * p.total_q + w.q0 + row];
        if (lse == float_of(0xff800000)) continue;
        r.m[half] = lse * 1.4426950408889634f;
        r.l[half] = lane ? 0.0f : 1.0f;
        const float* from = p.out_c + (static_cast<int64_t>(w.q0 + row) * p.heads + w.head) * T::width + 2 * lane;
#pragma unroll
        for (int i = 0; i < T::width / 8; ++i) {
            float2 x = *reinterpret_cast<const float2*>(from + 8 * i);
            r.o[4 * i + 2 * half] = x.x;
            r.o[4 * i + 2 * half + 1] = x.y;
        }
    }
}

// The warpgroups of a block issue their products in turns.
template <class T>
AFN_DEVICE void take_turn() {
    named_sync(1 + forward_group(), 256);
}
template <class T>
AFN_DEVICE void pass_turn() {
    named_arrive(1 + (forward_group() + 1) % T::groups, 256);
}

template <class T>
AFN_DEVICE void multiply_keys(float (&s)[T::keys / 2], const ForwardShared<T>& shared, int slot) {
#pragma unroll
    for (int step = 0; step < T::width / 16; ++step) {
        int part = step / 4, byte = step % 4 * 32;
        const unsigned char* q = shared.memory + part * 128 * T::rows + forward_group() * 64 * 128 + byte;
        const unsigned char* k = shared.stage(slot) + part * 128 * T::keys + byte;
        wgmma<T::number, T::keys>(s, descriptor(q, 16, 1024, Swizzle::bytes_128),
                                  descriptor(k, 16, 1024, Swizzle::bytes_128), step > 0);
    }
    wgmma_commit();
}
template <class T>
AFN_DEVICE void multiply_values(ForwardRows<T>& r, const uint32_t (&weights)[T::keys / 16][4],
                                const ForwardShared<T>& shared, int slot) {
#pragma unroll
    for (int step = 0; step < T::keys / 16; ++step)
        wgmma<T::number, T::width, Major::mn>(
            r.o, weights[step],
            descriptor(shared.stage(slot) + step * 16 * 128, 128 * T::keys, 1024, Swizzle::bytes_128));
    wgmma_commit();
}

// Scores of the keys from first on to exponentials of them, and to what the sums before are worth beside them.
template <class T, bool masked>
AFN_DEVICE void soften(const AttentionForward& p, const ForwardWork& w, float (&s)[T::keys / 2], ForwardRows<T>& r,
                       float (&keep)[2], int first) {
    constexpr int n = T::keys / 2;
    if (masked) {
        int column = first + thread_index() % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int last = w.nk - 1;
            if (p.causal) last = min(last, w.m + forward_row(half) + w.nk - w.nq);
#pragma unroll
            for (int i = 2 * half; i < n; i += 4)
                for (int j = 0; j < 2; ++j)
                    if (column + i / 4 * 8 + j > last) s[i + j] = float_of(0xff800000);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float top[2] = {s[2 * half], s[2 * half + 1]};
#pragma unroll
        for (int i = 2 * half + 4; i < n; i += 4)
            for (int j = 0; j < 2; ++j) top[j] = fmaxf(top[j], s[i + j]);
        float most = fmaxf(top[0], top[1]);
        most = fmaxf(most, shuffle_xor(most, 1));
        most = fmaxf(most, shuffle_xor(most, 2));
        most *= p.scale2;
        most = most > r.m[half] + kLazy ? most : r.m[half];
        float from = masked && most == float_of(0xff800000) ? 0.0f : most;  // a row that has seen no key
        keep[half] = exp2_fast(r.m[half] - from);
        r.m[half] = most;
        float sum[2] = {r.l[half] * keep[half], 0.0f};
#pragma unroll
        for (int i = 2 * half; i < n; i += 4)
            for (int j = 0; j < 2; ++j) {
                s[i + j] = exp2_fast(fma_of(s[i + j], p.scale2, -from));
                sum[j] += s[i + j];
            }
        r.l[half] = sum[0] + sum[1];
    }
}

template <Number number>
AFN_DEVICE uint32_t pack(float low, float high) {
    return number == Number::bf16 ? pack_bf16(low, high) : pack_f16(low, high);
}

template <class T>
AFN_DEVICE void pack_weights(uint32_t (&weights)[T::keys / 16][4], const float (&s)[T::keys / 2]) {
#pragma unroll
    for (int i = 0; i < T::keys / 4; ++i) weights[i / 4][i % 4] = pack<T::number>(s[2 * i], s[2 * i + 1]);
}

// Rows of values behind the sequence's end become zero: they are another's or stale, and zero times them may be NaN.
template <class T>
AFN_DEVICE void clear_values(const ForwardShared<T>& shared, ForwardStage<T> at, int first) {
    barrier_wait(shared.full(at.slot), at.phase);
    for (int part = 0; part < T::parts; ++part)
        for (int i = 8 * first + thread_index() - 128; i < 8 * T::keys; i += 128 * T::groups)
            *reinterpret_cast<uint4*>(shared.stage(at.slot) + part * 128 * T::keys + 16 * i) = make_uint4(0, 0, 0, 0);
    fence_async();
    named_sync(1 + T::groups, 128 * T::groups);
}

AFN_DEVICE void let_go(uint64_t* barrier) {
    if (thread_index() % 128 == 0) barrier_arrive(barrier);
}

template <class T>
AFN_DEVICE void rescale(ForwardRows<T>& r, const float (&keep)[2]) {
    if (keep[0] == 1.0f && keep[1] == 1.0f) return;
#pragma unroll
    for (int i = 0; i < T::width / 2; ++i) r.o[i] *= keep[i / 2 % 2];
}

// The next block's scores and the values of the block before at once, and under the latter the softmax of the former.
// The stage that comes first was waited for before, the one that comes next is between the softmax and the wait for the
// values, by a parity that seems to depend on the sums: the compiler would take exponentials behind that wait.
template <class T, bool masked>
AFN_DEVICE void attend_next(const AttentionForward& p, const ForwardWork& w, const ForwardShared<T>& shared,
                            ForwardStage<T>& at, uint32_t (&weights)[T::keys / 16][4], ForwardRows<T>& r, int block) {
    float s[T::keys / 2], keep[2];
    ForwardStage<T> keys = at, values = at.next();
    at = values.next();
    barrier_wait(shared.full(values.slot), values.phase);
    take_turn<T>();
    hold(r.o);
    wgmma_fence();
    multiply_keys<T>(s, shared, keys.slot);
    multiply_values<T>(r, weights, shared, values.slot);
    pass_turn<T>();
    wgmma_wait<1>();
    hold(s);
    let_go(shared.empty(keys.slot));
    if (!block) let_go(shared.q_empty());
    soften<T, masked>(p, w, s, r, keep, block * T::keys);
    barrier_wait(shared.full(at.slot), at.phase ^ (r.l[0] + r.l[1] < 0.0f));  // which no sum is
    wgmma_wait<0>();
    hold(r.o);
    let_go(shared.empty(values.slot));
    rescale<T>(r, keep);
    pack_weights<T>(weights, s);
}

template <class T>
AFN_DEVICE void attend(const AttentionForward& p, const ForwardWork& w, const ForwardShared<T>& shared,
                       ForwardStage<T>& at, int q_phase, ForwardRows<T>& r) {
    float s[T::keys / 2], keep[2];
    uint32_t weights[T::keys / 16][4];
    int block = w.blocks - 1;
    barrier_wait(shared.q_full(), q_phase);
    barrier_wait(shared.full(at.slot), at.phase);
    take_turn<T>();
    wgmma_fence();
    multiply_keys<T>(s, shared, at.slot);
    pass_turn<T>();
    wgmma_wait<0>();
    hold(s);
    let_go(shared.empty(at.slot));
    if (!block) let_go(shared.q_empty());
    at = at.next();
    soften<T, true>(p, w, s, r, keep, block * T::keys);
    rescale<T>(r, keep);
    pack_weights<T>(weights, s);
    if (w.nk < w.blocks * T::keys && (T::paged || w.k0 + w.nk < p.total_k))
        clear_values<T>(shared, block ? at.next() : at, w.nk - block * T::keys);
    barrier_wait(shared.full(at.slot), at.phase);
    for (--block; block >= 0 && block >= w.blocks - w.masked; --block)
        attend_next<T, true>(p, w, shared, at, weights, r, block);
    for (; block >= 0; --block) attend_next<T, false>(p, w, shared, at, weights, r, block);
    hold(r.o);
    wgmma_fence();
    multiply_values<T>(r, weights, shared, at.slot);
    wgmma_wait<0>();
    hold(r.o);
    let_go(shared.empty(at.slot));
    at = at.next();
}

template <class T>
AFN_DEVICE void finish_rows(const AttentionForward& p, const ForwardWork& w, ForwardRows<T>& r) {
    int lane = thread_index() % 4;
    bool odd = lane % 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int row = w.m + forward_row(half);
        float l = r.l[half];
        l += shuffle_xor(l, 1);
        l += shuffle_xor(l, 2);
        float most = l == 0.0f ? float_of(0xff800000) : r.m[half] + log2_fast(l), each = l == 0.0f ? 1.0f : 1.0f / l;
        if (p.lse && lane == 0 && row < w.nq)
            p.lse[static_cast<int64_t>(w.head) * p.total_q + w.q0 + row] = most * 0.6931471805599453f;
        int64_t start = (static_cast<int64_t>(w.q0 + row) * p.heads + w.head) * T::width;
        if (p.out_c) {
            float* to = static_cast<float*>(p.out) + start + 2 * lane;
#pragma unroll
            for (int i = 0; i < T::width / 8; ++i)
                if (row < w.nq)
                    *reinterpret_cast<float2*>(to + 8 * i) =
                        float2{r.o[4 * i + 2 * half] * each, r.o[4 * i + 2 * half + 1] * each};
            continue;
        }
        // Neighbours exchange, so that each has eight bytes and four of them have a whole sector.
        uint16_t* to = static_cast<uint16_t*>(p.out) + start + (odd ? 8 + 2 * (lane - 1) : 2 * lane);
#pragma unroll
        for (int i = 0; i < T::width / 16; ++i) {
            const float* o = r.o + 8 * i + 2 * half;
            uint32_t low = pack<T::number>(o[0] * each, o[1] * each), high = pack<T::number>(o[4] * each, o[5] * each);
            uint32_t other = shuffle_xor(odd ? low : high, 1);
            if (row < w.nq) *reinterpret_cast<uint2*>(to + 16 * i) = odd ? uint2{other, high} : uint2{low, other};
        }
    }
}

template <class T>
AFN_DEVICE void attend_all(const AttentionForward& p, const ForwardShared<T>& shared) {
    ForwardStage<T> at;
    int items = p.tiles * p.heads, q_phase = 0;
    if (forward_group() == T::groups - 1) pass_turn<T>();
    for (int round = 0, item; (item = item_of(round)) < items; ++round) {
        ForwardWork w = work_of<T>(p, item);
        ForwardRows<T> r;
        begin_rows<T>(p, w, r);
        if (w.blocks) {
            attend<T>(p, w, shared, at, q_phase, r);
            q_phase ^= 1;
        }
        finish_rows<T>(p, w, r);
    }
    if (forward_group() == 0) take_turn<T>();
}

template <class T>
AFN_DEVICE void attention_forward(const AttentionForward& p) {
    ForwardShared<T> shared{shared_memory()};
    if (thread_index() == 0) {
        for (int slot = 0; slot < T::stages; ++slot) {
            barrier_start(shared.full(slot), 1);
            barrier_start(shared.empty(slot), T::groups);
        }
        barrier_start(shared.q_full(), 1);
        barrier_start(shared.q_empty(), T::groups);
        barriers_started();
    }
    sync_block();
    if (thread_index() < 128) {
        registers_less<T::groups == 2 ? 24 : 32>();
        if (thread_index() == 0) fetch_all<T>(p, shared);
    } else {
        registers_more<T::groups == 2 ? 240 : 160>();
        attend_all<T>(p, shared);
    }
}

}  // namespace afn

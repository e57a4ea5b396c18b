// The backward of attention in one pass over blocks of keys, on Hopper: the first warpgroup fetches queries and adds up
// dq in global memory, two others multiply. Scores are transposed, [keys, queries]: p and ds are then left operands in
// registers of dv += pᵀ dout and dk += dsᵀ q. For dq = ds k they also write ds to shared memory.
//
// As in FlashAttention 3 (Shah et al., 2024, arXiv:2407.08608); see Multiplier for the order of products.
#pragma once

#include "attention_backward_tile.cuh"

namespace afn {

template <class T>
AFN_DEVICE void fetch_rows(unsigned char* to, int box_bytes, const TensorMap* map, uint64_t* full, int head, int row) {
#pragma unroll
    for (int box = 0; box < T::boxes; ++box) tensor_copy(to + box * box_bytes, map, full, 64 * box, head, row);
}

template <class T>
AFN_DEVICE void produce(const AttentionBackward& p, const KeyTile& at, unsigned char* shared) {
    BackwardBarriers barriers = barriers_of<T>(shared);
    QueryStep step = {0, at.first};
    for (int i = 0; i < at.steps; ++i) {
        Turn q(i, T::q_stages), dout(i, T::dout_stages);
        int head = at.kv_head * p.group + step.head, row = at.q0 + step.m;
        if (!i) {
            barrier_expect(barriers.k, T::key_bytes);
            fetch_rows<T>(shared + T::k, T::key_box, &p.k, barriers.k, at.kv_head, at.k0 + at.n);
        }
        barrier_wait(barriers.q_empty + q.stage, q.parity ^ 1);
        barrier_expect(barriers.q_full + q.stage, T::query_bytes + T::stats_bytes);
        fetch_rows<T>(shared + T::q + q.stage * T::query_bytes, T::query_box, &p.q, barriers.q_full + q.stage, head,
                      row);
        tensor_copy(shared + T::stats + q.stage * T::stats_bytes, &p.stats, barriers.q_full + q.stage, row, 2 * head);
        if (!i) {
            barrier_expect(barriers.v, T::key_bytes);
            fetch_rows<T>(shared + T::v, T::key_box, &p.v, barriers.v, at.kv_head, at.k0 + at.n);
        }
        barrier_wait(barriers.dout_empty + dout.stage, dout.parity ^ 1);
        barrier_expect(barriers.dout_full + dout.stage, T::query_bytes);
        fetch_rows<T>(shared + T::dout + dout.stage * T::query_bytes, T::query_box, &p.dout,
                      barriers.dout_full + dout.stage, head, row);
        step = next_step<T>(at, step);
    }
}

// Of dq's blocks a warpgroup has 64 columns (D 128) or 64 rows (D 64); where they lie in p.dq.
template <class T>
AFN_DEVICE int first_row_of_dq(int group) {
    return T::D == 64 ? 64 * group : 0;
}
template <class T>
AFN_DEVICE int64_t row_of_dq(const AttentionBackward& p, const KeyTile& at, QueryStep step, int group) {
    int head = at.kv_head * p.group + step.head, columns = T::D == 64 ? 0 : group;
    return static_cast<int64_t>(head * T::boxes + columns) * p.tokens + at.q0 + step.m + first_row_of_dq<T>(group);
}
// Byte of the four columns 16 i + 2 j + {0, 1, 8, 9}, which a thread has, in a row of 64. A warp writes 512 bytes to
// all banks at once where odd rows have their halves of 128 bytes exchanged.
AFN_DEVICE int place_of_dq(uint32_t row, int i, int j) { return (4 * (i ^ static_cast<int>(row & 1)) + j) * 16; }

// Adds one warpgroup's part of dq to global memory, step by step. In turns, blocks of keys add to a row one after
// another, as they follow each other in their sequence: sums are the same in every run then, at the price of a step or
// two of waiting for the block before, which has begun earlier. Partial sums by block would take as much memory for
// each as dq does; a kernel of its own for dq, two of seven products more.
template <class T>
AFN_DEVICE void add_dq(const AttentionBackward& p, const KeyTile& at, unsigned char* shared, int group) {
    BackwardBarriers barriers = barriers_of<T>(shared);
    QueryStep step = {0, at.first};
    for (int i = 0; i < at.steps; ++i) {
        barrier_wait(barriers.dq_full + group, i & 1);
        int rows = min(64, at.nq - step.m - first_row_of_dq<T>(group));
        bool adds = rows > 0 && p.dq;
        int64_t row = row_of_dq<T>(p, at, step, group);
        if (adds) {
            if (p.turns) wait_for(p.turns + 1 + row, at.block);
            bulk_add(p.dq + 64 * row, reinterpret_cast<float*>(shared + T::dq + group * T::dq_bytes), 256 * rows);
            store_commit();
            store_wait_read<0>();
        }
        barrier_arrive(barriers.dq_empty + group);
        if (adds && p.turns) {
            store_wait<0>();
            atomic_add_release(p.turns + 1 + row, 1);
        }
        step = next_step<T>(at, step);
    }
}

constexpr int kMultiply = 1;  // named barrier of the two warpgroups that do

// Zeros to rows of a block that are of another sequence: what is there could be NaN, which a zero of p or ds leaves.
template <class T, int rows>
AFN_DEVICE void clear_rows(unsigned char* block, int first) {
    constexpr int box_bytes = 128 * rows;
    int thread = again(thread_index()) - 128;
#pragma unroll
    for (int i = 0; i < T::boxes * box_bytes / 4096; ++i) {
        int byte = 4096 * i + 16 * thread;
        if (byte % box_bytes >= 128 * first) *reinterpret_cast<uint4*>(block + byte) = make_uint4(0, 0, 0, 0);
    }
}

// s [64 keys, queries] = rows of a block of keys times a block of queries.
template <class T>
AFN_DEVICE void multiply_rows(float (&s)[T::queries / 2], const unsigned char* keys, const unsigned char* queries) {
#pragma unroll
    for (int step = 0; step < T::D / 16; ++step) {
        const unsigned char* a = keys + step / 4 * T::key_box + step % 4 * 32;
        const unsigned char* b = queries + step / 4 * T::query_box + step % 4 * 32;
        wgmma<T::number, T::queries>(s, descriptor(a, 16, 1024, Swizzle::bytes_128),
                                     descriptor(b, 16, 1024, Swizzle::bytes_128), step > 0);
    }
}
// sum [64 keys, D] += a [64 keys, queries] times a block of queries.
template <class T>
AFN_DEVICE void add_rows(float (&sum)[T::D / 2], const uint32_t (&a)[T::queries / 16][4],
                         const unsigned char* queries) {
#pragma unroll
    for (int step = 0; step < T::queries / 16; ++step)
        wgmma<T::number, T::D, Major::mn>(sum, a[step],
                                          descriptor(queries + 2048 * step, T::query_box, 1024, Swizzle::bytes_128));
}
// dq [64 queries, 64 columns] = ds [queries, keys] k.
template <class T>
AFN_DEVICE void multiply_keys(float (&dq)[32], const unsigned char* ds, const unsigned char* keys) {
#pragma unroll
    for (int step = 0; step < T::keys / 16; ++step)
        wgmma<T::number, 64, Major::mn, Major::mn>(dq, descriptor(ds + 2048 * step, 16, 1024, Swizzle::bytes_128),
                                                   descriptor(keys + 2048 * step, 16, 1024, Swizzle::bytes_128),
                                                   step > 0);
}

// The first of a thread's two rows of sums, as a row of the block; the other is eight further on.
AFN_DEVICE int key_of_thread() { return (thread_index() - 128) / 32 * 16 + thread_index() % 32 / 4; }

template <Number number>
AFN_DEVICE uint32_t pack(float low, float high) {
    return number == Number::bf16 ? pack_bf16(low, high) : pack_f16(low, high);
}
// Sums of a product as the left operand of another.
template <Number number, int n>
AFN_DEVICE void pack_operand(uint32_t (&a)[n / 8][4], const float (&d)[n]) {
#pragma unroll
    for (int i = 0; i < n / 2; ++i) a[i / 4][i % 4] = pack<number>(d[2 * i], d[2 * i + 1]);
}

// Which of a thread's scores count in a block that has others: by row, those of count columns from low on.
struct Seen {
    int low[2];
    uint32_t count[2];
    AFN_DEVICE bool operator()(int i) const {  // a score's register
        int column = i / 4 * 8 + i % 2;
        return static_cast<uint32_t>(column - low[i / 2 % 2]) < count[i / 2 % 2];
    }
};

template <class T>
AFN_DEVICE void softmax(float (&s)[T::queries / 2], const float* lse, float scale2, bool masked, const Seen& seen) {
#pragma unroll
    for (int i = 0; i < T::queries / 2; i += 4) {
        float2 own = *reinterpret_cast<const float2*>(lse + 2 * i);
#pragma unroll
        for (int j = i; j < i + 4; ++j) s[j] = exp2_fast(fma_of(s[j], scale2, j % 2 ? -own.y : -own.x));
    }
    if (!masked) return;
#pragma unroll
    for (int i = 0; i < T::queries / 2; ++i) s[i] = seen(i) ? s[i] : 0;
}
// dp becomes ds = p (dp - delta).
template <class T>
AFN_DEVICE void differentiate(float (&dp)[T::queries / 2], const float (&s)[T::queries / 2], const float* delta,
                              bool masked, const Seen& seen) {
#pragma unroll
    for (int i = 0; i < T::queries / 2; i += 4) {
        float2 own = *reinterpret_cast<const float2*>(delta + 2 * i);
#pragma unroll
        for (int j = i; j < i + 4; ++j) dp[j] = s[j] * (dp[j] - (j % 2 ? own.y : own.x));
    }
    if (!masked) return;
#pragma unroll
    for (int i = 0; i < T::queries / 2; ++i) dp[i] = seen(i) ? dp[i] : 0;
}

// ds to shared memory, queries side by side, in 64s.
template <class T>
AFN_DEVICE void write_ds(unsigned char* to, const uint32_t (&ds)[T::queries / 16][4], int key) {
#pragma unroll
    for (int step = 0; step < T::queries / 16; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int column = 16 * step + i / 2 * 8, row = key + i % 2 * 8;
            int chunk = column % 64 / 8 ^ (row & 7);
            *reinterpret_cast<uint32_t*>(to + column / 64 * T::key_box + 128 * row + 16 * chunk +
                                         4 * (thread_index() % 4)) = ds[step][i];
        }
}

template <class T>
AFN_DEVICE void write_dq(unsigned char* to, const float (&dq)[32], uint32_t first) {
    int row = thread_index() % 128 / 32 * 16 + thread_index() % 32 / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float* own = dq + 8 * i + 2 * half;
            *reinterpret_cast<float4*>(to + 256 * (row + 8 * half) + place_of_dq(first + row, i, thread_index() % 4)) =
                float4{own[0], own[1], own[4], own[5]};
        }
}

template <class T>
AFN_DEVICE void write_rows(uint16_t* to, const float (&sum)[T::D / 2], float scale, const AttentionBackward& p,
                           const KeyTile& at) {
    if (!to) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int row = at.n + key_of_thread() + 8 * half;
        int64_t first = (static_cast<int64_t>(at.k0 + row) * p.kv_heads + at.kv_head) * T::D + 2 * (thread_index() % 4);
        if (row < at.nk)
#pragma unroll
            for (int i = 2 * half; i < T::D / 2; i += 4)
                *reinterpret_cast<uint32_t*>(to + first + i / 4 * 8) =
                    pack<T::number>(scale * sum[i], scale * sum[i + 1]);
    }
}

// A warpgroup with 64 of the block's keys. Its products come in this order, each under the arithmetic beside it:
//     dv               ds goes to shared memory
//     dq
//     s of the next    dq goes to shared memory
//     dk               (before s of the next, where there are no registers for it to last so long)
//     dp of the next   p of the next
// The compiler follows products within one turn of a loop alone, hence the turns: none is under way between them.
template <class T>
struct Multiplier {
    const AttentionBackward& p;
    const KeyTile& at;
    unsigned char* shared;
    BackwardBarriers barriers;
    int group, thread, key;  // a row of the block; another is eight further on
    int first[2], every;     // query that sees the thread's keys; all of the block from every on
    QueryStep step;
    int turn = 0;

    AFN_DEVICE Multiplier(const AttentionBackward& p, const KeyTile& at, unsigned char* shared)
        : p(p), at(at), shared(shared), barriers(barriers_of<T>(shared)), step{0, at.first} {
        thread = thread_index() % 128;
        group = uniform(thread_index() / 128 - 1);
        key = key_of_thread();
        for (int half = 0; half < 2; ++half) {
            int own = at.n + key + 8 * half;
            first[half] = own >= at.nk ? at.nq : p.causal ? min(max(own - at.upper, 0), at.nq) : 0;
        }
        every = at.n + T::keys > at.nk ? at.nq : p.causal ? at.n + T::keys - 1 - at.upper : 0;
    }

    AFN_DEVICE Turn q() const { return {turn, T::q_stages}; }
    AFN_DEVICE Turn dout() const { return {turn, T::dout_stages}; }
    AFN_DEVICE unsigned char* q_block() const { return shared + T::q + q().stage * T::query_bytes; }
    AFN_DEVICE unsigned char* dout_block() const { return shared + T::dout + dout().stage * T::query_bytes; }
    AFN_DEVICE const float* stats() const {
        return reinterpret_cast<const float*>(shared + T::stats + q().stage * T::stats_bytes) + thread % 4 * 2;
    }
    AFN_DEVICE bool masked() const { return step.m < every || step.m + T::queries > at.nq; }
    AFN_DEVICE Seen seen() const {
        int column = step.m + thread % 4 * 2;
        return {{first[0] - column, first[1] - column},
                {static_cast<uint32_t>(at.nq - first[0]), static_cast<uint32_t>(at.nq - first[1])}};
    }

    AFN_DEVICE void await_keys() const {
        barrier_wait(barriers.k, 0);
        if (at.n + T::keys > at.nk) {
            barrier_wait(barriers.v, 0);
            clear_rows<T, T::keys>(shared + T::k, at.nk - at.n);
            clear_rows<T, T::keys>(shared + T::v, at.nk - at.n);
            fence_async();
            named_sync(kMultiply, 256);
        }
    }
    AFN_DEVICE void await_queries() const {
        barrier_wait(barriers.q_full + q().stage, q().parity);
        if (step.m + T::queries > at.nq) {
            barrier_wait(barriers.dout_full + dout().stage, dout().parity);
            clear_rows<T, T::queries>(q_block(), at.nq - step.m);
            clear_rows<T, T::queries>(dout_block(), at.nq - step.m);
            fence_async();
            named_sync(kMultiply, 256);
        }
    }
    // s from a block of q and the keys, or dp from one of dout and the values.
    AFN_DEVICE void begin(float (&s)[T::queries / 2], int keys, const unsigned char* queries) const {
        wgmma_fence();
        multiply_rows<T>(s, shared + keys + 64 * 128 * again(group), queries);
        wgmma_commit();
    }
    AFN_DEVICE void begin_s(float (&s)[T::queries / 2]) const { begin(s, T::k, q_block()); }
    AFN_DEVICE void begin_dp(float (&dp)[T::queries / 2]) const {
        barrier_wait(barriers.dout_full + dout().stage, dout().parity);
        begin(dp, T::v, dout_block());
    }

    // s holds p, dp is there; what follows it, or nothing.
    template <bool last>
    AFN_DEVICE void take(float (&s)[T::queries / 2], float (&dp)[T::queries / 2], float (&dk)[T::D / 2],
                         float (&dv)[T::D / 2]) {
        uint32_t a[T::queries / 16][4], ds[T::queries / 16][4];
        unsigned char* ds_block = shared + T::ds + turn % T::ds_stages * T::ds_bytes;
        pack_operand<T::number>(a, s);
        differentiate<T>(dp, s, stats() + T::queries, masked(), seen());
        pack_operand<T::number>(ds, dp);
        wgmma_fence();
        add_rows<T>(dv, a, dout_block());
        wgmma_commit();
        write_ds<T>(ds_block, ds, key);
        fence_async();
        named_sync(kMultiply, 256);
        float dq[32];
        wgmma_fence();
        multiply_keys<T>(dq, ds_block + (T::D == 64 ? group * T::key_box : 0),
                         shared + T::k + (T::D == 64 ? 0 : group * T::key_box));
        wgmma_commit();
        wgmma_wait<1>();
        hold(dv);
        if (thread == 0) barrier_arrive(barriers.dout_empty + dout().stage);
        const unsigned char* before = q_block();
        uint64_t* read = barriers.q_empty + q().stage;
        uint32_t row = static_cast<uint32_t>(row_of_dq<T>(p, at, step, group));
        int sums = turn & 1;
        if (last || !T::dk_late) {
            add_rows<T>(dk, ds, before);
            wgmma_commit();
        }
        if (!last) {
            ++turn;
            step = next_step<T>(at, step);
            await_queries();
            begin_s(s);
            if (T::dk_late) {
                add_rows<T>(dk, ds, before);
                wgmma_commit();
            }
        }
        wgmma_wait<last ? 1 : 2>();
        hold(dq);
        barrier_wait(barriers.dq_empty + group, sums ^ 1);
        write_dq<T>(shared + T::dq + group * T::dq_bytes, dq, row);
        fence_async();
        barrier_arrive(barriers.dq_full + group);
        if (!last) {
            if (!T::dk_late) {
                wgmma_wait<1>();
                hold(dk);
                if (thread == 0) barrier_arrive(read);
            }
            begin_dp(dp);
            wgmma_wait<T::dk_late ? 2 : 1>();
            hold(s);
            softmax<T>(s, stats(), p.scale2, masked(), seen());
        }
        wgmma_wait<0>();
        if (!last) hold(dp);
        hold(dk);
        if ((last || T::dk_late) && thread == 0) barrier_arrive(read);
    }
};

template <class T>
AFN_DEVICE void multiply(const AttentionBackward& p, unsigned char* shared) {
    KeyTile at = place_keys<T>(p, shared);
    if (at.n >= at.nk) return;
    Multiplier<T> own(p, at, shared);
    float dk[T::D / 2], dv[T::D / 2];
    for (int i = 0; i < T::D / 2; ++i) dk[i] = dv[i] = 0;
    if (at.steps) {
        float s[T::queries / 2], dp[T::queries / 2];
        own.await_keys();
        own.await_queries();
        own.begin_s(s);
        barrier_wait(own.barriers.v, 0);
        own.begin_dp(dp);
        wgmma_wait<1>();
        hold(s);
        softmax<T>(s, own.stats(), p.scale2, own.masked(), own.seen());
        wgmma_wait<0>();
        hold(dp);
        for (int i = 1; i < at.steps; ++i) own.template take<false>(s, dp, dk, dv);
        own.template take<true>(s, dp, dk, dv);
    }
    at = place_keys<T>(p, shared);
    write_rows<T>(p.dk, dk, p.scale, p, at);
    write_rows<T>(p.dv, dv, 1, p, at);
}

template <class T>
AFN_DEVICE void attention_backward(const AttentionBackward& p) {
    unsigned char* shared = shared_memory();
    int* program = reinterpret_cast<int*>(shared + T::program);
    if (thread_index() == 0) {
        BackwardBarriers barriers = barriers_of<T>(shared);
        barrier_start(barriers.k, 1);
        barrier_start(barriers.v, 1);
        for (int i = 0; i < T::q_stages; ++i) {
            barrier_start(barriers.q_full + i, 1);
            barrier_start(barriers.q_empty + i, 2);
        }
        for (int i = 0; i < T::dout_stages; ++i) {
            barrier_start(barriers.dout_full + i, 1);
            barrier_start(barriers.dout_empty + i, 2);
        }
        for (int i = 0; i < 2; ++i) {
            barrier_start(barriers.dq_full + i, 128);
            barrier_start(barriers.dq_empty + i, 1);
        }
        barriers_started();
        // In turns a block takes the place in which it begins, whatever its number: whom it waits for has begun.
        *program = p.turns ? atomic_add(p.turns, 1) : block_index();
    }
    sync_block();
    if (thread_index() < 128) {
        registers_less<24>();
        KeyTile at = place_keys<T>(p, shared);
        int warp = thread_index() / 32;
        if (at.n >= at.nk || thread_index() % 32) return;
        if (warp == 0) produce<T>(p, at, shared);
        if (warp == 1 || warp == 2) add_dq<T>(p, at, shared, warp - 1);
    } else {
        registers_more<240>();
        multiply<T>(p, shared);
    }
}

}  // namespace afn

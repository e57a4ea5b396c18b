// Log-mel features in one launch. Persistent blocks take 32 frames at a time from samples to features, the samples of
// the next on their way meanwhile, and the block that completes a row clamps what lies too far below the row's maximum.
//
// A frame of 400 real samples is 200 complex ones, z[n] = x[2n] + i x[2n + 1], and ten threads: each transforms 20 of
// them in registers, swaps through shared memory, and transforms twice 10. n = 10 a + b, k = c + 20 d:
//   Z[c + 20 d] = sum_b W10^(b d) · (W200^(b c) · sum_a W20^(a c) z[10 a + b]).
// Thread j of the second half has c = j and c = 20 - j, so that it has Z[k] with Z[200 - k], which the real spectrum
// X[k] = E + W400^k O, X[200 - k] = conj(E - W400^k O) needs. The window is halved for E and O.
//
// Ten neighbours share a frame in the first half; from the second on, a lane is a frame. Strides are such that no two
// lanes meet in a bank of shared memory, but for samples of 16 bits (tests/kernels/log_mel/test_cuda.py counts).
#include "afn/device.cuh"
#include "afn/fourier.cuh"

namespace afn {

constexpr int kHop = 160, kFft = 400, kBins = 201, kFrames = 32, kTeam = 10, kThreads = kFrames * kTeam;
constexpr int kSpan = (kFrames - 1) * kHop + kFft;  // samples of a tile's frames
constexpr int kHops = 4;                            // hops that lie together in shared memory, and are copied so
constexpr int kRow = 10, kSwap = 202;               // float2 of a frame on their way from one half to the other
constexpr int kBatch = 8;                           // loads before the first store
constexpr int kFetcher = kThreads - 32;             // a thread of the warp with the fewest filters
constexpr int kInfinite = 0x7f800000;               // bits from here on: the row holds what is no number

struct LogMel {
    const void* pcm;      // [rows, samples], rows pcm_stride apart
    void* out;            // [rows, mels, frames]
    const float* tables;  // as Tables has them
    int* state;           // [rows, 2] zeros: bits of the largest energy, tiles done; left at zero
    float2* extremes;     // [rows, tiles] smallest feature and bits of the largest energy of each tile
    int64_t pcm_stride, samples;
    int rows, frames, tiles, mels;
};

// Constants at the head of shared memory, as the host lays them out.
struct Tables {
    float2 window[200];  // halved; for int16 also over 32768
    float2 middle[200];  // W200^(b c) at c 10 + b
    float2 last[102];    // W400^k at s 10 + j, k = j + 20 s, but 20 s - 110 where j = 0 and s > 5; k = 90; one not used
    int4 filter[128];    // of each mel: first bin, its weights' begin and end in fours, 0
    float weights[704];  // of each filter in fours
};
static_assert(sizeof(Tables) % 16 == 0, "what follows is aligned");

// How samples lie in shared memory: two of them are a word, kPad words stand between kHops hops and the next.
template <class Sample>
struct Words;
template <>
struct Words<float> {
    static constexpr int kPad = 10;  // lanes of another frame go on where those of the one before end
    static AFN_DEVICE float2 load(const void* samples, int i) { return static_cast<const float2*>(samples)[i]; }
};
template <>
struct Words<int16_t> {
    static constexpr int kPad = 16;
    static AFN_DEVICE float2 load(const void* samples, int i) {
        uint32_t both = static_cast<const uint32_t*>(samples)[i];
        return {static_cast<float>(static_cast<int16_t>(both)), static_cast<float>(static_cast<int16_t>(both >> 16))};
    }
};

// A tile of a row. Blocks walk over the tiles of all rows.
struct Tile {
    int row, tile;

    AFN_DEVICE Tile next(Tile step, int tiles) const {
        int over = tile + step.tile - tiles;
        return {row + step.row + (over >= 0), over >= 0 ? over : over + tiles};
    }
};

struct Shared {
    Tables tables;
    uint64_t barrier;
    int completes, top, below;  // whether the last tile completes a row; the row's largest energy; length of list
    float low[kTeam];
    int high[kTeam];
    int list[kThreads];  // of tiles below the floor: twice the tile, and one if all of it is
    alignas(16) unsigned char samples[(kSpan + kFrames / kHops * 20) * sizeof(float)];
    alignas(16) float2 swap[kFrames * kSwap + kFrames / 8];  // later the powers, [bins][frames]
};
static_assert(sizeof(Shared) == 84096, "what the launch asks for");
static_assert(sizeof(float) * kBins * kFrames <= sizeof(float2) * kFrames * kSwap, "powers fit where halves were");

struct Float32 {
    using Bits = float;
    static AFN_DEVICE float bits(float x) { return x; }
    static AFN_DEVICE float value(float x) { return x; }
};
struct Bfloat16 {
    using Bits = uint16_t;
    static AFN_DEVICE uint16_t bits(float x) { return static_cast<uint16_t>(pack_bf16(x, 0.0f)); }
    static AFN_DEVICE float value(uint16_t x) { return from_bf16(x); }
};
struct Float16 {
    using Bits = uint16_t;
    static AFN_DEVICE uint16_t bits(float x) { return static_cast<uint16_t>(pack_f16(x, 0.0f)); }
    static AFN_DEVICE float value(uint16_t x) { return from_f16(x); }
};

// (log10 of normal positive x, plus shift) / 4; the exponent apart, so that large logarithms round once.
AFN_DEVICE float feature(float x, float shift) {
    int bits = bits_of(x);
    float exponent = static_cast<float>((bits >> 23) - 127);
    float log = log2_fast(float_of((bits & 0x7fffff) | 0x3f800000)) * 0.3010299956639812f;
    // log10(2) = 77 / 256 + 0.00024874...: the first product is exact.
    return (fma_of(exponent, 0.30078125f, fma_of(exponent, 0.00024874566398119521f, log)) + shift) * 0.25f;
}

// Where a tile's samples begin. Bulk copies take what lies within the row at a multiple of 16 bytes.
template <class Sample>
struct Source {
    const Sample* row;
    int64_t begin;
    bool bulk;

    AFN_DEVICE Source(const LogMel& p, Tile at) {
        row = static_cast<const Sample*>(p.pcm) + at.row * p.pcm_stride;
        begin = static_cast<int64_t>(at.tile) * (kFrames * kHop) - kFft / 2;
        bulk = has_bulk_copies() && begin >= 0 && begin + kSpan <= p.samples &&
               reinterpret_cast<uint64_t>(row + begin) % 16 == 0;
    }
};

// By one thread: begins the bulk copies of a tile.
template <class Sample>
AFN_DEVICE void fetch(const LogMel& p, Shared& shared, Tile tile) {
    Source<Sample> source(p, tile);
    if (!source.bulk) return;
    constexpr int piece = kHops * kHop, rest = kSpan % piece;
    static_assert(piece * sizeof(Sample) % 16 == 0 && rest * sizeof(Sample) % 16 == 0, "multiples of 16 bytes");
    Sample* to = reinterpret_cast<Sample*>(shared.samples);
    const Sample* from = source.row + source.begin;
    bulk_expect(&shared.barrier, kSpan * sizeof(Sample));
#pragma unroll 1
    for (int i = 0; i < kSpan / piece; ++i, from += piece, to += piece + 2 * Words<Sample>::kPad)
        bulk_copy(to, from, piece * sizeof(Sample), &shared.barrier);
    bulk_copy(to, from, rest * sizeof(Sample), &shared.barrier);
}

// By all threads: waits for what was fetched, or copies it now.
template <class Sample>
AFN_DEVICE void receive(const LogMel& p, Shared& shared, Tile tile, uint32_t& phase) {
    Source<Sample> source(p, tile);
    if (source.bulk) {
        bulk_wait(&shared.barrier, phase);
        phase ^= 1;
        return;
    }
    Sample* to = reinterpret_cast<Sample*>(shared.samples);
#pragma unroll 1
    for (int i = thread_index(); i < kSpan; i += kThreads) {
        int64_t at = source.begin + i;  // reflected at the ends; what lies further is in no frame of the row
        if (at < 0) at = -at;
        if (at >= p.samples) at = 2 * (p.samples - 1) - at;
        Sample x = at >= 0 && at < p.samples ? source.row[at] : Sample(0);
        to[i + i / (kHops * kHop) * (2 * Words<Sample>::kPad)] = x;
    }
    sync_block();
}

// Teams of neighbours have frames that are kHops apart.
AFN_DEVICE int frame_of(int team) { return team % (kFrames / kHops) * kHops + team / (kFrames / kHops); }
AFN_DEVICE float2* swap_of(Shared& shared, int team) { return shared.swap + team * kSwap + team / 8; }

template <class Sample>
AFN_DEVICE void first_half(Shared& shared, int team, int b) {
    float2 z[20], y[20];
#pragma unroll
    for (int a = 0; a < 20; ++a) {
        int hop = frame_of(team) + a / 8;
        float2 x = Words<Sample>::load(shared.samples, hop * 80 + hop / kHops * Words<Sample>::kPad + a % 8 * 10 + b);
        float2 w = shared.tables.window[10 * a + b];
        z[a] = {x.x * w.x, x.y * w.y};
    }
    fourier20(z, y);
    float2* swap = swap_of(shared, team) + b;
    swap[0] = y[0];
#pragma unroll
    for (int c = 1; c < 20; ++c) swap[c * kRow] = times(y[c], shared.tables.middle[c * 10 + b]);
}

// Powers |E + W O|^2 and |E - W O|^2 of bins k and 200 - k, from Z[k] and Z[200 - k].
AFN_DEVICE void store_powers(float* powers, int k, float2 z, float2 mirror, float2 w) {
    float2 even = {z.x + mirror.x, z.y - mirror.y}, odd = {z.y + mirror.y, mirror.x - z.x};
    float2 turned = times(odd, w);
    float2 low = even + turned, high = even - turned;
    powers[k * kFrames] = fma_of(low.x, low.x, low.y * low.y);
    powers[(200 - k) * kFrames] = fma_of(high.x, high.x, high.y * high.y);
}

// Z[k] and Z[200 - k] with k = c + 20 d lie in the rows c and 20 - c. Warp j > 0 has rows j and 20 - j and pairs one
// with the other; warp 0 has rows 0 and 10 and pairs each with itself: 6 and 5 pairs, one more than the others.
AFN_DEVICE void second_half(Shared& shared, int team, int j) {
    float2 rows[2][10], u[10], v[10];
    const float2* swap = swap_of(shared, team);
    int other = j ? 20 - j : 10;
#pragma unroll
    for (int b = 0; b < 10; ++b) {
        rows[0][b] = swap[j * kRow + b];
        rows[1][b] = swap[other * kRow + b];
    }
    fourier10(rows[0], u);
    fourier10(rows[1], v);
    sync_block();  // the powers lie where the halves were
    float* powers = reinterpret_cast<float*>(shared.swap) + frame_of(team);
    const float2* last = shared.tables.last;
    if (j) {
#pragma unroll
        for (int s = 0; s < 10; ++s) store_powers(powers, j + 20 * s, u[s], v[9 - s], last[s * 10 + j]);
    } else {
#pragma unroll
        for (int s = 0; s < 6; ++s) store_powers(powers, 20 * s, u[s], u[(10 - s) % 10], last[s * 10]);
#pragma unroll
        for (int s = 0; s < 5; ++s) store_powers(powers, 10 + 20 * s, v[s], v[9 - s], last[60 + s * 10]);
    }
    sync_block();
}

// Features of a tile, a tenth of the filters for each warp, from the powers to global memory. The warp's smallest and
// the bits of its largest energy go to shared memory.
template <class Out>
AFN_DEVICE void features(const LogMel& p, Shared& shared, Tile tile, int lane, int warp) {
    int frame = tile.tile * kFrames + lane, high = 0;
    typename Out::Bits* out =
        static_cast<typename Out::Bits*>(p.out) + (static_cast<int64_t>(tile.row) * p.mels + warp) * p.frames + frame;
    const float* powers = reinterpret_cast<const float*>(shared.swap) + lane;
    float low = float_of(kInfinite);
    if (frame < p.frames) {
#pragma unroll 1
        for (int mel = warp; mel < p.mels; mel += kTeam, out += static_cast<int64_t>(kTeam) * p.frames) {
            int4 filter = shared.tables.filter[mel];
            const float* power = powers + filter.x * kFrames;
            const float4* weights = reinterpret_cast<const float4*>(shared.tables.weights) + filter.y;
            const float4* end = reinterpret_cast<const float4*>(shared.tables.weights) + filter.z;
            float energy = 0.0f;
#pragma unroll 1
            do {
                float4 w = *weights;
                energy = fma_of(w.x, power[0], energy);
                energy = fma_of(w.y, power[kFrames], energy);
                energy = fma_of(w.z, power[2 * kFrames], energy);
                energy = fma_of(w.w, power[3 * kFrames], energy);
                power += 4 * kFrames;
            } while (++weights != end);
            // What is no number spoils the maximum; then all of the row is NaN in the end, whatever stands here.
            high = max(high, bits_of(energy) & 0x7fffffff);
            typename Out::Bits bits = Out::bits(feature(max(energy, 1e-10f), 4.0f));
            low = min(low, Out::value(bits));
            *out = bits;
        }
    }
    for (int mask = 16; mask; mask /= 2) {
        high = max(high, static_cast<int>(shuffle_xor(static_cast<uint32_t>(high), mask)));
        low = min(low, shuffle_xor(low, mask));
    }
    if (lane == 0) {
        shared.high[warp] = high;
        shared.low[warp] = low;
    }
}

// By one thread, after a barrier: what the row's last tile has to know, and whether this is it.
AFN_DEVICE void arrive_at_row(const LogMel& p, Shared& shared, Tile tile) {
    float low = shared.low[0];
    int high = shared.high[0], *state = p.state + 2 * tile.row;
    for (int i = 1; i < kTeam; ++i) {
        high = max(high, shared.high[i]);
        low = min(low, shared.low[i]);
    }
    p.extremes[static_cast<int64_t>(tile.row) * p.tiles + tile.tile] = {low, float_of(high)};
    atomic_max(state, high);
    shared.completes = atomic_add_release_acquire(state + 1, 1) == p.tiles - 1;
    if (shared.completes) {
        shared.top = atomic_exchange(state, 0);
        atomic_exchange(state + 1, 0);
    }
}

// A chunk of features, no value below the floor; NaN where that is NaN.
template <class Out>
AFN_DEVICE typename Out::Bits clamped(typename Out::Bits x, float floor) {
    return Out::value(x) >= floor ? x : Out::bits(floor);
}
template <class Out>
AFN_DEVICE uint32_t clamped_word(uint32_t x, float floor) {
    if constexpr (sizeof(typename Out::Bits) == 4) {
        return bits_of(clamped<Out>(float_of(x), floor));
    } else {
        uint32_t low = clamped<Out>(static_cast<uint16_t>(x), floor);
        return low | static_cast<uint32_t>(clamped<Out>(static_cast<uint16_t>(x >> 16), floor)) << 16;
    }
}
template <class Out>
AFN_DEVICE uint4 clamped(uint4 x, float floor) {
    return {clamped_word<Out>(x.x, floor), clamped_word<Out>(x.y, floor), clamped_word<Out>(x.z, floor),
            clamped_word<Out>(x.w, floor)};
}

// The tiles of a list, chunk by chunk. Those wholly below the floor are not read.
template <class Out, class Chunk>
AFN_DEVICE void clamp_tiles(const LogMel& p, typename Out::Bits* out, const int* list, int count, float floor) {
    constexpr int width = sizeof(Chunk) / sizeof(typename Out::Bits), chunks = kFrames / width;
    for (int i = thread_index(); i < p.mels * chunks; i += kThreads) {
        int within = i % chunks * width;
        typename Out::Bits* from = out + static_cast<int64_t>(i / chunks) * p.frames + within;
        for (int first = 0; first < count; first += kBatch) {
            Chunk found[kBatch];
            int at[kBatch];
#pragma unroll
            for (int k = 0; k < kBatch; ++k) {
                int entry = first + k < count ? list[first + k] : 0;
                at[k] = first + k < count && entry / 2 * kFrames + within < p.frames ? entry / 2 * kFrames : -1;
                memset(&found[k], 0xff, sizeof(Chunk));  // NaN, which is clamped too
                if (at[k] >= 0 && entry % 2 == 0) found[k] = load_global(reinterpret_cast<const Chunk*>(from + at[k]));
            }
#pragma unroll
            for (int k = 0; k < kBatch; ++k)
                if (at[k] >= 0) *reinterpret_cast<Chunk*>(from + at[k]) = clamped<Out>(found[k], floor);
        }
    }
}

template <class Out>
AFN_DEVICE void clamp_row(const LogMel& p, Shared& shared, int row) {
    using Bits = typename Out::Bits;
    float top = shared.top < kInfinite ? max(float_of(shared.top), 1e-10f) : float_of(0x7fc00000);
    float floor = shared.top < kInfinite ? Out::value(Out::bits(feature(top, -4.0f))) : top;
    Bits* out = static_cast<Bits*>(p.out) + static_cast<int64_t>(row) * p.mels * p.frames;
    bool whole_chunks = p.frames % (16 / sizeof(Bits)) == 0 && reinterpret_cast<uint64_t>(p.out) % 16 == 0;
    for (int first = 0; first < p.tiles; first += kThreads) {
        if (thread_index() == 0) shared.below = 0;
        sync_block();
        int tile = first + thread_index();
        if (tile < p.tiles) {
            float2 found = load_global(p.extremes + static_cast<int64_t>(row) * p.tiles + tile);
            // Half of what the floor is made of is below it, however its logarithm is rounded.
            bool whole = !(found.y >= 0.5e-8f * top);
            if (!(found.x >= floor)) shared.list[atomic_add(&shared.below, 1)] = 2 * tile + whole;
        }
        sync_block();
        if (whole_chunks)
            clamp_tiles<Out, uint4>(p, out, shared.list, shared.below, floor);
        else
            clamp_tiles<Out, Bits>(p, out, shared.list, shared.below, floor);
        sync_block();
    }
}

template <class Sample, class Out>
AFN_DEVICE void log_mel(const LogMel& p) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    int thread = thread_index(), lane = thread % 32, warp = thread / 32;
    Tile step{grid_size() / p.tiles, grid_size() % p.tiles};
    Tile tile{block_index() / p.tiles, block_index() % p.tiles}, before = tile;
    if (thread == kFetcher) {
        shared.completes = 0;
        bulk_start(&shared.barrier);
        fetch<Sample>(p, shared, tile);
    }
    for (int i = thread; i < static_cast<int>(sizeof(Tables) / 16); i += kThreads)
        reinterpret_cast<float4*>(&shared.tables)[i] = reinterpret_cast<const float4*>(p.tables)[i];
    sync_block();
    for (uint32_t phase = 0;;) {
        bool more = tile.row < p.rows;
        if (more) {
            receive<Sample>(p, shared, tile, phase);
            first_half<Sample>(shared, thread / kTeam, thread % kTeam);
        }
        sync_block();
        Tile next = tile.next(step, p.tiles);
        if (thread == kFetcher && next.row < p.rows) fetch<Sample>(p, shared, next);
        if (shared.completes) clamp_row<Out>(p, shared, before.row);
        if (!more) return;
        second_half(shared, lane, warp);
        features<Out>(p, shared, tile, lane, warp);
        sync_block();
        // One thread waits until the block's features are in L2; the others begin the next tile.
        if (thread == 0) arrive_at_row(p, shared, tile);
        before = tile;
        tile = next;
    }
}

}  // namespace afn

AFN_KERNEL(log_mel_float32_float32, afn::LogMel, afn::kThreads, 2) { afn::log_mel<float, afn::Float32>(p); }
AFN_KERNEL(log_mel_float32_bfloat16, afn::LogMel, afn::kThreads, 2) { afn::log_mel<float, afn::Bfloat16>(p); }
AFN_KERNEL(log_mel_float32_float16, afn::LogMel, afn::kThreads, 2) { afn::log_mel<float, afn::Float16>(p); }
AFN_KERNEL(log_mel_int16_float32, afn::LogMel, afn::kThreads, 2) { afn::log_mel<int16_t, afn::Float32>(p); }
AFN_KERNEL(log_mel_int16_bfloat16, afn::LogMel, afn::kThreads, 2) { afn::log_mel<int16_t, afn::Bfloat16>(p); }
AFN_KERNEL(log_mel_int16_float16, afn::LogMel, afn::kThreads, 2) { afn::log_mel<int16_t, afn::Float16>(p); }

// Log-mel features in one launch: a block takes 32 frames from samples to features, and the last block of a row clamps
// what lies too far below the row's maximum.
//
// A frame of 400 real samples is 200 complex ones, z[n] = x[2n] + i x[2n + 1], and ten threads: each transforms 20 of
// them in registers, swaps through shared memory, and transforms twice 10. n = 10 a + b, k = c + 20 d:
//   Z[c + 20 d] = sum_b W10^(b d) · (W200^(b c) · sum_a W20^(a c) z[10 a + b]).
// Thread j of the second half has c = j and c = 20 - j, so that it has Z[k] with Z[200 - k], which the real spectrum
// X[k] = E + W400^k O, X[200 - k] = conj(E - W400^k O) needs. The window is halved for E and O.
#include "afn/device.cuh"
#include "afn/fourier.cuh"

namespace afn {

constexpr int kHop = 160, kFft = 400, kBins = 201, kFrames = 32, kTeam = 10, kThreads = kFrames * kTeam;
constexpr int kSpan = (kFrames - 1) * kHop + kFft;  // samples of a block's frames
constexpr int kRow = 11, kSwap = 20 * kRow;         // float2 of a frame on their way from one half to the other
constexpr int kPower = kFrames + 1;                 // floats of a bin's powers
constexpr int kBad = 0x7fffffff;                    // above the bits of every float: the row holds what is no number

struct LogMel {
    const void* pcm;      // [rows, samples], rows pcm_stride apart
    void* out;            // [rows, mels, frames]
    const float* tables;  // as Tables has them, then the weights
    int* state;           // [rows, 2] zeros: bits of the largest energy, blocks done; left at zero
    float* lowest;        // [rows, tiles] smallest feature of each block
    int64_t pcm_stride, samples;
    int frames, tiles, mels, words;  // words: 4 bytes of the tables and weights, a multiple of 4
};

// Constants at the head of shared memory, as the host lays them out.
struct Tables {
    float2 window[200];  // halved; for int16 also over 32768
    float2 middle[200];  // W200^(b c) at c 10 + b
    float2 last[102];    // W400^k at s 10 + j, k = bin_of(j, s); then k = 90; the last one is not used
    int filter[128];  // of each mel: first bin, 256 times the place of its weights, 65,536 times their number, in fours
};
static_assert(sizeof(Tables) % 16 == 0, "what follows is aligned");

struct Shared {
    Tables tables;
    alignas(16) float weights[704];  // of each filter in fours
    uint64_t barrier;
    int last, top;
    float low[kTeam];
    int high[kTeam];
    unsigned char samples[kSpan * 4];
    alignas(16) float2 swap[kFrames * kSwap];  // later the powers, [bins][frames]
};
static_assert(sizeof(float) * kBins * kPower <= sizeof(float2) * kFrames * kSwap, "powers fit where halves were");

template <class Sample>
struct Pair;
template <>
struct Pair<float> {
    static AFN_DEVICE float2 load(const void* samples, int i) { return static_cast<const float2*>(samples)[i]; }
};
template <>
struct Pair<int16_t> {
    static AFN_DEVICE float2 load(const void* samples, int i) {
        uint32_t both = static_cast<const uint32_t*>(samples)[i];
        return {static_cast<float>(static_cast<int16_t>(both)), static_cast<float>(static_cast<int16_t>(both >> 16))};
    }
};

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

template <class Sample>
AFN_DEVICE void load_samples(const LogMel& p, Shared& shared, const Sample* row, int64_t begin) {
    Sample* to = reinterpret_cast<Sample*>(shared.samples);
    constexpr uint32_t bytes = kSpan * sizeof(Sample);
    static_assert(bytes % 16 == 0, "bulk copies have multiples of 16");
    bool inside = begin >= 0 && begin + kSpan <= p.samples;
    if (has_bulk_copies() && inside && reinterpret_cast<uint64_t>(row + begin) % 16 == 0) {
        if (thread_index() == 0) bulk_copy(to, row + begin, bytes, &shared.barrier);
        bulk_wait(&shared.barrier, 0);
        return;
    }
    for (int i = thread_index(); i < kSpan; i += kThreads) {
        int64_t at = begin + i;  // reflected at the ends; what lies further is in no frame of the row
        if (at < 0) at = -at;
        if (at >= p.samples) at = 2 * (p.samples - 1) - at;
        to[i] = at >= 0 && at < p.samples ? row[at] : Sample(0);
    }
    sync_block();
}

// Powers |E + W O|^2 and |E - W O|^2 of bins k and 200 - k, from Z[k] and Z[200 - k].
AFN_DEVICE void store_powers(float* powers, int k, float2 z, float2 mirror, float2 w) {
    float2 even = {z.x + mirror.x, z.y - mirror.y}, odd = {z.y + mirror.y, mirror.x - z.x};
    float2 turned = times(odd, w);
    float2 low = even + turned, high = even - turned;
    powers[k * kPower] = fma_of(low.x, low.x, low.y * low.y);
    powers[(200 - k) * kPower] = fma_of(high.x, high.x, high.y * high.y);
}

AFN_DEVICE float2 either(bool first, float2 a, float2 b) { return {first ? a.x : b.x, first ? a.y : b.y}; }

// Z[k] and Z[200 - k] with k = c + 20 d lie in the rows c and 20 - c. Thread j > 0 has rows j and 20 - j and pairs
// one with the other; thread 0 has rows 0 and 10 and pairs each with itself: 6 and 5 pairs, one more than the others.
AFN_DEVICE int bin_of(int j, int s) { return j ? j + 20 * s : s < 6 ? 20 * s : 20 * s - 110; }

template <class Sample>
AFN_DEVICE void spectrum(Shared& shared, int frame, int j) {
    float2 z[20], y[20];
#pragma unroll
    for (int a = 0; a < 20; ++a) {
        float2 x = Pair<Sample>::load(shared.samples, frame * (kHop / 2) + 10 * a + j);
        float2 w = shared.tables.window[10 * a + j];
        z[a] = {x.x * w.x, x.y * w.y};
    }
    fourier20(z, y);
    float2* swap = shared.swap + frame * kSwap;
    swap[j] = y[0];
#pragma unroll
    for (int c = 1; c < 20; ++c) swap[c * kRow + j] = times(y[c], shared.tables.middle[c * 10 + j]);
    sync_block();
    float2 rows[2][10], u[10], v[10];
    int other = j ? 20 - j : 10;
#pragma unroll
    for (int b = 0; b < 10; ++b) {
        rows[0][b] = swap[j * kRow + b];
        rows[1][b] = swap[other * kRow + b];
    }
    fourier10(rows[0], u);
    fourier10(rows[1], v);
    sync_block();  // the powers lie where the halves were
    float* powers = reinterpret_cast<float*>(shared.swap) + frame;
#pragma unroll
    for (int s = 0; s < 10; ++s) {
        float2 one = s < 6 ? u[s] : either(j, u[s], v[(s + 4) % 10]);
        float2 mirror = either(j, v[9 - s], s < 6 ? u[(10 - s) % 10] : v[15 - s]);
        store_powers(powers, bin_of(j, s), one, mirror, shared.tables.last[s * 10 + j]);
    }
    if (j == 0) store_powers(powers, 90, v[4], v[5], shared.tables.last[100]);
    sync_block();
}

template <class Out>
AFN_DEVICE void clamp_row(const LogMel& p, typename Out::Bits* out, const float* lowest, int top) {
    float floor = top == kBad ? float_of(0x7fc00000) : Out::value(Out::bits(feature(float_of(top), -4.0f)));
#pragma unroll 1
    for (int tile = 0; tile < p.tiles; ++tile) {
        if (load_global(lowest + tile) >= floor) continue;
        int width = min(kFrames, p.frames - tile * kFrames);
        for (int i = thread_index(); i < p.mels * kFrames; i += kThreads) {
            if (i % kFrames >= width) continue;
            typename Out::Bits* at = out + static_cast<int64_t>(i / kFrames) * p.frames + tile * kFrames + i % kFrames;
            if (!(Out::value(load_global(at)) >= floor)) *at = Out::bits(floor);
        }
    }
}

template <class Sample, class Out>
AFN_DEVICE void log_mel(const LogMel& p) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    int row = block_index() / p.tiles, tile = block_index() % p.tiles, thread = thread_index();
    int lane = thread % 32, warp = thread / 32;
    if (thread == 0) bulk_start(&shared.barrier);
    for (int i = thread; i < p.words / 4; i += kThreads)
        reinterpret_cast<float4*>(&shared.tables)[i] = reinterpret_cast<const float4*>(p.tables)[i];
    sync_block();
    const Sample* samples = static_cast<const Sample*>(p.pcm) + row * p.pcm_stride;
    load_samples(p, shared, samples, static_cast<int64_t>(tile) * kFrames * kHop - kFft / 2);
    spectrum<Sample>(shared, thread / kTeam, thread % kTeam);

    // A lane is a frame, a warp has a tenth of the filters.
    typename Out::Bits* out = static_cast<typename Out::Bits*>(p.out) + static_cast<int64_t>(row) * p.mels * p.frames;
    const float* powers = reinterpret_cast<const float*>(shared.swap) + lane;
    int frame = tile * kFrames + lane, high = 0;
    float low = float_of(0x7f800000);
    if (frame < p.frames) {
        for (int mel = warp; mel < p.mels; mel += kTeam) {
            int filter = shared.tables.filter[mel];
            const float* power = powers + (filter & 255) * kPower;
            const float4* weights = reinterpret_cast<const float4*>(shared.weights) + (filter >> 8 & 255);
            float energy = 0.0f;
#pragma unroll 1
            for (const float4* end = weights + (filter >> 16); weights != end; ++weights, power += 4 * kPower) {
                float4 w = *weights;
                energy = fma_of(w.x, power[0], energy);
                energy = fma_of(w.y, power[kPower], energy);
                energy = fma_of(w.z, power[2 * kPower], energy);
                energy = fma_of(w.w, power[3 * kPower], energy);
            }
            energy = energy < 1e-10f ? 1e-10f : energy;
            bool number = energy < float_of(0x7f800000);
            high = max(high, number ? bits_of(energy) : kBad);
            typename Out::Bits bits = Out::bits(number ? feature(energy, 4.0f) : energy);
            low = number ? min(low, Out::value(bits)) : float_of(static_cast<int>(0xff800000));
            out[static_cast<int64_t>(mel) * p.frames + frame] = bits;
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
    fence();
    sync_block();
    int* state = p.state + 2 * row;
    if (thread == 0) {
        for (int i = 1; i < kTeam; ++i) {
            high = max(high, shared.high[i]);
            low = min(low, shared.low[i]);
        }
        p.lowest[block_index()] = low;
        atomic_max(state, high);
        fence();
        shared.last = atomic_add(state + 1, 1) == p.tiles - 1;
        if (shared.last) {
            fence();
            shared.top = atomic_exchange(state, 0);
            atomic_exchange(state + 1, 0);
        }
    }
    sync_block();
    if (shared.last) clamp_row<Out>(p, out, p.lowest + static_cast<int64_t>(row) * p.tiles, shared.top);
}

}  // namespace afn

AFN_KERNEL(log_mel_float32_float32, afn::LogMel, afn::kThreads, 2) { afn::log_mel<float, afn::Float32>(p); }
AFN_KERNEL(log_mel_float32_bfloat16, afn::LogMel, afn::kThreads, 2) { afn::log_mel<float, afn::Bfloat16>(p); }
AFN_KERNEL(log_mel_float32_float16, afn::LogMel, afn::kThreads, 2) { afn::log_mel<float, afn::Float16>(p); }
AFN_KERNEL(log_mel_int16_float32, afn::LogMel, afn::kThreads, 2) { afn::log_mel<int16_t, afn::Float32>(p); }
AFN_KERNEL(log_mel_int16_bfloat16, afn::LogMel, afn::kThreads, 2) { afn::log_mel<int16_t, afn::Bfloat16>(p); }
AFN_KERNEL(log_mel_int16_float16, afn::LogMel, afn::kThreads, 2) { afn::log_mel<int16_t, afn::Float16>(p); }

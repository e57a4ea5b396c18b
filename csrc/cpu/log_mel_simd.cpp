// Mel energies and their logarithm, one frame per SIMD lane. CMake compiles this file once per level, with AFN_LANES
// lanes into the namespace AFN_LEVEL.
//
// The 400-point real DFT is a prime-factor transform: with n = (25 n1 + 16 n2) mod 400, k = k1 (mod 16) = k2 (mod 25),
// W400^(nk) = W16^(n1 k1) W25^(n2 k2), so it is sixteen real 25-point DFTs and then 16-point DFTs, with no twiddles
// between them. A real 25-point DFT has 13 independent outputs, which leaves thirteen complex 16-point DFTs.

#include "afn/log_mel_simd.h"

#include "afn/shuffles.h"

namespace afn::log_mel::AFN_LEVEL {
namespace {

using namespace afn::AFN_LEVEL;

constexpr int kBlock = 16;         // frames computed together
constexpr int kRows = kBlock + 4;  // hops read for a block: two more than frames, rounded up to four
constexpr int kBlockSamples = kRows * kHop;
static_assert(kBlock % L == 0);

INLINE void store_column(float* columns, Vec v) {
    store_quarter<0>(columns, v);
    if constexpr (L >= 8) store_quarter<1>(columns + 4 * kRows, v);
    if constexpr (L >= 16) {
        store_quarter<2>(columns + 8 * kRows, v);
        store_quarter<3>(columns + 12 * kRows, v);
    }
}

// samples[160 k + r] -> columns[r][k], so that sample 160 a + r of neighbouring frames lies at columns[r][a + frame].
INLINE void transpose(const float* samples, float* columns) {
    for (int k = 0; k < kRows; k += 4) {
        for (int r = 0; r < kHop; r += L) {
            const float* from = samples + k * kHop + r;
            Vec a = load(from), b = load(from + kHop), c = load(from + 2 * kHop), d = load(from + 3 * kHop);
            Vec ab_low = unpack<1, 0>(a, b, Lanes()), ab_high = unpack<1, 1>(a, b, Lanes());
            Vec cd_low = unpack<1, 0>(c, d, Lanes()), cd_high = unpack<1, 1>(c, d, Lanes());
            float* to = columns + r * kRows + k;
            store_column(to, unpack<2, 0>(ab_low, cd_low, Lanes()));
            store_column(to + kRows, unpack<2, 1>(ab_low, cd_low, Lanes()));
            store_column(to + 2 * kRows, unpack<2, 0>(ab_high, cd_high, Lanes()));
            store_column(to + 3 * kRows, unpack<2, 1>(ab_high, cd_high, Lanes()));
        }
    }
}

INLINE float sample_at(const Pcm& pcm, int64_t n) {
    if (n < 0) n = -n;
    if (n >= pcm.samples) n = 2 * (pcm.samples - 1) - n;
    if (n < 0) return 0.0f;  // only frames past the end reach this
    return pcm.f32 ? pcm.f32[n] : pcm.i16[n] * (1.0f / 32768.0f);
}

// The block's samples as float32, the row reflected at its ends: a pointer into the row where that needs no copy.
INLINE const float* block_samples(const Pcm& pcm, int64_t first_frame, float* strip) {
    const int64_t start = first_frame * kHop - kPad;
    const bool inside = start >= 0 && start + kBlockSamples <= pcm.samples;
    if (inside && pcm.f32) return pcm.f32 + start;
    if (inside) {
        const int16_t* from = pcm.i16 + start;
        for (int i = 0; i < kBlockSamples; ++i) strip[i] = from[i] * (1.0f / 32768.0f);
    } else {
        for (int i = 0; i < kBlockSamples; ++i) strip[i] = sample_at(pcm, start + i);
    }
    return strip;
}

// What the block that begins at next_frame reads and the one before does not: fetched while that one is computed, it
// costs no wait. Null where the row has no more.
INLINE const char* samples_ahead(const Pcm& pcm, int64_t next_frame) {
    const int64_t begin = (next_frame + kRows - kBlock) * kHop - kPad, end = begin + kBlock * kHop;
    if (begin < 0 || end > pcm.samples) return nullptr;
    return pcm.f32 ? reinterpret_cast<const char*>(pcm.f32 + begin) : reinterpret_cast<const char*>(pcm.i16 + begin);
}

constexpr float kCos5[2] = {0.30901699437494745f, -0.8090169943749475f};  // cos 2 pi j / 5, j = 1, 2
constexpr float kSin5[2] = {0.9510565162951535f, 0.5877852522924731f};
constexpr float kCos25[9] = {1.0f,  // cos 2 pi j / 25
                             0.9685831611286311f,
                             0.8763066800438636f,
                             0.7289686274214116f,
                             0.5358267949789965f,
                             0.30901699437494745f,
                             0.06279051952931337f,
                             -0.1873813145857246f,
                             -0.42577929156507272f};
constexpr float kSin25[9] = {0.0f,
                             0.2486898871648548f,
                             0.4817536741017153f,
                             0.6845471059286887f,
                             0.8443279255020151f,
                             0.9510565162951535f,
                             0.9980267284282716f,
                             0.9822872507286887f,
                             0.9048270524660196f};
constexpr float kCos16 = 0.9238795325112867f, kSin16 = 0.3826834323650898f, kHalfRoot = 0.7071067811865476f;

struct RealDft5 {
    Vec y0;
    Complex y1, y2;
};

INLINE RealDft5 real_dft5(Vec x0, Vec x1, Vec x2, Vec x3, Vec x4) {
    Vec p1 = x1 + x4, m1 = x1 - x4, p2 = x2 + x3, m2 = x2 - x3;
    return {x0 + p1 + p2,
            {x0 + p1 * kCos5[0] + p2 * kCos5[1], -(m1 * kSin5[0] + m2 * kSin5[1])},
            {x0 + p1 * kCos5[1] + p2 * kCos5[0], m2 * kSin5[0] - m1 * kSin5[1]}};
}

INLINE void dft5(const Complex* x, Complex* y, int step) {
    RealDft5 a = real_dft5(x[0].re, x[1].re, x[2].re, x[3].re, x[4].re);
    RealDft5 b = real_dft5(x[0].im, x[1].im, x[2].im, x[3].im, x[4].im);
    y[0] = {a.y0, b.y0};
    y[step] = {a.y1.re - b.y1.im, b.y1.re + a.y1.im};
    y[2 * step] = {a.y2.re - b.y2.im, b.y2.re + a.y2.im};
    y[3 * step] = {a.y2.re + b.y2.im, b.y2.re - a.y2.im};
    y[4 * step] = {a.y1.re + b.y1.im, b.y1.re - a.y1.im};
}

constexpr int kHalf25 = 13;
// The 25-point frequencies real_dft25 writes, in its order: one of each conjugate pair.
constexpr int kFrequencies25[kHalf25] = {0, 5, 10, 1, 6, 11, 16, 21, 2, 7, 12, 17, 22};

// Real DFT of columns[offsets[n]] * window[n], n = 0..24, as 5 x 5; output q goes to y[q * 16].
INLINE void real_dft25(const float* columns, const int32_t* offsets, const float* window, Complex* y) {
    Vec low[5];
    Complex mid[5], high[5];
    UNROLL for (int b = 0; b < 5; ++b) {
        Vec x[5];
        UNROLL for (int a = 0; a < 5; ++a) x[a] = load(columns + offsets[5 * a + b]) * window[5 * a + b];
        RealDft5 d = real_dft5(x[0], x[1], x[2], x[3], x[4]);
        low[b] = d.y0;
        mid[b] = b ? rotate(d.y1, kCos25[b], kSin25[b]) : d.y1;
        high[b] = b ? rotate(d.y2, kCos25[2 * b], kSin25[2 * b]) : d.y2;
    }
    RealDft5 d = real_dft5(low[0], low[1], low[2], low[3], low[4]);
    y[0] = {d.y0, Vec{}};
    y[16] = d.y1;
    y[32] = d.y2;
    dft5(mid, y + 3 * 16, 16);
    dft5(high, y + 8 * 16, 16);
}

INLINE void dft4(Complex a, Complex b, Complex c, Complex d, Complex* y, int step) {
    Complex p = {a.re + c.re, a.im + c.im}, m = {a.re - c.re, a.im - c.im};
    Complex q = {b.re + d.re, b.im + d.im}, n = {b.re - d.re, b.im - d.im};
    y[0] = {p.re + q.re, p.im + q.im};
    y[step] = {m.re + n.im, m.im - n.re};
    y[2 * step] = {p.re - q.re, p.im - q.im};
    y[3 * step] = {m.re - n.im, m.im + n.re};
}

// Complex DFT of x[0..15] as 4 x 4; |X[k]|^2 goes to power[bin[k]].
INLINE void power_dft16(const Complex* x, const int32_t* bin, Vec* power) {
    Complex t[16], y[16];
    UNROLL for (int b = 0; b < 4; ++b) dft4(x[b], x[b + 4], x[b + 8], x[b + 12], t + b, 4);
    t[5] = rotate(t[5], kCos16, kSin16);
    t[6] = {(t[6].re + t[6].im) * kHalfRoot, (t[6].im - t[6].re) * kHalfRoot};
    t[7] = rotate(t[7], kSin16, kCos16);
    t[9] = {(t[9].re + t[9].im) * kHalfRoot, (t[9].im - t[9].re) * kHalfRoot};
    t[10] = {t[10].im, -t[10].re};
    t[11] = {(t[11].im - t[11].re) * kHalfRoot, -(t[11].re + t[11].im) * kHalfRoot};
    t[13] = rotate(t[13], kSin16, kCos16);
    t[14] = {(t[14].im - t[14].re) * kHalfRoot, -(t[14].re + t[14].im) * kHalfRoot};
    t[15] = rotate(t[15], -kCos16, -kSin16);
    UNROLL for (int c = 0; c < 4; ++c) dft4(t[4 * c], t[4 * c + 1], t[4 * c + 2], t[4 * c + 3], y + c, 4);
    UNROLL for (int k = 0; k < 16; ++k) power[bin[k]] = y[k].re * y[k].re + y[k].im * y[k].im;
}

struct Tables {
    int32_t sample[kFft];       // [n1][n2]: sample of the frame
    int32_t offset[kFft];       // [n1][n2]: where it lies in the transposed block
    int32_t bin[kHalf25 * 16];  // [q][k1]: bin of the spectrum
};

constexpr Tables make_tables() {
    Tables t{};
    for (int n1 = 0; n1 < 16; ++n1) {
        for (int n2 = 0; n2 < 25; ++n2) {
            const int n = (25 * n1 + 16 * n2) % kFft;
            t.sample[25 * n1 + n2] = n;
            t.offset[25 * n1 + n2] = (n % kHop) * kRows + n / kHop;
        }
    }
    for (int q = 0; q < kHalf25; ++q) {
        for (int k = 0; k < kFft; ++k) {
            if (k % 25 == kFrequencies25[q]) t.bin[16 * q + k % 16] = k < kBins ? k : kFft - k;
        }
    }
    return t;
}

constexpr Tables kTables = make_tables();

int32_t energies(const Pcm& pcm, int64_t begin, int64_t end, const PlanView& plan, float* out, int64_t stride) {
    alignas(64) float strip[kBlockSamples];
    alignas(64) float columns[kHop * kRows];
    alignas(64) float window[kFft];
    alignas(64) Complex spectrum[kHalf25 * 16];
    alignas(64) Vec power[kBins];

    for (int i = 0; i < kFft; ++i) window[i] = plan.window[kTables.sample[i]];

    Int largest = {};
    for (int64_t block = begin; block < end; block += kBlock) {
        transpose(block_samples(pcm, block, strip), columns);
        const char* ahead = samples_ahead(pcm, block + kBlock);
        const int part = kHop * (pcm.f32 ? 4 : 2);  // bytes, of kBlock
        for (int64_t frame = block; frame < block + kBlock && frame < end; frame += L) {
            for (int n1 = 0; n1 < 16; ++n1) {
                if (ahead && frame == block) {
                    for (int i = 0; i < part; i += 64) __builtin_prefetch(ahead + n1 * part + i);
                }
                real_dft25(columns + (frame - block), kTables.offset + 25 * n1, window + 25 * n1, spectrum + n1);
            }
            for (int q = 0; q < kHalf25; ++q) power_dft16(spectrum + 16 * q, kTables.bin + 16 * q, power);

            const int valid = end - frame < L ? static_cast<int>(end - frame) : L;
            const float* weight = plan.weights;
            for (int m = 0; m < plan.n_mels; ++m) {
                const Vec* bins = power + plan.first[m];
                Vec energy = {};
                for (int i = 0; i < plan.count[m]; ++i) energy += bins[i] * *weight++;
                Int magnitude = bits(energy) & 0x7fffffff;
                float* to = out + m * stride + frame;
                if (valid == L) {
                    store(to, energy);
                } else {
                    for (int i = 0; i < L; ++i) {
                        if (i < valid)
                            to[i] = energy[i];
                        else
                            magnitude[i] = 0;
                    }
                }
                largest = larger(largest, magnitude);
            }
        }
    }
    int32_t top = 0;
    for (int i = 0; i < L; ++i) top = largest[i] > top ? largest[i] : top;
    return top;
}

// log10(x) / 4 + 1 for x = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2)): a polynomial in f whose error is below 4e-9.
INLINE Vec scaled_log10(Int x) {
    const Int exponent = (x - 0x3f3504f3) >> 23;
    const Vec e = __builtin_convertvector(exponent, Vec);
    const Vec f = from_bits(x - (exponent << 23)) - 1.0f;
    Vec p = f * -0.0109683622f + 0.0178277765f;
    p = p * f + -0.018819571f;
    p = p * f + 0.0215768861f;
    p = p * f + -0.0270992632f;
    p = p * f + 0.0361942997f;
    p = p * f + -0.0542875349f;
    p = p * f + 0.1085736f;
    // log10(2) / 4 in two parts, so that the exponent times the first is exact.
    return (p * f + e * 1.15125975e-6f) + (e * 0.07525634765625f + 1.0f);
}

void log_scale(const float* in, float* out, int64_t count, int32_t largest) {
    const Int smallest = bits(Vec{} + 1e-10f);
    if (largest >= 0x7f800000) {
        // An infinite or NaN energy is the maximum of the row and so spoils all of its output, as in the reference.
        for (int64_t i = 0; i < count; ++i) out[i] = __builtin_nanf("");
        return;
    }
    const Vec floor = scaled_log10(larger(Int{} + largest, smallest)) - 2.0f;
    int64_t i = 0;
    for (; i + L <= count; i += L) {
        Vec y = scaled_log10(larger(bits(load(in + i)), smallest));
        store(out + i, y > floor ? y : floor);
    }
    if (i < count) {
        Vec rest = {};
        for (int64_t j = i; j < count; ++j) rest[j - i] = in[j];
        rest = scaled_log10(larger(bits(rest), smallest));
        for (int64_t j = i; j < count; ++j) out[j] = rest[j - i] > floor[j - i] ? rest[j - i] : floor[j - i];
    }
}

}  // namespace

extern const Kernel kernel;
const Kernel kernel = {energies, log_scale};

}  // namespace afn::log_mel::AFN_LEVEL

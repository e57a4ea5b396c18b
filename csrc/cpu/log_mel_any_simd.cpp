// Log-mel energies of any front end, one frame per SIMD lane. CMake compiles this file once per level, with AFN_LANES
// lanes into the namespace AFN_LEVEL.
//
// An even transform of n points is a complex one of n / 2, of the even samples as real and the odd ones as imaginary
// parts, which is how samples lie in memory anyway. It is done in place by passes of radix 8, 4, 2, 3, 5 and of any
// other prime; what they leave in digit-reversed order is read through a table.

#include "afn/log_mel_any_simd.h"

#include "afn/shuffles.h"

namespace afn::log_mel_any::AFN_LEVEL {
namespace {

using namespace afn::AFN_LEVEL;

constexpr float kHalfRoot = 0.7071067811865476f;
constexpr float kSin3 = 0.8660254037844386f;
constexpr float kCos5[2] = {0.30901699437494745f, -0.8090169943749475f};  // cos 2 pi j / 5, j = 1, 2
constexpr float kSin5[2] = {0.9510565162951535f, 0.5877852522924731f};

INLINE Complex add(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
INLINE Complex sub(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
INLINE Complex minus_i(Complex a) { return {a.im, -a.re}; }

template <int R>
struct Dft;

template <>
struct Dft<2> {
    INLINE void run(Complex* x) {
        const Complex a = x[0];
        x[0] = add(a, x[1]);
        x[1] = sub(a, x[1]);
    }
};

template <>
struct Dft<3> {
    INLINE void run(Complex* x) {
        const Complex p = add(x[1], x[2]), m = minus_i(sub(x[1], x[2])), a = x[0];
        const Complex mid = {a.re - p.re * 0.5f, a.im - p.im * 0.5f}, turn = {m.re * kSin3, m.im * kSin3};
        x[0] = add(a, p);
        x[1] = add(mid, turn);
        x[2] = sub(mid, turn);
    }
};

template <>
struct Dft<4> {
    INLINE void run(Complex* x) {
        const Complex p = add(x[0], x[2]), m = sub(x[0], x[2]), q = add(x[1], x[3]), n = minus_i(sub(x[1], x[3]));
        x[0] = add(p, q);
        x[1] = add(m, n);
        x[2] = sub(p, q);
        x[3] = sub(m, n);
    }
};

template <>
struct Dft<5> {
    INLINE void run(Complex* x) {
        const Complex p1 = add(x[1], x[4]), p2 = add(x[2], x[3]), a = x[0];
        const Complex m1 = minus_i(sub(x[1], x[4])), m2 = minus_i(sub(x[2], x[3]));
        const Complex c1 = {a.re + p1.re * kCos5[0] + p2.re * kCos5[1], a.im + p1.im * kCos5[0] + p2.im * kCos5[1]};
        const Complex c2 = {a.re + p1.re * kCos5[1] + p2.re * kCos5[0], a.im + p1.im * kCos5[1] + p2.im * kCos5[0]};
        const Complex s1 = {m1.re * kSin5[0] + m2.re * kSin5[1], m1.im * kSin5[0] + m2.im * kSin5[1]};
        const Complex s2 = {m1.re * kSin5[1] - m2.re * kSin5[0], m1.im * kSin5[1] - m2.im * kSin5[0]};
        x[0] = add(a, add(p1, p2));
        x[1] = add(c1, s1);
        x[2] = add(c2, s2);
        x[3] = sub(c2, s2);
        x[4] = sub(c1, s1);
    }
};

template <>
struct Dft<8> {
    INLINE void run(Complex* x) {
        Complex even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
        Dft<4>::run(even);
        Dft<4>::run(odd);
        odd[1] = {(odd[1].re + odd[1].im) * kHalfRoot, (odd[1].im - odd[1].re) * kHalfRoot};
        odd[2] = minus_i(odd[2]);
        odd[3] = {(odd[3].im - odd[3].re) * kHalfRoot, -(odd[3].re + odd[3].im) * kHalfRoot};
        UNROLL for (int k = 0; k < 4; ++k) {
            x[k] = add(even[k], odd[k]);
            x[k + 4] = sub(even[k], odd[k]);
        }
    }
};

template <int R, bool Turn>
INLINE void butterfly(Complex* z, int step, const float* turns) {
    Complex x[R];
    UNROLL for (int q = 0; q < R; ++q) x[q] = z[q * step];
    Dft<R>::run(x);
    z[0] = x[0];
    UNROLL for (int p = 1; p < R; ++p) z[p * step] = Turn ? rotate(x[p], turns[2 * p - 2], turns[2 * p - 1]) : x[p];
}

template <int R>
void pass(Complex* z, int points, const Stage& stage) {
    const int step = stage.length / R;
    for (int at = 0; at < points; at += stage.length) butterfly<R, false>(z + at, step, nullptr);
    for (int j = 1; j < step; ++j) {
        const float* turns = stage.turns + 2 * (R - 1) * j;
        for (int at = j; at < points; at += stage.length) butterfly<R, true>(z + at, step, turns);
    }
}

// Any odd radix, by its definition; sums and differences of x[q] and x[r - q] are in ``pair``.
void pass_of_any(Complex* z, int points, const Stage& stage, Complex* pair) {
    const int r = stage.radix, half = (r - 1) / 2, step = stage.length / r;
    for (int j = 0; j < step; ++j) {
        const float* turns = stage.turns + 2 * (r - 1) * j;
        for (int at = j; at < points; at += stage.length) {
            Complex* x = z + at;
            const Complex first = x[0];
            Complex sum = first;
            for (int q = 1; q <= half; ++q) {
                pair[2 * q] = add(x[q * step], x[(r - q) * step]);
                pair[2 * q + 1] = minus_i(sub(x[q * step], x[(r - q) * step]));
                sum = add(sum, pair[2 * q]);
            }
            x[0] = sum;
            for (int p = 1; p <= half; ++p) {
                // Sums of sums of 16, which round less often than one long sum.
                Complex even = first, odd = {Vec{}, Vec{}};
                for (int q = 1, at_root = p; q <= half;) {
                    Complex cosines = {Vec{}, Vec{}}, sines = {Vec{}, Vec{}};
                    for (const int stop = q + 16; q < stop && q <= half; ++q, at_root = (at_root + p) % r) {
                        const float cos = stage.roots[2 * at_root], sin = stage.roots[2 * at_root + 1];
                        cosines = {cosines.re + pair[2 * q].re * cos, cosines.im + pair[2 * q].im * cos};
                        sines = {sines.re + pair[2 * q + 1].re * sin, sines.im + pair[2 * q + 1].im * sin};
                    }
                    even = add(even, cosines);
                    odd = add(odd, sines);
                }
                x[p * step] = rotate(add(even, odd), turns[2 * p - 2], turns[2 * p - 1]);
                x[(r - p) * step] = rotate(sub(even, odd), turns[2 * (r - p) - 2], turns[2 * (r - p) - 1]);
            }
        }
    }
}

INLINE void transform(Complex* z, const PlanView& plan, Complex* pair) {
    for (int i = 0; i < plan.n_stages; ++i) {
        const Stage& stage = plan.stages[i];
        switch (stage.radix) {
            case 2:
                pass<2>(z, plan.points, stage);
                break;
            case 3:
                pass<3>(z, plan.points, stage);
                break;
            case 4:
                pass<4>(z, plan.points, stage);
                break;
            case 5:
                pass<5>(z, plan.points, stage);
                break;
            case 8:
                pass<8>(z, plan.points, stage);
                break;
            default:
                pass_of_any(z, plan.points, stage, pair);
        }
    }
}

INLINE Vec norm(Complex x) { return x.re * x.re + x.im * x.im; }

INLINE void power_of(const Complex* z, const PlanView& plan, Vec* power) {
    if (plan.halved) {
        const int points = plan.points;
        for (int k = 0; 2 * k <= points; ++k) {
            // Twice the transforms of the even and of the odd samples: the window holds the half.
            const Complex a = z[plan.place[k]], b = z[plan.place[k ? points - k : 0]];
            const Complex even = {a.re + b.re, a.im - b.im}, odd = {a.im + b.im, b.re - a.re};
            const Complex turned = rotate(odd, plan.half[2 * k], plan.half[2 * k + 1]);
            power[k] = norm(add(even, turned));
            power[points - k] = norm(sub(even, turned));
        }
    } else {
        for (int k = 0; k < plan.bins; ++k) power[k] = norm(z[plan.place[k]]);
    }
    if (plan.magnitude) {
        float* each = reinterpret_cast<float*>(power);
        for (int i = 0; i < plan.bins * L; ++i) each[i] = __builtin_sqrtf(each[i]);
    }
}

// Not inlined: an int16 sample is rounded before the pre-emphasis, as a float32 one is.
__attribute__((noinline)) float raw(const Pcm& pcm, int64_t n) {
    return pcm.f32 ? pcm.f32[n] : pcm.i16[n] * (1.0f / 32768.0f);
}

// Sample n of the row as its padding continues it.
INLINE float sample_at(const Pcm& pcm, int64_t valid, const PlanView& plan, int64_t n) {
    if (plan.pad == Pad::kReflect) {
        if (n < 0) n = -n;
        if (n >= pcm.samples) n = 2 * (pcm.samples - 1) - n;
    }
    if (n < 0 || n >= valid) return 0.0f;
    const float x = raw(pcm, n);
    return plan.emphasis != 0.0f && n > 0 ? x - plan.emphasis * raw(pcm, n - 1) : x;
}

// ``count`` samples from ``start`` on: a pointer into the row where they lie there as they are.
INLINE const float* samples(const Pcm& pcm, int64_t valid, const PlanView& plan, int64_t start, int64_t count,
                            float* strip) {
    const float emphasis = plan.emphasis;
    const int64_t end = start + count;
    if (pcm.f32 && emphasis == 0.0f && start >= 0 && end <= valid) return pcm.f32 + start;
    // The samples from low to high need neither padding nor a sample before the row.
    int64_t low = start > 1 ? start : 1, high = end < valid ? end : valid;
    if (low > high) low = high = start;
    for (int64_t n = start; n < low && n < end; ++n) strip[n - start] = sample_at(pcm, valid, plan, n);
    float* to = strip + (low - start);
    const int64_t inner = high - low;
    if (pcm.f32) {
        const float* from = pcm.f32 + low;
        if (emphasis == 0.0f) {
            for (int64_t i = 0; i < inner; ++i) to[i] = from[i];
        } else {
            for (int64_t i = 0; i < inner; ++i) to[i] = from[i] - emphasis * from[i - 1];
        }
    } else {
        const int16_t* from = pcm.i16 + low;
        constexpr float unit = 1.0f / 32768.0f;
        if (emphasis == 0.0f) {
            for (int64_t i = 0; i < inner; ++i) to[i] = from[i] * unit;
        } else {
            for (int64_t i = 0; i <= inner; ++i) to[i] = from[i - 1] * unit;
            for (int64_t i = 0; i < inner; ++i) to[i] = to[i + 1] - emphasis * to[i];
        }
    }
    for (int64_t n = high > start ? high : start; n < end; ++n) strip[n - start] = sample_at(pcm, valid, plan, n);
    return strip;
}

INLINE float mean_of(const float* x, int n) {
    Vec sum = {};
    int i = 0;
    for (; i + L <= n; i += L) sum += load(x + i);
    float total = 0.0f;
    for (int j = 0; j < L; ++j) total += sum[j];
    for (; i < n; ++i) total += x[i];
    return total / n;
}

// Each element's predecessor; the first is its own.
template <int... I>
INLINE Vec one_late(Vec x, Indices<I...>) {
    return __builtin_shufflevector(x, x, (I ? I - 1 : 0)...);
}

struct Frame {
    const float* x;
    float mean;
};

// L windowed samples of a frame from r on. What lies beyond the frame may be anything, so it is cut off by its bits.
template <bool Plain>
INLINE Vec windowed(const Frame& frame, int r, const PlanView& plan, Int within) {
    Vec x = load(frame.x + r);
    if constexpr (!Plain) {
        x -= frame.mean;
        if (plan.frame_emphasis != 0.0f) {
            const Vec before = r ? load(frame.x + r - 1) : one_late(load(frame.x), Lanes());
            x -= (before - frame.mean) * plan.frame_emphasis;
        }
    }
    return from_bits(bits(x * load(plan.window + r)) & within);
}

// The sample of column c + 4 q goes to the vector x + step (c + 4 q), four frames of it.
INLINE void store_column(float* x, int step, Vec v) {
    store_quarter<0>(x, v);
    if constexpr (L >= 8) store_quarter<1>(x + 4 * step * L, v);
    if constexpr (L >= 16) {
        store_quarter<2>(x + 8 * step * L, v);
        store_quarter<3>(x + 12 * step * L, v);
    }
}

template <bool Plain>
INLINE void four_frames(const float* from, const PlanView& plan, int step, float* to) {
    Frame frames[4];
    for (int i = 0; i < 4; ++i) {
        const float* x = from + static_cast<int64_t>(i) * plan.hop;
        frames[i] = {x, !Plain && plan.remove_mean ? mean_of(x, plan.win) : 0.0f};
    }
    for (int r = 0; r < plan.win; r += L) {
        Int within = ~Int{};
        if (r + L > plan.win) {
            for (int i = plan.win - r; i < L; ++i) within[i] = 0;
        }
        const Vec a = windowed<Plain>(frames[0], r, plan, within), b = windowed<Plain>(frames[1], r, plan, within);
        const Vec c = windowed<Plain>(frames[2], r, plan, within), d = windowed<Plain>(frames[3], r, plan, within);
        const Vec ab_low = unpack<1, 0>(a, b, Lanes()), ab_high = unpack<1, 1>(a, b, Lanes());
        const Vec cd_low = unpack<1, 0>(c, d, Lanes()), cd_high = unpack<1, 1>(c, d, Lanes());
        float* column = to + static_cast<int64_t>(r) * step * L;
        store_column(column, step, unpack<2, 0>(ab_low, cd_low, Lanes()));
        store_column(column + step * L, step, unpack<2, 1>(ab_low, cd_low, Lanes()));
        store_column(column + 2 * step * L, step, unpack<2, 0>(ab_high, cd_high, Lanes()));
        store_column(column + 3 * step * L, step, unpack<2, 1>(ab_high, cd_high, Lanes()));
    }
}

// L frames of windowed samples as the input of the transform.
INLINE void load_frames(const float* from, const PlanView& plan, Complex* z) {
    const bool plain = !plan.remove_mean && plan.frame_emphasis == 0.0f;
    const int step = plan.halved ? 1 : 2;
    float* to = reinterpret_cast<float*>(z);
    for (int i = 0; i < L; i += 4, from += 4 * static_cast<int64_t>(plan.hop)) {
        if (plain) {
            four_frames<true>(from, plan, step, to + i);
        } else {
            four_frames<false>(from, plan, step, to + i);
        }
    }
    Vec* x = reinterpret_cast<Vec*>(z);
    for (int n = plan.win; n < plan.n_fft; ++n) x[n * step] = Vec{};
    if (!plan.halved) {
        for (int n = 0; n < plan.n_fft; ++n) x[2 * n + 1] = Vec{};
    }
}

// ln x = e ln 2 + ln(1 + f) for x = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2)): a polynomial whose error is below 5e-9
// of the value. Infinity and NaN stay.
INLINE Vec logarithm(Vec x) {
    const Int i = bits(x);
    const Int exponent = (i - 0x3f3504f3) >> 23;
    const Vec e = __builtin_convertvector(exponent, Vec);
    const Vec f = from_bits(i - (exponent << 23)) - 1.0f;
    Vec p = f * -0.0762122124f + 0.129047185f;
    p = p * f + -0.132434458f;
    p = p * f + 0.14181824f;
    p = p * f + -0.166090131f;
    p = p * f + 0.200019687f;
    p = p * f + -0.250015855f;
    p = p * f + 0.333333254f;
    p = p * f + -0.499999881f;
    // ln 2 in two parts, so that the exponent times the first is exact.
    const Vec y = e * 0.693359375f + ((p * f) * f + (f + e * -2.12194440e-4f));
    return x < __builtin_inff() ? y : x;
}

INLINE Vec log_energy(Vec energy, const PlanView& plan) {
    if (plan.log_unit == 0.0f) return energy;
    energy = energy < plan.floor ? Vec{} + plan.floor : energy;
    return logarithm(energy + plan.guard) * plan.log_unit;
}

int32_t energies(const Pcm& pcm, int64_t valid, int64_t begin, int64_t end, const PlanView& plan, const Sizes& sizes,
                 float* scratch, float* out, int64_t stride) {
    float* strip = scratch;
    Complex* z = reinterpret_cast<Complex*>(strip + sizes.samples);
    Vec* power = reinterpret_cast<Vec*>(strip + sizes.samples + sizes.transform);
    Complex* pair = reinterpret_cast<Complex*>(strip + sizes.samples + sizes.transform + sizes.power);
    const int64_t span = (L - 1) * static_cast<int64_t>(plan.hop) + (plan.win + L - 1) / L * L;

    Int largest = {};
    for (int64_t frame = begin; frame < end; frame += L) {
        load_frames(samples(pcm, valid, plan, frame * plan.hop - plan.before, span, strip), plan, z);
        transform(z, plan, pair);
        power_of(z, plan, power);

        const int lanes = end - frame < L ? static_cast<int>(end - frame) : L;
        const float* weight = plan.weights;
        for (int m = 0; m < plan.n_mels; ++m) {
            const Vec* bins = power + plan.first[m];
            Vec energy = {};
            for (int i = 0; i < plan.count[m]; ++i) energy += bins[i] * *weight++;
            Int magnitude = bits(energy) & 0x7fffffff;
            const Vec y = log_energy(energy, plan);
            float* to = out + m * stride + frame;
            if (lanes == L) {
                store(to, y);
            } else {
                for (int i = 0; i < L; ++i) {
                    if (i < lanes)
                        to[i] = y[i];
                    else
                        magnitude[i] = 0;
                }
            }
            largest = larger(largest, magnitude);
        }
    }
    int32_t top = 0;
    for (int i = 0; i < L; ++i) top = largest[i] > top ? largest[i] : top;
    return top;
}

float log_of(int32_t energy, const PlanView& plan) { return log_energy(from_bits(Int{} + energy), plan)[0]; }

void scale(float* x, int64_t count, float floor, float offset, float divisor) {
    if (floor != floor) {
        for (int64_t i = 0; i < count; ++i) x[i] = __builtin_nanf("");
        return;
    }
    for (int64_t i = 0; i < count; i += L) {
        Vec y = {};
        const int n = count - i < L ? static_cast<int>(count - i) : L;
        if (n == L) {
            y = load(x + i);
        } else {
            for (int j = 0; j < n; ++j) y[j] = x[i + j];
        }
        y = y < floor ? Vec{} + floor : y;
        y = (y + offset) / divisor;
        if (n == L) {
            store(x + i, y);
        } else {
            for (int j = 0; j < n; ++j) x[i + j] = y[j];
        }
    }
}

void normalise(float* x, int64_t count, float eps, bool eps_in_variance) {
    Vec sum = {};
    int64_t i = 0;
    for (; i + L <= count; i += L) sum += load(x + i);
    double total = 0.0;
    for (int j = 0; j < L; ++j) total += sum[j];
    for (int64_t j = i; j < count; ++j) total += x[j];
    const double guess = total / count;

    // About the mean just found, which leaves what it is wrong by.
    const float about = static_cast<float>(guess);
    Vec off = {}, squares = {};
    for (i = 0; i + L <= count; i += L) {
        const Vec d = load(x + i) - about;
        off += d;
        squares += d * d;
    }
    double rest = 0.0, square = 0.0;
    for (int j = 0; j < L; ++j) rest += off[j], square += squares[j];
    for (int64_t j = i; j < count; ++j) {
        const double d = x[j] - about;
        rest += d, square += d * d;
    }
    const double mean = about + rest / count;
    const double variance = count > 1 ? (square - rest * rest / count) / (count - 1) : 0.0;
    const double positive = variance < 0.0 ? 0.0 : variance;
    const double divisor = eps_in_variance ? __builtin_sqrt(positive + eps) : __builtin_sqrt(positive) + eps;
    const float middle = static_cast<float>(mean), lower = static_cast<float>(mean - middle);
    const float factor = static_cast<float>(1.0 / divisor);
    for (i = 0; i + L <= count; i += L) store(x + i, ((load(x + i) - middle) - lower) * factor);
    for (; i < count; ++i) x[i] = ((x[i] - middle) - lower) * factor;
}

}  // namespace

extern const Kernel kernel;
const Kernel kernel = {energies, log_of, scale, normalise};

}  // namespace afn::log_mel_any::AFN_LEVEL

// Heads to the ranks that attend with them, and back: one pass from q, k, v [tokens, heads, D] to the parts of an
// all-to-all, each [tokens, heads of the peer, D], and one from such parts to tensors. A KV head may be in several
// parts: what they bring back of it is added in float32, part after part. Rotary position embedding is applied on the
// way.
//
// A thread has 16 bytes of every fourth head of one row; with rotary 16 bytes of either half, whose angles serve all of
// its heads. 256 threads in few registers keep 48 to 64 bytes each under way, several times what HBM needs.
#include "afn/device.cuh"

namespace afn {

constexpr int kThreads = 256;

struct PackHeads {
    void* tensors[3];         // q, k, v; null where not wanted
    void* flat;               // the parts, one after another
    const uint4* places;      // of each head's copies: heads of the peers before, heads of the peer, its number there
    const int* first;         // [heads + 1] copies of each head begin here
    const float* positions;   // [tokens], with rotary
    const float* inv_freq;    // [D / 2]
    int64_t row[3], head[3];  // strides of the tensors, in 16 bytes
    int64_t tokens;
    int q_heads, kv_heads;
    int units;        // 16 bytes of a head, or of half of it
    int rows, slots;  // of a block; heads of a row that it has at a time
};

struct Float32 {
    static constexpr int kEach = 4;
    static AFN_DEVICE void unpack(const uint4& x, float (&y)[4]) {
        y[0] = float_of(x.x), y[1] = float_of(x.y), y[2] = float_of(x.z), y[3] = float_of(x.w);
    }
    static AFN_DEVICE uint4 pack(const float (&y)[4]) {
        return make_uint4(bits_of(y[0]), bits_of(y[1]), bits_of(y[2]), bits_of(y[3]));
    }
};
template <float (*value)(uint16_t), uint32_t (*pair)(float, float)>
struct Half {
    static constexpr int kEach = 8;
    static AFN_DEVICE void unpack(const uint4& x, float (&y)[8]) {
        uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int i = 0; i < 8; ++i) y[i] = value(static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2)));
    }
    static AFN_DEVICE uint4 pack(const float (&y)[8]) {
        return make_uint4(pair(y[0], y[1]), pair(y[2], y[3]), pair(y[4], y[5]), pair(y[6], y[7]));
    }
};
using Bfloat16 = Half<from_bf16, pack_bf16>;
using Float16 = Half<from_f16, pack_f16>;

// Cosine and sine of the exact product of two float32, each within 2e-7 up to 1e8 radians: the multiple of pi / 2 is
// taken off in float64, what is left is within pi / 4 of zero.
AFN_DEVICE float2 cosine_and_sine(float position, float frequency) {
    constexpr double kRound = 6755399441055744.0;  // 1.5 · 2^52: what is added to it is rounded to a whole number
    double angle = static_cast<double>(position) * frequency;
    double turns = angle * 0.63661977236758134308 + kRound - kRound;
    float r = static_cast<float>(angle - turns * 1.57079632679489661923), z = r * r;
    int quadrant = static_cast<int>(static_cast<int64_t>(turns) & 3);
    float s = fma_of(fma_of(z, -1.9515295891e-4f, 8.3321608736e-3f), z, -1.6666654611e-1f);
    s = fma_of(s * z, r, r);
    float c = fma_of(fma_of(z, 2.443315711809948e-5f, -1.388731625493765e-3f), z, 4.166664568298827e-2f);
    c = fma_of(fma_of(c, z, -0.5f), z, 1.0f);
    float cosine = quadrant & 1 ? s : c, sine = quadrant & 1 ? c : s;
    return {(quadrant + 1) & 2 ? -cosine : cosine, quadrant & 2 ? -sine : sine};
}

// Those of a thread's unit in its row; all of the block's, once each, go through shared memory.
template <class Element>
AFN_DEVICE void find_angles(const PackHeads& p, int row, int unit, float2 (&angles)[Element::kEach]) {
    float2* all = reinterpret_cast<float2*>(shared_memory());
    int half = p.units * Element::kEach;
    for (int i = thread_index(); i < p.rows * half; i += kThreads) {
        int64_t token = static_cast<int64_t>(block_index()) * p.rows + i / half;
        all[i] = cosine_and_sine(token < p.tokens ? p.positions[token] : 0.0f, p.inv_freq[i % half]);
    }
    sync_block();
    if (row >= p.rows) return;
#pragma unroll
    for (int i = 0; i < Element::kEach; ++i) angles[i] = all[row * half + unit * Element::kEach + i];
}

template <int n>
AFN_DEVICE void turn(float (&a)[n], float (&b)[n], const float2 (&angles)[n], float direction) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
        float cosine = angles[i].x, sine = direction * angles[i].y, low = a[i];
        a[i] = fma_of(low, cosine, -(b[i] * sine));
        b[i] = fma_of(b[i], cosine, low * sine);
    }
}

// A row of a head, counted through q, k and v; null where nobody wants it.
AFN_DEVICE uint4* whole(const PackHeads& p, int64_t row, int head) {
    int which = (head >= p.q_heads) + (head >= p.q_heads + p.kv_heads);
    int here = head - (which ? p.q_heads + (which - 1) * p.kv_heads : 0);
    uint4* tensor = static_cast<uint4*>(p.tensors[which]);
    return tensor ? tensor + row * p.row[which] + here * p.head[which] : nullptr;
}

// The same row in one of the parts.
AFN_DEVICE uint4* part(const PackHeads& p, int64_t row, int copy, int width) {
    uint4 place = p.places[copy];
    return static_cast<uint4*>(p.flat) + (place.x * p.tokens + row * place.y + place.z) * width;
}

template <class Element, int kWide>
AFN_DEVICE void pack(const PackHeads& p) {
    constexpr int kBatch = kWide == 2 ? 2 : 3;
    int unit = thread_index() % p.units, group = thread_index() / p.units, heads = p.q_heads + 2 * p.kv_heads;
    int64_t row = static_cast<int64_t>(block_index()) * p.rows + group / p.slots;
    float2 angles[Element::kEach];
    if (kWide == 2) find_angles<Element>(p, group / p.slots, unit, angles);
    if (group / p.slots >= p.rows || row >= p.tokens) return;
    for (int head = group % p.slots; head < heads; head += kBatch * p.slots) {
        uint4 x[kBatch][kWide];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (head + i * p.slots >= heads) break;
            const uint4* from = whole(p, row, head + i * p.slots) + unit;
#pragma unroll
            for (int j = 0; j < kWide; ++j) x[i][j] = load_once(from + j * p.units);
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            int here = head + i * p.slots;
            if (here >= heads) break;
            if constexpr (kWide == 2) {
                if (here < p.q_heads + p.kv_heads) {
                    float a[Element::kEach], b[Element::kEach];
                    Element::unpack(x[i][0], a);
                    Element::unpack(x[i][1], b);
                    turn(a, b, angles, 1.0f);
                    x[i][0] = Element::pack(a);
                    x[i][1] = Element::pack(b);
                }
            }
            for (int copy = p.first[here]; copy < p.first[here + 1]; ++copy) {
                uint4* to = part(p, row, copy, kWide * p.units) + unit;
#pragma unroll
                for (int j = 0; j < kWide; ++j) to[j * p.units] = x[i][j];
            }
        }
    }
}

// The copies of a head after the first, whose 16 bytes are in x, added in float32; then turned back.
template <class Element, int kWide>
AFN_DEVICE void add_copies(const PackHeads& p, int64_t row, int head, int unit, const float2 (&angles)[Element::kEach],
                           uint4 (&x)[kWide]) {
    float sum[kWide][Element::kEach], one[Element::kEach];
#pragma unroll
    for (int j = 0; j < kWide; ++j) Element::unpack(x[j], sum[j]);
    for (int copy = p.first[head] + 1; copy < p.first[head + 1]; ++copy) {
        const uint4* from = part(p, row, copy, kWide * p.units) + unit;
#pragma unroll
        for (int j = 0; j < kWide; ++j) {
            Element::unpack(load_once(from + j * p.units), one);
#pragma unroll
            for (int i = 0; i < Element::kEach; ++i) sum[j][i] += one[i];
        }
    }
    if constexpr (kWide == 2)
        if (head < p.q_heads + p.kv_heads) turn(sum[0], sum[1], angles, -1.0f);
#pragma unroll
    for (int j = 0; j < kWide; ++j) x[j] = Element::pack(sum[j]);
}

template <class Element, int kWide>
AFN_DEVICE void unpack(const PackHeads& p) {
    constexpr int kBatch = kWide == 2 ? 2 : 3;
    int unit = thread_index() % p.units, group = thread_index() / p.units, heads = p.q_heads + 2 * p.kv_heads;
    int64_t row = static_cast<int64_t>(block_index()) * p.rows + group / p.slots;
    float2 angles[Element::kEach];
    if (kWide == 2) find_angles<Element>(p, group / p.slots, unit, angles);
    if (group / p.slots >= p.rows || row >= p.tokens) return;
    for (int head = group % p.slots; head < heads; head += kBatch * p.slots) {
        uint4 x[kBatch][kWide];
        int copies[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            int here = head + i * p.slots;
            if (here >= heads) break;
            copies[i] = whole(p, row, here) ? p.first[here + 1] - p.first[here] : -1;
            const uint4* from = copies[i] > 0 ? part(p, row, p.first[here], kWide * p.units) + unit : nullptr;
#pragma unroll
            for (int j = 0; j < kWide; ++j)
                x[i][j] = copies[i] > 0 ? load_once(from + j * p.units) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            int here = head + i * p.slots;
            if (here >= heads) break;
            if (copies[i] < 0) continue;
            // A copy that is alone and not turned keeps its bits.
            if (copies[i] > 1 || (kWide == 2 && here < p.q_heads + p.kv_heads))
                add_copies<Element, kWide>(p, row, here, unit, angles, x[i]);
#pragma unroll
            for (int j = 0; j < kWide; ++j) whole(p, row, here)[unit + j * p.units] = x[i][j];
        }
    }
}

}  // namespace afn

AFN_KERNEL(pack_heads, afn::PackHeads, afn::kThreads, 6) { afn::pack<afn::Float32, 1>(p); }
AFN_KERNEL(pack_heads_rotary_float32, afn::PackHeads, afn::kThreads, 4) { afn::pack<afn::Float32, 2>(p); }
AFN_KERNEL(pack_heads_rotary_bfloat16, afn::PackHeads, afn::kThreads, 4) { afn::pack<afn::Bfloat16, 2>(p); }
AFN_KERNEL(pack_heads_rotary_float16, afn::PackHeads, afn::kThreads, 4) { afn::pack<afn::Float16, 2>(p); }
AFN_KERNEL(unpack_heads_float32, afn::PackHeads, afn::kThreads, 6) { afn::unpack<afn::Float32, 1>(p); }
AFN_KERNEL(unpack_heads_bfloat16, afn::PackHeads, afn::kThreads, 6) { afn::unpack<afn::Bfloat16, 1>(p); }
AFN_KERNEL(unpack_heads_float16, afn::PackHeads, afn::kThreads, 6) { afn::unpack<afn::Float16, 1>(p); }
AFN_KERNEL(unpack_heads_rotary_float32, afn::PackHeads, afn::kThreads, 3) { afn::unpack<afn::Float32, 2>(p); }
AFN_KERNEL(unpack_heads_rotary_bfloat16, afn::PackHeads, afn::kThreads, 3) { afn::unpack<afn::Bfloat16, 2>(p); }
AFN_KERNEL(unpack_heads_rotary_float16, afn::PackHeads, afn::kThreads, 3) { afn::unpack<afn::Float16, 2>(p); }

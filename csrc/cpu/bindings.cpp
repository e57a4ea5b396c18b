// The Python module afn_kernels._cpu. Tensors arrive as addresses: nothing here depends on torch's headers.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>

#include "afn/attend.h"
#include "afn/decode_step.h"
#include "afn/log_mel.h"
#include "afn/log_mel_any.h"
#include "afn/pack.h"
#include "afn/resample.h"
#include "afn/rows.h"
#include "afn/simd.h"

namespace py = pybind11;
using namespace afn::log_mel;

namespace {

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Pcm make_pcm(uintptr_t address, bool int16, int64_t samples) {
    return int16 ? Pcm{nullptr, pointer<const int16_t>(address), samples}
                 : Pcm{pointer<const float>(address), nullptr, samples};
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "Compiled CPU kernels of afn_kernels. Arguments are addresses and sizes; the Python side validates.";

    m.def("simd_levels", &afn::levels, "SIMD levels this machine can run, fastest first.");
    m.def("simd_level", &afn::resolve_level, py::arg("level") = "",
          "The level a call would use: the named one, else $AFN_SIMD, else the fastest. ValueError if it cannot run.");

    m.def(
        "use_huge_pages",
        []([[maybe_unused]] uintptr_t address, [[maybe_unused]] uintptr_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
            constexpr uintptr_t kPage = uintptr_t{2} << 20;
            const uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + bytes) / kPage * kPage;
            if (begin < end) madvise(pointer<void>(begin), end - begin, MADV_HUGEPAGE);
#endif
        },
        py::arg("address"), py::arg("bytes"),
        "Asks that memory nobody has touched yet come in pages of 2 MB, where the system has them.");

    py::class_<Plan>(m, "MelPlan", "Window [400] and filter bank: per mel band its first bin, bin count and weights.")
        .def(py::init([](std::vector<float> window, std::vector<int32_t> first, std::vector<int32_t> count,
                         std::vector<float> weights) {
                 return Plan{std::move(window), std::move(first), std::move(count), std::move(weights)};
             }),
             py::arg("window"), py::arg("first"), py::arg("count"), py::arg("weights"));

    m.def(
        "log_mel",
        [](uintptr_t pcm, bool int16, int64_t rows, int64_t samples, int64_t row_stride, const Plan& plan,
           uintptr_t out, int threads, const std::string& level) {
            const Kernel& kernel = kernel_of(level);
            std::vector<Pcm> all;
            for (int64_t r = 0; r < rows; ++r) {
                all.push_back(make_pcm(pcm + r * row_stride * (int16 ? 2 : 4), int16, samples));
            }
            py::gil_scoped_release release;
            log_mel(all, plan, pointer<float>(out), threads, kernel);
        },
        py::arg("pcm"), py::arg("int16"), py::arg("rows"), py::arg("samples"), py::arg("row_stride"), py::arg("plan"),
        py::arg("out"), py::arg("threads"), py::arg("level") = "", "Features of rows of audio into out.");

    m.def(
        "mel_energies",
        [](uintptr_t pcm, bool int16, int64_t samples, int64_t begin, int64_t end, const Plan& plan, uintptr_t out,
           int64_t stride, const std::string& level) {
            const Kernel& kernel = kernel_of(level);
            py::gil_scoped_release release;
            return kernel.energies(make_pcm(pcm, int16, samples), begin, end, plan.view(), pointer<float>(out), stride);
        },
        py::arg("pcm"), py::arg("int16"), py::arg("samples"), py::arg("begin"), py::arg("end"), py::arg("plan"),
        py::arg("out"), py::arg("stride"), py::arg("level") = "",
        "Mel energies of frames begin to end of one row; returns the bit pattern of the largest.");

    m.def(
        "log_scale",
        [](uintptr_t energies, uintptr_t out, int64_t count, int32_t largest, const std::string& level) {
            const Kernel& kernel = kernel_of(level);
            py::gil_scoped_release release;
            kernel.log_scale(pointer<const float>(energies), pointer<float>(out), count, largest);
        },
        py::arg("energies"), py::arg("out"), py::arg("count"), py::arg("largest"), py::arg("level") = "",
        "Clamped, scaled logarithm of mel energies.");

    namespace any = afn::log_mel_any;
    py::class_<any::Settings>(m, "MelSettings", "A front end as its user describes it; all sizes in samples.")
        .def(py::init<>())
#define AFN_SETTING(name) .def_readwrite(#name, &any::Settings::name)
        // clang-format off
        AFN_SETTING(n_fft) AFN_SETTING(win) AFN_SETTING(hop) AFN_SETTING(before) AFN_SETTING(pad)
        AFN_SETTING(emphasis) AFN_SETTING(frame_emphasis) AFN_SETTING(remove_mean) AFN_SETTING(magnitude)
        AFN_SETTING(log_unit) AFN_SETTING(floor) AFN_SETTING(guard) AFN_SETTING(top) AFN_SETTING(top_value)
        AFN_SETTING(range) AFN_SETTING(offset) AFN_SETTING(divisor) AFN_SETTING(normalise) AFN_SETTING(eps)
        AFN_SETTING(eps_in_variance);
    // clang-format on
#undef AFN_SETTING

    py::class_<any::Plan>(m, "AnyMelPlan", "Tables of a front end: transform, window and filter bank.")
        .def(py::init<const any::Settings&, const std::vector<double>&, std::vector<int32_t>, std::vector<int32_t>,
                      std::vector<float>>(),
             py::arg("settings"), py::arg("window"), py::arg("first"), py::arg("count"), py::arg("weights"));

    m.def(
        "log_mel_any",
        [](uintptr_t pcm, bool int16, int64_t samples, int64_t row_stride, const std::vector<int64_t>& valid,
           const std::vector<int64_t>& counts, const any::Plan& plan, int64_t frames, uintptr_t out, int threads,
           const std::string& level) {
            const any::Kernel& kernel = any::kernel_of(level);
            std::vector<any::Row> rows;
            for (size_t r = 0; r < valid.size(); ++r) {
                const Pcm row = make_pcm(pcm + r * row_stride * (int16 ? 2 : 4), int16, samples);
                rows.push_back({row, valid[r], counts[r]});
            }
            py::gil_scoped_release release;
            any::log_mel(rows, plan, frames, pointer<float>(out), threads, kernel);
        },
        py::arg("pcm"), py::arg("int16"), py::arg("samples"), py::arg("row_stride"), py::arg("valid"),
        py::arg("counts"), py::arg("plan"), py::arg("frames"), py::arg("out"), py::arg("threads"),
        py::arg("level") = "", "Features of rows of audio into out, of a front end of any size.");

    m.def(
        "pack",
        [](uintptr_t lengths, int64_t count, int64_t context, uint64_t seed, int64_t max_cost, int64_t buffer,
           int64_t step, uintptr_t clips, uintptr_t cu) {
            py::gil_scoped_release release;
            const afn::pack::Bins bins =
                afn::pack::pack(pointer<const int64_t>(lengths), count, context, seed, max_cost, buffer, step);
            std::copy(bins.clips.begin(), bins.clips.end(), pointer<int64_t>(clips));
            std::copy(bins.cu.begin(), bins.cu.end(), pointer<int64_t>(cu));
            return static_cast<int64_t>(bins.cu.size()) - 1;
        },
        py::arg("lengths"), py::arg("count"), py::arg("context"), py::arg("seed"), py::arg("max_cost"),
        py::arg("buffer"), py::arg("step"), py::arg("clips"), py::arg("cu"),
        "Clips [count] bin by bin into clips, bounds of the bins into cu [count + 1]; returns the number of bins.");

    namespace attend = afn::attend;
    using Strides = std::array<int64_t, 3>;
    using Numbers = std::pair<uintptr_t, bool>;
    m.def(
        "cache_attention",
        [](uintptr_t q, uintptr_t out, uintptr_t k, const Strides& k_strides, uintptr_t v, const Strides& v_strides,
           bool bfloat16, int64_t blocks, int64_t page, const Numbers& table, int64_t columns, int64_t table_stride,
           uintptr_t bounds, int64_t fresh, const Numbers& lengths, uintptr_t key_bounds, int64_t sequences,
           const Numbers& prefixes, int64_t members, int64_t heads, int64_t kv_heads, int64_t width, bool causal,
           int64_t left, int64_t right, float scale, float softcap, int threads, const std::string& level) {
            const auto numbers = [](const Numbers& x) {
                return attend::Numbers{pointer<const void>(x.first), x.second};
            };
            const auto entries = [](uintptr_t at, const Strides& s) {
                return attend::Entries{pointer<const void>(at), s[0], s[1], s[2]};
            };
            const attend::Call call{pointer<const void>(q),
                                    pointer<void>(out),
                                    entries(k, k_strides),
                                    entries(v, v_strides),
                                    bfloat16,
                                    blocks,
                                    page,
                                    numbers(table),
                                    columns,
                                    table_stride,
                                    {pointer<const void>(bounds), false},
                                    fresh,
                                    numbers(lengths),
                                    {pointer<const void>(key_bounds), false},
                                    numbers(prefixes),
                                    sequences,
                                    members,
                                    heads,
                                    kv_heads,
                                    width,
                                    causal,
                                    left,
                                    right,
                                    scale,
                                    softcap};
            if (!out) return attend::fits(call, true);
            const attend::Kernel& kernel = attend::kernel_of(level);
            py::gil_scoped_release release;
            if (!attend::fits(call, false)) return false;
            attend::attend(call, threads, kernel);
            return true;
        },
        py::arg("q"), py::arg("out"), py::arg("k"), py::arg("k_strides"), py::arg("v"), py::arg("v_strides"),
        py::arg("bfloat16"), py::arg("blocks"), py::arg("page"), py::arg("table"), py::arg("columns"),
        py::arg("table_stride"), py::arg("bounds"), py::arg("fresh"), py::arg("lengths"), py::arg("key_bounds"),
        py::arg("sequences"), py::arg("prefixes"), py::arg("members"), py::arg("heads"), py::arg("kv_heads"),
        py::arg("width"), py::arg("causal"), py::arg("left"), py::arg("right"), py::arg("scale"), py::arg("softcap"),
        py::arg("threads"), py::arg("level") = "",
        "Attention of new tokens over a KV cache; False, with nothing computed, where a length or a page is not there. "
        "Without `out` only that is looked at, and whether lengths hold their new tokens.");

    m.def(
        "resample_rational",
        [](uintptr_t x, uintptr_t taps, uintptr_t first, int64_t blocks, int64_t length, int64_t step, int64_t groups,
           uintptr_t out, const std::string& level) {
            const afn::resample::Kernel& kernel = afn::resample::kernel_of(level);
            const afn::resample::Bank bank{pointer<const float>(taps), pointer<const int64_t>(first), blocks, length,
                                           step};
            py::gil_scoped_release release;
            kernel.rational(pointer<const float>(x), bank, groups, pointer<float>(out));
        },
        py::arg("x"), py::arg("taps"), py::arg("first"), py::arg("blocks"), py::arg("length"), py::arg("step"),
        py::arg("groups"), py::arg("out"), py::arg("level") = "", "Groups of outputs by a polyphase filter bank.");

    m.def(
        "resample_any_ratio",
        [](uintptr_t x, uintptr_t taps, int64_t phases, int64_t length, int64_t rate, int64_t to, int64_t first,
           int64_t count, uintptr_t out, const std::string& level) {
            const afn::resample::Kernel& kernel = afn::resample::kernel_of(level);
            const afn::resample::Phases filter{pointer<const float>(taps), phases, length};
            py::gil_scoped_release release;
            kernel.any_ratio(pointer<const float>(x), filter, rate, to, first, count, pointer<float>(out));
        },
        py::arg("x"), py::arg("taps"), py::arg("phases"), py::arg("length"), py::arg("rate"), py::arg("to"),
        py::arg("first"), py::arg("count"), py::arg("out"), py::arg("level") = "",
        "Outputs first to first + count by a filter interpolated between its phases.");

    namespace rows = afn::rows;
    m.def(
        "rms_norm",
        [](uintptr_t x, uintptr_t residual, uintptr_t weight, uintptr_t y, uintptr_t h, int64_t count, int64_t width,
           int64_t x_stride, int64_t residual_stride, double eps, bool shifted, float offset, int threads,
           const std::string& level) {
            const rows::Kernel& kernel = rows::kernel_of(level);
            const rows::Norm norm{pointer<const float>(x),
                                  pointer<const float>(residual),
                                  pointer<const float>(weight),
                                  pointer<float>(y),
                                  pointer<float>(h),
                                  width,
                                  x_stride,
                                  residual_stride,
                                  eps,
                                  shifted,
                                  offset};
            py::gil_scoped_release release;
            rows::norm(norm, count, threads, kernel);
        },
        py::arg("x"), py::arg("residual"), py::arg("weight"), py::arg("y"), py::arg("h"), py::arg("count"),
        py::arg("width"), py::arg("x_stride"), py::arg("residual_stride"), py::arg("eps"), py::arg("shifted"),
        py::arg("offset"), py::arg("threads"), py::arg("level") = "",
        "Rows over their root mean square, times a weight, behind the sum with a residual.");

    m.def(
        "rotary",
        [](uintptr_t q, const Strides& q_axes, uintptr_t k, const Strides& k_axes, uintptr_t q_out, uintptr_t k_out,
           uintptr_t positions, bool wide_positions, bool each_pair, uintptr_t freq, bool wide_freq, bool interleaved,
           int64_t tokens, int64_t width, int64_t pairs, uintptr_t v, const Strides& v_axes, uintptr_t slots,
           uintptr_t k_cache, const Strides& k_rows, uintptr_t v_cache, const Strides& v_rows, int threads,
           const std::string& level) {
            const rows::Kernel& kernel = rows::kernel_of(level);
            const auto heads = [](uintptr_t at, const Strides& axes) {
                return rows::Heads{pointer<const float>(at), axes[0], axes[1], axes[2]};
            };
            const rows::Rotary rotary{heads(q, q_axes),
                                      heads(k, k_axes),
                                      heads(v, v_axes),
                                      pointer<float>(q_out),
                                      pointer<float>(k_out),
                                      pointer<const void>(positions),
                                      pointer<const void>(freq),
                                      wide_positions,
                                      wide_freq,
                                      each_pair,
                                      interleaved,
                                      width,
                                      pairs,
                                      pointer<const int64_t>(slots),
                                      pointer<float>(k_cache),
                                      pointer<float>(v_cache),
                                      k_rows[0],
                                      k_rows[1],
                                      k_rows[2],
                                      v_rows[1],
                                      v_rows[2]};
            py::gil_scoped_release release;
            rows::rotary(rotary, tokens, threads, kernel);
        },
        py::arg("q"), py::arg("q_axes"), py::arg("k"), py::arg("k_axes"), py::arg("q_out"), py::arg("k_out"),
        py::arg("positions"), py::arg("wide_positions"), py::arg("each_pair"), py::arg("freq"), py::arg("wide_freq"),
        py::arg("interleaved"), py::arg("tokens"), py::arg("width"), py::arg("pairs"), py::arg("v"), py::arg("v_axes"),
        py::arg("slots"), py::arg("k_cache"), py::arg("k_rows"), py::arg("v_cache"), py::arg("v_rows"),
        py::arg("threads"), py::arg("level") = "",
        "q and k turned by their positions, and k and v written into rows of a cache. Axes are strides of tokens and "
        "heads and how many heads there are; rows are how many, and strides of rows and heads.");

    namespace step = afn::decode_step;
    py::class_<step::Decoder>(m, "Decoder", "Addresses of a decoder's float32 weights, layer by layer, and its sizes.")
        .def(py::init([](const std::vector<std::array<uintptr_t, 16>>& layers, uintptr_t norm, uintptr_t inv_freq,
                         int64_t width, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t ffn, double eps) {
                 step::Decoder decoder{{},
                                       pointer<const float>(norm),
                                       pointer<const float>(inv_freq),
                                       width,
                                       heads,
                                       kv_heads,
                                       head_dim,
                                       ffn,
                                       eps};
                 for (const auto& at : layers) {
                     const auto linear = [&](int i) {
                         return step::Linear{pointer<const float>(at[i]), pointer<const float>(at[i + 1])};
                     };
                     decoder.layers.push_back({pointer<const float>(at[0]), linear(2), linear(4), linear(6), linear(8),
                                               pointer<const float>(at[1]), linear(10), linear(12), linear(14)});
                 }
                 return decoder;
             }),
             py::arg("layers"), py::arg("norm"), py::arg("inv_freq"), py::arg("width"), py::arg("heads"),
             py::arg("kv_heads"), py::arg("head_dim"), py::arg("ffn"), py::arg("eps"));

    m.def(
        "decode_step",
        [](const step::Decoder& decoder, uintptr_t x, uintptr_t positions, uintptr_t slots, uintptr_t kv, int64_t rows,
           int64_t pages, int64_t page, const Numbers& table, int64_t columns, int64_t table_stride,
           const Numbers& lengths, const Numbers& bounds, int64_t sequences, uintptr_t out, int threads,
           const std::string& level) {
            const step::Rows call{pointer<const float>(x),
                                  pointer<const float>(positions),
                                  pointer<const int64_t>(slots),
                                  pointer<float>(kv),
                                  rows,
                                  pages,
                                  page,
                                  {pointer<const void>(table.first), table.second},
                                  {pointer<const void>(lengths.first), lengths.second},
                                  columns,
                                  table_stride,
                                  {pointer<const void>(bounds.first), bounds.second},
                                  sequences};
            py::gil_scoped_release release;
            return step::run(decoder, call, pointer<float>(out), threads, level);
        },
        py::arg("decoder"), py::arg("x"), py::arg("positions"), py::arg("slots"), py::arg("kv"), py::arg("rows"),
        py::arg("pages"), py::arg("page"), py::arg("table"), py::arg("columns"), py::arg("table_stride"),
        py::arg("lengths"), py::arg("bounds"), py::arg("sequences"), py::arg("out"), py::arg("threads"),
        py::arg("level") = "",
        "New tokens of sequences through all layers; False, with nothing computed, where a length or a page is not "
        "there.");
}

// The Python module afn_kernels._cpu. Tensors arrive as addresses: nothing here depends on torch's headers.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "afn/log_mel.h"
#include "afn/pack.h"
#include "afn/resample.h"
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
}

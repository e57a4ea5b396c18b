// SIMD levels: kernels that are compiled once per level, and the choice among them at run time.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

// AFN_SIMD_LEVELS(X) is X(name) for every level that was compiled, fastest first.
#ifdef AFN_HAVE_AVX512
#define AFN_IF_AVX512(X) X(avx512)
#else
#define AFN_IF_AVX512(X)
#endif
#ifdef AFN_HAVE_AVX2
#define AFN_IF_AVX2(X) X(avx2)
#else
#define AFN_IF_AVX2(X)
#endif
#ifdef AFN_HAVE_NEON
#define AFN_IF_NEON(X) X(neon)
#else
#define AFN_IF_NEON(X)
#endif
#define AFN_SIMD_LEVELS(X) AFN_IF_AVX512(X) AFN_IF_AVX2(X) AFN_IF_NEON(X) X(portable) X(portable16)

// Where Kernel is declared: every level's own, and kernel_of(level).
// clang-format off
#define AFN_DECLARE_KERNEL(level) namespace level { extern const Kernel kernel; }
#define AFN_KERNEL_ADDRESS(level) &level::kernel,
#define AFN_DEFINE_KERNEL_OF                                                          \
    AFN_SIMD_LEVELS(AFN_DECLARE_KERNEL)                                               \
    const Kernel& kernel_of(const std::string& level) {                               \
        static const Kernel* const kernels[] = {AFN_SIMD_LEVELS(AFN_KERNEL_ADDRESS)}; \
        return *kernels[find_level(level)];                                           \
    }
// clang-format on

namespace afn {

// Names of the SIMD levels this machine can run, fastest first.
std::vector<std::string> levels();

// Place in AFN_SIMD_LEVELS of the level a call uses: the named one, else $AFN_SIMD, else the fastest. Throws
// std::invalid_argument.
size_t find_level(const std::string& level);
std::string resolve_level(const std::string& level);

}  // namespace afn

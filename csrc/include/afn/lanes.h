// What the files share that CMake compiles once per SIMD level: vectors of AFN_LANES floats.
#pragma once

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace afn::AFN_LEVEL {

constexpr int L = AFN_LANES;
typedef float Vec __attribute__((vector_size(4 * L)));
typedef float VecU __attribute__((vector_size(4 * L), aligned(4), may_alias));

}  // namespace afn::AFN_LEVEL

#include "afn/resample.h"

#include "afn/simd.h"

namespace afn::resample {

// clang-format off
#define AFN_KERNEL(level) namespace level { extern const Kernel kernel; }
AFN_SIMD_LEVELS(AFN_KERNEL)
// clang-format on

const Kernel& kernel_of(const std::string& level) {
#define AFN_ADDRESS(level) &level::kernel,
    static const Kernel* const kernels[] = {AFN_SIMD_LEVELS(AFN_ADDRESS)};
    return *kernels[find_level(level)];
}

}  // namespace afn::resample

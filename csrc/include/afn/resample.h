// The build of resample_simd.cpp for a SIMD level.
#pragma once

#include <string>

#include "afn/resample_simd.h"

namespace afn::resample {

const Kernel& kernel_of(const std::string& level);

}  // namespace afn::resample

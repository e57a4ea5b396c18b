// Rows shared out over threads, by the build of rows_simd.cpp for a SIMD level.
#pragma once

#include <string>

#include "afn/rows_simd.h"

namespace afn::rows {

const Kernel& kernel_of(const std::string& level);

void norm(const Norm& norm, int64_t rows, int threads, const Kernel& kernel);
void rotary(const Rotary& rotary, int64_t tokens, int threads, const Kernel& kernel);

}  // namespace afn::rows

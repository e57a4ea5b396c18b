// Attention over a KV cache: shared out over threads, by the build of attend_simd.cpp for a SIMD level.
#pragma once

#include <string>

#include "afn/attend_simd.h"

namespace afn::attend {

const Kernel& kernel_of(const std::string& level);

// Whether all lengths are within the capacity and all pages that are read are there; with `whole` also whether lengths
// hold their new tokens, and the tokens before those the prefixes.
bool fits(const Call& call, bool whole);

// The call must fit.
void attend(const Call& call, int threads, const Kernel& kernel);

}  // namespace afn::attend

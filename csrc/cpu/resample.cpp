#include "afn/resample.h"

#include "afn/simd.h"

namespace afn::resample {

AFN_DEFINE_KERNEL_OF

}  // namespace afn::resample

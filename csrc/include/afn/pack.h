// Packing of clips into bins of a context length. The rules are written out in afn_model/data/packing.py.
#pragma once

#include <cstdint>
#include <vector>

namespace afn::pack {

struct Bins {
    std::vector<int64_t> clips;  // bin after bin
    std::vector<int64_t> cu;     // bin b is clips[cu[b]] .. clips[cu[b + 1] - 1]
};

// lengths[count], all from 1 to context, and no length's square above max_cost; context up to 2^20, count below 2^31.
Bins pack(const int64_t* lengths, int64_t count, int64_t context, uint64_t seed, int64_t max_cost, int64_t buffer,
          int64_t step);

}  // namespace afn::pack

#include "afn/attend.h"

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "afn/simd.h"
#include "parallel.h"

namespace afn::attend {

AFN_DEFINE_KERNEL_OF

namespace {

constexpr int64_t kAlone = 1 << 21;  // products that one thread computes before another one could begin

struct Free {
    void operator()(float* p) const { std::free(p); }
};

// Keys that a sequence's new tokens see.
struct Range {
    int64_t begin, end;
};

Range seen(const Call& call, int64_t sequence) {
    const int64_t fresh = call.begin(sequence + 1) - call.begin(sequence), length = call.length(sequence);
    if (!fresh) return {0, 0};
    const int64_t begin = call.left == kUnlimited ? 0 : std::max<int64_t>(0, length - fresh - call.left);
    return {std::min(begin, length), length};
}

bool pages_are_there(const Call& call, int64_t sequence, int64_t begin, int64_t end) {
    if (!call.table.at) return call.first_key(sequence) + end <= call.page;
    for (int64_t page = begin / call.page; page * call.page < end; ++page) {
        const int64_t block = call.table[sequence * call.table_stride + page];
        if (block < 0 || block >= call.blocks) return false;
    }
    return true;
}

}  // namespace

bool fits(const Call& call, bool whole) {
    for (int64_t s = 0; s < call.sequences; ++s) {
        const int64_t length = call.length(s), fresh = call.begin(s + 1) - call.begin(s), prefix = call.prefix(s);
        if (fresh < 0 || length < 0 || call.first_key(s) < 0 || length > call.capacity() || prefix < 0 ||
            prefix > length)
            return false;
        if (whole && (length < fresh || prefix > length - fresh)) return false;
        const Range range = seen(call, s);
        if (range.begin >= range.end) continue;
        if (range.begin < prefix && !pages_are_there(call, call.owner(s), range.begin, prefix)) return false;
        if (!pages_are_there(call, s, std::max(range.begin, prefix), range.end)) return false;
    }
    return true;
}

void attend(const Call& call, int threads, const Kernel& kernel) {
    const int64_t group = call.heads / call.kv_heads;
    std::vector<Tile> tiles;
    int64_t most = 0, products = 0;
    for (int64_t s = 0; s < call.sequences; ++s) {
        const int64_t rows = (call.begin(s + 1) - call.begin(s)) * group;
        const Range range = seen(call, s);
        products += rows * call.kv_heads * (range.end - range.begin) * call.width;
        for (int64_t first = (rows - 1) / kRows * kRows; first >= 0 && rows; first -= kRows) {
            const int64_t last = std::min(first + kRows, rows);
            most = std::max(most, last - first);
            for (int64_t h = 0; h < call.kv_heads; ++h) tiles.push_back({s, h, first, last});
        }
    }
    struct Worker {
        const Call& call;
        const Kernel& kernel;
        const std::vector<Tile>& tiles;
        std::unique_ptr<float, Free> scratch;

        void operator()(int64_t i) const { kernel.attend(call, tiles[i], scratch.get()); }
    };
    const int64_t bytes = (scratch_size(most, call.width) * 4 + 63) / 64 * 64;
    parallel_with(
        static_cast<int64_t>(tiles.size()), products > kAlone ? threads : 1,
        [&] {
            auto* scratch = static_cast<float*>(std::aligned_alloc(64, bytes));
            if (!scratch) throw std::bad_alloc();
            return Worker{call, kernel, tiles, std::unique_ptr<float, Free>(scratch)};
        },
        Threads::pooled);
}

}  // namespace afn::attend

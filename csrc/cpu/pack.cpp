// afn_model/data/packing.py says what is done here and has the same in Python: every draw and every tie falls the same
// way in both.

#include "afn/pack.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace afn::pack {

namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

// SplitMix64.
struct Random {
    uint64_t state;

    uint64_t next() {
        state += 0x9E3779B97F4A7C15u;
        uint64_t z = state;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }

    template <class T>
    void shuffle(T* items, int64_t count) {
        for (int64_t i = count - 1; i > 0; --i) {
            const auto j = static_cast<int64_t>((static_cast<unsigned __int128>(next()) * (i + 1)) >> 64);
            std::swap(items[i], items[j]);
        }
    }
};

struct Bin {
    int64_t room, cost;
    int64_t begin, end;  // of its clips among those placed
};

// The open bins by room. A leaf per room holds a leftist heap of bins, least (cost, number) on top; the tree above
// holds the least cost below each node.
class OpenBins {
  public:
    explicit OpenBins(int64_t context) {
        while (leaves_ <= context) leaves_ *= 2;
        least_.assign(2 * leaves_, kNone);
        top_.assign(leaves_, -1);
    }

    // Forgets the bins of the last buffer.
    void clear(const std::vector<Bin>& bins) {
        for (const Bin& bin : bins) {
            top_[bin.room] = -1;
            refresh(bin.room);
        }
        heap_.clear();
    }

    void push(int64_t number, const Bin& bin) {
        if (number >= static_cast<int64_t>(heap_.size())) heap_.resize(number + 1);
        heap_[number] = {bin.cost, -1, -1, 1};
        top_[bin.room] = merge(top_[bin.room], number);
        refresh(bin.room);
    }

    // The least cost of a bin with at least that room.
    int64_t least(int64_t room) const {
        int64_t i = leaves_ + room, found = least_[i];
        for (; i > 1; i >>= 1) {
            if (!(i & 1)) found = std::min(found, least_[i + 1]);
        }
        return found;
    }

    // Takes out the bin with the least room of at least `room` and a cost of at most `cost`; -1 where there is none.
    int64_t pop(int64_t room, int64_t cost) {
        int64_t i = leaves_ + room;
        while (least_[i] > cost) {
            while (i & 1) i >>= 1;  // a right child, or the rightmost way up: to the next subtree on the right
            if (i == 0) return -1;
            ++i;
        }
        while (i < leaves_) {
            i *= 2;
            if (least_[i] > cost) ++i;
        }
        const int64_t found = i - leaves_, number = top_[found];
        top_[found] = merge(heap_[number].left, heap_[number].right);
        refresh(found);
        return number;
    }

  private:
    struct Node {
        int64_t cost;
        int32_t left, right, rank;
    };

    int32_t merge(int32_t a, int32_t b) {
        if (a < 0) return b;
        if (b < 0) return a;
        if (heap_[b].cost < heap_[a].cost || (heap_[b].cost == heap_[a].cost && b < a)) std::swap(a, b);
        Node& node = heap_[a];
        node.right = merge(node.right, b);
        if (rank(node.left) < rank(node.right)) std::swap(node.left, node.right);
        node.rank = rank(node.right) + 1;
        return a;
    }

    int32_t rank(int32_t number) const { return number < 0 ? 0 : heap_[number].rank; }

    void refresh(int64_t room) {
        int64_t i = leaves_ + room;
        int64_t value = top_[room] < 0 ? kNone : heap_[top_[room]].cost;
        while (least_[i] != value) {
            least_[i] = value;
            if (i == 1) return;
            value = std::min(value, least_[i ^ 1]);
            i >>= 1;
        }
    }

    int64_t leaves_ = 1;
    std::vector<int64_t> least_;
    std::vector<int32_t> top_;
    std::vector<Node> heap_;
};

class Packer {
  public:
    Packer(const int64_t* lengths, int64_t count, int64_t context, uint64_t seed, int64_t max_cost, int64_t buffer,
           int64_t step)
        : lengths_(lengths), context_(context), max_cost_(max_cost), step_(step), random_{seed}, open_(context) {
        stream_.resize(count);
        std::iota(stream_.begin(), stream_.end(), 0);
        random_.shuffle(stream_.data(), count);
        out_.clips.reserve(count);
        out_.cu.push_back(0);
        for (int64_t begin = 0; begin < count; begin += std::min(buffer, count - begin)) {
            const int64_t end = begin + std::min(buffer, count - begin);
            fill(begin, end);
            group(end == count);
        }
    }

    Bins take() { return std::move(out_); }

  private:
    // Bins of the clips that wait and of those from begin to end in the stream, onto the queue.
    void fill(int64_t begin, int64_t end) {
        std::vector<int64_t> places = std::move(waiting_);
        waiting_.clear();
        for (int64_t place = begin; place < end; ++place) places.push_back(place);
        const int64_t count = places.size();
        std::vector<uint64_t> keys(count);  // longest first, then the earlier in the stream
        int64_t tokens = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t length = lengths_[stream_[places[i]]];
            keys[i] = static_cast<uint64_t>(0x7FFFFFFF - length) << 32 | static_cast<uint64_t>(i);
            tokens += length;
        }
        std::sort(keys.begin(), keys.end());

        std::vector<Bin> bins((tokens + context_ - 1) / context_, Bin{context_, 0, 0, 0});
        for (size_t number = 0; number < bins.size(); ++number) open_.push(number, bins[number]);
        std::vector<int32_t> bin_of(count);
        const int64_t spread = tokens - tokens / 8;
        int64_t placed = 0;  // tokens: the longest clips go where the cost is least, the last eighth where the room is
        for (uint64_t key : keys) {
            const int64_t length = 0x7FFFFFFF - static_cast<int64_t>(key >> 32), cost = length * length;
            int64_t most = max_cost_ - cost;
            if (placed < spread) most = std::min(most, open_.least(length));
            int64_t number = open_.pop(length, most);
            if (number < 0) {
                number = bins.size();
                bins.push_back({context_, 0, 0, 0});
            }
            Bin& bin = bins[number];
            bin.room -= length;
            bin.cost += cost;
            ++bin.end;
            bin_of[key & 0xFFFFFFFFu] = number;
            open_.push(number, bin);
            placed += length;
        }
        open_.clear(bins);

        // The clips of a bin keep the order of the stream.
        int64_t next = placed_.size();
        for (Bin& bin : bins) {
            bin.begin = next;
            next += bin.end;
            bin.end = bin.begin;
        }
        placed_.resize(next);
        for (int64_t i = 0; i < count; ++i) placed_[bins[bin_of[i]].end++] = places[i];
        bins.erase(std::remove_if(bins.begin(), bins.end(), [](const Bin& bin) { return bin.begin == bin.end; }),
                   bins.end());
        if (end < static_cast<int64_t>(stream_.size())) {
            // The emptiest bin waits for the next buffer, unless a clip in it has waited already.
            auto emptiest = bins.end();
            for (auto bin = bins.begin(); bin != bins.end(); ++bin) {
                if (placed_[bin->begin] >= begin && (emptiest == bins.end() || bin->room > emptiest->room))
                    emptiest = bin;
            }
            if (emptiest != bins.end()) {
                waiting_.assign(placed_.begin() + emptiest->begin, placed_.begin() + emptiest->end);
                bins.erase(emptiest);
            }
        }
        random_.shuffle(bins.data(), bins.size());
        queue_.insert(queue_.end(), bins.begin(), bins.end());
    }

    // Whole steps of the queue, each of bins of like cost, to the output; all of the queue where it is the last time.
    void group(bool last) {
        const int64_t steps = queue_.size() / step_;
        const auto whole = queue_.begin() + steps * step_;
        std::stable_sort(queue_.begin(), whole, [](const Bin& a, const Bin& b) { return a.cost < b.cost; });
        std::vector<int64_t> order(steps);
        std::iota(order.begin(), order.end(), 0);
        random_.shuffle(order.data(), steps);
        for (int64_t s : order) {
            random_.shuffle(queue_.data() + s * step_, step_);
            for (int64_t i = 0; i < step_; ++i) emit(queue_[s * step_ + i]);
        }
        queue_.erase(queue_.begin(), whole);
        if (!last) return;
        for (const Bin& bin : queue_) emit(bin);
        queue_.clear();
    }

    void emit(const Bin& bin) {
        for (int64_t i = bin.begin; i < bin.end; ++i) out_.clips.push_back(stream_[placed_[i]]);
        out_.cu.push_back(out_.clips.size());
    }

    const int64_t* lengths_;
    const int64_t context_, max_cost_, step_;
    Random random_;
    OpenBins open_;
    std::vector<int64_t> stream_, waiting_, placed_;
    std::vector<Bin> queue_;
    Bins out_;
};

}  // namespace

Bins pack(const int64_t* lengths, int64_t count, int64_t context, uint64_t seed, int64_t max_cost, int64_t buffer,
          int64_t step) {
    return Packer(lengths, count, context, seed, max_cost, buffer, step).take();
}

}  // namespace afn::pack

// Who wrote and who read each granule of memory, and whether that is ordered before what a thread does now.
// Atomics need no order among themselves.
//
// A write is stamped with block, thread and three counts: barriers of the block, barriers of the warp, releases of the
// thread. In a block a stamp is ordered before a thread that has passed a later barrier with its writer. Between blocks
// only knowledge orders (Seen): a release hands on what its thread knows, an acquire takes it, barriers spread it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace afn::host {

constexpr int kGrain = 2;  // bytes; kernels write no single ones
constexpr uint16_t kMany = 0xffff;
// As a thread's number: the copies of a bulk barrier, those of a barrier of hopper.h, a warpgroup's products.
constexpr uint16_t kCopies = 0x8000, kTensorCopies = 0x9000, kProducts = 0xc000;
constexpr uint16_t kBarrier = 0xd000;                            // who has written a barrier
constexpr uint16_t kStoreReads = 0xe000, kStoreWrites = 0xe800;  // by asynchronous stores of a thread, which is added

struct Stamp {
    uint32_t life;  // of the launch, or of the block's shared memory; another one is as good as no stamp
    uint32_t block;
    uint16_t thread, warp;  // kMany: several have read at once
    uint32_t barriers, warp_barriers, releases;
    uint32_t place;  // in the program
    bool under_way;  // what an asynchronous copy will write
};

constexpr uint32_t kBlocks = 0xffffffff;  // as a block's number: several have read

// Whether barriers order it: what is not a copy's.
inline bool counted(const Stamp& stamp) { return stamp.thread < kCopies || stamp.thread == kMany; }

struct Cell {
    Stamp written, read, atomic;
    std::unique_ptr<std::vector<Stamp>> others;  // who else has read
};

// What is known of a block: all before some barrier of it, and of that barrier's epoch single warps and threads.
struct Known {
    uint32_t barriers = 0;
    std::map<uint16_t, uint32_t> warps, threads;
};

struct Seen {
    std::map<uint32_t, Known> blocks;

    bool covers(const Stamp& stamp) const {
        auto found = blocks.find(stamp.block);
        if (found == blocks.end()) return false;
        const Known& known = found->second;
        if (counted(stamp) && stamp.barriers < known.barriers) return true;
        auto warp = known.warps.find(stamp.warp);
        if (counted(stamp) && warp != known.warps.end() && stamp.warp_barriers < warp->second) return true;
        auto thread = known.threads.find(stamp.thread);
        return thread != known.threads.end() && stamp.releases <= thread->second;
    }

    void merge(const Seen& other) {
        for (const auto& [block, more] : other.blocks) {
            Known& known = blocks[block];
            known.barriers = std::max(known.barriers, more.barriers);
            for (auto [warp, count] : more.warps) known.warps[warp] = std::max(known.warps[warp], count);
            for (auto [thread, count] : more.threads) {
                auto [place, fresh] = known.threads.try_emplace(thread, count);
                if (!fresh) place->second = std::max(place->second, count);
            }
        }
    }
};

// Cells of global memory, in pages that are made when they are first met.
struct Shadow {
    static constexpr int kPage = 4096;
    using Page = std::unique_ptr<Cell[]>;
    std::unordered_map<uintptr_t, Page> pages;
    uintptr_t last = ~uintptr_t{0};
    Cell* cells = nullptr;

    Cell& at(uintptr_t address) {
        uintptr_t page = address / kPage;
        if (page != last) {
            Page& found = pages[page];
            if (!found) found = std::make_unique<Cell[]>(kPage / kGrain);
            last = page;
            cells = found.get();
        }
        return cells[address % kPage / kGrain];
    }
    void begin() {
        if (pages.size() < 500) return;  // 60 MB
        pages.clear();
        last = ~uintptr_t{0};
    }
};

}  // namespace afn::host

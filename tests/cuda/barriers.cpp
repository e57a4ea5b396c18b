// Barriers in shared memory, the copies that they wait for, and barriers of some warps. Bytes come when no thread can
// go on without them, in the order of their copies, and are there when their phase ends.
#include "boxes.h"

namespace afn {
namespace host {

// Whether copies and products see what a thread wrote: a proxy fence came between, by the writer or behind a barrier.
bool seen_by_async(const Stamp& stamp, const Thread& self) {
    Machine& m = *machine;
    return !counted(stamp) || self.proxied.covers(stamp) || m.warps[self.index / 32].proxied.covers(stamp) ||
           m.proxied.covers(stamp);
}

namespace {

Seen proxied_now() {
    Machine& m = *machine;
    Seen all = m.proxied;
    all.merge(m.warp().proxied);
    all.merge(m.current->proxied);
    return all;
}

uint32_t number_of(uint64_t* at, uint32_t place) {
    auto& barriers = machine->async.barriers;
    for (uint32_t i = 0; i < barriers.size(); ++i)
        if (barriers[i].at == at) {
            if (!ordered(barriers[i].begun))
                conflict(place, reinterpret_cast<uintptr_t>(at), false, barriers[i].begun, true, nullptr);
            return i;
        }
    fail_at(place, "uses a barrier that was never started, at " + memory(reinterpret_cast<uintptr_t>(at)));
}
Barrier& barrier_at(uint64_t* at, uint32_t place) { return machine->async.barriers[number_of(at, place)]; }

Stamp of_copy(uint32_t barrier, uint32_t phase, uint32_t place) {
    Stamp now = stamp(machine->blocks, place);
    now.thread = static_cast<uint16_t>(kTensorCopies + barrier);
    now.warp = 0;
    now.releases = phase;
    return now;
}

void mark(const Box& copy, Stamp now, bool under_way) {
#ifndef AFN_UNCHECKED
    now.under_way = under_way;
    uintptr_t at = reinterpret_cast<uintptr_t>(copy.shared);
    for (uintptr_t byte = 0; byte < copy.bytes; byte += kGrain) cell_at(at + byte).written = now;
#endif
}

void land(const Box& copy) {
    std::vector<unsigned char> box(copy.bytes, 0);
    each_piece(copy, [&](uint32_t byte, const unsigned char* from, uint32_t bytes) {
        if (from) std::memcpy(&box[byte], from, bytes);
    });
    uint32_t start = shared_address(copy.shared);
    for (uint32_t byte = 0; byte < copy.bytes; byte += 16)
        std::memcpy(machine->shared + swizzled(start + byte, Swizzle{copy.swizzle}), &box[byte], 16);
}

void end_phase_if_done(uint32_t number) {
    Barrier& b = machine->async.barriers[number];
    if (b.pending || b.coming) return;
    for (const Box& copy : b.copies) {
        land(copy);
        mark(copy, of_copy(number, b.phase, copy.place), false);
    }
    if (!b.copies.empty()) b.filled = b.phase + 1;
    b.copies.clear();
    ++b.phase;
    b.pending = b.count;
    take(b.released, b.arrived);
    take(b.released_proxied, b.arrived_proxied);
    wake(b.waiting);
}

void arrive(uint32_t number) {
    Barrier& b = machine->async.barriers[number];
    b.arrived.merge(snapshot());
    b.arrived_proxied.merge(proxied_now());
    --b.pending;
    end_phase_if_done(number);
}

void begin(Box copy, uint64_t* barrier, uint32_t place) {
    Machine& m = *machine;
    copy.barrier = number_of(barrier, place);
    Barrier& b = m.async.barriers[copy.barrier];
    if (!b.fenced) fail_at(place, "copies to a barrier that nobody has fenced since it was started");
    copy.phase = b.phase;
    copy.place = place;
    check_room(copy, place);
    Stamp now = of_copy(copy.barrier, copy.phase, place);
#ifndef AFN_UNCHECKED
    Stamp read = now;
    read.life = m.launches;
    each_granule(copy, [&](uintptr_t at) { check(cell_at(at), at, false, false, How::bulk, read); });
    uintptr_t to = reinterpret_cast<uintptr_t>(copy.shared);
    for (uintptr_t at = to; at < to + copy.bytes; at += kGrain) {
        Cell& cell = cell_at(at);
        Stamp before = cell.written;
        if (before.life == now.life && ordered(before) && !before.under_way && !seen_by_async(before, *m.current))
            conflict(place, at, true, before, true, "no proxy fence between them");
        check(cell, at, true, true, How::bulk, now);
        cell.others.reset();
    }
#endif
    mark(copy, now, true);
    std::memset(copy.shared, 0xff, copy.bytes);
    m.async.coming.push_back(copy);
}

}  // namespace

uint32_t swizzled(uint32_t byte, Swizzle swizzle) {
    uint32_t bits = swizzle == Swizzle::none ? 0 : 4 - static_cast<uint32_t>(swizzle);
    return byte ^ (byte >> 3 & ((1u << bits) - 1) << 4);
}

// The oldest copy's bytes; whether there was one.
bool bytes_come() {
    auto& coming = machine->async.coming;
    if (coming.empty()) return false;
    Box copy = coming.front();
    coming.pop_front();
    Barrier& b = machine->async.barriers[copy.barrier];
    if (copy.phase != b.phase || b.coming < copy.bytes)
        fail("the bytes of a copy come to a phase of their barrier that does not expect them");
    b.coming -= copy.bytes;
    b.copies.push_back(copy);
    end_phase_if_done(copy.barrier);
    return true;
}

bool async_bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier, uint32_t place) {
    for (const Barrier& b : machine->async.barriers)
        if (b.at == barrier) {
            Box copy = line_of_bytes(to, from, bytes);
            begin(copy, barrier, place);
            return true;
        }
    return false;
}

namespace {

void copy_box(void* to, const TensorMap* map, uint64_t* barrier, std::initializer_list<int> at, uint32_t place) {
    begin(box_of(to, map, at, place), barrier, place);
}

NamedBarrier& named(int number, int threads, bool waits, uint32_t place) {
    Machine& m = *machine;
    if (number < 1 || number > 15) fail_at(place, "uses a named barrier that is none of 1 to 15");
    if (threads <= 0 || threads % 32 || threads > m.launch.threads)
        fail_at(place, "meets at a named barrier a number of threads that are no whole warps of the block");
    NamedBarrier& b = m.async.named[number];
    if (b.who.empty()) b.threads = threads;
    if (b.threads != threads)
        fail_at(place, "meets " + std::to_string(threads) + " threads at a named barrier where others meet " +
                           std::to_string(b.threads));
    int self = m.current->index;
    if (std::find(b.who.begin(), b.who.end(), self) != b.who.end())
        fail_at(place, "arrives a second time at a named barrier that waits for others");
    b.who.push_back(self);
    b.seen.merge(snapshot());
    b.proxied.merge(proxied_now());
    if (waits) b.waiting.push_back(m.current);
    if (static_cast<int>(b.who.size()) < threads) return b;
    std::map<int, int> lanes;
    for (int thread : b.who) ++lanes[thread / 32];
    for (auto [warp, count] : lanes)
        if (count != 32) fail_at(place, "ends a named barrier at which a part of a warp has arrived");
    for (Thread* thread : b.waiting) {
        thread->own.merge(b.seen);
        thread->proxied.merge(b.proxied);
    }
    b.seen.blocks.clear();
    b.proxied.blocks.clear();
    b.who.clear();
    wake(b.waiting);
    return b;
}

}  // namespace

const char* end_async_block() {
    Async& a = machine->async;
    if (!a.coming.empty()) return "copies were never waited for";
    for (const Barrier& b : a.barriers)
        if (!b.copies.empty() || b.filled > b.waited) return "copies were never waited for";
    for (const NamedBarrier& b : a.named)
        if (!b.who.empty()) return "threads have arrived at a named barrier that was never met";
    return "";
}

}  // namespace host

using namespace host;

uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - machine->shared);
}

void barrier_start(uint64_t* barrier, uint32_t count) {
    uint32_t place = PLACE;
    auto& barriers = machine->async.barriers;
    if (shared_address(barrier) % 8) fail_at(place, "starts a barrier that is not aligned");
    if (!count || count >= 1 << 20) fail_at(place, "starts a barrier of no threads, or of too many");
    for (const Barrier& b : barriers)
        if (b.at == barrier) fail_at(place, "starts a barrier a second time");
    access(barrier, 8, true, How::plain, place);
    barriers.push_back({barrier, stamp(machine->blocks, place), count, count});
    Stamp mine = barriers.back().begun;
    mine.thread = kBarrier;
    mine.under_way = true;
    for (int byte = 0; byte < 8; byte += kGrain) cell_at(reinterpret_cast<uintptr_t>(barrier) + byte).written = mine;
}

void barriers_started() {
    for (Barrier& b : machine->async.barriers) b.fenced = b.fenced || b.begun.thread == machine->current->index;
}

void barrier_arrive(uint64_t* barrier) { arrive(number_of(barrier, PLACE)); }

void barrier_expect(uint64_t* barrier, uint32_t bytes) {
    uint32_t place = PLACE, number = number_of(barrier, place);
    Barrier& b = machine->async.barriers[number];
    b.coming += bytes;
    if (b.coming >= 1 << 20) fail_at(place, "expects more bytes than a barrier counts");
    arrive(number);
}

void barrier_wait(uint64_t* barrier, uint32_t parity) {
    uint32_t place = PLACE;
    Barrier& b = barrier_at(barrier, place);
    if (parity > 1) fail_at(place, "waits for a parity that is neither 0 nor 1");
    while ((b.phase & 1) == parity) wait(b.waiting, "a barrier's phase");
    Thread& self = *machine->current;
    self.own.merge(b.released);
    self.proxied.merge(b.released_proxied);
    b.waited = b.phase;
    if (!b.phase) return;
    auto number = static_cast<uint16_t>(kTensorCopies + number_of(barrier, place));
    self.own.blocks[machine->block].threads[number] = b.phase - 1;
}

void fence_async() { machine->current->proxied.merge(snapshot()); }

void tensor_copy(void* to, const TensorMap* map, uint64_t* barrier, int x, int y) {
    copy_box(to, map, barrier, {x, y}, PLACE);
}
void tensor_copy(void* to, const TensorMap* map, uint64_t* barrier, int x, int y, int z) {
    copy_box(to, map, barrier, {x, y, z}, PLACE);
}
void tensor_copy(void* to, const TensorMap* map, uint64_t* barrier, int x, int y, int z, int w) {
    copy_box(to, map, barrier, {x, y, z, w}, PLACE);
}

void named_sync(int barrier, int threads) {
    NamedBarrier& b = named(barrier, threads, true, PLACE);
    if (b.who.empty()) {  // the last one, or woken at once
        switch_to(next_ready());
        return;
    }
    machine->current->waits = "a named barrier";
    switch_to(next_ready());
    machine->current->waits = nullptr;
}
void named_arrive(int barrier, int threads) { named(barrier, threads, false, PLACE); }

}  // namespace afn

// Asynchronous stores and sums: from shared memory to global memory. Their bytes are read when their thread waits for
// that, and written when it waits for that or the block ends.
#include "boxes.h"

namespace afn {
namespace host {
namespace {

Stamp of_store(uint16_t kind, uint32_t life, uint32_t group, uint32_t place) {
    Stamp now = stamp(life, place);
    now.thread = static_cast<uint16_t>(kind + machine->current->index);
    now.warp = 0;
    now.releases = group;
    return now;
}

void begin(Store store, uint32_t place) {
    Machine& m = *machine;
    Thread& self = *m.current;
    store.box.place = place;
    store.group = self.store_groups + 1;
    check_room(store.box, place);
#ifndef AFN_UNCHECKED
    Stamp read = of_store(kStoreReads, m.blocks, store.group, place);
    uintptr_t from = reinterpret_cast<uintptr_t>(store.box.shared);
    for (uintptr_t at = from; at < from + store.box.bytes; at += kGrain) {
        Cell& cell = cell_at(at);
        Stamp last = cell.written;
        check(cell, at, true, false, How::bulk, read);
        if (!seen_by_async(last, self)) conflict(place, at, false, last, true, "no proxy fence between them");
    }
    Stamp written = of_store(kStoreWrites, m.launches, store.group, place);
    written.under_way = !store.add;
    How how = store.add ? How::bulk_add : How::bulk;
    each_granule(store.box, [&](uintptr_t at) { check(cell_at(at), at, false, true, how, written); });
#endif
    self.stores.push_back(std::move(store));
}

void read(Store& store) {
    const Box& box = store.box;
    store.bytes.resize(box.bytes);
    uint32_t start = shared_address(box.shared);
    for (uint32_t byte = 0; byte < box.bytes; byte += 16)
        std::memcpy(&store.bytes[byte], machine->shared + swizzled(start + byte, Swizzle{box.swizzle}), 16);
}

void write(const Store& store) {
    each_piece(store.box, [&](uint32_t byte, unsigned char* to, uint32_t bytes) {
        if (!to) return;
        if (!store.add) std::memcpy(to, &store.bytes[byte], bytes);
        for (uint32_t i = 0; store.add && i < bytes; i += 4) {
            float sum, more;
            std::memcpy(&sum, to + i, 4);
            std::memcpy(&more, &store.bytes[byte + i], 4);
            sum += more;
            std::memcpy(to + i, &sum, 4);
        }
    });
#ifndef AFN_UNCHECKED
    if (!store.add) each_granule(store.box, [](uintptr_t at) { cell_at(at).written.under_way = false; });
#endif
}

// All but the last n groups of the current thread.
void wait_stores(unsigned n, bool written) {
    Thread& self = *machine->current;
    if (self.store_groups < n) return;
    uint32_t last = self.store_groups - n;
    for (Store& store : self.stores)
        if (store.group <= last && store.bytes.empty()) read(store);
    auto& threads = self.own.blocks[machine->block].threads;
    threads[static_cast<uint16_t>(kStoreReads + self.index)] = last;
    if (!written) return;
    for (; !self.stores.empty() && self.stores.front().group <= last; self.stores.pop_front())
        write(self.stores.front());
    threads[static_cast<uint16_t>(kStoreWrites + self.index)] = last;
}

void store_box(const TensorMap* map, const void* from, std::initializer_list<int> at, bool add, uint32_t place) {
    Store store{box_of(from, map, at, place), add, 0};
    if (add && store.box.element != 4) fail_at(place, "adds to a tensor whose elements are no float32");
    begin(std::move(store), place);
}

void store_line(void* to, const void* from, uint32_t bytes, bool add, uint32_t place) {
    uintptr_t places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
    if ((places | bytes) % 16) fail_at(place, "stores in bulk what is no multiple of 16 bytes");
    begin({line_of_bytes(from, to, bytes), add, 0}, place);
}

}  // namespace

bool stores_read(const Thread& self) {
    auto unread = [](const Store& store) { return store.bytes.empty(); };
    return std::none_of(self.stores.begin(), self.stores.end(), unread);
}

void end_stores(Thread& self) {
    for (const Store& store : self.stores) write(store);
    self.stores.clear();
    self.store_groups = 0;
}

}  // namespace host

using namespace host;

#define BOXES(name, add)                                                                                          \
    void name(const TensorMap* map, const void* from, int x, int y) { store_box(map, from, {x, y}, add, PLACE); } \
    void name(const TensorMap* map, const void* from, int x, int y, int z) {                                      \
        store_box(map, from, {x, y, z}, add, PLACE);                                                              \
    }                                                                                                             \
    void name(const TensorMap* map, const void* from, int x, int y, int z, int w) {                               \
        store_box(map, from, {x, y, z, w}, add, PLACE);                                                           \
    }
BOXES(tensor_store, false)
BOXES(tensor_add, true)
void bulk_store(void* to, const void* from, uint32_t bytes) { store_line(to, from, bytes, false, PLACE); }
void bulk_add(float* to, const float* from, uint32_t bytes) { store_line(to, from, bytes, true, PLACE); }

void store_commit() { ++machine->current->store_groups; }

namespace host {
void store_wait(unsigned n, bool written) { wait_stores(n, written); }
}  // namespace host

}  // namespace afn

extern "C" void afn_order_adds(int order) { afn::host::order_adds = order; }

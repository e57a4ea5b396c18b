// Boxes of tensors, which asynchronous copies move between global and shared memory.
#pragma once

#include "fibers.h"

namespace afn::host {

// What TensorMap holds here; a GPU's is the driver's secret. tests/cuda/tensor_map.py writes it.
struct Map {
    uint64_t address;
    uint32_t magic, rank, element, swizzle;
    uint32_t sizes[5], box[5];
    uint64_t strides[4];  // bytes, of all dimensions but the innermost
};
static_assert(sizeof(Map) <= sizeof(TensorMap));
constexpr uint32_t kMagic = 0x70616d74;

// A box of one dimension.
inline Box line_of_bytes(const void* shared, const void* global, uint32_t bytes) {
    Box box{};
    box.shared = static_cast<unsigned char*>(const_cast<void*>(shared));
    box.global = static_cast<unsigned char*>(const_cast<void*>(global));
    box.rank = box.element = 1;
    box.bytes = box.sizes[0] = box.box[0] = bytes;
    return box;
}

inline Box box_of(const void* shared, const TensorMap* map, std::initializer_list<int> at, uint32_t place) {
    Machine& m = *machine;
    uintptr_t offset = reinterpret_cast<uintptr_t>(map) - reinterpret_cast<uintptr_t>(m.launch.parameters);
    if (offset % 64 || offset + sizeof(TensorMap) > m.launch.size)
        fail_at(place, "copies by a tensor map that is not a parameter of the kernel at a multiple of 64 bytes");
    Map found;
    std::memcpy(&found, map, sizeof found);
    if (found.magic != kMagic) fail_at(place, "copies by a tensor map that nobody has encoded");
    if (found.rank != at.size())
        fail_at(place, "copies by " + std::to_string(at.size()) + " coordinates of a tensor of " +
                           std::to_string(found.rank) + " dimensions");
    if (shared_address(shared) % 128) fail_at(place, "copies a box to or from what is no multiple of 128 bytes");
    Box box = line_of_bytes(shared, reinterpret_cast<const void*>(found.address), found.element);
    box.rank = static_cast<int>(found.rank);
    box.element = static_cast<int>(found.element);
    box.swizzle = found.swizzle;
    std::copy(at.begin(), at.end(), box.at);
    std::memcpy(box.sizes, found.sizes, sizeof box.sizes);
    std::memcpy(box.box, found.box, sizeof box.box);
    std::memcpy(box.strides, found.strides, sizeof box.strides);
    for (uint32_t i = 0; i < found.rank; ++i) box.bytes *= found.box[i];
    return box;
}

inline void check_room(const Box& box, uint32_t place) {
    uint32_t start = shared_address(box.shared);
    if (start + uint64_t{box.bytes} > machine->launch.shared)
        fail_at(place, "is beyond the " + std::to_string(machine->launch.shared) + " bytes of shared memory, at byte " +
                           std::to_string(start + box.bytes - 1));
}

// Calls part(byte of the box, its place or null, bytes) for every piece of a row that lies side by side in memory.
template <class Part>
void each_piece(const Box& box, Part part) {
    int at[5] = {};
    uint32_t row_bytes = box.box[0] * box.element, done = 0;
    do {
        unsigned char* row = box.global;
        bool inside = true;
        for (int i = 1; i < box.rank; ++i) {
            int64_t x = int64_t{box.at[i]} + at[i];
            inside = inside && x >= 0 && x < box.sizes[i];
            if (inside) row += x * box.strides[i - 1];
        }
        int64_t first = std::clamp<int64_t>(-int64_t{box.at[0]}, 0, box.box[0]);
        int64_t end = std::clamp<int64_t>(int64_t{box.sizes[0]} - box.at[0], first, box.box[0]);
        if (!inside) first = end = 0;
        uint32_t before = first * box.element, there = (end - first) * box.element;
        if (before) part(done, nullptr, before);
        if (there) part(done + before, row + (box.at[0] + first) * box.element, there);
        if (before + there < row_bytes) part(done + before + there, nullptr, row_bytes - before - there);
        done += row_bytes;
        for (int i = 1; i < 5; ++i) {
            if (i >= box.rank || ++at[i] < static_cast<int>(box.box[i])) break;
            at[i] = 0;
        }
    } while (done < box.bytes);
}

// Calls one(address) for every granule of global memory that lies in a box.
template <class One>
void each_granule(const Box& box, One one) {
    each_piece(box, [&](uint32_t, const unsigned char* from, uint32_t bytes) {
        uintptr_t at = reinterpret_cast<uintptr_t>(from);
        for (uintptr_t granule = at / kGrain; from && granule * kGrain < at + bytes; ++granule) one(granule * kGrain);
    });
}

}  // namespace afn::host

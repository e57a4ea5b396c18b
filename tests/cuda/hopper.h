// What csrc/include/afn/hopper.cuh offers, for a host compiler, as host.h has it of device.cuh. Nothing happens at
// once. The bytes of a copy come when nothing else can go on, and are there when their barrier's phase ends. A product
// reads shared memory and uses its registers from its issue until somebody has waited for its group: whoever writes
// there before, or touches the registers, ends the launch. What threads write is seen behind fence_async alone.
#pragma once

namespace afn {

namespace host {

struct Product {
    Number number;
    int n;
    Major a_major, b_major;
    uint64_t a, b;              // descriptors
    const uint32_t* registers;  // of a, or null
    float* d;
    bool more;
};
void product(const Product& own);
void wait_products(unsigned n);
void set_registers(int n, bool more);
void store_wait(unsigned n, bool written);

// Byte of an operand's element from its descriptor, its row (m or n) and its place along K; for tests, too.
uint32_t operand_byte(uint64_t descriptor, Major major, int bytes, int row, int k);
// Where a product has an element of d, and of a in registers: warp, lane and register give row and column.
void place_of_d(int warp, int lane, int i, int& row, int& column);
void place_of_a(int warp, int lane, int i, int bytes, int& row, int& k);
// Byte of a box's element, counted from a multiple of 1024.
uint32_t swizzled(uint32_t byte, Swizzle swizzle);

}  // namespace host

uint32_t shared_address(const void* p);

void barrier_start(uint64_t* barrier, uint32_t count);
void barriers_started();
void barrier_arrive(uint64_t* barrier);
void barrier_expect(uint64_t* barrier, uint32_t bytes);
void barrier_wait(uint64_t* barrier, uint32_t parity);
void fence_async();

void tensor_copy(void* to, const TensorMap* map, uint64_t* barrier, int x, int y);
void tensor_copy(void* to, const TensorMap* map, uint64_t* barrier, int x, int y, int z);
void tensor_copy(void* to, const TensorMap* map, uint64_t* barrier, int x, int y, int z, int w);

void tensor_store(const TensorMap* map, const void* from, int x, int y);
void tensor_store(const TensorMap* map, const void* from, int x, int y, int z);
void tensor_store(const TensorMap* map, const void* from, int x, int y, int z, int w);
void tensor_add(const TensorMap* map, const void* from, int x, int y);
void tensor_add(const TensorMap* map, const void* from, int x, int y, int z);
void tensor_add(const TensorMap* map, const void* from, int x, int y, int z, int w);
void bulk_store(void* to, const void* from, uint32_t bytes);
void bulk_add(float* to, const float* from, uint32_t bytes);
void store_commit();
template <int n>
AFN_INLINE void store_wait_read() {
    host::store_wait(n, false);
}
template <int n>
AFN_INLINE void store_wait() {
    host::store_wait(n, true);
}

void named_sync(int barrier, int threads);
void named_arrive(int barrier, int threads);

template <int n>
AFN_INLINE void registers_less() {
    static_assert(n % 8 == 0 && n >= 24 && n <= 256);
    host::set_registers(n, false);
}
template <int n>
AFN_INLINE void registers_more() {
    static_assert(n % 8 == 0 && n >= 24 && n <= 256);
    host::set_registers(n, true);
}

void wgmma_fence();
void wgmma_commit();
template <int n>
AFN_INLINE void wgmma_wait() {
    static_assert(n >= 0 && n < 8);
    host::wait_products(n);
}

template <Number number, int N, Major a_major = Major::k, Major b_major = Major::k>
AFN_INLINE void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool more = true) {
    static_assert(has_wgmma<number, N, a_major, b_major>);
    host::product({number, N, a_major, b_major, a, b, nullptr, d, more});
}
template <Number number, int N, Major b_major = Major::k>
AFN_INLINE void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool more = true) {
    static_assert(has_wgmma<number, N, Major::k, b_major>);
    host::product({number, N, Major::k, b_major, 0, b, a, d, more});
}

}  // namespace afn

// Instructions that only Hopper has (sm_90a), as thin functions beside those of device.cuh: barriers in shared memory,
// copies of boxes of a tensor, matrix products of a warpgroup, barriers of some of a block's warps, registers that
// warpgroups hand on. A host compiler finds the same names in tests/cuda/hopper.h.
#pragma once

#include "device.cuh"

namespace afn {

// What cuTensorMapEncodeTiled writes; a kernel has it among its parameters and hands on its address.
struct alignas(64) TensorMap {
    uint64_t words[16];
};
enum class Swizzle : uint32_t { none = 0, bytes_128 = 1, bytes_64 = 2, bytes_32 = 3 };  // as a descriptor numbers them
enum class Number { bf16, f16, e4m3 };
enum class Major { k, mn };  // which index of an operand runs fastest

// The products that are spelled out below.
template <Number number, int N, Major a_major, Major b_major>
constexpr bool has_wgmma =
    (N == 32 || N == 64 || N == 80 || N == 96 || N == 128 || N == 160 || N == 176 || N == 192 || N == 256) &&
    (number != Number::e4m3 || (a_major == Major::k && b_major == Major::k));

}  // namespace afn

#ifdef AFN_HOST
#include "hopper.h"
#else

namespace afn {

// Barriers in shared memory, 8 bytes each. A phase ends when count threads have arrived and all bytes that were
// expected have come. barrier_start by one thread, which then calls barriers_started before others are let know.
AFN_DEVICE void barrier_start(uint64_t* barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
AFN_DEVICE void barriers_started() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// What this thread did before is seen by those who wait for the phase.
AFN_DEVICE void barrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives and says how many bytes of copies the phase has to wait for, too.
AFN_DEVICE void barrier_expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
// Until the phase of that parity has ended: 0 for the first, 1 for the second. The one before the first has ended.
AFN_DEVICE void barrier_wait(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// What this thread has written to shared memory itself, or knows of, is seen by copies and products that come later.
AFN_DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A box of a tensor to shared memory, by one thread; x counts elements of the innermost dimension. What lies outside of
// the tensor becomes zero, and all bytes of the box count.
AFN_DEVICE void tensor_copy(void* to, const TensorMap* map, uint64_t* barrier, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
        "[%2];" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
        : "memory");
}
AFN_DEVICE void tensor_copy(void* to, const TensorMap* map, uint64_t* barrier, int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
        "[%2];" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
        : "memory");
}
AFN_DEVICE void tensor_copy(void* to, const TensorMap* map, uint64_t* barrier, int x, int y, int z, int w) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
        "%6}], [%2];" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}

// From shared memory to a box of a tensor, or added to its float32 elements, by one thread; what lies outside of the
// tensor is left out. Others see it once this thread has waited for it and let them know.
#define AFN_STORE(name, what, more, dimensions, at, parameters, ...)                                               \
    AFN_DEVICE void name(const TensorMap* map, const void* from, AFN_UNPACK parameters) {                          \
        asm volatile(what ".async.bulk.tensor." dimensions ".global.shared::cta" more ".tile.bulk_group [%0, {" at \
                          "}], [%1];" ::"l"(map),                                                                  \
                     "r"(shared_address(from)), __VA_ARGS__                                                        \
                     : "memory");                                                                                  \
    }
#define AFN_UNPACK(...) __VA_ARGS__
#define AFN_STORES(name, what, more)                                                               \
    AFN_STORE(name, what, more, "2d", "%2, %3", (int x, int y), "r"(x), "r"(y))                    \
    AFN_STORE(name, what, more, "3d", "%2, %3, %4", (int x, int y, int z), "r"(x), "r"(y), "r"(z)) \
    AFN_STORE(name, what, more, "4d", "%2, %3, %4, %5", (int x, int y, int z, int w), "r"(x), "r"(y), "r"(z), "r"(w))
AFN_STORES(tensor_store, "cp", "")
AFN_STORES(tensor_add, "cp.reduce", ".add")
// The same of bytes that lie side by side; addresses and bytes are multiples of 16.
AFN_DEVICE void bulk_store(void* to, const void* from, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(to)),
                 "r"(shared_address(from)), "r"(bytes)
                 : "memory");
}
AFN_DEVICE void bulk_add(float* to, const float* from, uint32_t bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(
                     __cvta_generic_to_global(to)),
                 "r"(shared_address(from)), "r"(bytes)
                 : "memory");
}
// What this thread has stored since the last group.
AFN_DEVICE void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most n of this thread's groups have yet to read their bytes, which may be overwritten then; or to write
// them.
template <int n>
AFN_DEVICE void store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(n) : "memory");
}
template <int n>
AFN_DEVICE void store_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(n) : "memory");
}

// A barrier of some warps, numbered 1 to 15; threads of them together. Who arrives does not wait.
AFN_DEVICE void named_sync(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
AFN_DEVICE void named_arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// How many registers each thread of this warpgroup has from here on; more waits until others have given theirs back.
template <int n>
AFN_DEVICE void registers_less() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n>
AFN_DEVICE void registers_more() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}

// Products of a warpgroup: d [64 x N] += a [64 x K] b [K x N], K 32 bytes long. The fence comes between other uses of
// d's and a's registers and the product, which uses them until a wait for its group has ended.
AFN_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
AFN_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most n groups are under way.
template <int n>
AFN_DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
}

#define AFN_R4(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3"
#define AFN_R8(t) AFN_R4(t) ", %" #t "4, %" #t "5, %" #t "6, %" #t "7"
#define AFN_R10(t) AFN_R8(t) ", %" #t "8, %" #t "9, "
#define AFN_R30 AFN_R10() AFN_R10(1) AFN_R10(2)
#define AFN_R60 AFN_R30 AFN_R10(3) AFN_R10(4) AFN_R10(5)
#define AFN_R90 AFN_R60 AFN_R10(6) AFN_R10(7) AFN_R10(8)
#define AFN_REGISTERS_32 AFN_R10() AFN_R4(1) ", %14, %15"
#define AFN_REGISTERS_64 AFN_R30 "%30, %31"
#define AFN_REGISTERS_80 AFN_R30 AFN_R8(3) ", %38, %39"
#define AFN_REGISTERS_96 AFN_R30 AFN_R10(3) AFN_R8(4)
#define AFN_REGISTERS_128 AFN_R60 AFN_R4(6)
#define AFN_REGISTERS_160 AFN_R60 AFN_R10(6) AFN_R8(7) ", %78, %79"
#define AFN_REGISTERS_176 AFN_R60 AFN_R10(6) AFN_R10(7) AFN_R8(8)
#define AFN_REGISTERS_192 AFN_R90 AFN_R4(9) ", %94, %95"
#define AFN_REGISTERS_256 AFN_R90 AFN_R10(9) AFN_R10(10) AFN_R10(11) AFN_R8(12)
#define AFN_D8(i)                                                                                               \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define AFN_D_32 AFN_D8(0), AFN_D8(8)
#define AFN_D_64 AFN_D_32, AFN_D8(16), AFN_D8(24)
#define AFN_D_80 AFN_D_64, AFN_D8(32)
#define AFN_D_96 AFN_D_80, AFN_D8(40)
#define AFN_D_128 AFN_D_96, AFN_D8(48), AFN_D8(56)
#define AFN_D_160 AFN_D_128, AFN_D8(64), AFN_D8(72)
#define AFN_D_176 AFN_D_160, AFN_D8(80)
#define AFN_D_192 AFN_D_176, AFN_D8(88)
#define AFN_D_256 AFN_D_192, AFN_D8(96), AFN_D8(104), AFN_D8(112), AFN_D8(120)
// n: columns; k and type: as the instruction spells them; p0 to p6: numbers of the operands behind d.
#define AFN_WGMMA(n, k, type, a, scale, last, ...)                                                             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " scale ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k" #k \
                 ".f32." type "." type " {" AFN_REGISTERS_##n "}, " a ", p, 1, 1" last ";\n}"                  \
                 : AFN_D_##n                                                                                   \
                 : __VA_ARGS__)
#define AFN_FROM_SHARED(n, p0, p1, p2, p3, p4)                                                                    \
    if constexpr (N == n && number == Number::bf16)                                                               \
        AFN_WGMMA(n, 16, "bf16", "%" #p0 ", %" #p1, "%" #p2, ", %" #p3 ", %" #p4, "l"(a), "l"(b), "r"(int{more}), \
                  "n"(ta), "n"(tb));                                                                              \
    if constexpr (N == n && number == Number::f16)                                                                \
        AFN_WGMMA(n, 16, "f16", "%" #p0 ", %" #p1, "%" #p2, ", %" #p3 ", %" #p4, "l"(a), "l"(b), "r"(int{more}),  \
                  "n"(ta), "n"(tb));                                                                              \
    if constexpr (N == n && number == Number::e4m3)                                                               \
    AFN_WGMMA(n, 32, "e4m3", "%" #p0 ", %" #p1, "%" #p2, "", "l"(a), "l"(b), "r"(int{more}))
#define AFN_A "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
#define AFN_FROM_REGISTERS(n, p0, p1, p2, p3, p4, p5, p6)                                                              \
    if constexpr (N == n && number == Number::bf16)                                                                    \
        AFN_WGMMA(n, 16, "bf16", "{%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4, "%" #p5, ", %" #p6, AFN_A, "l"(b), \
                  "r"(int{more}), "n"(tb));                                                                            \
    if constexpr (N == n && number == Number::f16)                                                                     \
        AFN_WGMMA(n, 16, "f16", "{%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4, "%" #p5, ", %" #p6, AFN_A, "l"(b),  \
                  "r"(int{more}), "n"(tb));                                                                            \
    if constexpr (N == n && number == Number::e4m3)                                                                    \
    AFN_WGMMA(n, 32, "e4m3", "{%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4, "%" #p5, "", AFN_A, "l"(b),            \
              "r"(int{more}))

// Both operands in shared memory, by their descriptors; without more, d is overwritten.
template <Number number, int N, Major a_major = Major::k, Major b_major = Major::k>
AFN_DEVICE void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool more = true) {
    static_assert(has_wgmma<number, N, a_major, b_major>);
    constexpr int ta = a_major == Major::mn, tb = b_major == Major::mn;
    AFN_FROM_SHARED(32, 16, 17, 18, 19, 20);
    AFN_FROM_SHARED(64, 32, 33, 34, 35, 36);
    AFN_FROM_SHARED(80, 40, 41, 42, 43, 44);
    AFN_FROM_SHARED(96, 48, 49, 50, 51, 52);
    AFN_FROM_SHARED(128, 64, 65, 66, 67, 68);
    AFN_FROM_SHARED(160, 80, 81, 82, 83, 84);
    AFN_FROM_SHARED(176, 88, 89, 90, 91, 92);
    AFN_FROM_SHARED(192, 96, 97, 98, 99, 100);
    AFN_FROM_SHARED(256, 128, 129, 130, 131, 132);
}
// a in registers: rows as of mma.m16n8k16 in each warp.
template <Number number, int N, Major b_major = Major::k>
AFN_DEVICE void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool more = true) {
    static_assert(has_wgmma<number, N, Major::k, b_major>);
    constexpr int tb = b_major == Major::mn;
    AFN_FROM_REGISTERS(32, 16, 17, 18, 19, 20, 21, 22);
    AFN_FROM_REGISTERS(64, 32, 33, 34, 35, 36, 37, 38);
    AFN_FROM_REGISTERS(80, 40, 41, 42, 43, 44, 45, 46);
    AFN_FROM_REGISTERS(96, 48, 49, 50, 51, 52, 53, 54);
    AFN_FROM_REGISTERS(128, 64, 65, 66, 67, 68, 69, 70);
    AFN_FROM_REGISTERS(160, 80, 81, 82, 83, 84, 85, 86);
    AFN_FROM_REGISTERS(176, 88, 89, 90, 91, 92, 93, 94);
    AFN_FROM_REGISTERS(192, 96, 97, 98, 99, 100, 101, 102);
    AFN_FROM_REGISTERS(256, 128, 129, 130, 131, 132, 133, 134);
}

}  // namespace afn
#endif

namespace afn {

// Of an operand in shared memory, strides in bytes. K-major: stride from eight rows to the next eight; leading from 16
// bytes of a row to the next 16 where nothing is swizzled. MN-major and swizzled: leading from one swizzle's width of
// rows to the next, stride from eight of K to the next eight; not swizzled: the other way round.
AFN_DEVICE uint64_t descriptor(const void* start, int leading, int stride, Swizzle swizzle) {
    return static_cast<uint64_t>((shared_address(start) & 0x3ffff) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
           static_cast<uint64_t>(stride >> 4) << 32 | static_cast<uint64_t>(swizzle) << 62;
}

}  // namespace afn

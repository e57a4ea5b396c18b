// Writes layouts.txt from CuTe's definitions of them:
//   pip install --target /tmp/cutlass --no-deps nvidia-cutlass==4.2.0.0
//   g++ -std=c++17 -w -I/tmp/cutlass/cutlass_library/source/include -I/usr/local/cuda/include/cccl \
//       -I/usr/local/cuda/include tests/cuda/layouts.cpp \
//       -o /tmp/layouts && /tmp/layouts tests/cuda/layouts.txt
// All are linear over the bits of their coordinates (checked here), so that images of single bits say everything.
#include <cutlass/numeric_types.h>

#include <cstdio>
#include <cstdlib>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>

using namespace cute;
namespace gmma = cute::SM90::GMMA;

FILE* out;

template <class At>
void bits(const char* name, int x_size, int y_size, At at) {
    for (int x = 0; x < x_size; ++x)
        for (int y = 0; y < y_size; ++y) {
            int all = 0;
            for (int bit = 1; bit < x_size; bit *= 2) all ^= x & bit ? at(bit, 0) : 0;
            for (int bit = 1; bit < y_size; bit *= 2) all ^= y & bit ? at(0, bit) : 0;
            if (all != at(x, y)) std::exit(std::fprintf(stderr, "%s is not linear\n", name));
        }
    std::fprintf(out, "%s x", name);
    for (int bit = 1; bit < x_size; bit *= 2) std::fprintf(out, " %d", at(bit, 0));
    std::fprintf(out, " y");
    for (int bit = 1; bit < y_size; bit *= 2) std::fprintf(out, " %d", at(0, bit));
    std::fprintf(out, "\n");
}

// An operand's bytes: x is its row, y its place along K.
template <class T, gmma::Major major, class Atom, class Order>
void operand(int swizzle, Atom atom, Order order) {
    constexpr int bytes = sizeof(T), deep = major == gmma::Major::K ? size<1>(Atom{}) : 64;
    using Deep = Int<(deep < 32 / bytes ? 32 / bytes : deep)>;
    auto layout = tile_to_shape(atom, Shape<_128, Deep>{}, order);
    auto tensor = make_tensor(make_smem_ptr(static_cast<T*>(nullptr)), layout);
    auto first = local_tile(tensor, Shape<_128, Int<32 / bytes>>{}, make_coord(0, 0));
    GmmaDescriptor d = gmma::make_gmma_desc<major>(first);
    char name[100];
    std::snprintf(name, sizeof name, "operand %d %s %d %d %d %d", bytes, major == gmma::Major::K ? "k" : "mn", swizzle,
                  16 * d.bitfield.leading_byte_offset_, 16 * d.bitfield.stride_byte_offset_,
                  int(d.bitfield.layout_type_));
    auto plain = as_position_independent_swizzle_layout(layout);
    bits(name, 128, 32 / bytes, [&](int mn, int k) { return int(plain(mn, k)) * bytes; });
}

template <class T>
void operands() {
    using InOrder = Step<_1, _2>;
    operand<T, gmma::Major::K>(0, gmma::Layout_K_INTER_Atom<T>{}, InOrder{});
    operand<T, gmma::Major::K>(32, gmma::Layout_K_SW32_Atom<T>{}, InOrder{});
    operand<T, gmma::Major::K>(64, gmma::Layout_K_SW64_Atom<T>{}, InOrder{});
    operand<T, gmma::Major::K>(128, gmma::Layout_K_SW128_Atom<T>{}, InOrder{});
    if constexpr (sizeof(T) == 2) {
        operand<T, gmma::Major::MN>(0, gmma::Layout_MN_INTER_Atom<T>{}, InOrder{});
        operand<T, gmma::Major::MN>(32, gmma::Layout_MN_SW32_Atom<T>{}, InOrder{});
        operand<T, gmma::Major::MN>(64, gmma::Layout_MN_SW64_Atom<T>{}, InOrder{});
        operand<T, gmma::Major::MN>(128, gmma::Layout_MN_SW128_Atom<T>{}, InOrder{});
        operand<T, gmma::Major::MN>(128, gmma::Layout_MN_SW128_Atom<T>{}, Step<_2, _1>{});
    }
}

// Registers: x is the thread, y the element; row + 64 times the column.
template <class Layout>
void registers(const char* name, Layout layout) {
    bits(name, 128, size<1>(layout), [&](int thread, int i) { return int(layout(thread, i)); });
}

int main(int, char** arguments) {
    out = std::fopen(arguments[1], "w");
    operands<cutlass::bfloat16_t>();
    operands<cutlass::float_e4m3_t>();
    registers("d 64", MMA_Traits<SM90_64x64x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K>>::CLayout{});
    registers("d 128", MMA_Traits<SM90_64x128x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K>>::CLayout{});
    registers("d 256", MMA_Traits<SM90_64x256x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K>>::CLayout{});
    registers("a 2", MMA_Traits<SM90_64x64x16_F32BF16BF16_RS<gmma::Major::K, gmma::Major::K>>::ALayout{});
    registers("a 1", MMA_Traits<SM90_64x64x32_F32E4M3E4M3_RS_TN<>>::ALayout{});
    std::fclose(out);
}

// Compiled once for each instruction set, for example with -DISA=avx512 -DBYTES=64 -DREGISTERS=32 and its flags (build.py).
#include "call.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ISA {
#include "simd.h"
#include "product.h"
#include "forward.h"
#include "tangent.h"
#include "backward.h"
template <class E, class Op>
constexpr Kernels<E, Op> KERNELS = {
    L<Real<E>>,         TILE,        pack<E, Op>,       project<E, Op>,   forward<E, Op>,      tangent<E, Op>,
    pack_transposed<E>, backward<E>, input_gradient<E>, pack_operands<E>, weight_gradient<E>, weight_gradient_by_features<E>};
#if defined(__AVX512BF16__) || defined(EMULATED)
extern const Kernels<bf16, bf16> bf16_pairs = KERNELS<bf16, bf16>;
#endif
#if !defined(__AVX512BF16__)
extern const Kernels<float, float> f32 = KERNELS<float, float>;
extern const Kernels<double, double> f64 = KERNELS<double, double>;
extern const Kernels<bf16, float> bf16_as_f32 = KERNELS<bf16, float>;
extern const Activations activations = {each_activation<float>, each_activation<double>};
#endif
}  // namespace ISA

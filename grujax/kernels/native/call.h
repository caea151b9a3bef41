// The data that the kernels read for one recurrence, and the table of the kernels of one instruction set.
// Plain data without the STL: code that is compiled once per instruction set must not instantiate inline functions of
// the STL. The linker keeps one copy of each, which could be the AVX-512 copy on a machine without AVX-512.
//
// E is the type of x and the weights: float, double or bfloat16. Op is the type that the products read: E, or for
// bfloat16 float, unless the processor multiplies pairs of bfloat16. Real is the type of sums, states and gradients.
#pragma once
#include <stdint.h>
#include <string.h>

struct bf16 { uint16_t bits; };
template <class E> struct RealOf { using type = E; };
template <> struct RealOf<bf16> { using type = float; };
template <class E> using Real = typename RealOf<E>::type;
template <class Op> constexpr long PAIR = 1;  // elements of Op that one multiplication reads
template <> inline constexpr long PAIR<bf16> = 2;

static inline float to_real(float a) { return a; }
static inline double to_real(double a) { return a; }
static inline float to_real(bf16 a) {
  const uint32_t bits = uint32_t(a.bits) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
static inline void from_real(float& out, float a) { out = a; }
static inline void from_real(double& out, double a) { out = a; }
static inline void from_real(bf16& out, float a) {  // rounds to nearest, ties to even; keeps NaN
  uint32_t bits;
  memcpy(&bits, &a, 4);
  out.bits = a != a ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
constexpr long BLOCK = 64;          // rows of a step, or steps of one row, whose data fits in the first-level cache
constexpr long UNPACKED_BELOW = 8;  // with fewer rows times steps, packing the weights costs more than it saves
static inline long up(long a, long b) { return (a + b - 1) / b * b; }

// Step s is the s-th step in the reading order of the direction; t is its index in time.
struct Steps {
  long T, B;
  bool reverse;
  const bool *valid = nullptr, *reset = nullptr;  // (T, B) in time order
  long t(long s) const { return reverse ? T - 1 - s : s; }
  bool is_valid(long s, long b) const { return !valid || valid[t(s) * B + b]; }
  bool is_reset(long s, long b) const { return reset && reset[t(s) * B + b]; }
};

// A panel is a vector of L hidden units. P panels hold H units; the units past H are zeros.
template <class E, class Op> struct Forward : Steps {
  using R = Real<E>;
  long I, H, P;
  bool reset_after, keep;     // keep: h' = (1 - z) n + z h; else h' = (1 - z) h + z n
  const E* x;
  Op* x_read;                 // where E is not Op: BLOCK rows of x as the products read them, x_width apart; per thread
  const Op *w_ih, *w_hh, *w_hn;  // panels of r | z | n; with reset_after=false w_hh has r | z, and w_hn n
  const R* bias;              // [P][r, z, n, hn][L]
  const R* projected = nullptr;  // with B = 1: the input's part of the gates from step `first` on, [steps][P][3][L]
  long first = 0;
  R* products = nullptr;      // few rows: the products of a step (B, 2, 3H), of x (in a forward pass) and of the state,
  const E* unpacked[2];       // with w_ih and w_hh as XLA passes them
  long x_step, x_row, x_width, hs_step, hs_row, h_row, read_row;
  R *state[2];                // (B, h_row) before even and before odd steps
  Op *read[2];                // the form of `state` that the products read: the same array, or masked, or in bfloat16
  const R* h_reset;           // (h_row)
  const Op* read_reset;       // (read_row); with a state mask (B, read_row)
  const R *state_mask = nullptr, *hold = nullptr;  // (B, H), (T, B, H)
  R *z = nullptr, *x_n = nullptr;  // reset_after=false, between the phases: (B, h_row)
  Op* r_read = nullptr;       // r times `read`: (B, read_row)
  R *hs, *saved;              // saved (T, B, 4, H): r, z, n and, with reset_after, W_hn h + b_hn; or null
};

// The tangent of a forward pass, with all steps in reading order. state, read, h_reset and hs hold tangents. x, w_ih and
// bias are not read: the products of their tangents, and of the tangents of the weights, are in `source`.
template <class E, class Op> struct Tangent : Forward<E, Op> {
  using R = Real<E>;
  const R *entering, *gates;    // (T, B, H), the states that enter; (T, B, 4, H), as `saved`
  const R *source, *source_n;   // (T, B, 3, H), added to the products of r, z and hn; (T, B, H), added to d_n; or null
};

// d has a row for each valid step of each row of the batch in a chunk of steps. It contains the gradients of the
// arguments of the activations: n | r | z | hn of Hp = P * L each. With reset_after, that of hn is r times that of n.
template <class E> struct Backward : Steps {
  using R = Real<E>;
  long I, H, P;
  bool reset_after, keep;
  bool packed;                // false: the products read the weights as XLA passes them
  const E *x, *w_ih, *w_hh;
  const R *h0, *h_reset, *state_mask, *hold, *hs, *saved, *dhs, *dh_last;
  const R *w_ih_t, *w_hh_t, *w_hn_t;  // transposed, in pairs of vectors of their outputs (`pairs`)
  long x_step, x_row, hs_step, hs_row, d_row;
  R *d, *last, *zeros;        // `last`: for each row of the batch, the row of d of the step read after this chunk
  R *carry, *dreset;          // (B, Hp): the gradient that reaches the state outside the products; the gradient of h_reset
  R *dh0, *dw_ih, *dw_hh, *db_ih, *db_hh;
  E* dx;                      // null if it is not needed
  R *x_packed, *h_packed, *rh_packed;  // left factors of the weight gradients, [features / 8][rows of d][8]
  long lo, hi, rows;          // steps of the chunk, rows of d
  const int *slots, *before, *after;  // with `valid`, (T, B) by step: row of d; previous and next valid step
  bool first() const { return hi == T - 1; }  // the first chunk writes the weight gradients, later ones add to them
  long slot(long s, long b) const { return slots ? slots[s * B + b] : (s - lo) * B + b; }
  long step_before(long s, long b) const { return before ? before[s * B + b] : s - 1; }
  long step_after(long s, long b) const { return after ? after[(s + 1) * B + b] : s + 1 < T ? s + 1 : -1; }
};

template <class E, class Op> struct Kernels {
  using R = Real<E>;
  long lanes, tile;  // L; rows of a tile
  void (*pack)(const E* w, long K, long H, long gate, long gates, Op* out, long panel);
  void (*project)(const Forward<E, Op>&, R* projected, long s, long n, long p0, long p1);
  void (*forward)(const Forward<E, Op>&, long s, int phase, const int* rows, long n, long p0, long p1);
  void (*tangent)(const Tangent<E, Op>&, long s, int phase, const int* rows, long n, long p0, long p1);
  void (*pack_transposed)(const E* w, long N, long H, const int* gates, long n_gates, R* out, long v0, long nv);
  void (*backward)(const Backward<E>&, long s, int phase, const int* rows, long n, long v0, long nv);
  void (*input_gradient)(const Backward<E>&, long q0, long q1);
  void (*pack_operands)(const Backward<E>&, long q0, long q1);
  void (*weight_gradient)(const Backward<E>&, long gate, long v0, long nv, R* buffer);
  void (*weight_gradient_by_features)(const Backward<E>&, long m0, long m1);
};
struct Activations {  // for tests
  void (*of_float)(const float* x, float* sigmoids, float* tanhs, long n);
  void (*of_double)(const double* x, double* sigmoids, double* tanhs, long n);
};
#define KERNELS_OF(isa)                          \
  namespace isa {                                \
  extern const Kernels<float, float> f32;        \
  extern const Kernels<double, double> f64;      \
  extern const Kernels<bf16, float> bf16_as_f32; \
  extern const Activations activations;          \
  }
KERNELS_OF(avx512)
KERNELS_OF(avx2)
KERNELS_OF(neon)
KERNELS_OF(plain)
KERNELS_OF(emulated)
namespace avx512bf16 { extern const Kernels<bf16, bf16> bf16_pairs; }
namespace emulated { extern const Kernels<bf16, bf16> bf16_pairs; }

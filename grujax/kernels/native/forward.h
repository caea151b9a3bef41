// The forward pass: packs weights into panels, and computes one step of some rows and panels.
// Writes the form of a state that the products read: rounded if they read pairs of bfloat16.
template <class T> INLINE void write_operand(T* out, V<T> v, long) { store(out, v); }
INLINE void write_operand(bf16* out, V<float> v, long n) {  // pairs read one lane past an odd H; Inf times 0 is NaN there
  float lanes[L<float>];
  store(lanes, v);
  for (long i = 0; i < L<float>; i++) from_real(out[i], i < n ? lanes[i] : 0);
}

// Packs some gates of w (K, 3H) into one panel [k / PAIR][gate][unit][PAIR], with zeros past K and H.
template <class E, class Op>
void pack(const E* w, long K, long H, long gate, long gates, Op* out, long panel) {
  constexpr long N = L<Real<E>>, pair = PAIR<Op>;
  const long unit = panel * N, units = H - unit < N ? H - unit : N;
  __builtin_memset(out, 0, up(K, pair) * gates * N * sizeof(Op));
  for (long k = 0; k < K; k++)
    for (long g = 0; g < gates; g++) {
      const E* from = w + k * 3 * H + (gate + g) * H + unit;
      Op* to = out + (k / pair * gates + g) * N * pair + k % pair;
      if constexpr (pair == 1) store(to, load_part(from, units));
      else for (long u = 0; u < units; u++) to[u * pair] = from[u];
    }
}
// Returns a row of x in the form that the products read: in place, or as row i of x_read, padded with zeros.
template <class R> INLINE const R* read_x(const Forward<R, R>&, const R* x, long) { return x; }
INLINE const float* read_x(const Forward<bf16, float>& f, const bf16* x, long i) {
  float* to = f.x_read + i * f.x_width;
  for (long k = 0; k < f.I; k += L<float>) store(to + k, load_part(x + k, f.I - k));
  return to;
}
INLINE const bf16* read_x(const Forward<bf16, bf16>& f, const bf16* x, long i) {
  if (f.I % 2 == 0) return x;
  bf16* to = f.x_read + i * f.x_width;
  __builtin_memcpy(to, x, f.I * sizeof(bf16)), to[f.I] = bf16{};
  return to;
}

// With B = 1: the input's part of the gates of n steps from step s on. The steps play the role of the rows.
template <class E, class Op>
void project(const Forward<E, Op>& f, Real<E>* projected, long s, long n, long p0, long p1) {
  constexpr long N = L<Real<E>>;
  const long K = up(f.I, PAIR<Op>);
  const Op* x[BLOCK];
  for (long i = 0; i < n; i++) x[i] = read_x(f, f.x + f.t(s + i) * f.x_step, i);
  for (long p = p0; p < p1; p++)
    for (long i = 0; i < n; i += TILE) {
      const long rows = n - i < TILE ? n - i : TILE;
      V<Real<E>> sums[3 * TILE];
      multiply_rows<Op, 3>(rows, x + i, f.w_ih + p * K * 3 * N, K / PAIR<Op>, sums);
      for (long g = 0; g < 3; g++)
        for (long j = 0; j < rows; j++) store(projected + (((i + j) * f.P + p) * 3 + g) * N, sums[g * TILE + j]);
    }
}

// Rows b of the batch at a step: the states that enter, and the forms of them (in phase 1, of r h) and of x that the
// products read.
template <class E, class Op> struct Rows {
  long n = 0;
  int b[BLOCK];
  const Real<E>* h[BLOCK];
  const Op *read[BLOCK], *x[BLOCK];
};
template <class E, class Op> INLINE void find_states(const Forward<E, Op>& f, long s, int phase, Rows<E, Op>& rows) {
  for (long i = 0; i < rows.n; i++) {
    const long b = rows.b[i];
    const bool reset = f.is_reset(s, b);
    rows.h[i] = reset ? f.h_reset : f.state[s & 1] + b * f.h_row;
    if (phase == 1) rows.read[i] = f.r_read + b * f.read_row;
    else rows.read[i] = reset ? f.read_reset + (f.state_mask ? b * f.read_row : 0) : f.read[s & 1] + b * f.read_row;
  }
}
// Few rows: computes the products of the panels [p0, p1) at once. `part` of f.products: 0 for inputs, 1 for states.
template <class E, class Op, class A>
static void multiply_at_once(const Forward<E, Op>& f, const Rows<E, Op>& rows, const A* const* a, int part, long p0, long p1) {
  Real<E>* sums[UNPACKED_BELOW];
  for (long i = 0; i < rows.n; i++) sums[i] = f.products + (rows.b[i] * 2 + part) * 3 * f.H;
  const bool whole = p0 == 0 && p1 == f.P;  // then the gates of a row of the weights are contiguous
  for (long g = 0, N = L<Real<E>>, K = part ? f.H : f.I; g < (whole ? 1 : 3); g++)
    multiply_unpacked(rows.n, a, f.unpacked[part], K, 3 * f.H, g * f.H + p0 * N, whole ? 3 * f.H : g * f.H + p1 * N, sums);
}
template <class E, class Op>
INLINE void load_products(const Forward<E, Op>& f, const int* rows, long n_rows, long p, int part, V<Real<E>>* sums) {
  for (long g = 0; g < 3; g++)
    for (long i = 0; i < n_rows; i++)
      sums[g * TILE + i] = load(f.products + ((rows[i] * 2 + part) * 3 + g) * f.H + p * L<Real<E>>);
}
// Phase 0: the products for r, z and, with reset_after, n. Phase 1: the product for n, which reads r h.
template <class E, class Op>
static void multiply_states(const Forward<E, Op>& f, int phase, const int* rows, long n_rows, const Op* const* read, long p,
                            V<Real<E>>* sums) {
  constexpr long N = L<Real<E>>, pair = PAIR<Op>;
  const long H = up(f.H, pair);
  if (f.products) load_products(f, rows, n_rows, p, 1, sums);
  else if (phase == 1) multiply_rows<Op, 1>(n_rows, read, f.w_hn + p * H * N, H / pair, sums + 2 * TILE);
  else if (!f.reset_after) multiply_rows<Op, 2>(n_rows, read, f.w_hh + p * H * 2 * N, H / pair, sums);
  else multiply_rows<Op, 3>(n_rows, read, f.w_hh + p * H * 3 * N, H / pair, sums);
}
// Stores the state after step s of row b, for one panel: for the next step, and in hs.
template <class E, class Op> INLINE void put_state(const Forward<E, Op>& f, long s, long b, long p, V<Real<E>> h) {
  const long unit = p * L<Real<E>>, left = f.H - unit;
  store(f.state[~s & 1] + b * f.h_row + unit, h);
  if ((const void*)f.read[0] != f.state[0]) {
    const V<Real<E>> mask = f.state_mask ? load_part(f.state_mask + b * f.H + unit, left) : splat(Real<E>(1));
    write_operand(f.read[~s & 1] + b * f.read_row + unit, mask * h, left);
  }
  store_part(f.hs + f.t(s) * f.hs_step + b * f.hs_row + unit, h, left);
}

template <class E, class Op>
static void forward_tile(const Forward<E, Op>& f, long s, int phase, const Rows<E, Op>& all, long first, long n_rows, long p) {
  using R = Real<E>;
  constexpr long N = L<R>, pair = PAIR<Op>;
  const long t = f.t(s), unit = p * N, left = f.H - unit, I = up(f.I, pair);
  const int* rows = all.b + first;
  const Op *const *x = all.x + first, *const *read = all.read + first;
  const R* const* h = all.h + first;
  // The products of the input and of the state are summed separately, so that their sum is as exact as either.
  V<R> of_x[3 * TILE], sums[3 * TILE];
  V<R> *r = sums, *z = sums + TILE, *n = sums + 2 * TILE, *x_n = of_x + 2 * TILE;
  if (phase == 0) {
    const R* bias = f.bias + p * 4 * N;
    if (f.projected)
      for (long g = 0; g < 3; g++) of_x[g * TILE] = load(f.projected + (((s - f.first) * f.P + p) * 3 + g) * N);
    else if (f.products) load_products(f, rows, n_rows, p, 0, of_x);
    else multiply_rows<Op, 3>(n_rows, x, f.w_ih + p * I * 3 * N, I / pair, of_x);
    multiply_states(f, phase, rows, n_rows, read, p, sums);
    // Gate by gate for all rows, because the chain of one row alone would be bound by latency; several chains overlap.
    for (long i = 0; i < n_rows; i++) r[i] = sigmoid<R>((of_x[i] + load(bias)) + r[i]);
    for (long i = 0; i < n_rows; i++) z[i] = sigmoid<R>((of_x[TILE + i] + load(bias + N)) + z[i]);
    for (long i = 0; i < n_rows; i++) x_n[i] += load(bias + 2 * N);
    if (!f.reset_after) {
      for (long i = 0; i < n_rows; i++) {
        const long at = rows[i] * f.h_row + unit;
        write_operand(f.r_read + rows[i] * f.read_row + unit, r[i] * load(read[i] + unit), left);
        store(f.z + at, z[i]), store(f.x_n + at, x_n[i] + load(bias + 3 * N));
        if (f.saved) store_part(f.saved + (t * f.B + rows[i]) * 4 * f.H + unit, r[i], left);
      }
      return;
    }
    for (long i = 0; i < n_rows; i++) n[i] += load(bias + 3 * N), x_n[i] = tanh<R>(x_n[i] + r[i] * n[i]);
  } else {
    for (long i = 0; i < n_rows; i++) {
      const long at = rows[i] * f.h_row + unit;
      z[i] = load(f.z + at), x_n[i] = load(f.x_n + at);
    }
    multiply_states(f, phase, rows, n_rows, read, p, sums);
    for (long i = 0; i < n_rows; i++) x_n[i] = tanh<R>(x_n[i] + n[i]);
  }
  for (long i = 0; i < n_rows; i++) {
    const long b = rows[i];
    const V<R> of_h = load(h[i] + unit), c = x_n[i];
    V<R> h_new = f.keep ? c + z[i] * (of_h - c) : of_h + z[i] * (c - of_h);
    if (f.hold) {
      const V<R> hold = load_part(f.hold + (t * f.B + b) * f.H + unit, left);
      h_new = hold * of_h + (R(1) - hold) * h_new;
    }
    put_state(f, s, b, p, h_new);
    if (f.saved) {
      R* saved = f.saved + (t * f.B + b) * 4 * f.H + unit;
      if (f.reset_after) store_part(saved, r[i], left), store_part(saved + 3 * f.H, n[i], left);
      store_part(saved + f.H, z[i], left), store_part(saved + 2 * f.H, c, left);
    }
  }
}
// A step that is not valid: keeps the state, and sets hs and the saved gates to 0.
template <class E, class Op> static void stay(const Forward<E, Op>& f, long s, long b, long p0, long p1) {
  constexpr long N = L<Real<E>>;
  const long t = f.t(s), unit = p0 * N, units = (p1 - p0) * N, left = f.H - unit < units ? f.H - unit : units;
  __builtin_memcpy(f.state[~s & 1] + b * f.h_row + unit, f.state[s & 1] + b * f.h_row + unit, units * sizeof(Real<E>));
  if ((const void*)f.read[0] != f.state[0])
    __builtin_memcpy(f.read[~s & 1] + b * f.read_row + unit, f.read[s & 1] + b * f.read_row + unit, units * sizeof(Op));
  __builtin_memset(f.hs + t * f.hs_step + b * f.hs_row + unit, 0, left * sizeof(Real<E>));
  if (f.saved)
    for (long g = 0; g < 4; g++)
      __builtin_memset(f.saved + ((t * f.B + b) * 4 + g) * f.H + unit, 0, left * sizeof(Real<E>));
}

// Computes step s of n rows and the panels [p0, p1), tile by tile. With reset_after=false phase 0 computes r, z and r h
// of all panels, and phase 1 the rest, because the product for n reads all of r h. `begin` is called for each block of
// valid rows.
template <class E, class Op, class Call, class Begin, class Tile>
INLINE void step(const Call& f, long s, int phase, const int* rows, long n, long p0, long p1, Begin begin, Tile tile) {
  const int last = f.reset_after ? 0 : 1;
  for (; n > 0; rows += BLOCK, n -= BLOCK) {
    Rows<E, Op> valid;
    for (long i = 0; i < n && i < BLOCK; i++)
      if (f.is_valid(s, rows[i])) valid.b[valid.n++] = rows[i];
      else if (phase == last) stay(f, s, rows[i], p0, p1);
    find_states(f, s, phase, valid);
    begin(valid);
    for (long p = p0; p < p1; p++)
      for_tiles(valid.n, [&](long i, long of_tile) { tile(f, s, phase, valid, i, of_tile, p); });
  }
}
template <class E, class Op>
void forward(const Forward<E, Op>& f, long s, int phase, const int* rows, long n, long p0, long p1) {
  step<E, Op>(f, s, phase, rows, n, p0, p1, [&](Rows<E, Op>& valid) {
    if (phase == 1 || f.projected) return;
    const E* x[BLOCK];
    for (long i = 0; i < valid.n; i++) x[i] = f.x + f.t(s) * f.x_step + valid.b[i] * f.x_row;
    if (f.products) {
      multiply_at_once(f, valid, x, 0, p0, p1);
      multiply_at_once(f, valid, valid.read, 1, p0, p1);
    } else for (long i = 0; i < valid.n; i++) valid.x[i] = read_x(f, x[i], i);
  }, forward_tile<E, Op>);
}

// The backward pass. g is the gradient of the state after a step; d_n, d_r and d_z are the gradients of the arguments of
// the activations; h is the state that enters:
//     d_n = g (1 - z) (1 - n^2),   d_r = d_n m r (1 - r),   d_z = g (h - n) z (1 - z),   d_hn = d_n r
//     g of the step before = g z + [d_r | d_z | d_hn] W_hh^T + its gradient from the loss
// and with reset_after=false, q = d_n W_hn^T:  d_r = q h r (1 - r),  g before = g z + q r + [d_r | d_z] W_hh^T.

// Packs the transpose of some gates of w (N, 3H) for the output vectors [v0, v0 + nv): [gate][Hp][nv * L].
template <class E>
void pack_transposed(const E* w, long N, long H, const int* gates, long n_gates, Real<E>* out, long v0, long nv) {
  constexpr long L_ = L<Real<E>>;
  const long Hp = up(H, L_), width = nv * L_, first = v0 * L_;
  for (long g = 0; g < n_gates; g++)
    for (long u = 0; u < Hp; u++, out += width)
      for (long j = 0; j < width; j++)
        out[j] = u < H && first + j < N ? to_real(w[(first + j) * 3 * H + gates[g] * H + u]) : Real<E>(0);
}

// Few rows: the product with the transpose of some gates of w (N, 3H), which is not packed: sums [v][TILE] of NV vectors
// of outputs from `first` on. a: the factors of the gates, Hp apart.
template <class E, int NV>
static void multiply_transposed_unpacked(long rows, const Real<E>* const* a, const E* w, long N, long H, const int* gates,
                                         long n_gates, long first, V<Real<E>>* sums) {
  using R = Real<E>;
  constexpr long L_ = L<R>;
  R lanes[NV * TILE][L_] = {};
  for (long j = 0; j < NV * L_ && first + j < N; j++)
    for (long i = 0; i < rows; i++) {
      V<R> sum{};
      for (long g = 0; g < n_gates; g++)
        for (long u = 0; u < H; u += L_)
          sum += load_part(w + (first + j) * 3 * H + gates[g] * H + u, H - u) * load(a[i] + g * up(H, L_) + u);
      for (long u = 0; u < L_; u++) lanes[j / L_ * TILE + i][j % L_] += sum[u];
    }
  for (long v = 0; v < NV; v++)
    for (long i = 0; i < rows; i++) sums[v * TILE + i] = load(lanes[v * TILE + i]);
}
constexpr int R_Z_N[] = {0, 1, 2}, N_R_Z[] = {2, 0, 1};

template <class E> INLINE const Real<E>* entering(const Backward<E>& f, long s, long b) {
  if (f.is_reset(s, b)) return f.h_reset;
  const long before = f.step_before(s, b);
  return before < 0 ? f.h0 + b * f.H : f.hs + f.t(before) * f.hs_step + b * f.hs_row;
}

template <class E, int NV>
static void backward_tile(const Backward<E>& f, long s, int phase, const int* rows, long n_rows, long v0) {
  using R = Real<E>;
  constexpr long N = L<R>;
  const long H = f.H, Hp = f.P * N, t = f.t(s), K = (f.reset_after ? 3 : 2) * Hp;
  const R* a[TILE];
  long after[TILE];
  bool any = phase == 1;
  for (long i = 0; i < n_rows; i++) {
    const long b = rows[i], next = after[i] = f.step_after(s, b);
    any |= next >= 0;
    if (phase == 1) a[i] = f.d + f.slot(s, b) * f.d_row;
    else a[i] = (next < 0 ? f.zeros : next > f.hi ? f.last + b * f.d_row : f.d + f.slot(next, b) * f.d_row) + Hp;
    if (s < 0) continue;
    // The arrays that the end of the tile reads are fetched while the product runs.
    const R* saved = f.saved + (t * f.B + b) * 4 * H + v0 * N;
    for (int g = 0; g < 4; g++)
      for (int v = 0; v < NV; v++) __builtin_prefetch(saved + g * H + v * N);
    for (int v = 0; v < NV; v++) __builtin_prefetch(f.dhs + t * f.hs_step + b * f.hs_row + (v0 + v) * N);
    for (int v = 0; v < NV; v++) __builtin_prefetch(entering(f, s, b) + (v0 + v) * N);
  }
  V<R> sums[NV * TILE];
  if (!any) for (auto& sum : sums) sum = V<R>{};
  else if (!f.packed) {
    const int* gates = phase == 1 ? N_R_Z : R_Z_N;
    multiply_transposed_unpacked<E, NV>(n_rows, a, f.w_hh, H, H, gates, phase == 1 ? 1 : K / Hp, v0 * N, sums);
  }
  else if (phase == 1) multiply_rows<R, NV>(n_rows, a, f.w_hn_t + v0 * N * Hp, Hp, sums);
  else multiply_rows<R, NV>(n_rows, a, f.w_hh_t + v0 * N * K, K, sums);
  const V<R> one = splat(R(1));
  for (int v = 0; v < NV; v++) {
    const long unit = (v0 + v) * N, left = H - unit;
    for (long i = 0; i < n_rows; i++) {
      const long b = rows[i];
      R* carry = f.carry + b * Hp + unit;
      const V<R> mask = f.state_mask ? load_part(f.state_mask + b * H + unit, left) : one;
      const V<R> product = mask * sums[v * TILE + i];
      const R* saved = f.saved + (t * f.B + b) * 4 * H + unit;
      if (phase == 1) {
        const V<R> r = load_part(saved, left), h = load_part(entering(f, s, b) + unit, left);
        store(f.d + f.slot(s, b) * f.d_row + Hp + unit, product * h * (r * (one - r)));
        store(carry, load(carry) + product * r);
        continue;
      }
      V<R> g = product + (after[i] < 0 ? load_part(f.dh_last + b * H + unit, left) : load(carry));
      if (after[i] >= 0 && f.is_reset(after[i], b)) {
        if (f.dreset) store(f.dreset + b * Hp + unit, load(f.dreset + b * Hp + unit) + g);
        g = V<R>{};
      }
      if (s < 0) {
        store_part(f.dh0 + b * H + unit, g, left);
        continue;
      }
      g += load_part(f.dhs + t * f.hs_step + b * f.hs_row + unit, left);
      V<R> kept{};
      if (f.hold) {
        const V<R> hold = load_part(f.hold + (t * f.B + b) * H + unit, left);
        kept = g * hold, g -= kept;
      }
      const V<R> r = load_part(saved, left), z = load_part(saved + H, left), n = load_part(saved + 2 * H, left);
      const V<R> h = load_part(entering(f, s, b) + unit, left);
      const V<R> d_n = g * (f.keep ? one - z : z) * ((one + n) * (one - n));
      R* d = f.d + f.slot(s, b) * f.d_row + unit;
      store(d, d_n);
      store(d + 2 * Hp, g * (f.keep ? h - n : n - h) * (z * (one - z)));
      store(carry, kept + g * (f.keep ? z : one - z));
      if (!f.reset_after) continue;
      store(d + Hp, d_n * load_part(saved + 3 * H, left) * (r * (one - r)));
      store(d + 3 * Hp, d_n * r);
    }
  }
}

// Computes the gradients at step s of n rows, for the vectors [v0, v0 + nv) of hidden units; s = -1: the gradient of h0.
// With reset_after=false phase 0 computes d_n and d_z, and phase 1 d_r, whose product reads all of d_n.
template <class E> void backward(const Backward<E>& f, long s, int phase, const int* rows, long n, long v0, long nv) {
  for (; n > 0; rows += BLOCK, n -= BLOCK) {
    int valid[BLOCK];
    long count = 0;
    for (long i = 0; i < n && i < BLOCK; i++)
      if (s < 0 || f.is_valid(s, rows[i])) valid[count++] = rows[i];
    for (long v = v0; v < v0 + nv; v += 2)
      for_tiles(count, [&](long i, long of_tile) {
        if (v + 1 < v0 + nv) backward_tile<E, 2>(f, s, phase, valid + i, of_tile, v);
        else backward_tile<E, 1>(f, s, phase, valid + i, of_tile, v);
      });
  }
}

template <class E, int NV>
static void input_tile(const Backward<E>& f, const Real<E>* const* d, E* const* dx, long rows, long v0) {
  using R = Real<E>;
  constexpr long N = L<R>;
  V<R> sums[NV * TILE];
  if (f.packed) multiply_rows<R, NV>(rows, d, f.w_ih_t + v0 * N * 3 * f.P * N, 3 * f.P * N, sums);
  else multiply_transposed_unpacked<E, NV>(rows, d, f.w_ih, f.I, f.H, N_R_Z, 3, v0 * N, sums);
  for (int v = 0; v < NV; v++)
    for (long i = 0; i < rows; i++) {
      R lanes[N];
      store(lanes, sums[v * TILE + i]);
      for (long j = 0, at = (v0 + v) * N; j < N && at + j < f.I; j++) from_real(dx[i][at + j], lanes[j]);
    }
}
// Computes dx at the places [q0, q1) of a chunk: [d_n | d_r | d_z] times W_ih^T, and 0 where a step is not valid. Place
// q is row q % B of the batch at step lo + q / B.
template <class E> void input_gradient(const Backward<E>& f, long q0, long q1) {
  const long vectors = up(f.I, L<Real<E>>) / L<Real<E>>;
  const Real<E>* d[BLOCK];
  E* dx[BLOCK];
  for (long q = q0, count = 0; q < q1; q++) {
    const long s = f.lo + q / f.B, b = q % f.B;
    E* to = f.dx + f.t(s) * f.x_step + b * f.x_row;
    if (f.is_valid(s, b)) d[count] = f.d + f.slot(s, b) * f.d_row, dx[count++] = to;
    else __builtin_memset((void*)to, 0, f.I * sizeof(E));
    if (count < BLOCK && q + 1 < q1) continue;
    for (long v = 0; v < vectors; v += 2)
      for_tiles(count, [&](long i, long of_tile) {
        if (v + 1 < vectors) input_tile<E, 2>(f, d + i, dx + i, of_tile, v);
        else input_tile<E, 1>(f, d + i, dx + i, of_tile, v);
      });
    count = 0;
  }
}

// Writes n values in groups of 8, `next` apart.
template <class R, class Value> INLINE void write_eights(R* to, long n, long next, Value value) {
  long m = 0;
  for (; m + 8 <= n; m += 8, to += next)
    for (long j = 0; j < 8; j++) to[j] = value(m + j);
  for (long j = 0; m + j < n; j++) to[j] = value(m + j);
}
// Packs the left factors of the weight gradients at some places: x, the state that the products read, and r times it.
template <class E> void pack_operands(const Backward<E>& f, long q0, long q1) {
  using R = Real<E>;
  for (long q = q0; q < q1; q++) {
    const long s = f.lo + q / f.B, b = q % f.B, next = 8 * f.rows;
    if (!f.is_valid(s, b)) continue;
    const long at = f.slot(s, b) * 8;
    const E* x = f.x + f.t(s) * f.x_step + b * f.x_row;
    write_eights(f.x_packed + at, f.I, next, [&](long m) { return to_real(x[m]); });
    const R *h = entering(f, s, b), *mask = f.state_mask + b * f.H, *r = f.saved + (f.t(s) * f.B + b) * 4 * f.H;
    if (f.state_mask) write_eights(f.h_packed + at, f.H, next, [&](long m) { return mask[m] * h[m]; });
    else write_eights(f.h_packed + at, f.H, next, [&](long m) { return h[m]; });
    if (f.reset_after) continue;
    if (f.state_mask) write_eights(f.rh_packed + at, f.H, next, [&](long m) { return r[m] * (mask[m] * h[m]); });
    else write_eights(f.rh_packed + at, f.H, next, [&](long m) { return r[m] * h[m]; });
  }
}

template <class R> INLINE void put(R* p, V<R> v, long n, bool first) { store_part(p, first ? v : load_part(p, n) + v, n); }

// c (M, 3H) = or += a^T d. `a` is packed as above; d has NV vectors side by side for each of K rows.
template <class R, int NV>
static void multiply_transposed(const R* a, long M, const R* d, long K, R* c, long next, long left, bool first) {
  constexpr long N = L<R>;
  for (long m = 0; m < M; m += TILE, c += TILE * next) {
    const R* rows[TILE];
    V<R> sums[NV * TILE] = {};
    for (int i = 0; i < TILE; i++) rows[i] = a + m / 8 * 8 * K + m % 8 + i;
    if (K) product<R, TILE, NV, 8, 128>(rows, d, K, sums);
    for (int i = 0; i < TILE && m + i < M; i++)
      for (int v = 0; v < NV; v++) put(c + i * next + v * N, sums[v * TILE + i], left - v * N, first);
  }
}
// Adds one column of d (0..3: n, r, z, hn), nv (1 or 2) vectors of it from v0 on, to the gradients of weights and biases.
template <class E> void weight_gradient(const Backward<E>& f, long column, long v0, long nv, Real<E>* buffer) {
  using R = Real<E>;
  constexpr long N = L<R>;
  const R* d = f.d + column * f.P * N + v0 * N;
  V<R> sum[2] = {};
  for (long first = 0; first < f.rows; first += BLOCK) {  // sums of partial sums, which are more exact
    V<R> part[2] = {};
    for (long k = first; k < f.rows && k < first + BLOCK; k++)
      for (long v = 0; v < nv; v++) {
        const V<R> d_k = load(d + k * f.d_row + v * N);
        store(buffer + (k * nv + v) * N, d_k), part[v] += d_k;
      }
    for (long v = 0; v < nv; v++) sum[v] += part[v];
  }
  auto into = [&](const R* a, long M, R* dw, R* db, long gate) {
    const long at = gate * f.H + v0 * N, left = f.H - v0 * N;
    for (long v = 0; v < nv; v++) put(db + at + v * N, sum[v], left - v * N, f.first());
    if (nv == 2) multiply_transposed<R, 2>(a, M, buffer, f.rows, dw + at, 3 * f.H, left, f.first());
    else multiply_transposed<R, 1>(a, M, buffer, f.rows, dw + at, 3 * f.H, left, f.first());
  };
  constexpr int N_GATE = 0, HN = 3;
  const long gate = column == N_GATE || column == HN ? 2 : column - 1;
  if (column != HN) into(f.x_packed, f.I, f.dw_ih, f.db_ih, gate);
  if (column != N_GATE) into(f.h_packed, f.H, f.dw_hh, f.db_hh, gate);
  else if (!f.reset_after) into(f.rh_packed, f.H, f.dw_hh, f.db_hh, gate);
}
// Few rows: computes whole rows of the weight gradients, for the features [m0, m1) of x and then of h, because the columns
// above would write them in pieces. Feature 0 also computes the gradients of the biases.
template <class E> void weight_gradient_by_features(const Backward<E>& f, long m0, long m1) {
  using R = Real<E>;
  constexpr long N = L<R>;
  auto write = [&](R* to, long column, auto factor) {
    for (long u = 0; u < f.H; u += N) {
      V<R> sum{};
      for (long k = 0; k < f.rows; k++) sum += factor(k) * load(f.d + k * f.d_row + column * f.P * N + u);
      store_part(to + u, sum, f.H - u);
    }
  };
  const long hn = f.reset_after ? 3 : 0, columns[2][3] = {{1, 2, 0}, {1, 2, hn}};
  for (long m = m0; m < m1; m++) {
    const bool of_h = m >= f.I;
    const long at = of_h ? m - f.I : m;
    for (long g = 0; g < 3; g++) {
      const R* packed = !of_h ? f.x_packed : g < 2 || f.reset_after ? f.h_packed : f.rh_packed;
      const R* a = packed + at / 8 * 8 * f.rows + at % 8;
      write((of_h ? f.dw_hh : f.dw_ih) + (at * 3 + g) * f.H, columns[of_h][g], [&](long k) { return a[k * 8]; });
      if (m == 0) write(f.db_ih + g * f.H, columns[0][g], [](long) { return R(1); });
      if (m == 0) write(f.db_hh + g * f.H, columns[1][g], [](long) { return R(1); });
    }
  }
}

// The tangent pass. dh is the tangent of the state h that enters a step, d the tangent of the state after it:
//     d_r, d_z, d_m = dh W_hr + s_r, dh W_hz + s_z, dh W_hn + s_m
//     d = k dh + a_z d_z + a_n (a_r d_r + r d_m + s_n)
// and with reset_after=false  d = k dh + a_z d_z + a_n ((a_r d_r + r dh) W_hn + s_m).
// The coefficients are those of `kernels/derivative.py`.
template <class E, class Op>
static void tangent_tile(const Tangent<E, Op>& f, long s, int phase, const Rows<E, Op>& all, long first, long n_rows, long p) {
  using R = Real<E>;
  constexpr long N = L<R>;
  const long unit = p * N, left = f.H - unit;
  const int* rows = all.b + first;
  const R* const* dh = all.h + first;
  for (long i = 0; i < n_rows; i++) {
    const long at = s * f.B + rows[i];
    // The arrays that the end of the tile reads are fetched while the product runs.
    __builtin_prefetch(f.entering + at * f.H + unit);
    for (int g = 0; g < 4; g++) __builtin_prefetch(f.gates + (at * 4 + g) * f.H + unit);
    for (int g = 0; g < 3 && f.source; g++) __builtin_prefetch(f.source + (at * 3 + g) * f.H + unit);
  }
  V<R> sums[3 * TILE];
  multiply_states(f, phase, rows, n_rows, all.read + first, p, sums);
  const V<R> one = splat(R(1)), zero{};
  for (long i = 0; i < n_rows; i++) {
    const long b = rows[i], at = s * f.B + b, carried = b * f.h_row + unit;
    const R* gates = f.gates + at * 4 * f.H + unit;
    const V<R> h = load_part(f.entering + at * f.H + unit, left), mask = f.state_mask ? load_part(f.state_mask + b * f.H + unit, left) : one;
    const V<R> r = load_part(gates, left), z = load_part(gates + f.H, left), n = load_part(gates + 2 * f.H, left);
    const V<R> m = f.reset_after ? load_part(gates + 3 * f.H, left) : mask * h;
    V<R> k = f.keep ? z : one - z, a_z = (f.keep ? h - n : n - h) * (z * (one - z));
    if (f.hold) {
      const V<R> hold = load_part(f.hold + at * f.H + unit, left);
      k += hold * (one - k), a_z *= one - hold;
    }
    const V<R> a_n = (one - k) * ((one + n) * (one - n)), a_r = m * (r * (one - r)), of_h = load(dh[i] + unit);
    auto product = [&](long g) { return sums[g * TILE + i] + (f.source ? load_part(f.source + (at * 3 + g) * f.H + unit, left) : zero); };
    const V<R> s_n = f.source_n ? load_part(f.source_n + at * f.H + unit, left) : zero;
    if (f.reset_after) put_state(f, s, b, p, k * of_h + a_z * product(1) + a_n * (a_r * product(0) + r * product(2) + s_n));
    else if (phase == 0) {
      write_operand(f.r_read + b * f.read_row + unit, a_r * product(0) + r * (mask * of_h), left);
      store(f.z + carried, k * of_h + a_z * product(1));
    } else put_state(f, s, b, p, load(f.z + carried) + a_n * product(2));
  }
}
template <class E, class Op>
void tangent(const Tangent<E, Op>& f, long s, int phase, const int* rows, long n, long p0, long p1) {
  step<E, Op>(f, s, phase, rows, n, p0, p1, [&](Rows<E, Op>& valid) {
    if (f.products) multiply_at_once(f, valid, valid.read, 1, p0, p1);
  }, tangent_tile<E, Op>);
}

// The matrix product: sums (MR rows x NV vectors) = a (MR rows) times w, over K > 0 multiplications.
// a: a pointer for each row, with its elements AS apart. w: NV vectors side by side for each k.
constexpr int TILE = REGISTERS == 32 ? 8 : 4;  // 8 rows x 3 vectors of sums and 3 of weights fill 32 registers

INLINE void multiply(V<float>& sum, const float* w, const float* a) { sum += load(w) * splat(*a); }
INLINE void multiply(V<double>& sum, const double* w, const double* a) { sum += load(w) * splat(*a); }
#if defined(EMULATED)
INLINE void multiply(V<float>& sum, const bf16* w, const bf16* a) {
  for (long u = 0; u < L<float>; u++) sum[u] += to_real(w[2 * u]) * to_real(a[0]) + to_real(w[2 * u + 1]) * to_real(a[1]);
}
#elif defined(__AVX512BF16__)
INLINE void multiply(V<float>& sum, const bf16* w, const bf16* a) {
  __m512i pairs;
  int pair;
  __builtin_memcpy(&pairs, w, BYTES), __builtin_memcpy(&pair, a, 4);
  sum = (V<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)pairs);
}
#endif

// Sums of DEPTH products are added up, which is more exact than one long sum. A loop of DEPTH / UNROLL iterations is also
// short enough for the branch predictor to predict its end.
constexpr long UNROLL = 4;
template <class Op, int MR, int NV, int AS, long DEPTH>
__attribute__((noinline)) static void product(const Op* const* rows, const Op* w, long K, V<Real<Op>>* sums) {
  using R = Real<Op>;
  constexpr long WIDTH = BYTES / sizeof(Op);
  // Few rows: several independent sums for each hide the latency of the multiplication.
  constexpr int SPLIT = MR == 1 ? 4 : MR == 2 ? 2 : 1;
  const Op* a[MR];
  for (int i = 0; i < MR; i++) a[i] = rows[i];
  for (long first = 0; first < K; first += DEPTH) {
    V<R> sum[SPLIT][NV][MR];
#pragma GCC unroll 3
    for (int v = 0; v < NV; v++)
#pragma GCC unroll 8
      for (int i = 0; i < MR; i++)
        for (int j = 0; j < SPLIT; j++) sum[j][v][i] = V<R>{};
    const long end = K - first < DEPTH ? K : first + DEPTH;
    long k = first;
    for (; k + UNROLL <= end; k += UNROLL, w += UNROLL * NV * WIDTH)
#pragma GCC unroll 4
      for (int j = 0; j < UNROLL; j++)
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 3
          for (int v = 0; v < NV; v++) multiply(sum[j % SPLIT][v][i], w + (j * NV + v) * WIDTH, a[i] + (k + j) * AS * PAIR<Op>);
    for (; k < end; k++, w += NV * WIDTH)
      for (int i = 0; i < MR; i++)
        for (int v = 0; v < NV; v++) multiply(sum[0][v][i], w + v * WIDTH, a[i] + k * AS * PAIR<Op>);
#pragma GCC unroll 3
    for (int v = 0; v < NV; v++)
#pragma GCC unroll 8
      for (int i = 0; i < MR; i++) {
        for (int j = 1; j < SPLIT; j++) sum[0][v][i] += sum[j][v][i];
        if (first) sums[v * TILE + i] += sum[0][v][i];
        else sums[v * TILE + i] = sum[0][v][i];
      }
  }
}

// Calls the instance of `product` for `rows` rows, 1 to TILE. sums [v][TILE].
template <class Op, int NV, long DEPTH = 64>
static void multiply_rows(long rows, const Op* const* a, const Op* w, long K, V<Real<Op>>* sums) {
  switch (rows) {
    case 1: return product<Op, 1, NV, 1, DEPTH>(a, w, K, sums);
    case 2: return product<Op, 2, NV, 1, DEPTH>(a, w, K, sums);
    case 3: return product<Op, 3, NV, 1, DEPTH>(a, w, K, sums);
    case 4: return product<Op, 4, NV, 1, DEPTH>(a, w, K, sums);
  }
  if constexpr (TILE == 8) switch (rows) {
    case 5: return product<Op, 5, NV, 1, DEPTH>(a, w, K, sums);
    case 6: return product<Op, 6, NV, 1, DEPTH>(a, w, K, sums);
    case 7: return product<Op, 7, NV, 1, DEPTH>(a, w, K, sums);
    case 8: return product<Op, 8, NV, 1, DEPTH>(a, w, K, sums);
  }
}

// Few rows, with w (K, M) not packed: the columns [from, to) of sums (n rows, M). DEEP rows of w are processed at a time
// and read from end to end for every 4 rows.
constexpr long DEEP = 8;
template <int MR, class E, class Op>
INLINE void add_products(const Op* const* a, const E* w, long depth, long M, bool first, Real<E>* const* sums) {
  V<Real<E>> sum[MR] = {};
  auto add = [&](long k) {
    const V<Real<E>> v = load(w + k * M);
#pragma GCC unroll 4
    for (int i = 0; i < MR; i++) sum[i] += splat(to_real(a[i][k])) * v;
  };
  if (depth == DEEP)
#pragma GCC unroll 8
    for (long k = 0; k < DEEP; k++) add(k);
  else
    for (long k = 0; k < depth; k++) add(k);
  for (int i = 0; i < MR; i++) store(sums[i], first ? sum[i] : load(sums[i]) + sum[i]);
}
template <class E, class Op>
static void multiply_unpacked(long n, const Op* const* a, const E* w, long K, long M, long from, long to, Real<E>* const* sums) {
  using R = Real<E>;
  for (long k = 0; k < K; k += DEEP)
    for (long i = 0; i < n; i += 4) {
      const long rows = n - i < 4 ? n - i : 4, depth = K - k < DEEP ? K - k : DEEP;
      const Op* factors[4];
      for (long j = 0; j < rows; j++) factors[j] = a[i + j] + k;
      for (long u = from; u < to; u += L<R>) {
        R* at[4];
        for (long j = 0; j < rows; j++) at[j] = sums[i + j] + u;
        const E* w_k = w + k * M + u;
        switch (rows) {
          case 1: add_products<1>(factors, w_k, depth, M, k == 0, at); break;
          case 2: add_products<2>(factors, w_k, depth, M, k == 0, at); break;
          case 3: add_products<3>(factors, w_k, depth, M, k == 0, at); break;
          case 4: add_products<4>(factors, w_k, depth, M, k == 0, at);
        }
      }
    }
}

// Calls run(first, rows of the tile) over n rows, in the smallest number of tiles and with about equal tiles.
template <class Run> INLINE void for_tiles(long n, Run run) {
  const long tiles = (n + TILE - 1) / TILE;
  for (long i = 0, at = 0; i < tiles; i++) {
    const long rows = (n - at + tiles - i - 1) / (tiles - i);
    run(at, rows), at += rows;
  }
}

// The one product: sums (MR rows x NV vectors) = a (MR rows) times w, K multiplications deep; K is positive.
// a: a pointer for each row, its elements AS apart. w: NV vectors side by side for each k, or `w_vector` apart.
constexpr int TILE = REGISTERS == 32 ? 8 : 4;  // 8 rows x 3 vectors of sums and 3 of weights fill 32 registers

INLINE void multiply(V<float>& sum, const float* w, const float* a) { sum += load(w) * splat(*a); }
INLINE void multiply(V<double>& sum, const double* w, const double* a) { sum += load(w) * splat(*a); }
#if defined(__AVX512BF16__)
INLINE void multiply(V<float>& sum, const bf16* w, const bf16* a) {
  __m512i pairs;
  int pair;
  __builtin_memcpy(&pairs, w, BYTES), __builtin_memcpy(&pair, a, 4);
  sum = (V<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)pairs);
}
#endif

// Sums of DEPTH products are summed: more exact than one long sum.
template <class Op, int MR, int NV, int AS, long DEPTH>
__attribute__((noinline)) static void product(const Op* const* rows, const Op* w, long K, long w_next, long w_vector,
                                              V<Real<Op>>* sums) {
  using R = Real<Op>;
  // Few rows: several sums side by side for each, or the latency of the multiplication shows.
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
    for (; k + SPLIT <= end; k += SPLIT, w += SPLIT * w_next)
#pragma GCC unroll 4
      for (int j = 0; j < SPLIT; j++)
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 3
          for (int v = 0; v < NV; v++) multiply(sum[j][v][i], w + j * w_next + v * w_vector, a[i] + (k + j) * AS * PAIR<Op>);
    for (; k < end; k++, w += w_next)
      for (int i = 0; i < MR; i++)
        for (int v = 0; v < NV; v++) multiply(sum[0][v][i], w + v * w_vector, a[i] + k * AS * PAIR<Op>);
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

// The instance for `rows` rows, 1 to TILE. sums [v][TILE].
template <class Op, int NV, long DEPTH = 32>
static void multiply_rows(long rows, const Op* const* a, const Op* w, long K, V<Real<Op>>* sums, long w_next = NV * BYTES / sizeof(Op),
                        long w_vector = BYTES / sizeof(Op)) {
  switch (rows) {
    case 1: return product<Op, 1, NV, 1, DEPTH>(a, w, K, w_next, w_vector, sums);
    case 2: return product<Op, 2, NV, 1, DEPTH>(a, w, K, w_next, w_vector, sums);
    case 3: return product<Op, 3, NV, 1, DEPTH>(a, w, K, w_next, w_vector, sums);
    case 4: return product<Op, 4, NV, 1, DEPTH>(a, w, K, w_next, w_vector, sums);
  }
  if constexpr (TILE == 8) switch (rows) {
    case 5: return product<Op, 5, NV, 1, DEPTH>(a, w, K, w_next, w_vector, sums);
    case 6: return product<Op, 6, NV, 1, DEPTH>(a, w, K, w_next, w_vector, sums);
    case 7: return product<Op, 7, NV, 1, DEPTH>(a, w, K, w_next, w_vector, sums);
    case 8: return product<Op, 8, NV, 1, DEPTH>(a, w, K, w_next, w_vector, sums);
  }
}

// run(first, rows of the tile) over n rows in as few tiles as there can be, all about as large.
template <class Run> INLINE void for_tiles(long n, Run run) {
  const long tiles = (n + TILE - 1) / TILE;
  for (long i = 0, at = 0; i < tiles; i++) {
    const long rows = (n - at + tiles - i - 1) / (tiles - i);
    run(at, rows), at += rows;
  }
}

// The backward call. The steps go in chunks of about CHUNK_ROWS rows of d, which stay in the cache until they have become
// dx and weight gradients. Epochs of a chunk: its steps (one epoch where by rows), dx and packing, weight gradients.
#pragma once
#include "arguments.h"
#include "scratch.h"
#include "share.h"

constexpr long CHUNK_ROWS = 384;

template <class E, class Op> struct BackwardWork : Work {
  using R = Real<E>;
  const Kernels<E, Op>& k;
  struct Given { R *w_ih_t, *w_hh_t, *w_hn_t, *dh_reset; std::vector<R*> buffers; std::vector<long> rows; };
  std::vector<Backward<E>> calls;
  std::vector<Given> given;
  Scratch scratch;
  std::unique_ptr<Share> share;
  long D, T, B, P, I_vectors, phases, len, chunks, steps, parts, columns;
  long of_weights;  // items of their gradients

  static long twos(long vectors) { return (vectors + 1) / 2; }

  BackwardWork(const Kernels<E, Op>& kernels, const Arrays& arrays, const Options& o, const ffi::ThreadPool& pool) : k(kernels) {
    arrays.expect(o.directions * BACKWARD_INPUTS, o.directions * BACKWARD_OUTPUTS);
    const long threads = std::max<long>(1, pool.num_threads());
    for (long d = 0; d < o.directions; d++) add(arrays, o, d, threads);
    const auto& c = calls[0];
    D = calls.size(), T = c.T, B = c.B, P = c.P, I_vectors = c.dx ? (c.I + k.lanes - 1) / k.lanes : 0;
    phases = o.reset_after ? 1 : 2, columns = o.reset_after ? 4 : 3;
    const long workers = workers_for(pool, 6.0 * D * B * T * c.H * (c.I + c.H));
    share.reset(new Share(calls, workers, 3 * c.H * P * k.lanes * sizeof(R)));
    steps = share->by_rows ? 1 : len * phases + 1;  // one more for the gradient of h0
    parts = std::min(4 * workers, std::max(1L, len * B / k.tile));
    of_weights = c.packed ? columns * twos(P) + 1 : workers;
    epochs = B * T ? 1 + chunks * (steps + 2) : 0;
  }

  void add(const Arrays& arrays, const Options& o, long d, long threads) {
    Backward<E> f;
    Given g;
    const long in = d * BACKWARD_INPUTS, out = d * BACKWARD_OUTPUTS, N = k.lanes;
    read_sizes<Backward<E>, E>(f, arrays, in, o, d, N);
    const long T = f.T, B = f.B, H = f.H, I = f.I, Hp = f.P * N, x0 = o.time_major ? T : B, x1 = o.time_major ? B : T;
    f.x = arrays.in<E>(in + X, {x0, x1, I}), f.h0 = arrays.in<R>(in + H0, {B, H});
    f.w_ih = arrays.in<E>(in + W_IH, {I, 3 * H}), f.w_hh = arrays.in<E>(in + W_HH, {H, 3 * H});
    f.hs = arrays.in<R>(in + HS, {x0, x1, H}), f.saved = arrays.in<R>(in + SAVED, {T, B, 4 * H});
    f.dhs = arrays.in<R>(in + DHS, {x0, x1, H}), f.dh_last = arrays.in<R>(in + DH_LAST, {B, H});
    f.dx = arrays.optional_out<E>(out + DX, {x0, x1, I}), f.dh0 = arrays.out<R>(out + DH0, {B, H});
    f.dw_ih = arrays.out<R>(out + DW_IH, {I, 3 * H}), f.dw_hh = arrays.out<R>(out + DW_HH, {H, 3 * H});
    f.db_ih = arrays.out<R>(out + DB_IH, {3 * H}), f.db_hh = arrays.out<R>(out + DB_HH, {3 * H});
    g.dh_reset = arrays.out<R>(out + DH_RESET, {H});
    memset(g.dh_reset, 0, H * sizeof(R));
    if (T * B == 0) {
      memset(f.dw_ih, 0, I * 3 * H * sizeof(R)), memset(f.dw_hh, 0, H * 3 * H * sizeof(R));
      memset(f.db_ih, 0, 3 * H * sizeof(R)), memset(f.db_hh, 0, 3 * H * sizeof(R));
    }
    if (f.dx) ask_for_huge_pages(f.dx, sizeof(E) * T * B * I);
    if (T == 0) memcpy(f.dh0, f.dh_last, B * H * sizeof(R));

    R* zeros = scratch.take<R>(4 * Hp);
    memset(zeros, 0, 4 * Hp * sizeof(R)), f.zeros = zeros;
    const R* h_reset = arrays.optional<R>(in + H_RESET, {H});
    f.h_reset = h_reset ? h_reset : zeros;
    f.dreset = f.reset ? scratch.take<R>(B * Hp) : nullptr;
    if (f.dreset) memset(f.dreset, 0, B * Hp * sizeof(R));
    f.d_row = 4 * Hp + N;
    f.packed = B * T >= UNPACKED_BELOW;
    len = std::min(T, std::max(1L, CHUNK_ROWS / std::max(B, 1L))), chunks = len ? (T + len - 1) / len : 0;
    const long K = len * B;
    f.w_hh_t = g.w_hh_t = scratch.take<R>((o.reset_after ? 3 : 2) * Hp * Hp);
    f.w_hn_t = g.w_hn_t = o.reset_after ? nullptr : scratch.take<R>(Hp * Hp);
    f.w_ih_t = g.w_ih_t = scratch.take<R>(3 * Hp * up(I, N));
    f.carry = scratch.take<R>(B * Hp), f.d = scratch.take<R>(K * f.d_row), f.last = scratch.take<R>(B * f.d_row);
    f.x_packed = scratch.take<R>(K * up(I, 8)), f.h_packed = scratch.take<R>(K * up(H, 8));
    f.rh_packed = o.reset_after ? nullptr : scratch.take<R>(K * up(H, 8));
    for (long w = 0; w < threads; w++) g.buffers.push_back(scratch.take<R>(K * 2 * N));
    g.rows.assign(chunks, 0);
    f.slots = f.before = f.after = nullptr;
    if (f.valid) plan(f, g);
    for (long c = 0; c < chunks && !f.valid; c++) g.rows[c] = B * (T - c * len < len ? T - c * len : len);
    calls.push_back(f), given.push_back(g);
  }
  void plan(Backward<E>& f, Given& g) {  // where the valid steps of each row stand
    const long T = f.T, B = f.B;
    int *slots = scratch.take<int>(T * B), *before = scratch.take<int>(T * B), *after = scratch.take<int>((T + 1) * B);
    std::vector<int> seen(B, -1);
    for (long s = 0; s < T; s++)
      for (long b = 0; b < B; b++) {
        before[s * B + b] = seen[b];
        if (f.is_valid(s, b)) seen[b] = s;
      }
    seen.assign(B, -1);
    for (long s = T; s >= 0; s--)
      for (long b = 0; b < B; b++) {
        after[s * B + b] = seen[b];
        if (s > 0 && f.is_valid(s - 1, b)) seen[b] = s - 1;
      }
    for (long c = 0; c < chunks; c++)
      for (long s = low(f.T, c), hi = f.T - 1 - c * len; s <= hi; s++)
        for (long b = 0; b < B; b++)
          if (f.is_valid(s, b)) slots[s * B + b] = g.rows[c]++;
    f.slots = slots, f.before = before, f.after = after;
  }
  long low(long T, long chunk) const { return std::max(0L, T - (chunk + 1) * len); }

  long items(long epoch) const override {
    if (epoch == 0) return calls[0].packed ? D * (twos(P) + twos(I_vectors)) : 0;
    const long chunk = (epoch - 1) / (steps + 2), i = (epoch - 1) % (steps + 2);
    if (i == steps) return D * parts;
    if (i == steps + 1) return D * of_weights;
    if (share->by_rows) return D * share->blocks;
    const long s = T - 1 - chunk * len - i / phases;
    return s >= low(T, chunk) || (s == -1 && i % phases == 0) ? D * twos(P) : 0;
  }
  void run(long epoch, long item, long worker) override {
    const long d = item % D, j = item / D;
    if (epoch == 0) return pack(d, j);
    const long chunk = (epoch - 1) / (steps + 2), i = (epoch - 1) % (steps + 2);
    Backward<E> f = calls[d];
    f.hi = T - 1 - chunk * len, f.lo = low(T, chunk), f.rows = given[d].rows[chunk];
    if (i == steps) {
      const long places = (f.hi - f.lo + 1) * B, q0 = j * places / parts, q1 = (j + 1) * places / parts;
      if (f.dx) k.input_gradient(f, q0, q1);
      return k.pack_operands(f, q0, q1);
    }
    if (i == steps + 1) {
      const long n = f.I + f.H;
      if (!f.packed) return k.weight_gradient_by_features(f, j * n / of_weights, (j + 1) * n / of_weights);
      if (j == columns * twos(P)) return keep_last(f);
      const long v0 = j / columns * 2;
      return k.weight_gradient(f, j % columns, v0, std::min(2L, P - v0), given[d].buffers[worker]);
    }
    if (!share->by_rows) {
      const long s = f.hi - i / phases, v0 = j * 2;
      return k.backward(f, s, i % phases, share->rows[d][0].data(), B, v0, std::min(2L, P - v0));
    }
    const auto& rows = share->rows[d][j];
    for (long s = f.hi; s >= f.lo; s--)
      for (int phase = 0; phase < phases; phase++) k.backward(f, s, phase, rows.data(), rows.size(), 0, P);
    if (f.lo == 0) k.backward(f, -1, 0, rows.data(), rows.size(), 0, P);
  }
  void pack(long d, long j) {
    static constexpr int R_Z_N[] = {0, 1, 2}, N_R_Z[] = {2, 0, 1}, N_ALONE[] = {2};
    const auto& f = calls[d];
    const auto& g = given[d];
    const long Hp = P * k.lanes, of_state = f.reset_after ? 3 : 2;
    if (j < twos(P)) {
      const long v0 = j * 2, nv = std::min(2L, P - v0), first = v0 * k.lanes * Hp;
      k.pack_transposed(f.w_hh, f.H, f.H, R_Z_N, of_state, g.w_hh_t + of_state * first, v0, nv);
      if (!f.reset_after) k.pack_transposed(f.w_hh, f.H, f.H, N_ALONE, 1, g.w_hn_t + first, v0, nv);
    } else {
      const long v0 = (j - twos(P)) * 2;
      k.pack_transposed(f.w_ih, f.I, f.H, N_R_Z, 3, g.w_ih_t + 3 * v0 * k.lanes * Hp, v0, std::min(2L, I_vectors - v0));
    }
  }
  void keep_last(const Backward<E>& f) {  // what the next chunk begins with
    for (long b = 0; b < B; b++) {
      const long s = f.step_after(f.lo - 1, b);
      if (s >= f.lo && s <= f.hi) memcpy(f.last + b * f.d_row, f.d + f.slot(s, b) * f.d_row, f.d_row * sizeof(R));
    }
  }
  void end(const Arrays&) {
    for (long d = 0; d < D; d++)
      for (long b = 0; calls[d].dreset && b < B; b++)
        for (long u = 0; u < calls[d].H; u++) given[d].dh_reset[u] += calls[d].dreset[b * P * k.lanes + u];
  }
};

// The backward call. The steps are processed in chunks of one step or at most CHUNK_ROWS rows of d, which stay in the cache
// until dx and the weight gradients are computed from them. The epochs of a chunk: its steps (one epoch if divided by
// rows), dx and packing, weight gradients.
#pragma once
#include "arguments.h"
#include "scratch.h"
#include "share.h"

constexpr long CHUNK_ROWS = 384;

template <class E, class Op> struct BackwardWork : Work {
  using R = Real<E>;
  const Kernels<E, Op>& k;
  struct Given { R *w_ih_t, *w_hh_t, *w_hn_t, *dh_reset; std::vector<R*> buffers; std::vector<long> rows; };
  struct Chunk { long lo, hi, first; };  // the steps lo to hi; `first`: the epoch that begins them
  std::vector<Backward<E>> calls;
  std::vector<Given> given;
  std::vector<Chunk> chunks;  // from the last step to the first
  Scratch scratch;
  std::unique_ptr<Share> share;
  long D, T, B, P, I_vectors, phases, most = 0, parts, columns;  // most: the maximum number of rows of d in a chunk
  long of_weights;  // the number of items for the weight gradients

  static long twos(long vectors) { return (vectors + 1) / 2; }

  BackwardWork(const Kernels<E, Op>& kernels, const Arrays& arrays, const Options& o, const ffi::ThreadPool& pool) : k(kernels) {
    arrays.expect(o.directions * BACKWARD_INPUTS, o.directions * BACKWARD_OUTPUTS);
    const long threads = std::max<long>(1, pool.num_threads());
    for (long d = 0; d < o.directions; d++) add(arrays, o, d);
    const auto& c = calls[0];
    D = calls.size(), T = c.T, B = c.B, P = c.P;
    cut();
    for (long d = 0; d < D; d++) take_memory(d, threads);
    I_vectors = c.dx ? (c.I + k.lanes - 1) / k.lanes : 0;
    phases = o.reset_after ? 1 : 2, columns = o.reset_after ? 4 : 3;
    const long workers = workers_for(pool, 6.0 * D * B * T * c.H * (c.I + c.H));
    share.reset(new Share(calls, workers, 3 * c.H * P * k.lanes * sizeof(R)));
    parts = std::min(4 * workers, std::max(1L, most / k.tile));
    of_weights = c.packed ? columns * twos(P) + 1 : workers;
    epochs = B * T ? 1 : 0;
    for (Chunk& chunk : chunks) chunk.first = epochs, epochs += B ? steps(chunk) + 2 : 0;
  }
  long steps(const Chunk& c) const { return share->by_rows ? 1 : (c.hi - c.lo + 1) * phases + 1; }  // + 1 for dh0
  const Chunk& at(long epoch) const {
    return *--std::upper_bound(chunks.begin(), chunks.end(), epoch, [](long e, const Chunk& c) { return e < c.first; });
  }
  void cut() {
    long rows = 0;
    for (long s = T - 1; s >= 0; s--) {
      long valid = 0;  // the maximum over the directions
      for (const auto& f : calls) {
        long n = f.valid ? 0 : B;
        for (long b = 0; f.valid && b < B; b++) n += f.is_valid(s, b);
        valid = std::max(valid, n);
      }
      if (chunks.empty() || (rows && rows + valid > CHUNK_ROWS)) chunks.push_back({s, s, 0}), rows = 0;
      chunks.back().lo = s, rows += valid, most = std::max(most, rows);
    }
  }

  void add(const Arrays& arrays, const Options& o, long d) {
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
    f.slots = f.before = f.after = nullptr;
    calls.push_back(f), given.push_back(g);
  }
  void take_memory(long d, long threads) {
    Backward<E>& f = calls[d];
    Given& g = given[d];
    const long N = k.lanes, H = f.H, I = f.I, Hp = f.P * N, K = most;
    f.w_hh_t = g.w_hh_t = scratch.take<R>((f.reset_after ? 3 : 2) * Hp * Hp);
    f.w_hn_t = g.w_hn_t = f.reset_after ? nullptr : scratch.take<R>(Hp * Hp);
    f.w_ih_t = g.w_ih_t = scratch.take<R>(3 * Hp * up(I, N));
    f.carry = scratch.take<R>(B * Hp), f.d = scratch.take<R>(K * f.d_row), f.last = scratch.take<R>(B * f.d_row);
    f.x_packed = scratch.take<R>(K * up(I, 8)), f.h_packed = scratch.take<R>(K * up(H, 8));
    f.rh_packed = f.reset_after ? nullptr : scratch.take<R>(K * up(H, 8));
    for (long w = 0; w < threads; w++) g.buffers.push_back(scratch.take<R>(K * 2 * N));
    if (f.valid) plan(f, g);
    else for (const Chunk& c : chunks) g.rows.push_back(B * (c.hi - c.lo + 1));
  }
  void plan(Backward<E>& f, Given& g) {  // finds the row of d and the neighbours of each valid step
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
    for (const Chunk& c : chunks) {
      g.rows.push_back(0);
      for (long s = c.lo; s <= c.hi; s++)
        for (long b = 0; b < B; b++)
          if (f.is_valid(s, b)) slots[s * B + b] = g.rows.back()++;
    }
    f.slots = slots, f.before = before, f.after = after;
  }

  long items(long epoch) const override {
    if (epoch == 0) return calls[0].packed ? D * (twos(P) + twos(I_vectors)) : 0;
    const Chunk& chunk = at(epoch);
    const long i = epoch - chunk.first, n = steps(chunk);
    if (i == n) return D * parts;
    if (i == n + 1) return D * of_weights;
    if (share->by_rows) return D * share->blocks;
    return i + 1 < n || chunk.lo == 0 ? D * twos(P) : 0;
  }
  void run(long epoch, long item, long worker) override {
    const long d = item % D, j = item / D;
    if (epoch == 0) return pack(d, j);
    const Chunk& chunk = at(epoch);
    const long i = epoch - chunk.first, n = steps(chunk);
    Backward<E> f = calls[d];
    f.hi = chunk.hi, f.lo = chunk.lo, f.rows = given[d].rows[&chunk - &chunks[0]];
    if (i == n) {
      const long places = (f.hi - f.lo + 1) * B, q0 = j * places / parts, q1 = (j + 1) * places / parts;
      if (f.dx) k.input_gradient(f, q0, q1);
      return k.pack_operands(f, q0, q1);
    }
    if (i == n + 1) {
      const long features = f.I + f.H;
      if (!f.packed) return k.weight_gradient_by_features(f, j * features / of_weights, (j + 1) * features / of_weights);
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
  void keep_last(const Backward<E>& f) {  // keeps the rows of d with which the next chunk begins
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

// The forward call: what is packed, what an item does, in which order.
#pragma once
#include "arguments.h"
#include "scratch.h"
#include "share.h"

constexpr long PROJECTED = 64;       // steps of one row whose input is projected at once

template <class E, class Op> struct ForwardWork : Work {
  using R = Real<E>;
  const Kernels<E, Op>& k;
  std::vector<Forward<E, Op>> calls;
  std::vector<const E*> x, w_ih, w_hh;
  std::vector<R*> projected;
  std::vector<Op*> x_operands, packed_ih, packed_hh, packed_hn;
  Scratch scratch;
  std::unique_ptr<Share> share;
  long of_direction, D, T, B, P, phases, chunk = 0, ranges, parts = 0;  // chunk: steps projected at once, 0 for none

  static long outputs(const Options& o) { return OUT_SAVED + (o.with_saved ? 1 : 0); }

  ForwardWork(const Kernels<E, Op>& kernels, const Arrays& arrays, const Options& o, const ffi::ThreadPool& pool) : k(kernels) {
    arrays.expect(o.directions * FORWARD_INPUTS, o.directions * outputs(o));
    for (long d = 0; d < o.directions; d++) add(arrays, o, d);
    of_direction = outputs(o);
    const auto& c = calls[0];
    D = calls.size(), T = c.T, B = c.B, P = c.P, phases = o.reset_after ? 1 : 2;
    const long workers = workers_for(pool, 3.0 * D * B * T * c.H * (c.I + c.H));
    share.reset(new Share(calls, workers, k.tile, (c.I + c.H) * 3 * c.H * sizeof(Op)));
    ranges = share->by_rows ? 0 : std::min(P, B == 1 ? workers : 4 * workers);
    if (B == 1 && c.packed) chunk = std::max(1L, std::min(PROJECTED, T));
    if (x_operands[0]) parts = std::min(T, 16L);
    const long steps = chunk ? (T + chunk - 1) / chunk * (1 + chunk * phases) : T * phases;
    epochs = B * T ? 1 + (share->by_rows ? 1 : steps) : 0;
  }

  void add(const Arrays& arrays, const Options& o, long d) {
    Forward<E, Op> f;
    const long in = d * FORWARD_INPUTS, out = d * outputs(o), N = k.lanes, pair = PAIR<Op>;
    read_sizes<Forward<E, Op>, E>(f, arrays, in, o, d, N);
    const long T = f.T, B = f.B, H = f.H, I = f.I, P = f.P, Hp = P * N;
    const long x0 = o.time_major ? T : B, x1 = o.time_major ? B : T;
    x.push_back(arrays.in<E>(in + X, {x0, x1, I}));
    w_ih.push_back(arrays.in<E>(in + W_IH, {I, 3 * H})), w_hh.push_back(arrays.in<E>(in + W_HH, {H, 3 * H}));
    const R *h0 = arrays.in<R>(in + H0, {B, H}), *h_reset = arrays.optional<R>(in + H_RESET, {H});
    const R *b_ih = arrays.optional<R>(in + B_IH, {3 * H}), *b_hh = arrays.optional<R>(in + B_HH, {3 * H});
    f.hs = arrays.out<R>(out + OUT_HS, {x0, x1, H});
    f.saved = o.with_saved ? arrays.out<R>(out + OUT_SAVED, {T, B, 4 * H}) : nullptr;
    ask_for_huge_pages(f.hs, sizeof(R) * T * B * H);
    if (f.saved) ask_for_huge_pages(f.saved, sizeof(R) * T * B * 4 * H);

    constexpr bool as_they_lie = std::is_same_v<E, Op>;
    const long width = up(I, pair), Ip = up(I, pair), Kp = up(H, pair);
    f.packed = !std::is_same_v<Op, R> || !o.reset_after || !as_they_lie || B * T >= UNPACKED_BELOW || H % N;
    x_operands.push_back(nullptr);
    if constexpr (as_they_lie)
      if (width == I) f.x = x.back();
    if (!as_they_lie || width != I) {
      f.x = x_operands.back() = scratch.take<Op>(T * B * width);
      f.x_step = f.x_step / I * width, f.x_row = f.x_row / I * width;
    }
    f.h_row = Hp + N;
    R* bias = scratch.take<R>(4 * Hp);
    for (long u = 0; u < Hp; u++)
      for (long g = 0; g < 4; g++) {
        const long column = std::min(g, 2L) * H + u;
        const R from_x = u < H && g < 3 && b_ih ? b_ih[column] : 0, from_h = u < H && g != 2 && b_hh ? b_hh[column] : 0;
        bias[(u / N * 4 + g) * N + u % N] = from_x + from_h;
      }
    f.bias = bias;
    auto rows_of = [&](long n, const R* rows) {  // padded; zeros where null
      R* padded = scratch.take<R>(n * f.h_row);
      memset(padded, 0, n * f.h_row * sizeof(R));
      for (long b = 0; rows && b < n; b++) memcpy(padded + b * f.h_row, rows + b * H, H * sizeof(R));
      return padded;
    };
    R* states[2] = {rows_of(B, h0), scratch.take<R>(B * f.h_row)};
    f.state[0] = states[0], f.state[1] = states[1], f.h_reset = rows_of(1, h_reset);
    const bool apart = f.state_mask || !std::is_same_v<Op, R> || !as_they_lie;
    if constexpr (std::is_same_v<Op, R>)
      if (!apart) f.read[0] = states[0], f.read[1] = states[1], f.read_reset = f.h_reset, f.read_row = f.h_row;
    if (apart) {
      f.read_row = Hp + N * pair;
      auto read_of = [&](const R* rows, long row) {
        Op* read = scratch.take<Op>(B * f.read_row);
        memset((void*)read, 0, B * f.read_row * sizeof(Op));
        for (long b = 0; b < B; b++)
          for (long u = 0; u < H; u++) {
            const R a = rows[b * row + u] * (f.state_mask ? f.state_mask[b * H + u] : R(1));
            if constexpr (sizeof(Op) == 2) read[b * f.read_row + u] = narrow(a);
            else if constexpr (sizeof(E) == 2) read[b * f.read_row + u] = widen(narrow(a));
            else read[b * f.read_row + u] = a;
          }
        return read;
      };
      f.read[0] = read_of(states[0], f.h_row), f.read[1] = scratch.take<Op>(B * f.read_row), f.read_reset = read_of(f.h_reset, 0);
    }
    packed_ih.push_back(nullptr), packed_hh.push_back(nullptr), packed_hn.push_back(nullptr), projected.push_back(nullptr);
    if constexpr (std::is_same_v<E, Op>) f.w_ih = w_ih.back(), f.w_hh = w_hh.back();
    if (f.packed) {
      f.w_ih = packed_ih.back() = scratch.take<Op>(Ip * 3 * Hp);
      f.w_hh = packed_hh.back() = scratch.take<Op>(Kp * (o.reset_after ? 3 : 2) * Hp);
    }
    if (!o.reset_after) {
      f.w_hn = packed_hn.back() = scratch.take<Op>(Kp * Hp);
      f.z = scratch.take<R>(B * f.h_row), f.x_n = scratch.take<R>(B * f.h_row);
      f.r_read = scratch.take<Op>(B * f.read_row);
      memset((void*)f.r_read, 0, B * f.read_row * sizeof(Op));
    }
    if (B == 1) projected.back() = scratch.take<R>(PROJECTED * 3 * Hp);
    calls.push_back(f);
  }

  long items(long epoch) const override {
    if (epoch == 0) return D * ((calls[0].packed ? P : 0) + parts);
    if (share->by_rows) return D * share->blocks;
    return place(epoch - 1).s < T ? D * ranges : 0;
  }
  struct Place { long s; int phase; bool project; };
  Place place(long epoch) const {  // by columns: with one row a chunk of steps is projected, then come its steps
    const long of_chunk = chunk ? 1 + chunk * phases : T * phases, i = epoch % of_chunk, first = epoch / of_chunk * chunk;
    if (chunk && i == 0) return {first, 0, true};
    const long j = i - (chunk ? 1 : 0);
    return {first + j / phases, int(j % phases), false};
  }
  void run(long epoch, long item, long) override {
    if (epoch == 0) return prepare(item % D, item / D);
    const long d = item % D, i = item / D;
    Forward<E, Op> f = calls[d];
    if (share->by_rows) return of_rows(f, d, share->rows[d][i]);
    const long p0 = i * P / ranges, p1 = (i + 1) * P / ranges;
    const Place at = place(epoch - 1);
    if (chunk) f.projected = projected[d], f.first = at.s / chunk * chunk;
    if (at.project) return k.project(f, projected[d], at.s, std::min(chunk, T - at.s), p0, p1);
    k.forward(f, at.s, at.phase, share->rows[d][0].data(), B, p0, p1);
  }
  void of_rows(Forward<E, Op>& f, long d, const std::vector<int>& rows) {
    for (long s = 0; s < T; s++) {
      if (chunk && s % chunk == 0) {
        k.project(f, projected[d], s, std::min(chunk, T - s), 0, P);
        f.projected = projected[d], f.first = s;
      }
      for (int phase = 0; phase < phases; phase++) k.forward(f, s, phase, rows.data(), rows.size(), 0, P);
    }
  }
  void prepare(long d, long i) {
    const auto& f = calls[d];
    if (i < parts) {
      const long n = T * B, from = i * n / parts, to = (i + 1) * n / parts, width = up(f.I, PAIR<Op>);
      return k.operands(x[d] + from * f.I, x_operands[d] + from * width, to - from, f.I, width);
    }
    const long p = i - parts, N = k.lanes, pair = PAIR<Op>, gates = f.reset_after ? 3 : 2;
    k.pack(w_ih[d], f.I, f.H, 0, 3, packed_ih[d] + p * up(f.I, pair) * 3 * N, p);
    k.pack(w_hh[d], f.H, f.H, 0, gates, packed_hh[d] + p * up(f.H, pair) * gates * N, p);
    if (!f.reset_after) k.pack(w_hh[d], f.H, f.H, 2, 1, packed_hn[d] + p * up(f.H, pair) * N, p);
  }
  void end(const Arrays& arrays) {  // the last states
    for (long d = 0; d < D; d++) {
      const auto& f = calls[d];
      R* h_last = arrays.out<R>(d * of_direction + OUT_H_LAST, {f.B, f.H});
      for (long b = 0; b < f.B; b++) memcpy(h_last + b * f.H, f.state[T & 1] + b * f.h_row, f.H * sizeof(R));
    }
  }
};

// The forward call: its memory, its items of work, and their order.
#pragma once
#include "arguments.h"
#include "scratch.h"
#include "share.h"

template <class E, class Op, class Call = Forward<E, Op>> struct ForwardWork : Work {
  using R = Real<E>;
  struct Given { const E *w_ih, *w_hh; R* projected; Op *w_ih_packed, *w_hh_packed, *w_hn_packed; };
  const Kernels<E, Op>& k;
  std::vector<Call> calls;
  std::vector<Given> given;
  Scratch scratch;
  std::unique_ptr<Share> share;
  long outputs, D, T, B, P, phases, chunk = 0, ranges;  // chunk: steps whose inputs are projected at once; 0: none

  ForwardWork(const Kernels<E, Op>& kernels, const Arrays& arrays, const Options& o, const ffi::ThreadPool& pool)
      : ForwardWork(kernels, OUT_SAVED + (o.with_saved ? 1 : 0)) {
    arrays.expect(o.directions * FORWARD_INPUTS, o.directions * outputs);
    const long threads = std::max<long>(1, pool.num_threads());
    for (long d = 0; d < o.directions; d++) add(arrays, o, d, threads);
    const auto& c = calls[0];
    if (c.B == 1 && !c.products) chunk = std::max(1L, std::min(BLOCK, c.T));
    share_out(pool, c.I + c.H);
  }

  void add(const Arrays& arrays, const Options& o, long d, long threads) {
    Forward<E, Op> f;
    Given g{};
    const long in = d * FORWARD_INPUTS, out = d * outputs, N = k.lanes;
    read_sizes<Forward<E, Op>, E>(f, arrays, in, o, d, N);
    const long T = f.T, B = f.B, H = f.H, I = f.I, Hp = f.P * N, x0 = o.time_major ? T : B, x1 = o.time_major ? B : T;
    f.x = arrays.in<E>(in + X, {x0, x1, I}), g.w_ih = arrays.in<E>(in + W_IH, {I, 3 * H});
    const R *b_ih = arrays.optional<R>(in + B_IH, {3 * H}), *b_hh = arrays.optional<R>(in + B_HH, {3 * H});
    f.hs = arrays.out<R>(out + OUT_HS, {x0, x1, H});
    f.saved = o.with_saved ? arrays.out<R>(out + OUT_SAVED, {T, B, 4 * H}) : nullptr;
    if (f.saved) ask_for_huge_pages(f.saved, sizeof(R) * T * B * 4 * H);
    add_state(f, g, arrays, in);

    const long width = up(I, PAIR<Op>);
    if (sizeof(E) == 2) f.x_width = up(I, N), f.x_read = scratch.take<Op>(threads * BLOCK * f.x_width);
    f.unpacked[0] = g.w_ih;
    if (!f.products) f.w_ih = g.w_ih_packed = scratch.take<Op>(width * 3 * Hp);
    if (B == 1) g.projected = scratch.take<R>(BLOCK * 3 * Hp);
    R* bias = scratch.take<R>(4 * Hp);
    for (long u = 0; u < Hp; u++)
      for (long g = 0; g < 4; g++) {
        const long column = std::min(g, 2L) * H + u;
        const R from_x = u < H && g < 3 && b_ih ? b_ih[column] : 0, from_h = u < H && g != 2 && b_hh ? b_hh[column] : 0;
        bias[(u / N * 4 + g) * N + u % N] = from_x + from_h;
      }
    f.bias = bias;
    calls.push_back(f), given.push_back(g);
  }

 protected:
  ForwardWork(const Kernels<E, Op>& kernels, long outputs) : k(kernels), outputs(outputs) {}

  // Adds the state, the form of it that the products read, and the weights that they multiply it by.
  void add_state(Forward<E, Op>& f, Given& g, const Arrays& arrays, long in) {
    const long T = f.T, B = f.B, H = f.H, Hp = f.P * k.lanes, pair = PAIR<Op>, Kp = up(H, pair);
    const R *h0 = arrays.in<R>(in + H0, {B, H}), *h_reset = arrays.optional<R>(in + H_RESET, {H});
    ask_for_huge_pages(f.hs, sizeof(R) * T * B * H);
    f.h_row = Hp + k.lanes;
    auto rows_of = [&](long n, const R* rows) {  // padded; zeros if null
      R* padded = scratch.take<R>(n * f.h_row);
      memset(padded, 0, n * f.h_row * sizeof(R));
      for (long b = 0; rows && b < n; b++) memcpy(padded + b * f.h_row, rows + b * H, H * sizeof(R));
      return padded;
    };
    R* states[2] = {rows_of(B, h0), scratch.take<R>(B * f.h_row)};
    f.state[0] = states[0], f.state[1] = states[1], f.h_reset = rows_of(1, h_reset);
    const bool apart = f.state_mask || !std::is_same_v<Op, R>;
    if constexpr (std::is_same_v<Op, R>)
      if (!apart) f.read[0] = states[0], f.read[1] = states[1], f.read_reset = f.h_reset, f.read_row = f.h_row;
    if (apart) {
      f.read_row = Hp + k.lanes * pair;
      auto read_of = [&](const R* rows, long row) {
        Op* read = scratch.take<Op>(B * f.read_row);
        memset((void*)read, 0, B * f.read_row * sizeof(Op));
        for (long b = 0; b < B; b++)
          for (long u = 0; u < H; u++) {
            const R a = rows[b * row + u] * (f.state_mask ? f.state_mask[b * H + u] : R(1));
            from_real(read[b * f.read_row + u], a);
          }
        return read;
      };
      f.read[0] = read_of(states[0], f.h_row), f.read[1] = scratch.take<Op>(B * f.read_row), f.read_reset = read_of(f.h_reset, 0);
    }
    g.w_hh = arrays.in<E>(in + W_HH, {H, 3 * H});
    f.unpacked[1] = g.w_hh;
    if (f.reset_after && B * T < UNPACKED_BELOW && H % k.lanes == 0) f.products = scratch.take<R>(B * 2 * 3 * H);
    else f.w_hh = g.w_hh_packed = scratch.take<Op>(Kp * (f.reset_after ? 3 : 2) * Hp);
    if (!f.reset_after) {
      f.w_hn = g.w_hn_packed = scratch.take<Op>(Kp * Hp);
      f.z = scratch.take<R>(B * f.h_row), f.x_n = scratch.take<R>(B * f.h_row);
      f.r_read = scratch.take<Op>(B * f.read_row);
      memset((void*)f.r_read, 0, B * f.read_row * sizeof(Op));
    }
  }
  void share_out(const ffi::ThreadPool& pool, long depth) {  // depth: the sum of the depths of all products of a step
    const auto& c = calls[0];
    D = calls.size(), T = c.T, B = c.B, P = c.P, phases = c.reset_after ? 1 : 2;
    const long workers = workers_for(pool, 3.0 * D * B * T * c.H * depth);
    share.reset(new Share(calls, workers, depth * 3 * c.H * sizeof(Op)));
    ranges = share->by_rows ? 0 : std::min(P, B == 1 ? workers : 4 * workers);
    const long steps = chunk ? (T + chunk - 1) / chunk * (1 + chunk * phases) : T * phases;
    epochs = B * T ? 1 + (share->by_rows ? 1 : steps) : 0;
  }

 public:
  long items(long epoch) const override {
    if (epoch == 0) return calls[0].products ? 0 : D * P;
    if (share->by_rows) return D * share->blocks;
    return place(epoch - 1).s < T ? D * ranges : 0;
  }
  struct Place { long s; int phase; bool project; };
  Place place(long epoch) const {  // by columns; with B = 1 each chunk of steps begins with its projection
    const long of_chunk = chunk ? 1 + chunk * phases : T * phases, i = epoch % of_chunk, first = epoch / of_chunk * chunk;
    if (chunk && i == 0) return {first, 0, true};
    const long j = i - (chunk ? 1 : 0);
    return {first + j / phases, int(j % phases), false};
  }
  void run(long epoch, long item, long worker) override {
    if (epoch == 0) return prepare(item % D, item / D);
    const long d = item % D, i = item / D;
    Call f = calls[d];
    if (sizeof(E) == 2) f.x_read += worker * BLOCK * f.x_width;
    if (share->by_rows) return of_rows(f, d, share->rows[d][i]);
    const long p0 = i * P / ranges, p1 = (i + 1) * P / ranges;
    const Place at = place(epoch - 1);
    if (chunk) f.projected = given[d].projected, f.first = at.s / chunk * chunk;
    if (at.project) return k.project(f, given[d].projected, at.s, std::min(chunk, T - at.s), p0, p1);
    advance(f, at.s, at.phase, share->rows[d][0], p0, p1);
  }
  void of_rows(Call& f, long d, const std::vector<int>& rows) {
    for (long s = 0; s < T; s++) {
      if (chunk && s % chunk == 0) {
        k.project(f, given[d].projected, s, std::min(chunk, T - s), 0, P);
        f.projected = given[d].projected, f.first = s;
      }
      for (int phase = 0; phase < phases; phase++) advance(f, s, phase, rows, 0, P);
    }
  }
  void advance(const Call& f, long s, int phase, const std::vector<int>& rows, long p0, long p1) {
    if constexpr (std::is_same_v<Call, Forward<E, Op>>) k.forward(f, s, phase, rows.data(), rows.size(), p0, p1);
    else k.tangent(f, s, phase, rows.data(), rows.size(), p0, p1);
  }
  void prepare(long d, long p) {
    const auto& f = calls[d];
    const auto& g = given[d];
    const long N = k.lanes, Kp = up(f.H, PAIR<Op>), gates = f.reset_after ? 3 : 2;
    if (g.w_ih_packed) k.pack(g.w_ih, f.I, f.H, 0, 3, g.w_ih_packed + p * up(f.I, PAIR<Op>) * 3 * N, p);
    k.pack(g.w_hh, f.H, f.H, 0, gates, g.w_hh_packed + p * Kp * gates * N, p);
    if (!f.reset_after) k.pack(g.w_hh, f.H, f.H, 2, 1, g.w_hn_packed + p * Kp * N, p);
  }
  void end(const Arrays& arrays) {  // copies the last states to h_last
    for (long d = 0; d < D; d++) {
      const auto& f = calls[d];
      R* h_last = arrays.out<R>(d * outputs + OUT_H_LAST, {f.B, f.H});
      for (long b = 0; b < f.B; b++) memcpy(h_last + b * f.H, f.state[T & 1] + b * f.h_row, f.H * sizeof(R));
    }
  }
};

// The tangent call. The arrays of each direction are time-major and in its reading order.
template <class E, class Op> struct TangentWork : ForwardWork<E, Op, Tangent<E, Op>> {
  TangentWork(const Kernels<E, Op>& kernels, const Arrays& arrays, const Options& o, const ffi::ThreadPool& pool)
      : ForwardWork<E, Op, Tangent<E, Op>>(kernels, OUT_SAVED) {
    using R = Real<E>;
    arrays.expect(o.directions * FORWARD_INPUTS, o.directions * OUT_SAVED);
    for (long d = 0; d < o.directions; d++) {
      Tangent<E, Op> f{};
      typename TangentWork::Given g{};
      const long in = d * FORWARD_INPUTS;
      read_sizes<Forward<E, Op>, E>(f, arrays, in, o, d, kernels.lanes);
      const long T = f.T, B = f.B, H = f.H;
      f.entering = arrays.in<R>(in + ENTERING, {T, B, H}), f.gates = arrays.in<R>(in + GATES, {T, B, 4 * H});
      f.source = arrays.optional<R>(in + SOURCE, {T, B, 3 * H}), f.source_n = arrays.optional<R>(in + SOURCE_N, {T, B, H});
      f.hs = arrays.out<R>(d * OUT_SAVED + OUT_HS, {T, B, H}), f.saved = nullptr;
      this->add_state(f, g, arrays, in);
      this->calls.push_back(f), this->given.push_back(g);
    }
    this->share_out(pool, this->calls[0].H);
  }
};

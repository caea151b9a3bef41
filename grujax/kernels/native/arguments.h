// Reads and checks the arrays that a handler receives from XLA.
#pragma once
#include <initializer_list>
#include <string>

#include "call.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

struct Invalid { std::string what; };

template <class T> constexpr ffi::DataType DTYPE = ffi::F32;
template <> constexpr ffi::DataType DTYPE<double> = ffi::F64;
template <> constexpr ffi::DataType DTYPE<bf16> = ffi::BF16;
template <> constexpr ffi::DataType DTYPE<bool> = ffi::PRED;

// The arrays of a direction, in this order. An optional array that is absent or not needed has shape (0).
enum Input { X, H0, W_IH, W_HH, B_IH, B_HH, H_RESET, VALID, RESET, STATE_MASK, HOLD, FORWARD_INPUTS };
// The tangent call passes these in place of others. Its H0 and H_RESET are the tangents of h0 and h_reset.
enum TangentInput { ENTERING = X, SOURCE = W_IH, SOURCE_N = B_IH, GATES = B_HH };
enum SavedInput { HS = FORWARD_INPUTS, SAVED, DHS, DH_LAST, BACKWARD_INPUTS };
enum Output { OUT_HS, OUT_H_LAST, OUT_SAVED };  // the last one is optional
enum Gradient { DX, DH0, DW_IH, DW_HH, DB_IH, DB_HH, DH_RESET, BACKWARD_OUTPUTS };

class Arrays {
  ffi::RemainingArgs args_;
  ffi::RemainingRets rets_;

  static bool is_given(const ffi::AnyBuffer& a) { return a.dimensions().size() != 1 || a.dimensions()[0] != 0; }
  template <class T> static T* checked(const ffi::AnyBuffer& a, const std::string& name, std::initializer_list<long> shape) {
    const auto d = a.dimensions();
    bool fits = a.element_type() == DTYPE<std::remove_const_t<T>> && d.size() == shape.size();
    for (size_t i = 0; fits && i < shape.size(); i++) fits = d[i] == shape.begin()[i];
    if (!fits) throw Invalid{name + " does not have the shape or the element type of this call"};
    return (T*)a.untyped_data();
  }

 public:
  Arrays(ffi::RemainingArgs args, ffi::RemainingRets rets) : args_(args), rets_(rets) {}
  ffi::AnyBuffer input(long i) const {
    auto found = args_.get<ffi::AnyBuffer>(i);
    if (!found) throw Invalid{"argument " + std::to_string(i) + " is missing"};
    return *found;
  }
  void expect(long inputs, long outputs) const {
    if (long(args_.size()) != inputs || long(rets_.size()) != outputs) throw Invalid{"wrong number of arrays"};
  }
  template <class T> const T* in(long i, std::initializer_list<long> shape) const {
    return checked<const T>(input(i), "argument " + std::to_string(i), shape);
  }
  template <class T> const T* optional(long i, std::initializer_list<long> shape) const {
    return is_given(input(i)) ? in<T>(i, shape) : nullptr;
  }
  ffi::AnyBuffer output(long i) const {
    auto found = rets_.get<ffi::AnyBuffer>(i);
    if (!found) throw Invalid{"result " + std::to_string(i) + " is missing"};
    return **found;
  }
  template <class T> T* out(long i, std::initializer_list<long> shape) const {
    return checked<T>(output(i), "result " + std::to_string(i), shape);
  }
  template <class T> T* optional_out(long i, std::initializer_list<long> shape) const {
    return is_given(output(i)) ? out<T>(i, shape) : nullptr;
  }
};

struct Options {
  long directions, reverse;  // reverse: one bit for each direction
  bool time_major, reset_after, keep, with_saved;
};

// Reads the sizes and the step arrays of one direction: T, B and I from x, H from w_hh.
template <class Call, class E> void read_sizes(Call& c, const Arrays& arrays, long first, const Options& o, long direction, long lanes) {
  const auto x = arrays.input(first + X).dimensions(), w = arrays.input(first + W_HH).dimensions();
  if (x.size() != 3 || w.size() != 2) throw Invalid{"x must have three axes and w_hh two"};
  const auto first_x = arrays.input(X).dimensions(), first_w = arrays.input(W_HH).dimensions();
  if (!std::equal(x.begin(), x.end(), first_x.begin()) || w[0] != first_w[0]) throw Invalid{"directions must have the same sizes"};
  c.T = x[o.time_major ? 0 : 1], c.B = x[o.time_major ? 1 : 0], c.I = x[2], c.H = w[0], c.P = (c.H + lanes - 1) / lanes;
  if (c.I < 1 || c.H < 1 || c.T * c.B >= (1L << 31)) throw Invalid{"I and H must be positive, and T * B below 2^31"};
  c.reverse = o.reverse >> direction & 1, c.reset_after = o.reset_after, c.keep = o.keep;
  c.x_step = o.time_major ? c.B * c.I : c.I, c.x_row = o.time_major ? c.I : c.T * c.I;
  c.hs_step = o.time_major ? c.B * c.H : c.H, c.hs_row = o.time_major ? c.H : c.T * c.H;
  c.valid = arrays.optional<bool>(first + VALID, {c.T, c.B});
  c.reset = arrays.optional<bool>(first + RESET, {c.T, c.B});
  using R = Real<E>;
  c.state_mask = arrays.optional<R>(first + STATE_MASK, {c.B, c.H});
  c.hold = arrays.optional<R>(first + HOLD, {c.T, c.B, c.H});
}

// The handlers that XLA calls: grujax_forward, grujax_tangent and grujax_backward.
#include <cstdlib>
#include <string_view>

#include "backward_call.h"
#include "forward_call.h"

struct InstructionSet {
  const char* name;
  bool serves;
  const Kernels<float, float>* f32;
  const Kernels<double, double>* f64;
  const Kernels<bf16, float>* bf16_as_f32;
  const Kernels<bf16, bf16>* bf16_pairs;  // null if the processor has no bfloat16 product
  const Activations* activations;
};
#define SET(isa, pairs) &isa::f32, &isa::f64, &isa::bf16_as_f32, pairs, &isa::activations
#if defined(__x86_64__)
#define HAS(feature) bool(__builtin_cpu_supports(feature))
#endif
// The best first. HAVE_...: the sets that the compiler supports and build.py compiled.
static const std::vector<InstructionSet>& sets() {
  static const std::vector<InstructionSet> all = {
#if defined(HAVE_AVX512)
#define AVX512 (HAS("avx512f") && HAS("avx512dq") && HAS("avx512vl") && HAS("avx512bw"))
#if defined(HAVE_AVX512BF16)
      {"avx512bf16", AVX512 && HAS("avx512bf16"), SET(avx512, &avx512bf16::bf16_pairs)},
#endif
      {"avx512", AVX512, SET(avx512, nullptr)},
#endif
#if defined(HAVE_AVX2)
      {"avx2", HAS("avx2") && HAS("fma"), SET(avx2, nullptr)},
#endif
#if defined(HAVE_NEON)
      {"neon", true, SET(neon, nullptr)},
#endif
#if defined(HAVE_PLAIN)
      {"plain", true, SET(plain, nullptr)},
#endif
#if defined(HAVE_EMULATED)
      {"emulated", true, SET(emulated, &emulated::bf16_pairs)},
#endif
  };
  return all;
}
// The best set that this processor supports; tests select another with GRUJAX_NATIVE_ISA.
static const InstructionSet* chosen() {
  static const InstructionSet* set = []() -> const InstructionSet* {
    const char* name = getenv("GRUJAX_NATIVE_ISA");
    for (const auto& one : sets())
      if (one.serves && (!name || std::string_view(name) == one.name)) return &one;
    return nullptr;
  }();
  return set;
}

template <template <class, class> class WorkOf, class E, class Op>
static void run(const Kernels<E, Op>& k, ffi::ThreadPool& pool, const Arrays& arrays, const Options& o) {
  WorkOf<E, Op> work(k, arrays, o, pool);
  if (work.epochs) execute(pool, work, work.share->workers);
  work.end(arrays);
}
template <template <class, class> class WorkOf>
static ffi::Error call(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t directions, int64_t reverse,
                       bool time_major, bool reset_after, bool keep, bool with_saved) {
  try {
    const Arrays arrays(args, rets);
    const Options o{directions, reverse, time_major, reset_after, keep, with_saved};
    const InstructionSet* set = chosen();
    if (!set) throw Invalid{"GRUJAX_NATIVE_ISA names an instruction set that this library or this processor lacks"};
    switch (arrays.input(W_HH).element_type()) {
      case ffi::F32: run<WorkOf>(*set->f32, pool, arrays, o); break;
      case ffi::F64: run<WorkOf>(*set->f64, pool, arrays, o); break;
      case ffi::BF16:
        if (set->bf16_pairs) run<WorkOf>(*set->bf16_pairs, pool, arrays, o);
        else run<WorkOf>(*set->bf16_as_f32, pool, arrays, o);
        break;
      default: throw Invalid{"w_hh must be float32, float64 or bfloat16"};
    }
    return ffi::Error::Success();
  } catch (const Invalid& error) {
    return ffi::Error::InvalidArgument("grujax: " + error.what);
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "grujax: out of memory");
  }
}

template <class E, class Op> using ForwardOf = ForwardWork<E, Op>;
#define HANDLER(name, work)                                                                                       \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, call<work>,                                                                 \
                                ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets()           \
                                    .Attr<int64_t>("directions").Attr<int64_t>("reverse").Attr<bool>("time_major") \
                                    .Attr<bool>("reset_after").Attr<bool>("keep").Attr<bool>("with_saved"))
HANDLER(grujax_forward, ForwardOf);
HANDLER(grujax_tangent, TangentWork);
HANDLER(grujax_backward, BackwardWork);

#define EXPORTED extern "C" __attribute__((visibility("default")))
EXPORTED const char* grujax_instruction_set() { return chosen() ? chosen()->name : ""; }
EXPORTED void grujax_float_activations(const float* x, float* s, float* t, long n) { chosen()->activations->of_float(x, s, t, n); }
EXPORTED void grujax_double_activations(const double* x, double* s, double* t, long n) { chosen()->activations->of_double(x, s, t, n); }

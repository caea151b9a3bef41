// Vectors of one instruction set, as GCC vector types so that one source serves all sets, and activations on them.
template <class T> struct simd {
  typedef T V __attribute__((vector_size(BYTES)));
  static constexpr long L = BYTES / sizeof(T);
};
template <class T> using V = typename simd<T>::V;
template <class T> constexpr long L = simd<T>::L;
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t halves __attribute__((vector_size(BYTES / 2)));
typedef uint32_t words __attribute__((vector_size(BYTES)));
// Intrinsics, because g++ 12 generates five instructions instead of one.
#if defined(__AVX512F__)
INLINE words to_words(halves v) { return (words)_mm512_cvtepu16_epi32((__m256i)v); }
#elif defined(__AVX2__)
INLINE words to_words(halves v) { return (words)_mm256_cvtepu16_epi32((__m128i)v); }
#else
INLINE words to_words(halves v) { return __builtin_convertvector(v, words); }
#endif
template <class E> INLINE V<Real<E>> load(const E* p) {
  if constexpr (sizeof(E) == 2) {  // bfloat16 is the upper half of a float
    halves v;
    __builtin_memcpy(&v, p, BYTES / 2);
    return (V<float>)(to_words(v) << 16);
  } else {
    V<E> v;
    __builtin_memcpy(&v, p, BYTES);
    return v;
  }
}
template <class T> INLINE void store(T* p, V<T> v) { __builtin_memcpy(p, &v, BYTES); }
template <class T> INLINE V<T> splat(T a) { return a - V<T>{}; }
template <class E> INLINE V<Real<E>> load_part(const E* p, long n) {  // the first n lanes, then zeros
  if (n >= L<Real<E>>) return load(p);
  E lanes[L<Real<E>>] = {};
  if (n > 0) __builtin_memcpy(lanes, p, n * sizeof(E));
  return load(lanes);
}
template <class T> INLINE void store_part(T* p, V<T> v, long n) {
  if (n >= L<T>) return store(p, v);
  if (n > 0) __builtin_memcpy(p, &v, n * sizeof(T));
}


// e^y = 2^k (1 + q), with k = round(y / ln 2) and q a polynomial of the remainder. The largest errors for float, in units
// in the last place: sigmoid 2.4, tanh 2.5 (tests/kernels/test_native.py).
template <class T> struct Exp;
template <> struct Exp<float> {
  typedef int32_t bits __attribute__((vector_size(BYTES)));
  static constexpr float LN2_HIGH = 0.693145751953125f, LN2_LOW = 1.42860682030941723212e-6f;
  static constexpr float ROUND = 12582912.f;  // 1.5 * 2^23: adding and subtracting it rounds; the sum has k in its low bits
  static constexpr float FLUSHED = -87.33f, TANH_IS_ONE = 20.f;
  static constexpr int FRACTION = 23;
  static constexpr int32_t ONE = 0x3f800000;
  static constexpr float C[] = {1.99144281e-4f, 1.39412067e-3f, 8.33327259e-3f, 4.16663523e-2f, 1.66666668e-1f, 5.00000005e-1f};
};
template <> struct Exp<double> {
  typedef int64_t bits __attribute__((vector_size(BYTES)));
  static constexpr double LN2_HIGH = 6.93147180369123816490e-1, LN2_LOW = 1.90821492927058770002e-10;
  static constexpr double ROUND = 6755399441055744.;
  static constexpr double FLUSHED = -708.39, TANH_IS_ONE = 20.;
  static constexpr int FRACTION = 52;
  static constexpr int64_t ONE = 0x3ff0000000000000;
  static constexpr double C[] = {1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320,
                                 1. / 5040,       1. / 720,       1. / 120,      1. / 24,      1. / 6,      1. / 2};
};
#if defined(__AVX512F__)  // where the compiler does not generate good code
constexpr bool AVX512 = true;
INLINE V<float> clamp_(V<float> a, float lo, float hi) {  // min and max return their second operand if one is NaN
  return (V<float>)_mm512_max_ps(_mm512_set1_ps(lo), _mm512_min_ps(_mm512_set1_ps(hi), (__m512)a));
}
INLINE V<float> scale_(V<float> a, V<float> k) { return (V<float>)_mm512_scalef_ps((__m512)a, (__m512)k); }
INLINE V<float> reciprocal_(V<float> a) {  // 14 bits and one Newton step
  const V<float> y = (V<float>)_mm512_rcp14_ps((__m512)a);
  return y + y * (1.f - a * y);
}
INLINE V<float> quotient_(V<float> a, V<float> b) {
  const V<float> y = reciprocal_(b), q = a * y;
  return q + y * (a - b * q);
}
#else
constexpr bool AVX512 = false;
template <class T> V<T> clamp_(V<T>, T, T);
template <class T> V<T> scale_(V<T>, V<T>);
template <class T> V<T> reciprocal_(V<T>);
template <class T> V<T> quotient_(V<T>, V<T>);
#endif
template <class T> constexpr bool BY_HAND = AVX512 && sizeof(T) == 4;

template <class T> INLINE V<T> clamp(V<T> a, T lo, T hi) {  // keeps NaN
  if constexpr (BY_HAND<T>) return clamp_(a, lo, hi);
  a = a > splat(hi) ? splat(hi) : a;
  return a < splat(lo) ? splat(lo) : a;
}
template <class T> INLINE V<T> scale(V<T> a, V<T> k) {  // a * 2^k, for an integer k within the exponent range of T
  if constexpr (BY_HAND<T>) return scale_(a, k);
  else return a * (V<T>)(((typename Exp<T>::bits)(k + splat(Exp<T>::ROUND)) << Exp<T>::FRACTION) + Exp<T>::ONE);
}
template <class T> INLINE V<T> reciprocal(V<T> a) {
  if constexpr (BY_HAND<T>) return reciprocal_(a);
  else return T(1) / a;
}
template <class T> INLINE V<T> quotient(V<T> a, V<T> b) {
  if constexpr (BY_HAND<T>) return quotient_(a, b);
  else return a / b;
}
template <class T> INLINE void exponential(V<T> x, T c, V<T>& k, V<T>& q) {  // e^(c x) = 2^k (1 + q)
  k = (x * (c * T(1.44269504088896340736)) + Exp<T>::ROUND) - Exp<T>::ROUND;
  const V<T> r = (c * x - k * Exp<T>::LN2_HIGH) - k * Exp<T>::LN2_LOW;
  V<T> p = splat(Exp<T>::C[0]);
  for (unsigned i = 1; i < sizeof(Exp<T>::C) / sizeof(T); i++) p = p * r + Exp<T>::C[i];
  q = p * r * r + r;
}
template <class T> INLINE V<T> sigmoid(V<T> x) {  // 0 if the result is below the smallest normal number
  V<T> k, q;
  exponential<T>(clamp<T>(x, Exp<T>::FLUSHED, -Exp<T>::FLUSHED), T(-1), k, q);
  const V<T> y = reciprocal<T>(scale<T>(q + T(1), k) + T(1));
  return x < splat(Exp<T>::FLUSHED) ? V<T>{} : y;
}
template <class T> INLINE V<T> tanh(V<T> x) {  // (e^2x - 1) / (e^2x + 1), without cancellation for small x
  V<T> k, q;
  exponential<T>(clamp<T>(x, -Exp<T>::TANH_IS_ONE, Exp<T>::TANH_IS_ONE), T(2), k, q);
  const V<T> s = scale<T>(splat(T(1)), k), e = s * q + (s - T(1));
  return quotient<T>(e, e + T(2));
}
template <class T> void each_activation(const T* x, T* sigmoids, T* tanhs, long n) {
  for (long i = 0; i < n; i += L<T>) {
    const V<T> v = load_part(x + i, n - i);
    store_part(sigmoids + i, sigmoid<T>(v), n - i), store_part(tanhs + i, tanh<T>(v), n - i);
  }
}

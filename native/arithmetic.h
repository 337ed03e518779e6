// Arithmetic on the vectors of vectors.h, which is included before. Included by kernels_body.h inside the namespace of
// an instruction set: no include guard on purpose.

INLINE f32v spread(float x) { return f32v{} + x; }
INLINE f64v spread(double x) { return f64v{} + x; }

// a * b + c; one rounding wherever the level has such an instruction.
template <class V>
INLINE V multiply_add(V a, V b, V c) {
  return a * b + c;
}

// Adds up the lanes, halving the vector each time.
template <class A, class V>
INLINE A total_of(V v) {
  A all[lanes<A>()];
  std::memcpy(all, &v, sizeof all);
  for (int64_t n = lanes<A>() / 2; n > 0; n /= 2)
    for (int64_t l = 0; l < n; ++l) all[l] += all[l + n];
  return all[0];
}

#if VECTOR_BYTES == 64
INLINE float total(f32v v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE int32_t total(i32v v) { return _mm512_reduce_add_epi32((__m512i)v); }
#else
INLINE float total(f32v v) { return total_of<float>(v); }
INLINE int32_t total(i32v v) { return total_of<int32_t>(v); }
#endif
INLINE double total(f64v v) { return total_of<double>(v); }
INLINE int64_t total(i64v v) { return total_of<int64_t>(v); }

// e^x within 2 units of the last place; 0 below -87.3, e^88 above 88, NaN of NaN. After Cephes' expf: x = n ln 2 + r, a
// polynomial in r, the exponent n put in place by integer arithmetic.
INLINE f32v exponential(f32v x) {
  const f32v tiny = spread(-87.3f), huge = spread(88.0f);
  const f32v clamped = x < tiny ? tiny : x > huge ? huge : x;
  const f32v magic = spread(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const f32v shifted = clamped * 1.44269504088896341f + magic;
  const f32v whole = shifted - magic;
  f32v r = clamped - whole * 0.693359375f;
  r = r - whole * -2.12194440e-4f;
  f32v p = spread(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const i32v power = ((i32v)shifted - (i32v)magic + 127) << 23;
  const f32v y = p * (f32v)power;
  return x < tiny ? spread(0.0f) : y;
}

INLINE f64v exponential(f64v x) {
  for (int64_t l = 0; l < lanes<double>(); ++l) x[l] = std::exp(x[l]);
  return x;
}

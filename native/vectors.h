// Vectors of VECTOR_BYTES, their loads and stores. Included by kernels_body.h inside the namespace of an instruction
// set: no include guard on purpose.

typedef float f32v __attribute__((vector_size(VECTOR_BYTES)));
typedef double f64v __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t i32v __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t i64v __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t u32v __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t u64v __attribute__((vector_size(VECTOR_BYTES)));
typedef float f32h __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint16_t u16h __attribute__((vector_size(VECTOR_BYTES / 2)));

template <class A>
struct Vector;
template <>
struct Vector<float> {
  typedef f32v type;
  typedef i32v integer;
  typedef int32_t lane;
};
template <>
struct Vector<double> {
  typedef f64v type;
  typedef i64v integer;
  typedef int64_t lane;
};
template <class A>
using Vec = typename Vector<A>::type;
template <class A>
using IntVec = typename Vector<A>::integer;

template <class A>
constexpr int64_t lanes() {
  return VECTOR_BYTES / sizeof(A);
}

template <class V, class E>
INLINE V load_as(const E* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

INLINE f32v load(const float* p) { return load_as<f32v>(p); }
INLINE f64v load(const double* p) { return load_as<f64v>(p); }
INLINE i32v load(const int32_t* p) { return load_as<i32v>(p); }
INLINE i64v load(const int64_t* p) { return load_as<i64v>(p); }

INLINE f32v load(const bfloat16* p) { return (f32v)(__builtin_convertvector(load_as<u16h>(p), u32v) << 16); }

template <class E, class V>
INLINE void store(E* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// Rounds to nearest even; NaN stays NaN.
INLINE void store(bfloat16* p, f32v v) {
  const u32v bits = (u32v)v;
  const u32v rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const u32v nan = (bits >> 16) | 0x40u;
  const u16h half = __builtin_convertvector((v == v) ? rounded : nan, u16h);
  std::memcpy(p, &half, sizeof half);
}

// The first n lanes only; the others read as zero.
template <class T>
INLINE Vec<Acc<T>> load_some(const T* p, int64_t n) {
  T some[lanes<Acc<T>>()] = {};
  for (int64_t i = 0; i < n; ++i) some[i] = p[i];
  return load(some);
}

template <class T>
INLINE void store_some(T* p, Vec<Acc<T>> v, int64_t n) {
  T some[lanes<Acc<T>>()];
  store(some, v);
  for (int64_t i = 0; i < n; ++i) p[i] = some[i];
}

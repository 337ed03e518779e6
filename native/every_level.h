// Compiles the kernels_body.h of the namespace OPERATORS once per instruction set, so that one binary runs well on any
// x86-64 machine without -march=native. Elsewhere the baseline alone is built, and the compiler vectorises it for the
// platform. Included by a plugin's kernels.cpp, after its kernels.h, as all there is in that file.
#include "formats.h"

#if defined(__GNUC__) && !defined(__clang__)
// Every helper that passes a vector is inlined, so the calling convention of vectors never matters; and GCC's own
// AVX-512 header starts from an undefined register (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <cmath>
#include <cstring>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define NATIVE_X86 1
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE inline __attribute__((always_inline))

#define NATIVE_LEVEL baseline
#define VECTOR_BYTES 16
#include "kernels_body.h"
#undef NATIVE_LEVEL
#undef VECTOR_BYTES

#ifdef NATIVE_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif
#define NATIVE_LEVEL avx2
#define VECTOR_BYTES 32
#include "kernels_body.h"
#undef NATIVE_LEVEL
#undef VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define NATIVE_LEVEL avx512
#define VECTOR_BYTES 64
#include "kernels_body.h"
#undef NATIVE_LEVEL
#undef VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // NATIVE_X86

namespace OPERATORS {

template <class T>
const Kernels<T>& kernels([[maybe_unused]] Level level) {
#ifdef NATIVE_X86
  if (level == Level::avx512) return avx512::table(static_cast<const T*>(nullptr));
  if (level == Level::avx2) return avx2::table(static_cast<const T*>(nullptr));
#endif
  return baseline::table(static_cast<const T*>(nullptr));
}

template const Kernels<float>& kernels<float>(Level);
template const Kernels<double>& kernels<double>(Level);
template const Kernels<bfloat16>& kernels<bfloat16>(Level);

}  // namespace OPERATORS

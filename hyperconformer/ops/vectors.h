// Vectors of floats, some functions of them, and memory: what the C++ kernels share.

#pragma once

#include <omp.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif

typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

namespace {

inline int64_t ceil_divide(int64_t n, int64_t by) { return (n + by - 1) / by; }
inline int64_t padded(int64_t n) { return ceil_divide(n, LANES) * LANES; }

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(float* p, Vector x) { *reinterpret_cast<Vector*>(p) = x; }
inline Vector splat(float x) { return x - Vector{}; }

// ---- Denormal numbers -------------------------------------------------------------

// While it lives, its thread takes numbers below 1.2e-38 for 0. Products of small
// gradients are such numbers, and a processor computes with them far slower: HyperMixing's
// backward took five times as long in the training of a whole model.
class FlushDenormals {
#if defined(__SSE__)
 public:
  FlushDenormals() { _mm_setcsr(before_ | FLUSH_RESULTS | READ_AS_ZERO); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned FLUSH_RESULTS = 0x8000, READ_AS_ZERO = 0x0040;
  unsigned before_ = _mm_getcsr();
#elif defined(__aarch64__)
 public:
  FlushDenormals() { write(before_ | FLUSH); }
  ~FlushDenormals() { write(before_); }

 private:
  static constexpr uint64_t FLUSH = 1 << 24;
  static uint64_t read() {
    uint64_t control;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void write(uint64_t control) { asm volatile("msr fpcr, %0" : : "r"(control)); }
  uint64_t before_ = read();
#else
 public:
  FlushDenormals() {}
#endif
};

// ---- Functions --------------------------------------------------------------------

// 2^x, -126 <= x <= 128, as 2^n 2^f with a polynomial in f of relative error 2e-9
// before rounding; infinite from x = 127.5 on. N vectors go side by side, as each step
// waits for the one before.
template <int N>
inline void powers_of_two(const Vector (&x)[N], Vector (&result)[N]) {
  constexpr float terms[] = {1.5345743e-4f, 0.0013399929f, 0.009618489f, 0.055503286f,
                             0.24022646f,   0.6931472f,    1.0f};
  const Vector rounder = splat(12582912.0f);  // 1.5 * 2^23: sums are whole numbers.
  Vector whole[N], fraction[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    whole[i] = x[i] + rounder;
    fraction[i] = x[i] - (whole[i] - rounder);
    result[i] = splat(terms[0]);
  }
#pragma GCC unroll 8
  for (int step = 1; step < 7; ++step)
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) result[i] = result[i] * fraction[i] + terms[step];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    Integers bits = (reinterpret_cast<Integers&>(whole[i]) - 0x4b400000 + 127) << 23;
    result[i] *= reinterpret_cast<Vector&>(bits);
  }
}

// The logistic function. NaN stays NaN.
template <int N>
inline void sigmoids(const Vector (&x)[N], Vector (&result)[N]) {
  Vector power[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    power[i] = x[i] * -1.4426950408889634f;
    power[i] = power[i] > 128.0f ? splat(128.0f) : power[i];
    power[i] = power[i] < -126.0f ? splat(-126.0f) : power[i];
  }
  powers_of_two<N>(power, result);
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) result[i] = 1.0f / (1.0f + result[i]);
}

// The normal distribution's tail from u on, 0 <= u <= 12, and its density times
// sqrt(2 pi).
//
// The tail over the density is a polynomial in t = 1 / (1 + 0.28 u), fitted for least
// largest error of the tail (1e-8, for u <= 6): what is left is rounding, so that sums
// over many tokens do not drift.
template <int N>
inline void tails(const Vector (&u)[N], Vector (&density)[N], Vector (&probability)[N]) {
  constexpr float terms[] = {-0.105808765f, 0.38987613f,  -0.23699687f,
                             0.26891288f,   0.067495674f, 0.11652095f};
  Vector power[N], t[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    t[i] = 1.0f / (u[i] * 0.28f + 1.0f);
    power[i] = u[i] * u[i] * -0.72134752044448170368f;
    probability[i] = splat(terms[0]);
  }
  powers_of_two<N>(power, density);
#pragma GCC unroll 8
  for (int step = 1; step < 6; ++step)
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) probability[i] = probability[i] * t[i] + terms[step];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) probability[i] = density[i] * probability[i] * t[i];
}

template <int N, bool WITH_SLOPE>
inline void gelu_of(float* x, float* slope) {
  Vector h[N], u[N], density[N], probability[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    h[i] = load(x + i * LANES);
    u[i] = h[i] < 0.0f ? -h[i] : h[i];
    u[i] = u[i] > 12.0f ? splat(12.0f) : u[i];  // NaN stays NaN.
  }
  tails<N>(u, density, probability);
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    store(x + i * LANES, (h[i] > 0.0f ? h[i] : splat(0.0f)) - u[i] * probability[i]);
    if constexpr (WITH_SLOPE) {
      Vector phi = h[i] > 0.0f ? 1.0f - probability[i] : probability[i];
      store(slope + i * LANES, phi + h[i] * density[i] * 0.3989422804014327f);
    }
  }
}

// GELU of n numbers, whole vectors, in place, and its derivative.
template <bool WITH_SLOPE>
void gelu(float* x, float* slope, int64_t n) {
  int64_t i = 0;
  for (; i + 2 * LANES <= n; i += 2 * LANES) gelu_of<2, WITH_SLOPE>(x + i, slope + i);
  for (; i < n; i += LANES) gelu_of<1, WITH_SLOPE>(x + i, slope + i);
}

inline void gelu(float* x, int64_t n) { gelu<false>(x, nullptr, n); }
inline void gelu_and_slope(float* x, float* slope, int64_t n) { gelu<true>(x, slope, n); }

// ---- Memory -----------------------------------------------------------------------

// Scratch memory of one thread, kept for its next call: fresh memory costs more than
// most of the arithmetic.
class Scratch {
 public:
  explicit Scratch(std::vector<float>& memory) : memory_(memory) {}
  // Declares a part; memory is taken when all are declared.
  void part(float** address, int64_t size) {
    parts_.push_back({address, total_});
    total_ += (size + 15) / 16 * 16;
  }
  void take() {
    if (static_cast<int64_t>(memory_.size()) < total_ + 16) memory_.resize(total_ + 16);
    auto start = (reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64;
    for (auto& [address, offset] : parts_)
      *address = reinterpret_cast<float*>(start) + offset;
  }

 private:
  std::vector<float>& memory_;
  std::vector<std::pair<float**, int64_t>> parts_;
  int64_t total_ = 0;
};

}  // namespace

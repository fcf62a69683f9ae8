// An activation and dropout after it, on a CPU, in one pass over memory.
//
// What is dropped is not kept for backward but drawn again from the same seed.

#include <cstring>
#include <optional>

#include "vectors.h"

namespace {

// Lanes of a generator: sixteen on every processor, whatever its vectors hold, so that
// a seed draws the same everywhere. reference.py draws the same.
constexpr int64_t STREAMS = 16;
typedef uint32_t Bits __attribute__((vector_size(STREAMS * 4), aligned(4), may_alias));

// Numbers that one draw decides on: each half of 32 bits is for one.
constexpr int64_t GROUP = 2 * STREAMS;

// Numbers that one generator draws for: the work is the same whatever thread does it.
constexpr int64_t BLOCK = 4096;

enum Activation { IDENTITY, SILU, GELU };

// The generator that spreads a seed over the state of another; Sebastiano Vigna's
// splitmix64.
uint64_t next_seed(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// Chris Doty-Humphrey's sfc32, a generator of its own in each lane.
class Generator {
 public:
  Generator(uint64_t seed, uint64_t stream) {
    // Seeds of streams lie far apart, so that none repeats what another draws.
    uint64_t state = seed ^ (stream * 0xd1342543de82ef95);
    state = next_seed(state);
    for (int64_t lane = 0; lane < STREAMS; ++lane) {
      uint64_t z = next_seed(state);
      a_[lane] = static_cast<uint32_t>(z);
      b_[lane] = static_cast<uint32_t>(z >> 32);
      c_[lane] = static_cast<uint32_t>(next_seed(state));
      counter_[lane] = 1;
    }
    for (int i = 0; i < 12; ++i) draw();
  }

  Bits draw() {
    Bits result = a_ + b_ + counter_;
    counter_ += 1;
    a_ = b_ ^ (b_ >> 9);
    b_ = c_ + (c_ << 3);
    c_ = ((c_ << 21) | (c_ >> 11)) + result;
    return result;
  }

 private:
  Bits a_, b_, c_, counter_;
};

// The activation of two vectors, or its derivative.
template <Activation ACTIVATION, bool SLOPE>
inline void activate(Vector (&x)[2]) {
  if constexpr (ACTIVATION == SILU) {
    Vector s[2];
    sigmoids<2>(x, s);
    for (int i = 0; i < 2; ++i)
      x[i] = SLOPE ? s[i] + s[i] * (1.0f - s[i]) * x[i] : x[i] * s[i];
  } else if constexpr (ACTIVATION == GELU) {
    float values[2 * LANES], slopes[2 * LANES];
    for (int i = 0; i < 2; ++i) store(values + i * LANES, x[i]);
    gelu_of<2, SLOPE>(values, slopes);
    for (int i = 0; i < 2; ++i) x[i] = load((SLOPE ? slopes : values) + i * LANES);
  } else if constexpr (SLOPE) {
    for (int i = 0; i < 2; ++i) x[i] = splat(1.0f);
  }
}

// y = kept scale f(x), or with SLOPE y = grad kept scale f'(x), of one group.
template <Activation ACTIVATION, bool SLOPE, bool DROPS>
inline void one_group(const int32_t (&draws)[GROUP], int32_t zeroed, float scale,
                      const float* x, const float* grad, float* y) {
  for (int64_t i = 0; i < GROUP; i += 2 * LANES) {
    Vector values[2] = {load(x + i), load(x + i + LANES)};
    activate<ACTIVATION, SLOPE>(values);
    for (int64_t j = 0; j < 2; ++j) {
      const int64_t place = i + j * LANES;
      // A product, as NaN is to stay NaN.
      Vector factor = splat(scale);
      if (DROPS) {
        auto drawn = *reinterpret_cast<const Integers*>(draws + place);
        factor = drawn >= zeroed ? factor : splat(0.0f);
      }
      values[j] *= factor;
      if (SLOPE) values[j] *= load(grad + place);
      store(y + place, values[j]);
    }
  }
}

// The same of all, where `zeroed` out of 65536 are not kept.
template <Activation ACTIVATION, bool SLOPE, bool DROPS>
void run(int64_t count, uint64_t seed, int32_t zeroed, float scale, int64_t threads,
         const float* x, const float* grad, float* y) {
#pragma omp parallel for num_threads(threads) schedule(static) if (count > 4 * BLOCK)
  for (int64_t n = 0; n < ceil_divide(count, BLOCK); ++n) {
    std::optional<Generator> generator;
    if (DROPS) generator.emplace(seed, n);
    int32_t draws[GROUP];
    auto draw = [&] {
      if constexpr (DROPS) {
        Bits both = generator->draw(), halves[2] = {both & 0xffff, both >> 16};
        std::memcpy(draws, halves, sizeof(draws));
      }
    };
    int64_t i = n * BLOCK, end = std::min(count, (n + 1) * BLOCK);
    for (; i + GROUP <= end; i += GROUP) {
      draw();
      one_group<ACTIVATION, SLOPE, DROPS>(draws, zeroed, scale, x + i, grad + i, y + i);
    }
    if (i == end) continue;
    float rest[GROUP] = {}, rest_grad[GROUP] = {}, rest_y[GROUP];
    std::copy(x + i, x + end, rest);
    if (SLOPE) std::copy(grad + i, grad + end, rest_grad);
    draw();
    one_group<ACTIVATION, SLOPE, DROPS>(draws, zeroed, scale, rest, rest_grad, rest_y);
    std::copy(rest_y, rest_y + (end - i), y + i);
  }
}

template <Activation ACTIVATION, bool SLOPE>
void choose(int64_t count, uint64_t seed, int32_t zeroed, float scale, int64_t threads,
            const float* x, const float* grad, float* y) {
  if (zeroed > 0)
    run<ACTIVATION, SLOPE, true>(count, seed, zeroed, scale, threads, x, grad, y);
  else
    run<ACTIVATION, SLOPE, false>(count, seed, zeroed, scale, threads, x, grad, y);
}

template <bool SLOPE>
void choose(int64_t activation, int64_t count, uint64_t seed, int32_t zeroed, float scale,
            int64_t threads, const float* x, const float* grad, float* y) {
  if (activation == SILU)
    choose<SILU, SLOPE>(count, seed, zeroed, scale, threads, x, grad, y);
  else if (activation == GELU)
    choose<GELU, SLOPE>(count, seed, zeroed, scale, threads, x, grad, y);
  else
    choose<IDENTITY, SLOPE>(count, seed, zeroed, scale, threads, x, grad, y);
}

}  // namespace

extern "C" {

// An activation is given by its place in the enumeration, as __init__.py has them.
void dropout_forward(int64_t activation, int64_t count, uint64_t seed, int32_t zeroed,
                     float scale, int64_t threads, const float* x, float* y) {
  choose<false>(activation, count, seed, zeroed, scale, threads, x, x, y);
}

// Without an activation x is not read: it may be the gradient.
void dropout_backward(int64_t activation, int64_t count, uint64_t seed, int32_t zeroed,
                      float scale, int64_t threads, const float* x, const float* grad,
                      float* grad_x) {
  choose<true>(activation, count, seed, zeroed, scale, threads, x, grad, grad_x);
}

}  // extern "C"

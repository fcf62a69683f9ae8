// A gated linear unit and a depthwise convolution over time, on a CPU.
//
// A piece of work is a stretch of time of a few channels: its gated frames, with those
// that the kernel sees beside them, stay in the first cache. Backward makes the gated
// frames again.

#include <cstring>

#include "vectors.h"

// What is convolved; the fields stand in the same order in cpp_path.py.
struct Problem {
  int64_t batch, length, channels, taps, left, threads;
  const float* x;          // (B, T, 2 D) values, and gates
  const float* weights;    // (D, K)
  const float* biases;     // (D,) or null
  const uint8_t* padding;  // (B, T) or null
};

namespace {

// Frames of a stretch, and vectors of channels, 64 bytes at least.
constexpr int64_t STRETCH = 128, VECTORS = 2, GROUP = VECTORS * LANES;

// Frames, or taps, that are computed side by side, as each sum waits for itself.
constexpr int SIDE_BY_SIDE = 8;

struct Piece {
  int64_t utterance, start, frames;  // which stretch of time
  int64_t channel, channels;         // which channels, at most GROUP
};

int64_t groups(const Problem& p) { return ceil_divide(p.channels, GROUP); }

// Calls work(piece, scratch of `size` floats) for all; those of one group of channels
// follow each other on one thread, so that sums over them need no other.
template <class Work>
void over_groups(const Problem& p, int64_t size, Work work) {
  bool is_large = p.batch * p.length * p.channels > 16384;
#pragma omp parallel for num_threads(p.threads) schedule(static) if (is_large)
  for (int64_t g = 0; g < groups(p); ++g) {
    FlushDenormals flush;
    thread_local std::vector<float> memory;
    float* buffer;
    Scratch scratch(memory);
    scratch.part(&buffer, size);
    scratch.take();
    for (int64_t b = 0; b < p.batch; ++b)
      for (int64_t start = 0; start < p.length; start += STRETCH)
        work(Piece{b, start, std::min(STRETCH, p.length - start), g * GROUP,
                   std::min(GROUP, p.channels - g * GROUP)},
             buffer);
  }
}

bool is_real(const Problem& p, int64_t utterance, int64_t frame) {
  return frame >= 0 && frame < p.length &&
         !(p.padding && p.padding[utterance * p.length + frame]);
}

// Copies `n` floats, at most GROUP, and fills up with zeros.
inline void copy_group(const float* from, int64_t n, float* to) {
  if (n == GROUP) {
    for (int64_t j = 0; j < GROUP; j += LANES) store(to + j, load(from + j));
    return;
  }
  for (int64_t j = 0; j < GROUP; ++j) to[j] = j < n ? from[j] : 0.0f;
}

// A (D, K) parameter's group of channels, or (D,) with K = 1, as (K, GROUP).
void copy_weights(const float* from, int64_t taps, const Piece& piece, float* to) {
  for (int64_t k = 0; k < taps; ++k)
    for (int64_t j = 0; j < GROUP; ++j) {
      bool is_there = j < piece.channels;
      to[k * GROUP + j] = is_there ? from[(piece.channel + j) * taps + k] : 0.0f;
    }
}

// One frame's values, and the sigmoid of its gates; x is where its channels begin.
inline void read_frame(const Problem& p, const Piece& piece, const float* x,
                       Vector (&values)[VECTORS], Vector (&sigmoid)[VECTORS]) {
  float group[GROUP];
  Vector gates[VECTORS];
  copy_group(x, piece.channels, group);
  for (int64_t j = 0; j < VECTORS; ++j) values[j] = load(group + j * LANES);
  copy_group(x + p.channels, piece.channels, group);
  for (int64_t j = 0; j < VECTORS; ++j) gates[j] = load(group + j * LANES);
  sigmoids<VECTORS>(gates, sigmoid);
}

// (frames, GROUP) gated frames from `first` on; 0 outside of the utterance and in
// padding.
void gate(const Problem& p, const Piece& piece, int64_t first, int64_t frames,
          float* to) {
  Vector values[VECTORS], sigmoid[VECTORS];
  for (int64_t i = 0; i < frames; ++i, to += GROUP) {
    if (!is_real(p, piece.utterance, first + i)) {
      std::memset(to, 0, GROUP * sizeof(float));
      continue;
    }
    const float* x =
        p.x + (piece.utterance * p.length + first + i) * 2 * p.channels + piece.channel;
    read_frame(p, piece, x, values, sigmoid);
    for (int64_t j = 0; j < VECTORS; ++j) store(to + j * LANES, values[j] * sigmoid[j]);
  }
}

// y_t = start + sum over k of w_k x_{t + k}, for (frames, GROUP) y and
// (frames + taps - 1, GROUP) x.
template <int FRAMES>
inline void convolve_side_by_side(const float* x, const float* weights, int64_t taps,
                                  const float* start, float* y) {
  for (int64_t v = 0; v < GROUP; v += LANES) {
    Vector sums[FRAMES];
#pragma GCC unroll 16
    for (int t = 0; t < FRAMES; ++t) sums[t] = start ? load(start + v) : splat(0.0f);
    for (int64_t k = 0; k < taps; ++k) {
      Vector w = load(weights + k * GROUP + v);
#pragma GCC unroll 16
      for (int t = 0; t < FRAMES; ++t) sums[t] += w * load(x + (t + k) * GROUP + v);
    }
#pragma GCC unroll 16
    for (int t = 0; t < FRAMES; ++t) store(y + t * GROUP + v, sums[t]);
  }
}

void convolve(const float* x, const float* weights, int64_t taps, const float* start,
              int64_t frames, float* y) {
  int64_t t = 0;
  for (; t + SIDE_BY_SIDE <= frames; t += SIDE_BY_SIDE)
    convolve_side_by_side<SIDE_BY_SIDE>(x + t * GROUP, weights, taps, start,
                                        y + t * GROUP);
  for (; t < frames; ++t)
    convolve_side_by_side<1>(x + t * GROUP, weights, taps, start, y + t * GROUP);
}

// sums_k += sum over t of y_t x_{t + k}, (taps, GROUP).
template <int TAPS>
inline void correlate_side_by_side(const float* x, const float* y, int64_t frames,
                                   float* sums) {
  for (int64_t v = 0; v < GROUP; v += LANES) {
    Vector totals[TAPS] = {};
    for (int64_t t = 0; t < frames; ++t) {
      Vector factor = load(y + t * GROUP + v);
#pragma GCC unroll 16
      for (int k = 0; k < TAPS; ++k) totals[k] += factor * load(x + (t + k) * GROUP + v);
    }
#pragma GCC unroll 16
    for (int k = 0; k < TAPS; ++k)
      store(sums + k * GROUP + v, load(sums + k * GROUP + v) + totals[k]);
  }
}

void correlate(const float* x, const float* y, int64_t frames, int64_t taps,
               float* sums) {
  int64_t k = 0;
  for (; k + SIDE_BY_SIDE <= taps; k += SIDE_BY_SIDE)
    correlate_side_by_side<SIDE_BY_SIDE>(x + k * GROUP, y, frames, sums + k * GROUP);
  for (; k < taps; ++k)
    correlate_side_by_side<1>(x + k * GROUP, y, frames, sums + k * GROUP);
}

}  // namespace

extern "C" {

// Writes y (B, T, D).
void gated_convolution_forward(const Problem* problem, float* y) {
  const Problem& p = *problem;
  int64_t wide = (STRETCH + p.taps - 1) * GROUP, weights_size = p.taps * GROUP;
  over_groups(p, wide + STRETCH * GROUP + weights_size + GROUP,
              [&](const Piece& piece, float* buffer) {
    float *gated = buffer, *result = gated + wide, *weights = result + STRETCH * GROUP,
          *biases = weights + weights_size;
    copy_weights(p.weights, p.taps, piece, weights);
    if (p.biases) copy_weights(p.biases, 1, piece, biases);
    gate(p, piece, piece.start - p.left, piece.frames + p.taps - 1, gated);
    convolve(gated, weights, p.taps, p.biases ? biases : nullptr, piece.frames, result);
    int64_t row = piece.utterance * p.length + piece.start;
    float* out = y + row * p.channels + piece.channel;
    for (int64_t t = 0; t < piece.frames; ++t)
      std::memcpy(out + t * p.channels, result + t * GROUP,
                  piece.channels * sizeof(float));
  });
}

// From the gradient of y to those of x, and of weights and biases, which begin as 0.
void gated_convolution_backward(const Problem* problem, const float* grad_y,
                                float* grad_x, float* grad_weights,
                                float* grad_biases) {
  const Problem& p = *problem;
  int64_t wide = (STRETCH + p.taps - 1) * GROUP, weights_size = p.taps * GROUP;
  over_groups(p, 2 * wide + STRETCH * GROUP + 2 * weights_size + GROUP,
              [&](const Piece& piece, float* buffer) {
    float *gated = buffer, *grad = gated + wide, *grad_gated = grad + wide,
          *turned = grad_gated + STRETCH * GROUP, *sums = turned + weights_size,
          *bias_sums = sums + weights_size;
    for (int64_t k = 0; k < p.taps; ++k)
      for (int64_t j = 0; j < GROUP; ++j)
        turned[k * GROUP + j] =
            j < piece.channels
                ? p.weights[(piece.channel + j) * p.taps + p.taps - 1 - k]
                : 0.0f;
    // Frame s is seen by the outputs s + left - taps + 1 to s + left.
    int64_t first = piece.start + p.left - p.taps + 1;
    for (int64_t i = 0; i < piece.frames + p.taps - 1; ++i) {
      if (first + i >= 0 && first + i < p.length)
        copy_group(grad_y + (piece.utterance * p.length + first + i) * p.channels +
                       piece.channel,
                   piece.channels, grad + i * GROUP);
      else
        std::memset(grad + i * GROUP, 0, GROUP * sizeof(float));
    }
    convolve(grad, turned, p.taps, nullptr, piece.frames, grad_gated);

    gate(p, piece, piece.start - p.left, piece.frames + p.taps - 1, gated);
    const float* own = grad + (p.taps - 1 - p.left) * GROUP;
    std::memset(sums, 0, weights_size * sizeof(float));
    correlate(gated, own, piece.frames, p.taps, sums);
    for (int64_t j = 0; j < piece.channels; ++j)
      for (int64_t k = 0; k < p.taps; ++k)
        grad_weights[(piece.channel + j) * p.taps + k] += sums[k * GROUP + j];
    if (grad_biases) {
      std::memset(bias_sums, 0, GROUP * sizeof(float));
      for (int64_t t = 0; t < piece.frames; ++t)
        for (int64_t j = 0; j < GROUP; j += LANES)
          store(bias_sums + j, load(bias_sums + j) + load(own + t * GROUP + j));
      for (int64_t j = 0; j < piece.channels; ++j)
        grad_biases[piece.channel + j] += bias_sums[j];
    }

    // Of value and gate: with s = sigmoid(gate), s and value s (1 - s).
    float by_value[GROUP], by_gate[GROUP];
    Vector values[VECTORS], sigmoid[VECTORS];
    for (int64_t t = 0; t < piece.frames; ++t) {
      int64_t row = (piece.utterance * p.length + piece.start + t) * 2 * p.channels;
      float* out = grad_x + row + piece.channel;
      if (!is_real(p, piece.utterance, piece.start + t)) {
        std::memset(out, 0, piece.channels * sizeof(float));
        std::memset(out + p.channels, 0, piece.channels * sizeof(float));
        continue;
      }
      read_frame(p, piece, p.x + row + piece.channel, values, sigmoid);
      for (int64_t j = 0; j < VECTORS; ++j) {
        Vector grad_value = load(grad_gated + t * GROUP + j * LANES) * sigmoid[j];
        store(by_value + j * LANES, grad_value);
        store(by_gate + j * LANES, grad_value * values[j] * (1.0f - sigmoid[j]));
      }
      std::memcpy(out, by_value, piece.channels * sizeof(float));
      std::memcpy(out + p.channels, by_gate, piece.channels * sizeof(float));
    }
  });
}

}  // extern "C"

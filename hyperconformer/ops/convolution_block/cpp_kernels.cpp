// A convolution over time and frequency with the padding before it and the layer
// normalisation and leaky rectifier after it, on a CPU.
//
// A piece of work is a stretch of output frames of one utterance: what they see is
// copied together with its padding, stays in the cache, and is a matrix for every
// frame of the kernel, as the bins and channels under a kernel lie side by side.

#include <cmath>
#include <cstring>
#include <type_traits>

#include "vectors.h"

// What is computed; the fields stand in the same order in cpp_path.py.
struct Problem {
  int64_t batch, frames, bins, channels;              // of the input
  int64_t out_frames, out_bins, out_channels;         // of the output
  int64_t time_taps, bin_taps, time_stride, bin_stride;
  int64_t time_pad, bin_pad;                          // before the first frame and bin
  int64_t reflects;                                   // at the ends of an utterance, or
                                                      // there are zeros: 1 or 0
  int64_t threads;
  float eps, slope;
  const float* x;          // (B, T, F, C)
  const int64_t* lengths;  // (B,)
  const float* weights;    // (time taps, bin taps, C, C')
  const float* biases;     // (C',) or null
  const float* gains;      // (F', C')
  const float* shifts;     // (F', C')
};

namespace {

// Output frames of a stretch; rows and columns of what is summed in registers.
constexpr int64_t STRETCH = 8, COLUMNS = 2 * LANES;
constexpr int ROWS = 6;

// Most frames of a kernel to a stride, LONGEST of cpp_path.py: every other stretch sees
// frames of its own.
static_assert(STRETCH + 1 == 9);

struct Sizes {
  int64_t wide;           // numbers in a frame with its padding
  int64_t step;           // from what an output bin sees to what the next one does
  int64_t under;          // numbers under the kernel in a frame
  int64_t depth;          // numbers under the kernel
  int64_t window_frames;  // frames that a stretch sees
  int64_t row;            // numbers in an output frame

  explicit Sizes(const Problem& p)
      : wide((p.bins + 2 * p.bin_pad) * p.channels),
        step(p.bin_stride * p.channels),
        under(p.bin_taps * p.channels),
        depth(p.time_taps * under),
        window_frames((STRETCH - 1) * p.time_stride + p.time_taps),
        row(p.out_bins * p.out_channels) {}
};

struct Stretch {
  int64_t utterance, start, frames;  // of the output; frames may be 0
};

int64_t out_length(const Problem& p, int64_t utterance) {
  return ceil_divide(p.lengths[utterance], p.time_stride);
}

// Where a place before the beginning or after the end is copied from; -1 = a zero.
int64_t source(int64_t place, int64_t length, bool reflects) {
  if (place >= 0 && place < length) return place;
  if (!reflects) return -1;
  return place < 0 ? -place : 2 * (length - 1) - place;
}

// ---- Products -------------------------------------------------------------------------

// sums_rv += sum over i < n of a_{r, i} b_{i, v}.
template <int R>
inline void multiply(const float* a, int64_t row_step, int64_t step, const float* b,
                     int64_t b_step, int64_t n, Vector (&sums)[R][2]) {
  for (int64_t i = 0; i < n; ++i, a += step, b += b_step) {
    Vector left = load(b), right = load(b + LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      sums[r][0] += a[r * row_step] * left;
      sums[r][1] += a[r * row_step] * right;
    }
  }
}

// Calls tile(number of rows as a type, first row) for blocks of at most ROWS rows.
template <class Tile>
inline void over_rows(int64_t rows, Tile tile) {
  int64_t blocks = ceil_divide(rows, ROWS);
  for (int64_t i = 0; i < blocks; ++i) {
    int64_t first = rows * i / blocks;
    switch (rows * (i + 1) / blocks - first) {
      case 1: tile(std::integral_constant<int, 1>{}, first); break;
      case 2: tile(std::integral_constant<int, 2>{}, first); break;
      case 3: tile(std::integral_constant<int, 3>{}, first); break;
      case 4: tile(std::integral_constant<int, 4>{}, first); break;
      case 5: tile(std::integral_constant<int, 5>{}, first); break;
      default: tile(std::integral_constant<int, ROWS>{}, first);
    }
  }
}

// Stores the first `columns` of two vectors.
inline void store_columns(float* to, const Vector (&from)[2], int64_t columns) {
  if (columns >= COLUMNS) {
    store(to, from[0]);
    store(to + LANES, from[1]);
  } else {
    std::memcpy(to, from, columns * sizeof(float));
  }
}

// (rows, columns) as panels of (rows, COLUMNS), filled up with zeros; `at` tells where
// a number stands.
template <class At>
void pack(int64_t rows, int64_t columns, float* to, At at) {
  for (int64_t first = 0; first < columns; first += COLUMNS, to += rows * COLUMNS)
    for (int64_t j = 0; j < COLUMNS; ++j)
      for (int64_t i = 0; i < rows; ++i)
        to[i * COLUMNS + j] = first + j < columns ? at(i, first + j) : 0.0f;
}

int64_t panels(int64_t columns) { return ceil_divide(columns, COLUMNS); }

// ---- What a stretch sees --------------------------------------------------------------

// Calls use(place in the window, frame of the input or -1) for every frame of a window.
template <class Use>
inline void over_window(const Problem& p, const Stretch& s, Use use) {
  int64_t first = s.start * p.time_stride - p.time_pad;
  int64_t frames = (s.frames - 1) * p.time_stride + p.time_taps;
  for (int64_t i = 0; i < frames; ++i)
    use(i, source(first + i, p.lengths[s.utterance], p.reflects));
}

// Calls use(where the padding is, which of the bins is reflected there), both as numbers
// in a frame.
template <class Use>
inline void over_padding(const Problem& p, Use use) {
  for (int64_t side = 0; side < 2; ++side)
    for (int64_t i = 0; i < p.bin_pad; ++i) {
      int64_t bin = side == 0 ? i - p.bin_pad : p.bins + i;
      use((bin + p.bin_pad) * p.channels, source(bin, p.bins, true) * p.channels);
    }
}

// Fills (window frames, wide).
void read_window(const Problem& p, const Sizes& sizes, const Stretch& s, float* window) {
  over_window(p, s, [&](int64_t i, int64_t frame) {
    float* to = window + i * sizes.wide;
    if (frame < 0) {
      std::memset(to, 0, sizes.wide * sizeof(float));
      return;
    }
    const float* from = p.x + (s.utterance * p.frames + frame) * p.bins * p.channels;
    int64_t bytes = p.channels * sizeof(float);
    std::memcpy(to + p.bin_pad * p.channels, from, p.bins * bytes);
    over_padding(p, [&](int64_t place, int64_t bin) {
      std::memcpy(to + place, from + bin, bytes);
    });
  });
}

// Adds the gradients of a window to those of the frames that it was read from.
void add_window(const Problem& p, const Sizes& sizes, const Stretch& s,
                const float* window, float* grad_x) {
  over_window(p, s, [&](int64_t i, int64_t frame) {
    if (frame < 0) return;
    const float* from = window + i * sizes.wide;
    float* to = grad_x + (s.utterance * p.frames + frame) * p.bins * p.channels;
    const float* own = from + p.bin_pad * p.channels;
    for (int64_t j = 0; j < p.bins * p.channels; ++j) to[j] += own[j];
    over_padding(p, [&](int64_t place, int64_t bin) {
      for (int64_t c = 0; c < p.channels; ++c) to[bin + c] += from[place + c];
    });
  });
}

// ---- One output frame -----------------------------------------------------------------

// A convolution's parameters, filled up to whole panels.
struct Kernel {
  std::vector<float> weights, biases;

  Kernel(const Problem& p, const Sizes& sizes)
      : weights(sizes.depth * panels(p.out_channels) * COLUMNS),
        biases(panels(p.out_channels) * COLUMNS) {
    pack(sizes.depth, p.out_channels, weights.data(), [&](int64_t i, int64_t j) {
      return p.weights[i * p.out_channels + j];
    });
    if (p.biases) std::copy(p.biases, p.biases + p.out_channels, biases.begin());
  }
};

// y (F', C') from the frames of the window that it sees.
void convolve(const Problem& p, const Sizes& sizes, const Kernel& kernel,
              const float* window, float* y) {
  for (int64_t panel = 0; panel < panels(p.out_channels); ++panel) {
    int64_t column = panel * COLUMNS, columns = p.out_channels - column;
    over_rows(p.out_bins, [&](auto rows, int64_t first) {
      constexpr int R = decltype(rows)::value;
      Vector sums[R][2];
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < 2; ++v)
          sums[r][v] = load(&kernel.biases[column + v * LANES]);
      const float* weights = &kernel.weights[panel * sizes.depth * COLUMNS];
      for (int64_t tap = 0; tap < p.time_taps; ++tap)
        multiply<R>(window + tap * sizes.wide + first * sizes.step, sizes.step, 1,
                    weights + tap * sizes.under * COLUMNS, COLUMNS, sizes.under, sums);
      for (int r = 0; r < R; ++r)
        store_columns(y + (first + r) * p.out_channels + column, sums[r], columns);
    });
  }
}

// The sum of function(i, vector or number) over i < n.
template <class Function>
inline float sum(int64_t n, Function function) {
  Vector totals[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) totals[v] += function(i + v * LANES, Vector{});
  Vector total = (totals[0] + totals[1]) + (totals[2] + totals[3]);
  float result = 0.0f;
  for (; i < n; ++i) result += function(i, 0.0f);
  for (int64_t lane = 0; lane < LANES; ++lane) result += total[lane];
  return result;
}

inline Vector read(const float* p, Vector) { return load(p); }
inline float read(const float* p, float) { return *p; }
inline void write(float* p, Vector x) { store(p, x); }
inline void write(float* p, float x) { *p = x; }

// Calls function(i, vector or number) for all i < n.
template <class Function>
inline void over(int64_t n, Function function) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) function(i, Vector{});
  for (; i < n; ++i) function(i, 0.0f);
}

// Mean and inverse deviation of a frame.
void measure(const float* y, int64_t n, float eps, float* statistics) {
  float mean = sum(n, [&](int64_t i, auto kind) { return read(y + i, kind); }) / n;
  float variance = sum(n, [&](int64_t i, auto kind) {
    auto difference = read(y + i, kind) - mean;
    return difference * difference;
  }) / n;
  statistics[0] = mean;
  statistics[1] = 1.0f / std::sqrt(variance + eps);
}

void normalize(const Problem& p, int64_t n, const float* y, const float* statistics,
               float* out) {
  float mean = statistics[0], factor = statistics[1];
  over(n, [&](int64_t i, auto kind) {
    auto z = (read(y + i, kind) - mean) * factor * read(p.gains + i, kind) +
             read(p.shifts + i, kind);
    write(out + i, z > 0.0f ? z : z * p.slope);
  });
}

// From the gradient of the output to that of y, which takes its place in `grad`; those
// of gains and shifts are added up.
void normalize_backward(const Problem& p, int64_t n, const float* y,
                        const float* statistics, const float* grad_out, float* grad,
                        float* grad_gains, float* grad_shifts) {
  float mean = statistics[0], factor = statistics[1];
  over(n, [&](int64_t i, auto kind) {
    auto scaled = (read(y + i, kind) - mean) * factor, gain = read(p.gains + i, kind);
    auto z = scaled * gain + read(p.shifts + i, kind), g = read(grad_out + i, kind);
    auto by_z = z > 0.0f ? g : g * p.slope;
    write(grad_gains + i, read(grad_gains + i, kind) + by_z * scaled);
    write(grad_shifts + i, read(grad_shifts + i, kind) + by_z);
    write(grad + i, by_z * gain);
  });
  float average = sum(n, [&](int64_t i, auto kind) { return read(grad + i, kind); }) / n;
  float slope = sum(n, [&](int64_t i, auto kind) {
    return read(grad + i, kind) * (read(y + i, kind) - mean);
  }) / n * factor * factor;
  over(n, [&](int64_t i, auto kind) {
    auto rest = read(grad + i, kind) - average - (read(y + i, kind) - mean) * slope;
    write(grad + i, rest * factor);
  });
}

// ---- Work -----------------------------------------------------------------------------

// Stretches of an utterance, whether it is so long or not.
int64_t stretches(const Problem& p) { return ceil_divide(p.out_frames, STRETCH); }

Stretch stretch(const Problem& p, int64_t number) {
  Stretch s{number / stretches(p), number % stretches(p) * STRETCH, 0};
  int64_t left = out_length(p, s.utterance) - s.start;
  s.frames = std::min(STRETCH, std::max<int64_t>(left, 0));
  return s;
}

// Calls work(stretch) for every `step`th stretch of each utterance from `first` on,
// divided among the threads of a team.
template <class Work>
void share(const Problem& p, int64_t first, int64_t step, Work work) {
  int64_t some = ceil_divide(stretches(p) - first, step);
#pragma omp for schedule(static, 1)
  for (int64_t n = 0; n < p.batch * some; ++n)
    work(stretch(p, n / some * stretches(p) + n % some * step + first));
}

bool is_large(const Problem& p) {
  return p.batch * p.out_frames * p.out_bins * p.out_channels > 16384;
}

}  // namespace

extern "C" {

// Writes out (B, T', F', C'), 0 past each end, and unless they are null the convolution
// (B, T', F', C') and the mean and inverse deviation (B, T', 2) of its frames.
void convolution_block_forward(const Problem* problem, float* convolved,
                               float* statistics, float* out) {
  const Problem& p = *problem;
  const Sizes sizes(p);
  const Kernel kernel(p, sizes);
#pragma omp parallel num_threads(p.threads) if (is_large(p))
  {
    FlushDenormals flush;
    thread_local std::vector<float> memory;
    float *window, *row;
    Scratch scratch(memory);
    scratch.part(&window, sizes.window_frames * sizes.wide);
    scratch.part(&row, sizes.row);
    scratch.take();
    share(p, 0, 1, [&](const Stretch& s) {
      int64_t all = std::min(STRETCH, p.out_frames - s.start);
      int64_t frame = s.utterance * p.out_frames + s.start;
      if (s.frames < all)
        std::memset(out + (frame + s.frames) * sizes.row, 0,
                    (all - s.frames) * sizes.row * sizeof(float));
      if (s.frames == 0) return;
      read_window(p, sizes, s, window);
      for (int64_t t = 0; t < s.frames; ++t, ++frame) {
        float measured[2];
        float* y = convolved ? convolved + frame * sizes.row : row;
        float* found = statistics ? statistics + frame * 2 : measured;
        convolve(p, sizes, kernel, window + t * p.time_stride * sizes.wide, y);
        measure(y, sizes.row, p.eps, found);
        normalize(p, sizes.row, y, found, out + frame * sizes.row);
      }
    });
  }
}

// From the gradient of the output to those of x, unless it is null, and of the
// parameters, all of which begin as 0. `convolved` and `statistics` as forward wrote
// them; without the former the convolution is done again.
void convolution_block_backward(const Problem* problem, const float* convolved,
                                const float* statistics, const float* grad_out,
                                float* grad_x, float* grad_weights, float* grad_biases,
                                float* grad_gains, float* grad_shifts) {
  const Problem& p = *problem;
  const Sizes sizes(p);
  const Kernel kernel(p, sizes);
  int64_t padded_columns = panels(p.out_channels) * COLUMNS;
  int64_t turned_columns = panels(sizes.under) * COLUMNS;
  // For each frame of the kernel, from output channels to what is under it.
  std::vector<float> turned(p.time_taps * p.out_channels * turned_columns);
  for (int64_t tap = 0; tap < p.time_taps; ++tap)
    pack(p.out_channels, sizes.under, &turned[tap * p.out_channels * turned_columns],
         [&](int64_t i, int64_t j) {
           return p.weights[(tap * sizes.under + j) * p.out_channels + i];
         });
  // Sums of every thread: weights, biases, gains and shifts.
  int64_t part = sizes.depth * padded_columns + p.out_channels + 2 * sizes.row;
  std::vector<float> sums(p.threads * part);
#pragma omp parallel num_threads(p.threads) if (is_large(p))
  {
    FlushDenormals flush;
    thread_local std::vector<float> memory;
    float *window, *row, *grad_window, *grads;
    Scratch scratch(memory);
    scratch.part(&window, sizes.window_frames * sizes.wide);
    scratch.part(&row, sizes.row);
    scratch.part(&grad_window, sizes.window_frames * sizes.wide + COLUMNS);
    scratch.part(&grads, STRETCH * sizes.row + COLUMNS);
    scratch.take();
    float* by_weight = &sums[omp_get_thread_num() * part];
    float *by_bias = by_weight + sizes.depth * padded_columns,
          *by_gain = by_bias + p.out_channels, *by_shift = by_gain + sizes.row;
    // Neighbours share frames of grad_x, so they are not worked on at once.
    for (int64_t odd = 0; odd < 2; ++odd)
      share(p, odd, 2, [&](const Stretch& s) {
        if (s.frames == 0) return;
        read_window(p, sizes, s, window);
        int64_t frame = s.utterance * p.out_frames + s.start;
        for (int64_t t = 0; t < s.frames; ++t, ++frame) {
          float* grad = grads + t * sizes.row;
          const float* y = convolved ? convolved + frame * sizes.row : row;
          if (!convolved)
            convolve(p, sizes, kernel, window + t * p.time_stride * sizes.wide, row);
          normalize_backward(p, sizes.row, y, statistics + frame * 2,
                             grad_out + frame * sizes.row, grad, by_gain, by_shift);
          for (int64_t bin = 0; bin < p.out_bins; ++bin)
            for (int64_t c = 0; c < p.out_channels; ++c)
              by_bias[c] += grad[bin * p.out_channels + c];
        }

        for (int64_t tap = 0; tap < p.time_taps; ++tap)
          for (int64_t column = 0; column < padded_columns; column += COLUMNS)
            over_rows(sizes.under, [&](auto rows, int64_t first) {
              constexpr int R = decltype(rows)::value;
              float* to = by_weight + (tap * sizes.under + first) * padded_columns + column;
              Vector tile[R][2];
              for (int r = 0; r < R; ++r)
                for (int v = 0; v < 2; ++v)
                  tile[r][v] = load(to + r * padded_columns + v * LANES);
              for (int64_t t = 0; t < s.frames; ++t)
                multiply<R>(window + (t * p.time_stride + tap) * sizes.wide + first, 1,
                            sizes.step, grads + t * sizes.row + column, p.out_channels,
                            p.out_bins, tile);
              for (int r = 0; r < R; ++r)
                for (int v = 0; v < 2; ++v)
                  store(to + r * padded_columns + v * LANES, tile[r][v]);
            });

        if (!grad_x) return;
        std::memset(grad_window, 0, sizes.window_frames * sizes.wide * sizeof(float));
        for (int64_t t = 0; t < s.frames; ++t)
          for (int64_t tap = 0; tap < p.time_taps; ++tap)
            for (int64_t column = 0; column < turned_columns; column += COLUMNS)
              over_rows(p.out_bins, [&](auto rows, int64_t first) {
                constexpr int R = decltype(rows)::value;
                Vector tile[R][2] = {};
                multiply<R>(grads + t * sizes.row + first * p.out_channels,
                            p.out_channels, 1,
                            &turned[tap * p.out_channels * turned_columns +
                                    column * p.out_channels],
                            COLUMNS, p.out_channels, tile);
                // What is under two kernels overlaps. The columns that fill a panel up
                // add zeros to what lies behind, or NaN where there is NaN.
                float* to = grad_window + (t * p.time_stride + tap) * sizes.wide +
                            first * sizes.step + column;
                for (int r = 0; r < R; ++r, to += sizes.step)
                  for (int v = 0; v < 2; ++v)
                    store(to + v * LANES, load(to + v * LANES) + tile[r][v]);
              });
        add_window(p, sizes, s, grad_window, grad_x);
      });
  }
  for (int64_t thread = 0; thread < p.threads; ++thread) {
    const float* from = &sums[thread * part];
    for (int64_t i = 0; i < sizes.depth; ++i, from += padded_columns)
      for (int64_t j = 0; j < p.out_channels; ++j)
        grad_weights[i * p.out_channels + j] += from[j];
    for (int64_t j = 0; j < p.out_channels; ++j)
      if (grad_biases) grad_biases[j] += from[j];
    from += p.out_channels;
    for (int64_t j = 0; j < sizes.row; ++j) grad_gains[j] += from[j];
    from += sizes.row;
    for (int64_t j = 0; j < sizes.row; ++j) grad_shifts[j] += from[j];
  }
}

}  // extern "C"

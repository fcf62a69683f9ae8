// HyperMixing of a sequence with itself on a CPU, tile by tile.
//
// The letters are those of torch_path.py. A tile is a few tokens of one head: small
// enough that all that is made of it stays in the first cache, so that memory is read
// and written no more than the arguments and results ask for. Backward makes the
// activations again.
//
// Scratch matrices have rows padded with zeros to a whole number of vectors.

#include <cstring>

#include "vectors.h"

namespace {

// Most tokens in a tile, a multiple of the rows of a block in `product`.
constexpr int64_t BLOCK_ROWS = 6, LONGEST_TILE = 48;

}  // namespace

struct Hypernet {
  const float* fc1;         // F (H, e, d)
  const float* fc1_biases;  // b (H, e) or null
  const float* fc2;         // G (H, k, e)
  const float* fc2_biases;  // c (H, k) or null
};

struct HypernetGradients {
  float* fc1;
  float* fc1_biases;
  float* fc2;
  float* fc2_biases;
};

// What is mixed; the fields stand in the same order in cpp_path.py.
struct Problem {
  int64_t batch, length, heads, width, hidden, mixing, threads;
  float scale;
  const float* values;     // (B, T, D)
  const float* tokens;     // (B, T, D), may be the values
  const float* codes;      // (T, D) or null
  const uint8_t* padding;  // (B, T) or null
  Hypernet key_hypernet, query_hypernet;
};

namespace {

// ---- Products of small matrices ---------------------------------------------------

// A matrix whose element (i, j) is data[i * row + j * column].
struct View {
  const float* data;
  int64_t row, column;
};

// ROWS rows of C, COLUMNS vectors wide: C = A B, plus what stands in `start`. That is
// added last: sums over many tiles keep more digits than one by one.
template <int ROWS, int COLUMNS>
inline void block(View a, const float* b, int64_t b_row, const float* start,
                  int64_t start_row, float* c, int64_t c_row, int64_t inner) {
  Vector sums[ROWS][COLUMNS] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vector row[COLUMNS];
#pragma GCC unroll 16
    for (int j = 0; j < COLUMNS; ++j) row[j] = load(b + k * b_row + j * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      Vector factor = splat(a.data[i * a.row + k * a.column]);
#pragma GCC unroll 16
      for (int j = 0; j < COLUMNS; ++j) sums[i][j] += factor * row[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < COLUMNS; ++j) {
      if (start) sums[i][j] += load(start + i * start_row + j * LANES);
      store(c + i * c_row + j * LANES, sums[i][j]);
    }
}

// Blocks of ROWS rows, then what is left in smaller ones.
template <int ROWS, int COLUMNS>
inline void blocks(View a, const float* b, int64_t b_row, const float* start,
                   int64_t start_row, float* c, int64_t c_row, int64_t rows,
                   int64_t inner) {
  int64_t i = 0;
  for (; i + ROWS <= rows; i += ROWS) {
    block<ROWS, COLUMNS>({a.data + i * a.row, a.row, a.column}, b, b_row,
                         start ? start + i * start_row : nullptr, start_row,
                         c + i * c_row, c_row, inner);
  }
  if constexpr (ROWS > 1) {
    if (i < rows)
      blocks<ROWS / 2, COLUMNS>({a.data + i * a.row, a.row, a.column}, b, b_row,
                                start ? start + i * start_row : nullptr, start_row,
                                c + i * c_row, c_row, rows - i, inner);
  }
}

// C (rows, columns) = A (rows, inner) B (inner, columns) + start, whose rows are
// `start_row` apart: 0 for one row for all; null for zeros; C itself to add to it.
// The columns are whole vectors. Twelve sums at a time leave four of sixteen registers
// for factors.
void product(View a, const float* b, int64_t b_row, const float* start,
             int64_t start_row, float* c, int64_t c_row, int64_t rows,
             int64_t columns, int64_t inner) {
  int64_t j = 0;
  for (; j + 2 * LANES <= columns; j += 2 * LANES)
    blocks<BLOCK_ROWS, 2>(a, b + j, b_row, start ? start + j : nullptr, start_row, c + j,
                          c_row, rows, inner);
  if (j < columns)
    blocks<8, 1>(a, b + j, b_row, start ? start + j : nullptr, start_row, c + j, c_row,
                 rows, inner);
}

// Adds the sum over the rows of x, (rows, columns), to `sums`.
void add_column_sums(const float* x, int64_t rows, int64_t columns, float* sums) {
  for (int64_t j = 0; j < columns; j += LANES) {
    Vector sum = splat(0.0f);
    for (int64_t i = 0; i < rows; ++i) sum += load(x + i * columns + j);
    store(sums + j, load(sums + j) + sum);
  }
}

// Copies (rows, columns) to padded rows.
void pad(const float* from, int64_t rows, int64_t columns, float* to) {
  int64_t row = padded(columns);
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(to + i * row, from + i * columns, columns * sizeof(float));
    std::memset(to + i * row + columns, 0, (row - columns) * sizeof(float));
  }
}

// And back.
void unpad(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(to + i * columns, from + i * padded(columns), columns * sizeof(float));
}

// (rows, columns), whose rows are `row` apart, to padded rows of the transpose.
void transpose(const float* from, int64_t row, int64_t rows, int64_t columns,
               float* to) {
  int64_t to_row = padded(rows);
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = 0; i < rows; ++i) to[j * to_row + i] = from[i * row + j];
    std::memset(to + j * to_row + rows, 0, (to_row - rows) * sizeof(float));
  }
}

// ---- Memory -----------------------------------------------------------------------

thread_local std::vector<float> shared_memory;  // Of the thread that calls.
thread_local std::vector<float> tile_memory;    // Of each thread that works.

// The numbers that follow from a problem, and which thread does which tiles.
struct Plan {
  explicit Plan(const Problem& p)
      : width(p.width),
        hidden(p.hidden),
        wide(padded(p.width)),
        deep(padded(p.hidden)),
        row(p.heads * p.width),
        matrix((p.hidden + 1) * wide),
        tiles(ceil_divide(p.length, LONGEST_TILE)),
        tile(ceil_divide(p.length, tiles * BLOCK_ROWS) * BLOCK_ROWS),
        threads(std::max<int64_t>(1, std::min(p.threads, p.batch * tiles))) {}

  int64_t width, hidden;  // d, e
  int64_t wide, deep;     // d, e with their padding
  int64_t row;            // D
  int64_t matrix;         // numbers in S and s, or R and r: (e + 1, wide)
  int64_t tiles;          // of an utterance
  int64_t tile;           // tokens in a tile
  int64_t threads;

  int64_t first(int64_t thread, int64_t all) const { return thread * all / threads; }

  // Whether a thread does tiles of an utterance. Its partial sums for the utterance
  // have the slot utterance + thread: no two pairs that occur have the same.
  bool works_on(int64_t thread, int64_t utterance, int64_t all) const {
    return first(thread, all) < (utterance + 1) * tiles &&
           first(thread + 1, all) > utterance * tiles &&
           first(thread, all) < first(thread + 1, all);
  }
};

// Calls work(thread, tile's utterance, tile's first token, what prepare() gave to the
// thread), each thread in order.
template <class Prepare, class Work>
void over_tiles(const Problem& p, const Plan& plan, Prepare prepare, Work work) {
  int64_t all = p.batch * plan.tiles;
  // All threads, also where a few would do: OpenMP ends those that a region does not
  // ask for, and begins them anew. A nested region has one thread, which does all.
#pragma omp parallel num_threads(p.threads)
  {
    FlushDenormals flush;
    for (int64_t i = omp_get_thread_num(); i < plan.threads; i += omp_get_num_threads()) {
      auto scratch = prepare();
      for (int64_t n = plan.first(i, all); n < plan.first(i + 1, all); ++n)
        work(i, n / plan.tiles, n % plan.tiles * plan.tile, scratch);
    }
  }
}

// ---- Tiles ------------------------------------------------------------------------

// Some tokens of one head of one utterance.
struct Place {
  int64_t utterance, start, head;

  // Where the token number i begins in (B, T, D), and whether it is padding.
  int64_t offset(const Problem& p, const Plan& plan, int64_t i) const {
    return (utterance * p.length + start + i) * plan.row + head * plan.width;
  }
  bool is_padding(const Problem& p, int64_t i) const {
    return p.padding && p.padding[utterance * p.length + start + i];
  }
  int64_t end(const Problem& p, const Plan& plan) const {
    return std::min(plan.tile, p.length - start);
  }
};

// A tile (tile, wide) of (B, T, D) numbers times `scale`, plus position codes if CODED;
// 0 in padding and past the end. If BOTH, `plain` is the tile of the numbers alone.
template <bool CODED, bool BOTH>
void read_tile(const Problem& p, const Plan& plan, const float* from, float scale,
               Place place, float* to, float* plain) {
  int64_t d = plan.width, wide = plan.wide, end = place.end(p, plan);
  const float* code = CODED ? p.codes + place.start * plan.row + place.head * d : nullptr;
  for (int64_t i = 0; i < end; ++i, to += wide, plain += BOTH ? wide : 0) {
    if (place.is_padding(p, i)) {
      std::memset(to, 0, wide * sizeof(float));
      if (BOTH) std::memset(plain, 0, wide * sizeof(float));
      continue;
    }
    const float* x = from + place.offset(p, plan, i);
    const float* c = CODED ? code + i * plan.row : nullptr;
    int64_t j = 0;
    for (; j + LANES <= d; j += LANES) {
      Vector y = load(x + j);
      if (BOTH) store(plain + j, y);
      store(to + j, CODED ? y * scale + load(c + j) : y * scale);
    }
    if (j < d) {
      store(to + j, splat(0.0f));
      if (BOTH) store(plain + j, splat(0.0f));
    }
    for (; j < d; ++j) {
      to[j] = CODED ? x[j] * scale + c[j] : x[j] * scale;
      if (BOTH) plain[j] = x[j];
    }
  }
  std::memset(to, 0, (plan.tile - end) * wide * sizeof(float));
  if (BOTH) std::memset(plain, 0, (plan.tile - end) * wide * sizeof(float));
}

void read_tokens(const Problem& p, const Plan& plan, const float* from, Place place,
                 float* to) {
  read_tile<false, false>(p, plan, from, 1.0f, place, to, nullptr);
}

// What the hypernetworks read.
void read_information(const Problem& p, const Plan& plan, Place place, float* to) {
  if (p.codes)
    read_tile<true, false>(p, plan, p.tokens, p.scale, place, to, nullptr);
  else
    read_tile<false, false>(p, plan, p.tokens, p.scale, place, to, nullptr);
}

// What the hypernetworks read, and the values: at once where they are the same.
void read_both(const Problem& p, const Plan& plan, Place place, float* z, float* v) {
  if (p.tokens != p.values) {
    read_information(p, plan, place, z);
    read_tokens(p, plan, p.values, place, v);
  } else if (p.codes) {
    read_tile<true, true>(p, plan, p.tokens, p.scale, place, z, v);
  } else {
    read_tile<false, true>(p, plan, p.tokens, p.scale, place, z, v);
  }
}

// A tile times `scale` to (B, T, D) numbers, or added to them; padding becomes 0.
void write_tile(const Problem& p, const Plan& plan, const float* x, float scale, bool add,
                Place place, float* to) {
  int64_t d = plan.width, end = place.end(p, plan);
  for (int64_t i = 0; i < end; ++i, x += plan.wide) {
    float* y = to + place.offset(p, plan, i);
    if (place.is_padding(p, i)) {
      if (!add) std::memset(y, 0, d * sizeof(float));
      continue;
    }
    int64_t j = 0;
    for (; j + LANES <= d; j += LANES)
      store(y + j, add ? load(y + j) + load(x + j) * scale : load(x + j) * scale);
    for (; j < d; ++j) y[j] = (add ? y[j] : 0.0f) + x[j] * scale;
  }
}

// F' (H, d, deep) and b (H, deep) of a hypernetwork, padded.
struct Activation {
  float *weights, *biases;

  void declare(Scratch& scratch, const Problem& p, const Plan& plan) {
    scratch.part(&weights, p.heads * plan.width * plan.deep);
    scratch.part(&biases, p.heads * plan.deep);
  }

  void fill(const Problem& p, const Plan& plan, const Hypernet& net) {
    int64_t e = plan.hidden;
    for (int64_t h = 0; h < p.heads; ++h)
      transpose(net.fc1 + h * e * plan.width, plan.width, e, plan.width,
                weights + h * plan.width * plan.deep);
    if (net.fc1_biases)
      pad(net.fc1_biases, p.heads, e, biases);
    else
      std::memset(biases, 0, p.heads * plan.deep * sizeof(float));
  }

  // z F' + b of a tile, (tile, deep).
  void before(const Plan& plan, const float* z, int64_t head, float* h) const {
    product({z, plan.wide, 1}, weights + head * plan.width * plan.deep, plan.deep,
            biases + head * plan.deep, 0, h, plan.deep, plan.tile, plan.deep, plan.width);
  }
};

// Clears a thread's partial sums for an utterance when it comes to its first tile.
void clear_at_first(const Problem& p, const Plan& plan, int64_t thread, int64_t utterance,
                    int64_t start, float* sums) {
  int64_t tile = utterance * plan.tiles + start / plan.tile;
  if (start == 0 || tile == plan.first(thread, p.batch * plan.tiles))
    std::memset(sums, 0, p.heads * plan.matrix * sizeof(float));
}

// Adds all threads' partial sums for one head of one utterance.
void sum_partials(const Problem& p, const Plan& plan, const float* partial,
                  int64_t utterance, int64_t head, float* sums) {
  std::memset(sums, 0, plan.matrix * sizeof(float));
  for (int64_t i = 0; i < plan.threads; ++i) {
    if (!plan.works_on(i, utterance, p.batch * plan.tiles)) continue;
    const float* x = partial + ((utterance + i) * p.heads + head) * plan.matrix;
    for (int64_t j = 0; j < plan.matrix; j += LANES)
      store(sums + j, load(sums + j) + load(x + j));
  }
}

// ---- Generate ---------------------------------------------------------------------

// G1 S + c1 s, (k, wide), the hidden layer before its GELU. With the other hypernetwork,
// from the gradients of R and r that of the hidden layer.
void to_hidden(const Problem& p, const Plan& plan, const Hypernet& net, int64_t head,
               const float* matrix, float* hidden) {
  if (net.fc2_biases)
    product({net.fc2_biases + head * p.mixing, 1, 1}, matrix + plan.hidden * plan.wide,
            plan.wide, nullptr, 0, hidden, plan.wide, p.mixing, plan.wide, 1);
  product({net.fc2 + head * p.mixing * plan.hidden, plan.hidden, 1}, matrix, plan.wide,
          net.fc2_biases ? hidden : nullptr, plan.wide, hidden, plan.wide, p.mixing,
          plan.wide, plan.hidden);
}

// R = G2' M and r = c2' M; with the other hypernetwork, the gradients of S and s.
void to_matrix(const Problem& p, const Plan& plan, const Hypernet& net, int64_t head,
               const float* hidden, float* matrix) {
  product({net.fc2 + head * p.mixing * plan.hidden, 1, plan.hidden}, hidden, plan.wide,
          nullptr, 0, matrix, plan.wide, plan.hidden, plan.wide, p.mixing);
  float* row = matrix + plan.hidden * plan.wide;
  if (net.fc2_biases)
    product({net.fc2_biases + head * p.mixing, 0, 1}, hidden, plan.wide, nullptr, 0, row,
            plan.wide, 1, plan.wide, p.mixing);
  else
    std::memset(row, 0, plan.wide * sizeof(float));
}

// Gradients of G and c side by side, (k, padded(e + 1)), from those of R and r:
// x (k, d) matrix'. Of the other hypernetwork with S and s for R and r.
void add_fc2_gradients(const Problem& p, const Plan& plan, const float* x,
                       const float* matrix, float* turned, float* gradients) {
  int64_t rows = plan.hidden + 1;
  transpose(matrix, plan.wide, rows, plan.width, turned);
  product({x, plan.wide, 1}, turned, padded(rows), gradients, padded(rows), gradients,
          padded(rows), p.mixing, padded(rows), plan.width);
}

// The two parts of (k, padded(e + 1)) gradients of one head.
void write_fc2_gradients(const Problem& p, const Plan& plan, const float* gradients,
                         int64_t head, const HypernetGradients& to) {
  int64_t e = plan.hidden;
  for (int64_t i = head * p.mixing; i < (head + 1) * p.mixing; ++i) {
    std::memcpy(to.fc2 + i * e, gradients, e * sizeof(float));
    if (to.fc2_biases) to.fc2_biases[i] = gradients[e];
    gradients += padded(e + 1);
  }
}

// From the gradients of R and r to those of S and s, and of both layers.
void generate_backward(const Problem& p, const Plan& plan, const float* sums,
                       const float* partial, float* grad_sums, float* grad_sums_turned,
                       const HypernetGradients& grad1, const HypernetGradients& grad2) {
  int64_t k = p.mixing;
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t h = 0; h < p.heads; ++h) {
    FlushDenormals flush;
    int64_t deep = padded(plan.hidden + 1);
    float *grad_mixture, *turned, *hidden, *slope, *grad, *g1, *g2;
    Scratch scratch(tile_memory);
    scratch.part(&grad_mixture, plan.matrix);
    scratch.part(&turned, plan.width * deep);
    for (float** x : {&hidden, &slope, &grad}) scratch.part(x, k * plan.wide);
    for (float** x : {&g1, &g2}) scratch.part(x, k * deep);
    scratch.take();
    for (float* x : {g1, g2}) std::memset(x, 0, k * deep * sizeof(float));
    for (int64_t b = 0; b < p.batch; ++b) {
      int64_t n = b * p.heads + h;
      const float* s = sums + n * plan.matrix;
      sum_partials(p, plan, partial, b, h, grad_mixture);
      to_hidden(p, plan, p.key_hypernet, h, s, hidden);
      gelu_and_slope(hidden, slope, k * plan.wide);
      add_fc2_gradients(p, plan, hidden, grad_mixture, turned, g2);
      to_hidden(p, plan, p.query_hypernet, h, grad_mixture, grad);
      for (int64_t i = 0; i < k * plan.wide; i += LANES)
        store(grad + i, load(grad + i) * load(slope + i));
      add_fc2_gradients(p, plan, grad, s, turned, g1);
      float* grad_s = grad_sums + n * plan.matrix;
      to_matrix(p, plan, p.key_hypernet, h, grad, grad_s);
      transpose(grad_s, plan.wide, plan.hidden, plan.width,
                grad_sums_turned + n * plan.width * plan.deep);
    }
    write_fc2_gradients(p, plan, g1, h, grad1);
    write_fc2_gradients(p, plan, g2, h, grad2);
  }
}

// ---- Gradients of one hypernetwork's first layer and of what it reads --------------

// A thread's scratch for a tile in backward.
struct BackwardTile {
  float *z, *g, *a, *slope, *grad_h, *grad_x;

  explicit BackwardTile(const Plan& plan) {
    Scratch scratch(tile_memory);
    for (float** x : {&z, &g, &grad_x}) scratch.part(x, plan.tile * plan.wide);
    for (float** x : {&a, &slope, &grad_h}) scratch.part(x, plan.tile * plan.deep);
    scratch.take();
  }
};

// Partial sums of the gradients of F (H, e, wide) and b (H, deep), for each thread.
struct FirstLayerGradients {
  float *weights, *biases, *padded_weights;

  void declare(Scratch& scratch, const Problem& p, const Plan& plan) {
    scratch.part(&weights, plan.threads * p.heads * plan.hidden * plan.wide);
    scratch.part(&biases, plan.threads * p.heads * plan.deep);
    scratch.part(&padded_weights, p.heads * plan.hidden * plan.wide);
  }

  void clear(const Problem& p, const Plan& plan, const Hypernet& net) {
    std::memset(weights, 0,
                plan.threads * p.heads * plan.hidden * plan.wide * sizeof(float));
    std::memset(biases, 0, plan.threads * p.heads * plan.deep * sizeof(float));
    pad(net.fc1, p.heads * plan.hidden, plan.width, padded_weights);
  }

  // From the gradient of A to that of what F read: g times `turned` (d, deep) is the
  // gradient of A; leaves the result in tile.grad_x.
  void through(const Problem& p, const Plan& plan, int64_t thread, int64_t head,
               const float* turned, BackwardTile& tile) {
    product({tile.g, plan.wide, 1}, turned, plan.deep, nullptr, 0, tile.grad_h, plan.deep,
            plan.tile, plan.deep, plan.width);
    for (int64_t i = 0; i < plan.tile * plan.deep; i += LANES)
      store(tile.grad_h + i, load(tile.grad_h + i) * load(tile.slope + i));
    int64_t n = thread * p.heads + head;
    float* f = weights + n * plan.hidden * plan.wide;
    product({tile.grad_h, 1, plan.deep}, tile.z, plan.wide, f, plan.wide, f, plan.wide,
            plan.hidden, plan.wide, plan.tile);
    add_column_sums(tile.grad_h, plan.tile, plan.deep, biases + n * plan.deep);
    product({tile.grad_h, plan.deep, 1},
            padded_weights + head * plan.hidden * plan.wide, plan.wide, nullptr, 0,
            tile.grad_x, plan.wide, plan.tile, plan.wide, plan.hidden);
  }

  void finish(const Problem& p, const Plan& plan, const HypernetGradients& grad) {
    int64_t size = p.heads * plan.hidden * plan.wide, biases_size = p.heads * plan.deep;
    for (int64_t i = 1; i < plan.threads; ++i) {
      for (int64_t j = 0; j < size; ++j) weights[j] += weights[i * size + j];
      for (int64_t j = 0; j < biases_size; ++j) biases[j] += biases[i * biases_size + j];
    }
    unpad(weights, p.heads * plan.hidden, plan.width, grad.fc1);
    if (grad.fc1_biases) unpad(biases, p.heads, plan.hidden, grad.fc1_biases);
  }
};

}  // namespace

extern "C" {

// Numbers in S and s, or in R and r, of one head of one utterance.
int64_t hypermixing_matrix_size(int64_t width, int64_t hidden) {
  return (hidden + 1) * padded(width);
}

// Writes S and s, R and r, (B, H, e + 1, wide) each, and the mixed tokens (B, T, D).
void hypermixing_forward(const Problem* problem, float* sums, float* mixture,
                         float* out) {
  const Problem& p = *problem;
  const Plan plan(p);
  float* partial;
  Activation activation1, activation2;
  Scratch shared(shared_memory);
  shared.part(&partial, (p.batch + plan.threads) * p.heads * plan.matrix);
  activation1.declare(shared, p, plan);
  activation2.declare(shared, p, plan);
  shared.take();
  activation1.fill(p, plan, p.key_hypernet);
  activation2.fill(p, plan, p.query_hypernet);

  struct Tile {
    float *z, *v, *a;
    explicit Tile(const Plan& plan) {
      Scratch scratch(tile_memory);
      for (float** x : {&z, &v}) scratch.part(x, plan.tile * plan.wide);
      scratch.part(&a, plan.tile * plan.deep);
      scratch.take();
    }
  };
  auto prepare = [&] { return Tile(plan); };

  over_tiles(p, plan, prepare, [&](int64_t i, int64_t b, int64_t start, Tile& tile) {
    float* slot = partial + (b + i) * p.heads * plan.matrix;
    clear_at_first(p, plan, i, b, start, slot);
    for (int64_t h = 0; h < p.heads; ++h) {
      float* s = slot + h * plan.matrix;
      read_both(p, plan, {b, start, h}, tile.z, tile.v);
      activation1.before(plan, tile.z, h, tile.a);
      gelu(tile.a, plan.tile * plan.deep);
      product({tile.a, 1, plan.deep}, tile.v, plan.wide, s, plan.wide, s, plan.wide,
              plan.hidden, plan.wide, plan.tile);
      add_column_sums(tile.v, plan.tile, plan.wide, s + plan.hidden * plan.wide);
    }
  });

#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t n = 0; n < p.batch * p.heads; ++n) {
    FlushDenormals flush;
    float* hidden;
    Scratch scratch(tile_memory);
    scratch.part(&hidden, p.mixing * plan.wide);
    scratch.take();
    float* s = sums + n * plan.matrix;
    sum_partials(p, plan, partial, n / p.heads, n % p.heads, s);
    to_hidden(p, plan, p.key_hypernet, n % p.heads, s, hidden);
    gelu(hidden, p.mixing * plan.wide);
    to_matrix(p, plan, p.query_hypernet, n % p.heads, hidden, mixture + n * plan.matrix);
  }

  over_tiles(p, plan, prepare, [&](int64_t, int64_t b, int64_t start, Tile& tile) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const float* r = mixture + (b * p.heads + h) * plan.matrix;
      read_information(p, plan, {b, start, h}, tile.z);
      activation2.before(plan, tile.z, h, tile.a);
      gelu(tile.a, plan.tile * plan.deep);
      Place place{b, start, h};
      // Straight to its place where no row needs to be cleared or shortened.
      bool fits = plan.wide == plan.width && !p.padding;
      float* to = fits ? out + place.offset(p, plan, 0) : tile.v;
      product({tile.a, plan.deep, 1}, r, plan.wide, r + plan.hidden * plan.wide, 0, to,
              fits ? plan.row : plan.wide, place.end(p, plan), plan.wide, plan.hidden);
      if (!fits) write_tile(p, plan, tile.v, 1.0f, false, place, out);
    }
  });
}

// Writes the gradients. `grad_tokens` is `grad_values` where tokens are the values.
void hypermixing_backward(const Problem* problem, const float* sums, const float* mixture,
                          const float* grad_out, float* grad_values, float* grad_tokens,
                          const HypernetGradients* grad1,
                          const HypernetGradients* grad2) {
  const Problem& p = *problem;
  const Plan plan(p);
  int64_t size = p.batch * p.heads;
  float *partial, *turned, *grad_sums;
  Activation activation1, activation2;
  FirstLayerGradients first1, first2;
  Scratch shared(shared_memory);
  shared.part(&partial, (p.batch + plan.threads) * p.heads * plan.matrix);
  shared.part(&turned, size * plan.width * plan.deep);
  shared.part(&grad_sums, size * plan.matrix);
  activation1.declare(shared, p, plan);
  activation2.declare(shared, p, plan);
  first1.declare(shared, p, plan);
  first2.declare(shared, p, plan);
  shared.take();
  activation1.fill(p, plan, p.key_hypernet);
  activation2.fill(p, plan, p.query_hypernet);
  first1.clear(p, plan, p.key_hypernet);
  first2.clear(p, plan, p.query_hypernet);
  for (int64_t n = 0; n < size; ++n)
    transpose(mixture + n * plan.matrix, plan.wide, plan.hidden, plan.width,
              turned + n * plan.width * plan.deep);
  auto prepare = [&] { return BackwardTile(plan); };

  // Expand, and what it sends to the tokens that its hypernetwork read.
  over_tiles(p, plan, prepare, [&](int64_t i, int64_t b, int64_t start, BackwardTile& t) {
    float* slot = partial + (b + i) * p.heads * plan.matrix;
    clear_at_first(p, plan, i, b, start, slot);
    for (int64_t h = 0; h < p.heads; ++h) {
      float* r = slot + h * plan.matrix;
      read_information(p, plan, {b, start, h}, t.z);
      read_tokens(p, plan, grad_out, {b, start, h}, t.g);
      activation2.before(plan, t.z, h, t.a);
      gelu_and_slope(t.a, t.slope, plan.tile * plan.deep);
      product({t.a, 1, plan.deep}, t.g, plan.wide, r, plan.wide, r, plan.wide,
              plan.hidden, plan.wide, plan.tile);
      add_column_sums(t.g, plan.tile, plan.wide, r + plan.hidden * plan.wide);
      first2.through(p, plan, i, h, turned + (b * p.heads + h) * plan.width * plan.deep,
                     t);
      write_tile(p, plan, t.grad_x, p.scale, false, {b, start, h}, grad_tokens);
    }
  });

  generate_backward(p, plan, sums, partial, grad_sums, turned, *grad1, *grad2);

  // Reduce, and what it sends to the tokens as values and as read.
  over_tiles(p, plan, prepare, [&](int64_t i, int64_t b, int64_t start, BackwardTile& t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      int64_t n = b * p.heads + h;
      const float* s = grad_sums + n * plan.matrix;
      read_both(p, plan, {b, start, h}, t.z, t.g);
      activation1.before(plan, t.z, h, t.a);
      gelu_and_slope(t.a, t.slope, plan.tile * plan.deep);
      first1.through(p, plan, i, h, turned + n * plan.width * plan.deep, t);
      write_tile(p, plan, t.grad_x, p.scale, true, {b, start, h}, grad_tokens);
      product({t.a, plan.deep, 1}, s, plan.wide, s + plan.hidden * plan.wide, 0, t.grad_x,
              plan.wide, plan.tile, plan.wide, plan.hidden);
      write_tile(p, plan, t.grad_x, 1.0f, grad_tokens == grad_values, {b, start, h},
                 grad_values);
    }
  });
  first1.finish(p, plan, *grad1);
  first2.finish(p, plan, *grad2);
}

}  // extern "C"

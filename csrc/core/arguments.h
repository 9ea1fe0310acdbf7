// What each kernel family takes: raw pointers, sizes and enums, the same for the CPU and for CUDA.
//
//   K rows (subproblems), T tasks, P columns (parameters of one model), S segments (tensors of the model).
// A row of a matrix is contiguous and begins at a multiple of `alignment` elements; `..._row` is the distance between
// rows. Small tables (weights, mix, hyper-parameters) are float64; what the loops use is rounded from them once.
#pragma once
#include "dtypes.h"

namespace mt2o {

constexpr int64_t alignment = 16;
constexpr int64_t max_tasks = 1024;  // their weights lie on the stack of a thread
constexpr int64_t max_rows = 256;    // tiles of all of them lie there too
constexpr int64_t max_owners = 64;   // sums for all pairs of tasks lie there too
constexpr int64_t step_tile =
    2048;  // columns that are worked on at a time: long runs along a row matter more than the L1 cache

struct Chunk {
  int64_t segment, begin, end;
};

// Task gradients [K][T][P]: in one buffer, or each tensor of them in memory of its own; core/gradients.h finds them.
//
// addresses[k][t][s] says where column 0 would be if the gradient of segment s were a part of a row as long as the
// buffer's: the address of its first element, a multiple of 16 bytes, less the first column of the segment.  That
// memory is no longer than the tensor: nothing behind the columns of a chunk may be read.
struct Gradients {
  const void* values;  // not looked at where there are addresses
  Type type;
  int64_t row, task;         // values[k][t] begins at k * row + t * task
  const int64_t* addresses;  // or nullptr
  int64_t addresses_row, addresses_task;
};
constexpr int64_t no_gradient = 1;  // instead of an address: counts as zeros, of which nothing is read

// Masks of tasks over the columns of a row, packed: of column p, bit p % 8 of byte p / 8; core/mask.h reads them.
struct Masks {
  const uint8_t* bits;  // [T][bytes], or nullptr: none, which is all
  int64_t row;          // bytes between two tasks
  const bool* whole;    // [S], whose gradients are not masked, only what moves; or nullptr: none
  bool hold;            // moments of what does not move stay as well
};

// out[k] = sum_t weights[k][t] grads[k][t]
struct Combine {
  int64_t rows, tasks;
  Gradients grads;
  void* out;
  Type out_type;  // float32, or the type of grads
  int64_t out_row;
  const double* weights;  // [K][T]
  const Chunk* chunks;
};

// partials[b][c][q] = sum over chunk c of rows[b][i] others[b][j]; q: see core/gram.h
struct Gram {
  int64_t batch, rows, num_chunks;
  Gradients values;    // [batch][rows]; behind addresses neither crossed nor centred
  const void* others;  // of the type of values
  int64_t others_row, others_batch_stride;
  bool cross;        // others are a second set of rows; if not, they are the rows themselves
  bool centre;       // subtract from each column its mean over the rows, and over the others
  bool diagonal;     // j = i only
  double* partials;  // [batch][num_chunks][gram_sums]
  const Chunk* chunks;
};

// A mix M packed for the CPU: N = M - I by blocks of four rows, without the columns in which all four are zero.
// The column of row 0 is left out: rows of N sum to zero, so that N theta = sum_j N_j (theta_j - theta_0).
constexpr int mix_block = 4;
struct PackedMix {
  int64_t matrices;        // 0: no transfer; 1: one for all segments; S: one for each
  const int32_t* counts;   // [matrices][blocks]            columns that are there
  const int32_t* columns;  // [matrices][blocks][K]
  const void* values;      // [matrices][blocks][K][4]      in theta's type
  const bool* identity;    // [matrices][K]                 rows of I: they take nothing, not even a NaN times zero
};

// A mix as it is, for CUDA, whose blocks make N = M - I of it themselves.
struct DenseMix {
  int64_t matrices;      // as above
  const double* values;  // [matrices][K][K]
};

// theta <- M theta, in place
struct Transfer {
  int64_t rows;
  void* theta;
  Type type;
  int64_t row;
  PackedMix mix;
  const Chunk* chunks;
  int64_t tile;
};

// The base rules in the order of their numbers, each with its struct; see rules.h.
#define MT2O_RULES(X) X(sgd, Sgd) X(momentum, Momentum) X(adam, Adam) X(amsgrad, AmsGrad) X(lion, Lion)
#define MT2O_NAME(name, R) name,
#define MT2O_ONE(name, R) +1
enum class Rule : int64_t { MT2O_RULES(MT2O_NAME) };
constexpr int64_t num_rules = 0 MT2O_RULES(MT2O_ONE);
#undef MT2O_NAME
#undef MT2O_ONE
constexpr int max_moments = 3;
constexpr const char* moment_names[max_moments] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
enum class Order : int64_t { consensus, adapt_then_combine };

struct StepConstants;  // rules.h

// Who takes part in a step, and the counters and constants that follow from it.
struct StepCounters {
  int64_t rows, segments;
  Rule rule;
  const double* fields;      // [S][fields], rules.h
  const bool* active;        // [K][S], or nullptr: all
  const float* found_inf;    // [K] or [1]: not zero where a row is skipped; or nullptr
  int64_t found_stride;      // 1 or 0
  const float* grad_scale;   // [1], or nullptr: 1
  float* step;               // [K][S]
  StepConstants* constants;  // [K][S]
};

struct Step {
  int64_t rows, tasks, segments;
  Rule rule;
  Order order;
  Type type;  // of theta and its moments: float32 or float64
  void* theta;
  void* moments[max_moments];  // exp_avg, exp_avg_sq, max_exp_avg_sq: those that the rule has
  void* ema;                   // nullptr if not kept
  int64_t row;                 // of all of these
  void* low_precision;         // parameters of 16 bits, rounded from theta; or nullptr
  Type low_type;
  int64_t low_row;
  Gradients grads;
  const double* weights;           // [K][T], or nullptr: all one
  const StepConstants* constants;  // [K][S]
  Masks masks;                     // the same for all rows, of which none is blended then
  PackedMix mix;
  const Chunk* chunks;
  int64_t tile;  // at most step_tile
};

// out = values where the mask has a bit, and 0 elsewhere; whole segments are copied
struct Mask {
  const void* values;
  void* out;
  Type type;    // of both
  Masks masks;  // of one task
  const Chunk* chunks;
};

// Scores of the elements of each task's mask, and of those outside; see core/harmony.h.
struct Harmony {
  int64_t tasks;
  Gradients grads;        // [1][T], of which nothing is masked
  const void* values;     // [P], the parameters, of the type of grads
  const double* factors;  // [T], multiply the gradients
  Masks masks;            // of all tasks
  double gamma;
  bool magnitude;  // importance by the size of the parameters, not of the gradients
  bool dense;      // outside of a mask agreement is that of whole gradients
  float* scores;   // [T]
  int64_t scores_row;
  const Chunk* chunks;
};

// In each task's mask, as many bits are cleared and set as there are to change: of those that are set, the ones with
// the smallest scores, of the others the ones with the largest.
struct Exchange {
  int64_t tasks, num_chunks, amount;
  uint8_t* masks;  // [T]
  int64_t masks_row;
  const float* scores;  // [T]
  int64_t scores_row;
  const Chunk* chunks;  // only what lies in them is looked at
  int32_t* counts;      // [T][C][exchange_bins]  on a GPU
  uint64_t* state;      // [T][exchange_state]    on a GPU
};
constexpr int exchange_bins = 32, exchange_state = 5;

// found[k] = 1 where any grads[k][t] holds an infinity or a NaN; other entries are left as they are
struct Finite {
  int64_t rows, tasks;
  Gradients grads;
  float* found;
  const Chunk* chunks;
};

// Task gradients [K][T][P] in one buffer, changed by a weighting in the rows that are finite.  What it keeps of them is
// float, or double for gradients of double: the type that they are computed in.
struct Elements {
  int64_t rows, tasks;
  void* grads;
  Type type;
  int64_t row, task;   // grads[k][t] begins at k * row + t * task
  const bool* finite;  // [K]
  const Chunk* chunks;
};

// memory <- keep memory + fresh grads; grads <- memory
struct Track {
  Elements of;
  void* memory;
  int64_t memory_row, memory_task;
  const double *keep, *fresh;  // [K][T]
  bool shown;                  // grads are written to
};

// direction = sum_t weights[t] memory[t]; grads <- (fed(direction, last), 0, ..., 0); last <- direction
struct Feed {
  Elements of;
  const void* memory;
  int64_t memory_row, memory_task;
  void* last;  // [K]
  int64_t last_row;
  const double *weights, *now, *before;  // [K][T], [K], [K]
  double beta, inverse;                  // 1 / (1 - beta)
};

// squares <- squares + grads^2; partials = the sums over a chunk of excess_of(); grads are only read
struct Excess {
  Elements of;
  void* squares;
  int64_t squares_row, squares_task;
  double* partials;  // [K][C][T]; of rows that are not finite as well
  int64_t num_chunks;
};

// grads <- grads times kept_signs() of their column, whose chance has the ids (row, column) in a stream
struct DropSigns {
  Elements of;
  const int64_t* key;  // []
  int64_t stream;
  double leak;
};

// Columns of one tensor by channel: run r of channel q is offset + (r channels + q) length, `length` columns of it.
// Records of layer -1 belong to no channel.
struct PriorityRecord {
  int64_t layer, first_channel, channels, offset, length, runs;
};

// out = sum_t grads[t] + coefficients[layer][owner] grads[owner], the owner that of the column's channel; in two
// sweeps.
struct Priority {
  int64_t tasks;
  const void* grads;  // [T]
  Type grads_type;
  int64_t grads_task;
  void* out;              // may be one of the rows of grads
  Type out_type;          // float32, or the type of grads
  const int64_t* owners;  // of each channel, -1: none
  const PriorityRecord* records;
  const Chunk* chunks;   // segment: the record
  double* dots;          // [C][T][T]   <grads[owner], grads[j]> over the columns of a chunk that the owner has
  double* coefficients;  // [layers][T]
};

}  // namespace mt2o

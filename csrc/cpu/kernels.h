// One table of functions for each instruction set.  Each function works on a range of chunks; the caller brings the
// threads.
#pragma once
#include "../core/arguments.h"

namespace mt2o {

struct Kernels {
  const char* name;
  void (*combine)(const Combine&, int64_t first_chunk, int64_t last_chunk);
  void (*gram)(const Gram&, int64_t first_chunk, int64_t last_chunk);
  void (*transfer)(const Transfer&, int64_t first_chunk, int64_t last_chunk);
  void (*step)(const Step&, int64_t first_chunk, int64_t last_chunk);
  void (*mask)(const Mask&, int64_t first_chunk, int64_t last_chunk);
  void (*harmony)(const Harmony&, int64_t first_chunk, int64_t last_chunk);
  void (*finite)(const Finite&, int64_t first_chunk, int64_t last_chunk);
  void (*priority_dots)(const Priority&, int64_t first_chunk, int64_t last_chunk);
  void (*priority_combine)(const Priority&, int64_t first_chunk, int64_t last_chunk);
  void (*track)(const Track&, int64_t first_chunk, int64_t last_chunk);
  void (*feed)(const Feed&, int64_t first_chunk, int64_t last_chunk);
  void (*excess)(const Excess&, int64_t first_chunk, int64_t last_chunk);
  void (*drop_signs)(const DropSigns&, int64_t first_chunk, int64_t last_chunk);
};

namespace isa_default {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace isa_avx2 {
extern const Kernels kernels;
}
namespace isa_avx512 {
extern const Kernels kernels;
}
#endif

}  // namespace mt2o

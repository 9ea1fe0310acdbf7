// From tensors to raw pointers, with the checks that guard memory.  (What a user can get wrong is checked in Python,
// before anything is changed and with better words.)
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>

#include "../core/arguments.h"

namespace mt2o::ops {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using ScalarType = torch::headeronly::ScalarType;

inline Type type_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Type::float32;
    case ScalarType::Double: return Type::float64;
    case ScalarType::BFloat16: return Type::bfloat16;
    case ScalarType::Half: return Type::float16;
    default: STD_TORCH_CHECK(false, "mt2o_ext: ", name, " must be float32, float64, bfloat16 or float16");
  }
}

// Kernels on a GPU load sixteen bytes at a time: from any other address that is the end of the process's CUDA context.
// Every backend refuses alike what one of them cannot take.
inline void check_address(const Tensor& t, const char* name) {
  constexpr uintptr_t bytes = 16;
  const uintptr_t beyond = reinterpret_cast<uintptr_t>(t.const_data_ptr()) % bytes;
  STD_TORCH_CHECK(beyond == 0, "mt2o_ext: ", name, " must begin at a multiple of ", bytes, " bytes, but lies ", beyond,
                  " bytes behind one: give it memory of its own (clone), or begin the view at a multiple of ",
                  alignment, " elements");
}

// Contiguous rows at multiples of 16 elements, the first at a multiple of 16 bytes: what every loop relies on.
inline void check_rows(const Tensor& t, const char* name, int64_t dims) {
  STD_TORCH_CHECK(t.dim() == dims, "mt2o_ext: ", name, " must have ", dims, " dimensions, not ", t.dim());
  if (t.numel() == 0) return;  // torch gives it strides of one
  STD_TORCH_CHECK(t.size(-1) <= 1 || t.stride(-1) == 1, "mt2o_ext: rows of ", name, " must be contiguous");
  for (int64_t d = 0; d + 1 < dims; ++d)
    STD_TORCH_CHECK(t.size(d) <= 1 || t.stride(d) % alignment == 0, "mt2o_ext: rows of ", name,
                    " must lie a multiple of ", alignment, " elements apart");
  check_address(t, name);
}
inline void check_same(const Tensor& t, const Tensor& like, const char* name, const char* like_name) {
  bool same = t.dim() == like.dim() && t.scalar_type() == like.scalar_type();
  for (int64_t d = 0; same && d < t.dim(); ++d)
    same = t.size(d) == like.size(d) && (t.size(d) <= 1 || t.stride(d) == like.stride(d));
  STD_TORCH_CHECK(same, "mt2o_ext: ", name, " must have the dtype, the shape and the strides of ", like_name);
  if (t.numel() > 0) check_address(t, name);
}
// A small contiguous table.
template <size_t Dims>
inline void check_table(const Tensor& t, const char* name, ScalarType type, const int64_t (&sizes)[Dims]) {
  bool right = t.scalar_type() == type && t.is_contiguous() && t.dim() == int64_t(Dims);
  std::string wanted;
  for (size_t d = 0; d < Dims; ++d) {
    right = right && t.size(int64_t(d)) == sizes[d];
    wanted += (d ? ", " : "") + std::to_string(sizes[d]);
  }
  STD_TORCH_CHECK(right, "mt2o_ext: ", name, " must be contiguous, of shape [", wanted, "] and its documented dtype");
}

// Chunks in ascending order, within the segments and the columns that there are.
struct Chunks {
  const Chunk* data;
  int64_t count;
};
inline Chunks chunk_table(const Tensor& chunks) {
  STD_TORCH_CHECK(
      chunks.scalar_type() == ScalarType::Long && chunks.dim() == 2 && chunks.size(1) == 3 && chunks.is_contiguous(),
      "mt2o_ext: chunks must be a contiguous int64 tensor [C, 3]");
  return {static_cast<const Chunk*>(chunks.const_data_ptr()), chunks.size(0)};
}
// The same after a look at what they say, which is for the CPU only: reading a GPU's memory would wait for it.
inline Chunks chunks_of(const Tensor& chunks, int64_t segments, int64_t columns) {
  const Chunks all = chunk_table(chunks);
  int64_t end = 0;
  for (const Chunk* c = all.data; c != all.data + all.count; ++c) {
    STD_TORCH_CHECK(c->begin >= end && c->end >= c->begin && c->end <= columns && c->begin % alignment == 0 &&
                        c->segment >= 0 && (segments < 0 || c->segment < segments),
                    "mt2o_ext: chunk ", c - all.data, " is out of order or out of range");
    end = c->end;
  }
  return all;
}

// body(first, last) on ranges of chunks with about the same number of columns each.  It must not throw: torch would
// replace the message by one of its own.
template <class Body>
void parallel_chunks(const Chunks& chunks, Body body) {
  if (chunks.count == 0) return;
  const auto first_from = [&](int64_t column) {
    return std::partition_point(chunks.data, chunks.data + chunks.count,
                                [&](const Chunk& c) { return c.begin < column; }) -
           chunks.data;
  };
  const int64_t begin = chunks.data[0].begin, end = chunks.data[chunks.count - 1].begin + 1, grain = 8192;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t from, int64_t to) {
    const int64_t first = first_from(from), last = first_from(to);
    if (first < last) body(first, last);
  });
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* const_data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

}  // namespace mt2o::ops

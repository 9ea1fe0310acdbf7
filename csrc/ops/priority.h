// The arguments of priority_, with the checks that guard memory.
#pragma once
#include "../core/priority.h"
#include "tensors.h"

namespace mt2o::ops {

struct PriorityArguments {
  Priority s = {};
  int64_t layers, num_chunks;
};

inline void check_record(const PriorityRecord& r, int64_t index, int64_t columns, int64_t channels, int64_t layers) {
  const bool owned = r.layer >= 0;
  STD_TORCH_CHECK(r.layer < layers && r.offset >= 0 && r.runs >= 0 && r.channels >= 0 && r.length >= 1 &&
                      r.offset + r.runs * r.channels * r.length <= columns &&
                      (!owned || (r.first_channel >= 0 && r.first_channel + r.channels <= channels)),
                  "mt2o_ext: record ", index, " is out of range");
}

// Records in order of their layers; chunks in order of their records, and within them.
inline PriorityArguments priority_arguments(const Tensor& out, const Tensor& dots, const Tensor& coefficients,
                                            const Tensor& grads, const Tensor& owners, const Tensor& records,
                                            const Tensor& chunks) {
  check_rows(grads, "grads", 2);
  check_rows(out, "out", 1);
  STD_TORCH_CHECK(
      chunks.scalar_type() == ScalarType::Long && chunks.dim() == 2 && chunks.size(1) == 3 && chunks.is_contiguous(),
      "mt2o_ext: chunks must be a contiguous int64 tensor [C, 3]");
  PriorityArguments all;
  Priority& s = all.s;
  s.tasks = grads.size(0);
  STD_TORCH_CHECK(s.tasks >= 1 && s.tasks <= max_owners, "mt2o_ext: 1 to ", max_owners, " tasks, not ", s.tasks);
  STD_TORCH_CHECK(coefficients.dim() == 2, "mt2o_ext: coefficients must be [layers, T]");
  all.layers = coefficients.size(0), all.num_chunks = chunks.size(0);
  check_table(coefficients, "coefficients", ScalarType::Double, {all.layers, s.tasks});
  check_table(dots, "dots", ScalarType::Double, {all.num_chunks, s.tasks, s.tasks});
  check_table(owners, "owners", ScalarType::Long, {owners.numel()});
  check_table(records, "records", ScalarType::Long, {records.size(0), 6});
  s.grads_type = type_of(grads, "grads"), s.out_type = type_of(out, "out");
  STD_TORCH_CHECK(out.size(0) == grads.size(1), "mt2o_ext: out must be [P] where grads are [T, P]");
  STD_TORCH_CHECK(s.out_type == s.grads_type || (s.out_type == Type::float32 && s.grads_type != Type::float64),
                  "mt2o_ext: out must have the dtype of grads, or float32 where grads have 16 bits");
  s.grads = grads.const_data_ptr(), s.grads_task = grads.stride(0);
  s.out = out.mutable_data_ptr();
  s.owners = const_data<int64_t>(owners);
  s.records = static_cast<const PriorityRecord*>(records.const_data_ptr());
  s.chunks = static_cast<const Chunk*>(chunks.const_data_ptr());
  s.dots = data<double>(dots), s.coefficients = data<double>(coefficients);
  return all;
}

// Of tables in host memory.
inline void check_tables(const PriorityArguments& all, int64_t columns, int64_t channels, int64_t num_records) {
  const Priority& s = all.s;
  for (int64_t i = 0; i < num_records; ++i) {
    check_record(s.records[i], i, columns, channels, all.layers);
    STD_TORCH_CHECK(i == 0 || s.records[i - 1].layer <= s.records[i].layer, "mt2o_ext: record ", i,
                    " is not in the order of layers");
  }
  for (int64_t c = 0, record = 0, end = 0; c < all.num_chunks; ++c) {
    const Chunk& chunk = s.chunks[c];
    STD_TORCH_CHECK(chunk.segment >= record && chunk.segment < num_records, "mt2o_ext: chunk ", c,
                    " is not in the order of records");
    const PriorityRecord& r = s.records[chunk.segment];
    if (chunk.segment > record || c == 0) end = r.offset;
    STD_TORCH_CHECK(chunk.begin >= end && (chunk.begin - r.offset) % alignment == 0 && chunk.end >= chunk.begin &&
                        chunk.end <= r.offset + r.runs * r.channels * r.length,
                    "mt2o_ext: chunk ", c, " is out of order or out of range");
    record = chunk.segment, end = chunk.end;
  }
}

}  // namespace mt2o::ops

// Gradients from a tensor [K, T, P], or from the addresses of their tensors.
#pragma once
#include "tensors.h"

namespace mt2o::ops {

// Of grads, nothing but the dtype, the device and the shape is looked at where there are addresses.
// segments: what the table must have of them, or -1 for any.
inline Gradients gradients_of(const Tensor& grads, const char* name, const MaybeTensor& addresses,
                              int64_t segments = -1) {
  Gradients g = {};
  g.type = type_of(grads, name);
  if (!addresses.has_value()) {
    check_rows(grads, name, 3);
    g.values = grads.const_data_ptr(), g.row = grads.stride(0), g.task = grads.stride(1);
    return g;
  }
  const Tensor& table = *addresses;
  STD_TORCH_CHECK(grads.dim() == 3, "mt2o_ext: ", name, " must have 3 dimensions, not ", grads.dim());
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Long && table.dim() == 3 && table.size(0) == grads.size(0) &&
                      table.size(1) == grads.size(1) && (segments < 0 || table.size(2) == segments) &&
                      (table.size(2) <= 1 || table.stride(2) == 1),
                  "mt2o_ext: addresses must be int64 [K, T, S], contiguous along S, where ", name, " are [K, T, P]");
  g.addresses = const_data<int64_t>(table);
  g.addresses_row = table.stride(0), g.addresses_task = table.stride(1);
  return g;
}
inline int64_t segments_of(const MaybeTensor& addresses) { return addresses.has_value() ? addresses->size(2) : -1; }

// Of gradients_of's addresses, on the CPU only: reading a GPU's memory would wait for it.
inline void check_addresses(const Gradients& grads, const MaybeTensor& addresses) {
  if (!addresses.has_value()) return;
  constexpr int64_t bytes = 16;
  for (int64_t k = 0; k < addresses->size(0); ++k)
    for (int64_t t = 0; t < addresses->size(1); ++t) {
      const int64_t* of = grads.addresses + k * grads.addresses_row + t * grads.addresses_task;
      for (int64_t s = 0; s < addresses->size(2); ++s)
        STD_TORCH_CHECK(of[s] % bytes == 0 || of[s] == no_gradient, "mt2o_ext: the gradient behind addresses[", k, ", ",
                        t, ", ", s, "] must begin at a multiple of ", bytes,
                        " bytes: take the address of a copy (clone)");
    }
}

}  // namespace mt2o::ops

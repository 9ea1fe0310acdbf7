// Where gradients lie: in one buffer, or each tensor of them in memory of its own (Gradients in arguments.h).
#pragma once
#include "arguments.h"

namespace mt2o {

// A column of gradient t of row k in one segment, in bytes of elements of this size; nullptr: there is no gradient.
MT2O_HD const char* gradient_bytes(const Gradients& grads, int64_t size, int64_t k, int64_t t, int64_t segment,
                                   int64_t column) {
  if (!grads.addresses)
    return static_cast<const char*>(grads.values) + (k * grads.row + t * grads.task + column) * size;
  const int64_t address = grads.addresses[k * grads.addresses_row + t * grads.addresses_task + segment];
  return address == no_gradient ? nullptr : reinterpret_cast<const char*>(address + column * size);
}
template <class G>
MT2O_HD const G* gradient_at(const Gradients& grads, int64_t k, int64_t t, int64_t segment, int64_t column) {
  return reinterpret_cast<const G*>(gradient_bytes(grads, sizeof(G), k, t, segment, column));
}

}  // namespace mt2o

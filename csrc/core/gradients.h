// Where gradients lie: in one buffer, or each tensor of them in memory of its own (Gradients in arguments.h).
#pragma once
#include "arguments.h"

namespace mt2o {

MT2O_HD bool lie_apart(const Gradients& grads) { return grads.addresses != nullptr; }

// The gradients of row k, from one column of one segment on.  apart: lie_apart(grads), known when compiling where that
// saves registers.
template <class G>
class RowGradients {
 public:
  MT2O_HD_MEMBER RowGradients(const Gradients& grads, int64_t k, int64_t segment, int64_t column, bool apart)
      : apart_(apart) {
    if (apart) {
      addresses_ = grads.addresses + k * grads.addresses_row + segment, step_ = grads.addresses_task;
      behind_ = column * int64_t(sizeof(G));
    } else {
      values_ = static_cast<const G*>(grads.values) + k * grads.row + column, step_ = grads.task;
    }
  }
  // Of task t; nullptr: there is no gradient.
  MT2O_HD_MEMBER const G* operator[](int64_t t) const {
    if (!apart_) return values_ + t * step_;
    const int64_t address = addresses_[t * step_];
    return address == no_gradient ? nullptr : reinterpret_cast<const G*>(address + behind_);
  }

 private:
  const G* values_ = nullptr;           // in the buffer; or
  const int64_t* addresses_ = nullptr;  // in the table
  int64_t step_ = 0, behind_ = 0;       // behind_: an address, in bytes
  bool apart_;
};

}  // namespace mt2o

// Which instruction set runs: the best that this processor has, or a lower one named by MT2O_CPU_ISA or
// ATEN_CPU_CAPABILITY.
#pragma once
#include <vector>

#include "kernels.h"

namespace mt2o {

std::vector<const Kernels*> supported_kernels();  // lowest level first
const Kernels&
kernels();  // chosen at the first call; throws std::runtime_error if MT2O_CPU_ISA names none of these levels

}  // namespace mt2o

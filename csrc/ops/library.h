// Which library of operators a file belongs to: the package's, or the one in which the CUDA kernels are emulated on the
// CPU for tests.
#pragma once
#include <torch/csrc/stable/library.h>

#if defined(MT2O_EMULATED)
#define MT2O_LIBRARY mt2o_ext_emulated
#define MT2O_DEVICE CPU
#else
#define MT2O_LIBRARY mt2o_ext
#define MT2O_DEVICE CUDA
#endif

// The loops of one instruction set, in a namespace of its own (MT2O_ISA).  Everything but the table is private to the
// file: the linker can then never give AVX-512 code to the default level.  So: no standard library, no inline functions
// of others.
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#include "../core/blend.h"
#include "../core/elements.h"
#include "../core/gradients.h"
#include "../core/gram.h"
#include "../core/harmony.h"
#include "../core/mask.h"
#include "../core/priority.h"
#include "../core/rules.h"
#include "kernels.h"

namespace mt2o::MT2O_ISA {
namespace {
#include "simd.h"

#include "combine.h"
#include "elements.h"
#include "finite.h"
#include "gram_blocks.h"
#include "mask.h"

#include "gram.h"
#include "priority.h"
#include "transfer.h"

#include "step_masked.h"

#include "harmony.h"

#include "step.h"
}  // namespace
extern const Kernels kernels = {MT2O_ISA_NAME, combine,          gram,  transfer, step,   mask,      harmony, finite,
                                priority_dots, priority_combine, track, feed,     excess, drop_signs};
}  // namespace mt2o::MT2O_ISA

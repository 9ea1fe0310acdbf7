#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace mt2o {

std::vector<const Kernels*> supported_kernels() {
#if defined(MT2O_ONE_ISA)  // the others are not compiled: see CMakeLists.txt
  return {&MT2O_ONE_ISA::kernels};
#else
  std::vector<const Kernels*> levels = {&isa_default::kernels};
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2) levels.push_back(&isa_avx2::kernels);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    levels.push_back(&isa_avx512::kernels);
#endif
  return levels;
#endif
}

static const Kernels* named(const std::vector<const Kernels*>& levels, const std::string& name) {
  for (const Kernels* level : levels)
    if (level->name == name) return level;
  return nullptr;
}

static const Kernels& choose() {
  const auto levels = supported_kernels();
  if (const char* name = std::getenv("MT2O_CPU_ISA")) {
    if (const Kernels* level = named(levels, name)) return *level;
    std::string known;
    for (const Kernels* level : levels) known += std::string(known.empty() ? "" : ", ") + level->name;
    throw std::runtime_error("MT2O_CPU_ISA=" + std::string(name) +
                             ": expected an instruction set of this processor: " + known);
  }
  if (const char* cap = std::getenv("ATEN_CPU_CAPABILITY"))  // torch's own switch; its other values do not concern us
    if (const Kernels* level = named(levels, cap)) return *level;
  return *levels.back();
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace mt2o

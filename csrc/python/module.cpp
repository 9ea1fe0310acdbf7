// What Python asks the compiled part, without a tensor: how it was built, which instruction set runs, how rows are laid
// out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../core/layout.h"
#include "../core/rules.h"
#include "../cpu/dispatch.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.attr("version") = MT2O_VERSION;
  m.attr("torch_version") = MT2O_TORCH_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("alignment") = mt2o::alignment;
  m.attr("max_rows") = mt2o::max_rows;
  m.attr("max_tasks") = mt2o::max_tasks;
  m.attr("num_constants") = mt2o::num_constants;
  m.attr("num_fields") = int(mt2o::num_fields);
  m.attr("moments") = std::vector<std::string>(std::begin(mt2o::moment_names), std::end(mt2o::moment_names));
  std::vector<std::pair<std::string, int>> rules;
#define MT2O_RULE(name, R) rules.emplace_back(#name, mt2o::R::moments);
  MT2O_RULES(MT2O_RULE)
#undef MT2O_RULE
  m.attr("rules") = rules;  // in the order of their numbers: name, how many of the moments
  m.def("cpu_isa", [] { return mt2o::kernels().name; }, "The instruction set that runs.");
  m.def(
      "supported_isas",
      [] {
        std::vector<std::string> names;
        for (const mt2o::Kernels* level : mt2o::supported_kernels()) names.push_back(level->name);
        return names;
      },
      "The instruction sets of this processor, lowest first.");
  m.def(
      "plan_layout",
      [](const std::vector<int64_t>& numels) {
        const mt2o::Layout layout = mt2o::plan_layout(numels);
        std::vector<std::tuple<int64_t, int64_t, int64_t>> chunks;
        for (const mt2o::Chunk& c : layout.chunks) chunks.emplace_back(c.segment, c.begin, c.end);
        return py::make_tuple(layout.offsets, layout.row, chunks);
      },
      py::arg("numels"),
      "Sizes of tensors -> (first column of each, distance between rows, chunks (segment, begin, end)).");
}

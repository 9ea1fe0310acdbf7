// The operators of mt2o_ext: what they are called and what they change.  Implementations stand beside their backend;
// the Python side (shapes for tracing, words for users, the reference) is mt2o_ext/ops.
//
//   K rows, T tasks, P columns, S segments, C chunks; rows are contiguous, a multiple of 16 elements apart.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(mt2o_ext, m) {
  m.def("combine_(Tensor(a!) out, Tensor grads, Tensor weights, Tensor chunks) -> ()");
  m.def("gram_(Tensor(a!) out, Tensor(b!) partials, Tensor rows, Tensor chunks, *, bool centre) -> ()");
  m.def("transfer_(Tensor(a!) theta, Tensor mix, Tensor chunks) -> ()");
  m.def(
      "step_(Tensor(a!) theta, Tensor(b!)? exp_avg, Tensor(c!)? exp_avg_sq, Tensor(d!)? max_exp_avg_sq, Tensor(e!)? ema, "
      "Tensor(f!)? low_precision, Tensor(g!) step, Tensor(h!) constants, Tensor grads, Tensor? weights, Tensor? mix, "
      "Tensor segments, Tensor chunks, Tensor? active, Tensor? grad_scale, Tensor? found_inf, *, int rule, int order) -> ()");
  m.def(
      "priority_(Tensor(a!) out, Tensor(b!) dots, Tensor(c!) coefficients, Tensor grads, Tensor owners, Tensor records, "
      "Tensor chunks) -> ()");
  m.def("finite_(Tensor(a!) found_inf, Tensor grads, Tensor chunks) -> ()");
}

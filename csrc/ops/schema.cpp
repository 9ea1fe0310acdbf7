// The operators of mt2o_ext: what they are called and what they change.  Implementations stand beside their backend;
// the Python side (shapes for tracing, words for users, the reference) is mt2o_ext/ops.
//
//   K rows, T tasks, P columns, S segments, C chunks; rows are contiguous, a multiple of 16 elements apart.
#include "library.h"

#define MT2O_DEFINE(library, m) STABLE_TORCH_LIBRARY(library, m)  // the name of a library is itself a macro

MT2O_DEFINE(MT2O_LIBRARY, m) {
  m.def("combine_(Tensor(a!) out, Tensor grads, Tensor weights, Tensor chunks, Tensor? addresses=None) -> ()");
  m.def(
      "gram_(Tensor(a!) out, Tensor(b!) partials, Tensor rows, Tensor? others, Tensor chunks, "
      "Tensor? addresses=None, *, bool centre, bool diagonal) -> ()");
  m.def("transfer_(Tensor(a!) theta, Tensor mix, Tensor chunks) -> ()");
  m.def(
      "step_(Tensor(a!) theta, Tensor(b!)? exp_avg, Tensor(c!)? exp_avg_sq, Tensor(d!)? max_exp_avg_sq, Tensor(e!)? ema, "
      "Tensor(f!)? low_precision, Tensor(g!) step, Tensor(h!) constants, Tensor grads, Tensor? weights, Tensor? mix, "
      "Tensor segments, Tensor chunks, Tensor? active, Tensor? grad_scale, Tensor? found_inf, Tensor? addresses=None, "
      "Tensor? masks=None, Tensor? whole=None, *, int rule, int order, bool hold=False) -> ()");
  m.def(
      "harmony_(Tensor(a!) scores, Tensor grads, Tensor values, Tensor factors, Tensor masks, Tensor? whole, "
      "Tensor chunks, Tensor? addresses=None, *, float gamma, bool magnitude, bool dense) -> ()");
  m.def(
      "exchange_(Tensor(a!) masks, Tensor(b!) counts, Tensor(c!) state, Tensor scores, Tensor chunks, *, int amount) "
      "-> ()");
  m.def("mask_(Tensor(a!) out, Tensor values, Tensor masks, Tensor? whole, Tensor chunks) -> ()");
  m.def(
      "priority_(Tensor(a!) out, Tensor(b!) dots, Tensor(c!) coefficients, Tensor grads, Tensor owners, Tensor records, "
      "Tensor chunks) -> ()");
  m.def("finite_(Tensor(a!) found_inf, Tensor grads, Tensor chunks, Tensor? addresses=None) -> ()");

  // Family `elements`: rows of J that a weighting changes, where finite bool [K] is true.
  m.def(
      "track_(Tensor(a!) grads, Tensor(b!) memory, Tensor keep, Tensor fresh, Tensor finite, Tensor chunks, *, "
      "bool shown) -> ()");
  m.def(
      "feed_(Tensor(a!) grads, Tensor(b!) last, Tensor memory, Tensor weights, Tensor now, Tensor before, "
      "Tensor finite, Tensor chunks, *, float beta) -> ()");
  m.def(
      "excess_(Tensor(a!) out, Tensor(b!) partials, Tensor(c!) squares, Tensor grads, Tensor finite, Tensor chunks) "
      "-> ()");
  m.def("drop_signs_(Tensor(a!) grads, Tensor key, Tensor finite, Tensor chunks, *, int stream, float leak) -> ()");

  m.def("draw_(Tensor(a!) out, Tensor key, Tensor[] ids, *, int stream) -> ()");

  // Family `judge`: flags bool [2, K]; with scalars the losses are gathered from them.
  m.def(
      "judge_(Tensor(a!) found, Tensor(b!) flags, Tensor(c!)? losses, Tensor(d!)? sums, Tensor(e!)? filled, "
      "Tensor(f!)? usable_losses, Tensor(g!)? largest, Tensor[] scalars, Tensor? grams, Tensor? factor, "
      "Tensor? before, Tensor? outside, *, float limit, bool together) -> ()");
  m.def(
      "settle_(Tensor(a!) weights, Tensor(b!) applied, Tensor(c!) flags, Tensor(d!) refusals, Tensor(e!) found, "
      "Tensor(f!)? losses, Tensor raw, Tensor[] scalars, Tensor? judged, Tensor? before, Tensor? outside, "
      "Tensor? largest, *, int tasks, float limit, int offset, float divisor=1.0) -> ()");
  m.def(
      "count_(Tensor(a!) counts, Tensor(b!)? table, Tensor found, Tensor? refusals, Tensor? weights, Tensor? finite, "
      "*, int offset, bool together, bool expected) -> ()");

  // Family `solve`: float64, gram [K, T, T]; workspace [K, >= solve_workspace(T)] is scratch.
  m.def("minimum_norm_(Tensor(a!) weights, Tensor(b!) workspace, Tensor gram, Tensor? linear) -> ()");
  m.def(
      "conflict_averse_(Tensor(a!) weights, Tensor(b!) workspace, Tensor gram, Tensor preferences, *, float radius, "
      "float rtol) -> ()");
  m.def(
      "power_barrier_(Tensor(a!) weights, Tensor(b!) residual, Tensor(c!) workspace, Tensor gram, Tensor target, *, "
      "float power, float rtol) -> ()");
  m.def("dual_cone_(Tensor(a!) weights, Tensor(b!) workspace, Tensor gram, Tensor lower, *, float rtol) -> ()");
  m.def("eigen_(Tensor(a!) values, Tensor(b!) vectors, Tensor(c!) workspace, Tensor gram) -> ()");
  m.def(
      "project_(Tensor(a!) weights, Tensor(b!)? targets, Tensor(c!) workspace, Tensor gram, Tensor order, *, "
      "float decay, float rtol) -> ()");
  m.def(
      "descent_(Tensor(a!) weights, Tensor(b!) workspace, Tensor gram, Tensor losses, Tensor rays, *, float tolerance, "
      "bool relax) -> ()");
}

#include "priority.h"

#include <numeric>
#include <vector>

#include "../cpu/dispatch.h"

namespace mt2o::ops {
namespace {

// A range of chunks and what is to be done with it.  Whole layers go through both sweeps at once, the second from the
// cache; of a layer that is too large a share of the model for one thread, the products come before and in parallel.
struct Work {
  int64_t first, last, layer, cost;
  bool whole;
};

struct Plan {
  std::vector<Work> split;  // layers whose products are found first
  std::vector<Work> work;
};

int64_t columns_of(const Priority& s, int64_t first, int64_t last) {
  int64_t columns = 0;
  for (int64_t c = first; c < last; ++c) columns += s.chunks[c].end - s.chunks[c].begin;
  return columns;
}

Plan plan(const PriorityArguments& all, int64_t threads) {
  const Priority& s = all.s;
  const int64_t largest = columns_of(s, 0, all.num_chunks) / (4 * threads) + 1;
  Plan plan;
  for (int64_t first = 0, last; first < all.num_chunks; first = last) {
    const auto layer_of = [&](int64_t c) { return s.records[s.chunks[c].segment].layer; };
    const int64_t layer = layer_of(first);
    for (last = first; last < all.num_chunks && layer_of(last) == layer;) ++last;
    const int64_t columns = columns_of(s, first, last);
    if (layer >= 0 && (threads == 1 || columns <= largest)) {
      plan.work.push_back({first, last, layer, 2 * columns, true});
      continue;
    }
    if (layer >= 0) plan.split.push_back({first, last, layer, columns, false});
    for (int64_t c = first; c < last; ++c) plan.work.push_back({c, c + 1, layer, columns_of(s, c, c + 1), false});
  }
  return plan;
}

// The most expensive first, each to the thread that has least to do.
std::vector<std::vector<Work>> shared_out(std::vector<Work> work, int64_t threads) {
  std::stable_sort(work.begin(), work.end(), [](const Work& a, const Work& b) { return a.cost > b.cost; });
  std::vector<std::vector<Work>> shares(threads);
  std::vector<int64_t> costs(threads, 0);
  for (const Work& item : work) {
    const auto least_busy = std::min_element(costs.begin(), costs.end()) - costs.begin();
    shares[least_busy].push_back(item);
    costs[least_busy] += item.cost;
  }
  return shares;
}

void find_coefficients(const Priority& s, const Work& layer) {
  for (int64_t owner = 0; owner < s.tasks; ++owner)
    s.coefficients[layer.layer * s.tasks + owner] = layer_coefficient(s, owner, layer.first, layer.last);
}

}  // namespace

void priority_(Tensor out, Tensor dots, Tensor coefficients, Tensor grads, Tensor owners, Tensor records,
               Tensor chunks) {
  const Kernels& level = kernels();
  const PriorityArguments all = priority_arguments(out, dots, coefficients, grads, owners, records, chunks);
  check_tables(all, grads.size(1), owners.size(0), records.size(0));
  const Priority& s = all.s;
  std::fill(s.coefficients, s.coefficients + all.layers * s.tasks, 0.);  // also of layers without columns
  const int64_t columns = columns_of(s, 0, all.num_chunks);
  const int64_t threads = std::clamp<int64_t>(columns / 8192, 1, torch::stable::get_num_threads());
  const Plan todo = plan(all, threads);
  if (!todo.split.empty()) {
    std::vector<int64_t> chunks_of_split;
    for (const Work& layer : todo.split)
      for (int64_t c = layer.first; c < layer.last; ++c) chunks_of_split.push_back(c);
    torch::stable::parallel_for(0, int64_t(chunks_of_split.size()), 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) level.priority_dots(s, chunks_of_split[i], chunks_of_split[i] + 1);
    });
    for (const Work& layer : todo.split) find_coefficients(s, layer);
  }
  const auto shares = shared_out(todo.work, threads);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t share = first; share < last; ++share)
      for (const Work& item : shares[share]) {
        if (item.whole) {
          level.priority_dots(s, item.first, item.last);
          find_coefficients(s, item);
        }
        level.priority_combine(s, item.first, item.last);
      }
  });
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) { m.impl("priority_", TORCH_BOX(&mt2o::ops::priority_)); }

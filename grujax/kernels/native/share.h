// Divides a call among threads. All numbers were measured on two cores (docs/decisions/native-kernel.md).
#pragma once
#include "call.h"
#include "threads.h"

constexpr double ALONE_BELOW = 2e6;  // with fewer multiplications, waking a helper costs more than it saves
constexpr long CACHE = 1 << 20;      // bytes of weights that fit into a core's own cache together with its rows
constexpr long FEW_ROWS = 8;         // from this many rows per worker on, each worker takes rows for all steps

inline long workers_for(const xla::ffi::ThreadPool& pool, double multiplications) {
  return multiplications < ALONE_BELOW ? 1 : std::max<long>(1, pool.num_threads());
}

// Divided by rows, an item is some rows of one direction, for all steps, without a barrier. Otherwise it is some hidden
// units of one direction, for one step, followed by a barrier: each core then reads its own weights from its own cache.
struct Share {
  bool by_rows;
  long workers, blocks = 1;  // blocks: items of a direction, if by_rows
  std::vector<std::vector<std::vector<int>>> rows;  // by direction and item

  template <class Call> Share(const std::vector<Call>& calls, long workers, long weight_bytes) : workers(workers) {
    const Call& c = calls[0];
    const long D = calls.size();
    by_rows = workers == 1 || D % workers == 0 || (D * c.B >= FEW_ROWS * workers && weight_bytes <= CACHE);
    if (by_rows && c.B) {
      const long share = std::min(c.B, (c.B * D + workers - 1) / workers);
      blocks = (c.B + share - 1) / share * ((share + BLOCK - 1) / BLOCK);  // the same number for each worker
    }
    for (const Call& call : calls) rows.push_back(rows_of(call));
  }

 private:
  // With `valid`, deals the rows to the items, those with the most valid steps first, in alternating order (first to last
  // item, then last to first), so that the items have about equal work.
  template <class Call> std::vector<std::vector<int>> rows_of(const Call& c) const {
    std::vector<int> order(c.B), steps(c.B);
    for (long b = 0; b < c.B; b++) order[b] = b;
    if (c.valid && by_rows) {
      for (long t = 0; t < c.T; t++)
        for (long b = 0; b < c.B; b++) steps[b] += c.valid[t * c.B + b];
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return steps[a] > steps[b]; });
    }
    std::vector<std::vector<int>> of_items(blocks);
    for (long i = 0; i < c.B; i++) {
      const long turn = i / blocks % 2 ? blocks - 1 - i % blocks : i % blocks;
      of_items[c.valid ? turn : i * blocks / c.B].push_back(order[i]);
    }
    return of_items;
  }
};

// Work that the threads of XLA's pool share: epochs of items, with a barrier after each epoch.
#pragma once
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

struct Work {
  long epochs = 0;
  virtual long items(long epoch) const = 0;  // 0: the epoch is skipped
  virtual void run(long epoch, long item, long worker) = 0;
};

// The caller can do all the work alone, so nothing waits for a thread that has not started: a busy pool cannot cause a
// deadlock. A helper is a task in the pool and joins when it starts. Each worker begins with its own share of the items,
// whose rows and weights are in its cache, and then takes items that the others have not begun. The worker that finishes
// the last item of an epoch opens the next epoch.
class Shared {
  struct alignas(64) Line { std::atomic<long> value{0}; };
  Work* work_;  // destroyed when the caller returns, after all epochs: a late helper must not touch it outside an item
  long workers_, caller_;
  std::vector<int> items_;  // the number of items of each epoch
  Line epoch_, left_;
  std::unique_ptr<Line[]> taken_;  // for each item, 1 + the last epoch in which it was taken

  void open(long epoch) {
    while (epoch < long(items_.size()) && !items_[epoch]) epoch++;
    left_.value.store(epoch < long(items_.size()) ? items_[epoch] : 0, std::memory_order_relaxed);
    epoch_.value.store(epoch, std::memory_order_release);
  }
  bool take(long item, long epoch) {
    long seen = taken_[item].value.load(std::memory_order_relaxed);
    return seen <= epoch && taken_[item].value.compare_exchange_strong(seen, epoch + 1, std::memory_order_acquire);
  }
  static void pause(int& spins) {
    if (++spins > 2000) sched_yield(), spins = 1000;  // the thread that it waits for may need this processor
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

 public:
  Shared(Work* work, long workers) : work_(work), workers_(workers), caller_(cpu()), items_(work->epochs) {
    long most = 0;
    for (long e = 0; e < work->epochs; e++) most = std::max<long>(most, items_[e] = work->items(e));
    taken_.reset(new Line[most]);
    open(0);
  }
  void run(long worker) {
    int spins = 0;
    for (long epoch; (epoch = epoch_.value.load(std::memory_order_acquire)) < long(items_.size());) {
      const long items = items_[epoch], own = worker * items / workers_;
      bool ran = false, last = false;
      for (long i = 0; i < items && !last; i++) {
        const long item = own + i < items ? own + i : own + i - items;
        if (!take(item, epoch)) continue;
        work_->run(epoch, item, worker);
        ran = true, last = left_.value.fetch_sub(1, std::memory_order_acq_rel) == 1;
      }
      if (last) open(epoch + 1);
      if (ran) spins = 0;
      else pause(spins);
    }
  }
  static int cpu() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
  }
  // Linux may wake a helper on the caller's processor, where it waits for a timer tick (up to 4 ms, as long as a whole
  // small call) while another processor is idle. Therefore the caller yields once after it has woken the helpers, and a
  // helper that finds itself on the caller's processor moves to another.
  void leave_caller() const {
#if defined(__linux__)
    cpu_set_t all, others;
    if (sched_getcpu() != caller_ || sched_getaffinity(0, sizeof all, &all)) return;
    others = all;
    CPU_CLR(caller_, &others);
    if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others)) sched_setaffinity(0, sizeof all, &all);
#endif
  }
};

// XLA's queue passes a task on under locks that the thread sanitizer does not see. So the accesses to the data of the task
// are ordered once more: by its last member on the caller's side, and by its first line on the helper's side.
inline std::atomic<int> passed_on;
struct PassedOn {
  PassedOn() = default;
  PassedOn(const PassedOn&) { passed_on.fetch_add(1, std::memory_order_release); }
};

inline void execute(xla::ffi::ThreadPool& pool, Work& work, long workers) {
  auto shared = std::make_shared<Shared>(&work, workers);
  for (long w = 1; w < workers; w++)
    pool.Schedule([shared, w, last = PassedOn()] {
      passed_on.load(std::memory_order_acquire);
      shared->leave_caller();
      shared->run(w);
    });
  if (workers > 1) sched_yield();
  shared->run(0);
}

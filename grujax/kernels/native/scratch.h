// The working memory of a call, kept from call to call, because fresh pages cost more than the work on them.
#pragma once
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

constexpr size_t HUGE_PAGE = size_t(1) << 21;

// Requests huge pages, so that the first write to a large array faults once per 2 MiB, not once per 4 KiB.
inline void ask_for_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  const uintptr_t from = ((uintptr_t)memory + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1), to = ((uintptr_t)memory + bytes) & ~(HUGE_PAGE - 1);
  if (from < to) madvise((void*)from, to - from, MADV_HUGEPAGE);
#endif
}

class Scratch {
  struct Free { void operator()(char* memory) const { free(memory); } };
  struct Block { std::unique_ptr<char, Free> memory; size_t size = 0; };
  struct Blocks { std::vector<Block> all; };
  static std::mutex& mutex() { static std::mutex m; return m; }
  static std::vector<Blocks>& kept() { static auto* k = new std::vector<Blocks>; return *k; }  // never destroyed
  Blocks blocks_;
  size_t used_ = 0;  // bytes used of the last block

  void add(size_t size) {
    size = (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    char* memory = (char*)aligned_alloc(HUGE_PAGE, size);
    if (!memory) throw std::bad_alloc();
    ask_for_huge_pages(memory, size);
    blocks_.all.push_back({std::unique_ptr<char, Free>(memory), size});
    used_ = 0;
  }

 public:
  Scratch() {
    std::lock_guard<std::mutex> lock(mutex());
    if (!kept().empty()) blocks_ = std::move(kept().back()), kept().pop_back();
  }
  ~Scratch() {  // keeps as many as calls ran at the same time, each as one block
    if (blocks_.all.size() > 1) {
      size_t size = 0;
      for (auto& block : blocks_.all) size += block.size;
      blocks_.all.clear();
      try { add(size); } catch (const std::bad_alloc&) { return; }
    }
    std::lock_guard<std::mutex> lock(mutex());
    kept().push_back(std::move(blocks_));
  }
  template <class T> T* take(long n) {
    const size_t bytes = (n * sizeof(T) + 63) / 64 * 64;
    if (blocks_.all.empty() || used_ + bytes > blocks_.all.back().size) add(bytes);
    T* p = (T*)(blocks_.all.back().memory.get() + used_);
    used_ += bytes;
    return p;
  }
};

// What is kept for every word of memory, or for every byte of words that kernels take apart.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace oes::emulation::races {

enum Readers : uint8_t { kOneThread, kLanesOfAWarp, kWarpsOfABlock, kBlocks };
enum Flags : uint8_t {
  kSplit = 1, // the cells of the four bytes count
  kUnwritten = 2,
  kRed = 4,
  kReleased = 8,
  kCounter = 16, // target of atomics
};

struct Cell {
  uint32_t written = 0, read = 0; // when, last; 0 for never
  uint16_t writer = 0, reader = 0; // threads of their blocks
  Readers readers = kOneThread;
  uint8_t flags = 0;
};

constexpr size_t kPageBytes = 4096;

struct Page {
  std::array<Cell, kPageBytes / 4> words;
  std::unique_ptr<std::array<Cell, kPageBytes>> bytes; // where there are split words
};

// Calls visit(cell, address) for the cells of a range; words are split where the range covers them in part.
template <typename CellOf, typename Split, typename Visit>
inline void visit_cells(uintptr_t address, size_t bytes, CellOf word_of, Split bytes_of, Visit visit) {
  for (uintptr_t at = address, end = address + bytes; at < end;) {
    Cell& word = word_of(at);
    if (!(word.flags & kSplit) && at % 4 == 0 && end - at >= 4) {
      visit(word, at, 4);
      at += 4;
      continue;
    }
    Cell* parts = bytes_of(at & ~uintptr_t{3});
    if (!(word.flags & kSplit)) {
      for (int i = 0; i < 4; ++i) {
        parts[i] = word;
      }
      word.flags |= kSplit;
    }
    const uintptr_t next = (at & ~uintptr_t{3}) + 4;
    for (; at < end && at < next; ++at) {
      visit(parts[at % 4], at, 1);
    }
  }
}

// The cells of all memory that was ever touched.
class Pages {
 public:
  template <typename Visit>
  void visit(uintptr_t address, size_t bytes, Visit visitor) {
    visit_cells(
        address, bytes, [&](uintptr_t at) -> Cell& { return page(at).words[at % kPageBytes / 4]; },
        [&](uintptr_t at) -> Cell* {
          Page& p = page(at);
          if (!p.bytes) {
            p.bytes = std::make_unique<std::array<Cell, kPageBytes>>();
          }
          return &(*p.bytes)[at % kPageBytes];
        },
        visitor);
  }

  Page& page(uintptr_t address) {
    const uintptr_t number = address / kPageBytes;
    Recent& recent = recent_[number % recent_.size()];
    if (recent.number != number) {
      recent = {number, &find(number)};
    }
    return *recent.page;
  }

  // Drops what is only of interest within a launch, if it has become much; all times, if asked to.
  void clean(bool all_times);

 private:
  struct Recent {
    uintptr_t number = 0;
    Page* page = nullptr;
  };

  Page& find(uintptr_t number);

  std::array<Recent, 1024> recent_;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
};

} // namespace oes::emulation::races

#include "shadow.h"

namespace oes::emulation::races {
namespace {

constexpr size_t kManyPages = 16384; // 64 MB of memory, 256 of cells

constexpr uint8_t kLasting = kUnwritten | kRed | kReleased;

template <typename Cells>
bool lasting(const Cells& cells) {
  for (const Cell& cell : cells) {
    if (cell.flags & kLasting) {
      return true;
    }
  }
  return false;
}

template <typename Cells>
void forget_times(Cells& cells) {
  for (Cell& cell : cells) {
    cell.written = cell.read = 0;
  }
}

} // namespace

Page& Pages::find(uintptr_t number) {
  std::unique_ptr<Page>& page = pages_[number];
  if (!page) {
    page = std::make_unique<Page>();
  }
  return *page;
}

void Pages::clean(bool all_times) {
  if (pages_.size() > kManyPages) {
    std::erase_if(pages_, [](const auto& entry) {
      const Page& page = *entry.second;
      return !lasting(page.words) && !(page.bytes && lasting(*page.bytes));
    });
    recent_.fill({});
  }
  if (all_times) {
    for (auto& [number, page] : pages_) {
      forget_times(page->words);
      if (page->bytes) {
        forget_times(*page->bytes);
      }
    }
  }
}

} // namespace oes::emulation::races

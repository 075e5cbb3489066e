#include "cpu/core/border.h"

namespace oes {
namespace {

// Which row or column of an image of that size stands at `at`; -1: none.
int64_t shown_at(Padding padding, int64_t at, int64_t size) {
  if (at >= 0 && at < size) {
    return at;
  }
  switch (padding) {
    case Padding::kReflect:
      return at < 0 ? -at : 2 * size - 2 - at;
    case Padding::kReplicate:
      return at < 0 ? 0 : size - 1;
    case Padding::kCircular:
      return at < 0 ? at + size : at - size;
    case Padding::kZeros:
      break;
  }
  return -1;
}

} // namespace

Border make_border(
    Padding padding, int64_t rows, int64_t columns, int64_t left, int64_t right, int64_t top, int64_t bottom) {
  Border b;
  b.top = top;
  b.left = left;
  b.row_first.assign(rows + 1, 0);
  for (int64_t i = -top; i < rows + bottom; ++i) {
    b.rows.push_back(static_cast<int32_t>(shown_at(padding, i, rows)));
  }
  for (int64_t j = -left; j < columns + right; ++j) {
    b.columns.push_back(static_cast<int32_t>(shown_at(padding, j, columns)));
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (size_t at = 0; at < b.rows.size(); ++at) {
      if (b.rows[at] == i) {
        b.row_list.push_back(static_cast<int32_t>(at));
      }
    }
    b.row_first[i + 1] = static_cast<int32_t>(b.row_list.size());
  }
  return b;
}

} // namespace oes

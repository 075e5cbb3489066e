// The border that an image is continued with: which of its rows and columns stand where, and rows with it.
#pragma once

#include <cstdint>
#include <vector>

#include "common/enums.h"
#include "cpu/core/simd.h"

namespace oes {

// Which row or column of the image stands in each row and column of the bordered one; -1: zero.
struct Border {
  std::vector<int32_t> rows, columns;
  int64_t top = 0, left = 0;
  // The inverse: bordered rows that show row i are row_list[row_first[i]] .. row_list[row_first[i + 1]].
  std::vector<int32_t> row_first, row_list;

  int64_t high() const { // of the bordered image
    return static_cast<int64_t>(rows.size());
  }
  int64_t wide() const {
    return static_cast<int64_t>(columns.size());
  }
};

Border make_border(
    Padding padding, int64_t rows, int64_t columns, int64_t left, int64_t right, int64_t top, int64_t bottom);

// Writes the border of a bordered row that holds the `columns` pixels of the image from to + border.left on.
template <typename T>
OES_INLINE void extend_row(const Border& border, int64_t columns, T* __restrict to) {
  const int64_t wide = border.wide(), left = border.left;
  for (int64_t j = 0; j < left; ++j) {
    const int32_t column = border.columns[j];
    to[j] = column < 0 ? T(0) : to[left + column];
  }
  for (int64_t j = left + columns; j < wide; ++j) {
    const int32_t column = border.columns[j];
    to[j] = column < 0 ? T(0) : to[left + column];
  }
}

// The derivative: gradients of the `columns` pixels of a row from those of the bordered one.
template <typename T>
OES_INLINE void fold_row(const Border& border, int64_t columns, const T* __restrict from, T* __restrict grad) {
  const int64_t wide = border.wide(), left = border.left;
  for (int64_t j = 0; j < columns; ++j) {
    grad[j] = from[left + j];
  }
  for (int64_t j = 0; j < wide; ++j) {
    if (j == left) {
      j += columns;
      if (j >= wide) {
        break;
      }
    }
    if (border.columns[j] >= 0) {
      grad[border.columns[j]] += from[j];
    }
  }
}

} // namespace oes

// The loops of SourceLayout, included once for each instruction set: see isa_variants.h.

// Row `row` of the bordered, summed image. `image` begins with row `first` of it.
template <typename T>
OES_INLINE void source_row(
    const Border& border, int64_t columns, bool box, const T* image, int64_t first, int64_t row, T* __restrict line,
    T* __restrict sums) {
  const int64_t wide = border.wide();
  const int64_t upper = border.rows[row];
  const int64_t lower = box ? border.rows[row + 1] : -1;
  if (!box) {
    if (upper < 0) {
      std::fill(line, line + wide, T(0));
      return;
    }
    std::copy_n(image + (upper - first) * columns, columns, line + border.left);
    extend_row(border, columns, line);
    return;
  }
  // Of two rows first, then of two columns, as PyTorch's operations have it.
  T* __restrict inside = sums + border.left;
  const T* a = image + (upper - first) * columns;
  const T* b = image + (lower - first) * columns;
  if (upper >= 0 && lower >= 0) {
    for (int64_t j = 0; j < columns; ++j) {
      inside[j] = a[j] + b[j];
    }
  } else if (upper >= 0 || lower >= 0) {
    std::copy_n(upper >= 0 ? a : b, columns, inside);
  } else {
    std::fill(inside, inside + columns, T(0));
  }
  extend_row(border, columns, sums);
  for (int64_t j = 0; j + 1 < wide; ++j) {
    line[j] = sums[j] + sums[j + 1];
  }
}

template <typename Arguments>
OES_TARGET void source_rows(const Arguments& a, int64_t first_row, int64_t last_row) {
  using T = std::remove_reference_t<decltype(*a.planes)>;
  T *line = a.lines, *sums = a.lines + a.border->wide() + 1;
  for (int64_t i = first_row; i < last_row; ++i) {
    T* even_rows = a.planes + i * a.row_step;
    if (!a.phases) {
      source_row(*a.border, a.columns, a.box, a.image, a.first, i, line, sums);
      std::copy_n(line, a.wide, even_rows);
      continue;
    }
    for (int64_t odd = 0; odd < 2; ++odd) {
      const int64_t row = 2 * i + odd;
      T* even = even_rows + 2 * odd * a.plane_step;
      if (row >= a.high) { // beyond the edge of odd sizes
        std::fill(even, even + a.plane_columns, T(0));
        std::fill(even + a.plane_step, even + a.plane_step + a.plane_columns, T(0));
        continue;
      }
      source_row(*a.border, a.columns, a.box, a.image, a.first, row, line, sums);
      unshuffle_row(line, a.wide, even, even + a.plane_step);
    }
  }
}

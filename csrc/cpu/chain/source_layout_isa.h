// The loops of SourceLayout, included once for each instruction set: see isa_variants.h.

// Calls set(j, column) for bordered columns: in order for those of the run, in which `column` goes up by one.
template <typename F>
OES_INLINE void for_columns(const int64_t* columns, int64_t wide, int64_t run_first, int64_t run_last, const F& set) {
  for (int64_t j = 0; j < run_first; ++j) {
    set(j, columns[j]);
  }
  const int64_t shift = run_first < run_last ? columns[run_first] - run_first : 0;
  for (int64_t j = run_first; j < run_last; ++j) {
    set(j, j + shift);
  }
  for (int64_t j = run_last; j < wide; ++j) {
    set(j, columns[j]);
  }
}

// Row `row` of the bordered, summed image. `sums` is memory for a bordered row.
template <typename Arguments, typename T>
OES_INLINE void source_row(const Arguments& a, int64_t row, T* __restrict line, T* __restrict sums) {
  const int64_t upper = a.rows[row], lower = a.box ? a.rows[row + 1] : -1;
  const T* first = a.image + (upper - a.first) * a.image_columns;
  const T* second = a.image + (lower - a.first) * a.image_columns;
  T* __restrict to = a.box ? sums : line;
  if (upper >= 0 && lower >= 0) {
    // Of two rows first, then of two columns, as PyTorch's operations have it.
    for_columns(a.columns, a.bordered, a.run_first, a.run_last, [&](int64_t j, int64_t column) {
      to[j] = column < 0 ? T(0) : first[column] + second[column];
    });
  } else if (upper >= 0 || lower >= 0) {
    const T* one = upper >= 0 ? first : second;
    for_columns(a.columns, a.bordered, a.run_first, a.run_last, [&](int64_t j, int64_t column) {
      to[j] = column < 0 ? T(0) : one[column];
    });
  } else {
    std::fill(to, to + a.bordered, T(0));
  }
  if (a.box) {
    for (int64_t j = 0; j + 1 < a.bordered; ++j) {
      line[j] = sums[j] + sums[j + 1];
    }
  }
}

template <typename Arguments>
OES_TARGET void source_rows(const Arguments& a, int64_t first_row, int64_t last_row) {
  using T = std::remove_reference_t<decltype(*a.planes)>;
  T *line = a.lines, *sums = a.lines + a.bordered + 1;
  for (int64_t i = first_row; i < last_row; ++i) {
    T* even_rows = a.planes + i * a.row_step;
    if (!a.phases) {
      source_row(a, i, line, sums);
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
      source_row(a, row, line, sums);
      unshuffle_row(line, a.wide, even, even + a.plane_step);
    }
  }
}

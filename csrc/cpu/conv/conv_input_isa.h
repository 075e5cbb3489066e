// The loops of conv_input, included once for each instruction set: see isa_variants.h.

template <typename T>
OES_INLINE void bordered_row(const ConvInput<T>& a, int64_t channel, int64_t row, T* __restrict to) {
  const int64_t from = a.border->rows[row];
  if (from < 0) {
    for (int64_t j = 0; j < a.border->wide(); ++j) {
      to[j] = T(0);
    }
    return;
  }
  norm::prologue_row(
      a.image + (channel * a.rows + from) * a.columns, a.prologue, channel, a.columns, to + a.border->left);
  extend_row(*a.border, a.columns, to);
}

template <typename T>
OES_INLINE void box_row(const T* __restrict upper, const T* __restrict lower, int64_t count, T* __restrict to) {
  for (int64_t j = 0; j < count; ++j) {
    to[j] = (upper[j] + upper[j + 1]) + (lower[j] + lower[j + 1]);
  }
}

template <typename T>
OES_INLINE void shuffle_row(const T* __restrict even, const T* __restrict odd, int64_t count, T* __restrict to) {
  const int64_t pairs = count / 2;
  for (int64_t j = 0; j < pairs; ++j) {
    to[2 * j] = even[j];
    to[2 * j + 1] = odd[j];
  }
  if (count % 2 != 0) {
    to[count - 1] = even[pairs];
  }
}

template <typename Arguments>
OES_TARGET void conv_input(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.planes)>;
  const int64_t high = a.high(), wide = a.wide(), plane_rows = a.plane_rows(), plane_columns = a.plane_columns();
  const int64_t line = wide + 1;
  T* upper = workspace<T>(3 * line);
  T* lower = upper + line;
  T* summed = lower + line;
  for (int64_t strip = begin; strip < end; ++strip) {
    const int64_t c = strip / a.strips, first = strip % a.strips * kStripRows;
    const int64_t last = std::min(first + kStripRows, a.unshuffle ? 2 * plane_rows : high);
    T* planes = a.planes + c * a.plane_size();
    bool have = false; // `lower` holds the row above the next
    for (int64_t row = first; row < last; ++row) {
      T* to =
          a.unshuffle ? planes + ((row % 2) * 2 * plane_rows + row / 2) * plane_columns : planes + row * plane_columns;
      T* to_odd = to + plane_rows * plane_columns;
      if (row >= high) { // beyond the edge of odd sizes
        std::fill(to, to + plane_columns, T(0));
        std::fill(to_odd, to_odd + plane_columns, T(0));
        continue;
      }
      if (!a.box && !a.unshuffle) {
        bordered_row(a, c, row, to);
        continue;
      }
      const T* result = summed;
      if (a.box) {
        if (!have) {
          bordered_row(a, c, row, lower);
          have = true;
        }
        std::swap(upper, lower);
        bordered_row(a, c, row + 1, lower);
        if (!a.unshuffle) {
          box_row(upper, lower, wide, to);
          continue;
        }
        box_row(upper, lower, wide, summed);
      } else {
        bordered_row(a, c, row, upper);
        result = upper;
      }
      unshuffle_row(result, wide, to, to_odd);
    }
  }
}

template <typename Arguments>
OES_TARGET void conv_input_backward(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.grad_image)>;
  const int64_t high = a.high(), wide = a.wide(), plane_rows = a.plane_rows(), plane_columns = a.plane_columns();
  const int64_t full = a.border->wide();
  T* sum = workspace<T>(2 * (full + 1));
  T* line = sum + full + 1;
  for (int64_t strip = begin; strip < end; ++strip) {
    const int64_t c = strip / a.strips, first = strip % a.strips * kStripRows;
    const int64_t last = std::min(first + kStripRows, a.rows);
    const T* planes = a.grad_planes + c * a.plane_size();
    for (int64_t i = first; i < last; ++i) {
      std::fill(sum, sum + full, T(0));
      for (int32_t at = a.border->row_first[i]; at < a.border->row_first[i + 1]; ++at) {
        const int64_t bordered = a.border->row_list[at];
        for (int64_t row = a.box ? bordered - 1 : bordered; row <= bordered; ++row) {
          if (row < 0 || row >= high) {
            continue;
          }
          const T* __restrict from = planes + row * plane_columns;
          if (a.unshuffle) {
            const T* even = planes + ((row % 2) * 2 * plane_rows + row / 2) * plane_columns;
            shuffle_row(even, even + plane_rows * plane_columns, wide, line);
            from = line;
          }
          for (int64_t j = 0; j < wide; ++j) {
            sum[j] += from[j];
          }
        }
      }
      T* __restrict to = line;
      if (a.box) { // each pixel went into two sums along its row
        to[0] = sum[0];
        for (int64_t j = 1; j < wide; ++j) {
          to[j] = sum[j] + sum[j - 1];
        }
        to[wide] = sum[wide - 1];
      } else {
        std::copy(sum, sum + full, to);
      }
      fold_row(*a.border, a.columns, to, a.grad_image + (c * a.rows + i) * a.columns);
    }
  }
}

template <typename Arguments>
OES_TARGET void padded_grad(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.out)>;
  for (int64_t p = begin; p < end; ++p) {
    T* to = a.out + p * a.high * a.pitch;
    std::fill(to, to + a.top * a.pitch, T(0));
    for (int64_t i = 0; i < a.rows; ++i) {
      T* row = to + (a.top + i) * a.pitch;
      const int64_t from = (p * a.rows + i) * a.columns;
      std::fill(row, row + a.left, T(0));
      if (a.grad.y == nullptr) {
        std::memcpy(row + a.left, a.grad.grad + from, a.columns * sizeof(T));
      } else {
        norm::prologue_grad_row(a.grad, p, from, a.columns, row + a.left);
      }
      std::fill(row + a.left + a.columns, row + a.pitch, T(0));
    }
    std::fill(to + (a.top + a.rows) * a.pitch, to + a.high * a.pitch + (p + 1 == a.planes ? a.slack : 0), T(0));
  }
}

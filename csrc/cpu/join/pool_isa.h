// The loops of poolings, after those of join_images_isa.h, which includes them.

// Windows of the result that have a column `column` of theirs inside the image.
template <typename A>
OES_INLINE int64_t windows_with(const A& a, int64_t column) {
  const int64_t all = (a.columns - column + a.stride_columns - 1) / a.stride_columns;
  return all < a.out_columns ? all : a.out_columns;
}

template <typename T>
OES_INLINE void larger(
    const T* __restrict from, int64_t stride, int64_t count, int32_t at, T* __restrict best,
    int32_t* __restrict place) {
  for (int64_t j = 0; j < count; ++j) {
    const T value = from[j * stride];
    const bool takes = value > best[j] || value != value; // as PyTorch: the first of equals, and NaN in any case
    best[j] = takes ? value : best[j];
    place[j] = takes ? at : place[j];
  }
}

template <typename Arguments>
OES_TARGET void max_pool(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.out)>;
  T* line = workspace<T>(a.columns);
  int32_t* place = workspace<int32_t>(a.out_columns);
  each_row(a.out_rows, begin, end, [&](int64_t o, int64_t i) OES_LAMBDA {
    T* best = a.out + (o * a.out_rows + i) * a.out_columns;
    const int64_t first = i * a.stride_rows;
    for (int64_t u = 0; u < a.window_rows && first + u < a.rows; ++u) {
      mapped_row(a, a.channel[o], first + u, line);
      for (int64_t v = 0; v < a.window_columns; ++v) {
        const int64_t count = windows_with(a, v);
        if (u == 0 && v == 0) {
          for (int64_t j = 0; j < count; ++j) {
            best[j] = line[j * a.stride_columns];
            place[j] = 0;
          }
        } else if (a.stride_columns == 2) {
          larger(line + v, 2, count, static_cast<int32_t>(u * a.window_columns + v), best, place);
        } else {
          larger(line + v, a.stride_columns, count, static_cast<int32_t>(u * a.window_columns + v), best, place);
        }
      }
    }
    uint8_t* to = a.place + (o * a.out_rows + i) * a.out_columns;
    for (int64_t j = 0; j < a.out_columns; ++j) {
      to[j] = static_cast<uint8_t>(place[j]);
    }
  });
}

template <typename Arguments>
OES_TARGET void average_pool(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.out)>;
  T* line = workspace<T>(a.columns);
  each_row(a.out_rows, begin, end, [&](int64_t o, int64_t i) OES_LAMBDA {
    T* to = a.out + (o * a.out_rows + i) * a.out_columns;
    const int64_t first = i * a.stride_rows;
    const int64_t high = first + a.window_rows < a.rows ? a.window_rows : a.rows - first;
    std::fill(to, to + a.out_columns, T(0));
    for (int64_t u = 0; u < high; ++u) {
      mapped_row(a, a.channel[o], first + u, line);
      for (int64_t v = 0; v < a.window_columns; ++v) {
        for (int64_t j = 0; j < windows_with(a, v); ++j) {
          to[j] += line[j * a.stride_columns + v];
        }
      }
    }
    for (int64_t j = 0; j < a.out_columns; ++j) {
      const int64_t left = a.columns - j * a.stride_columns;
      to[j] /= static_cast<T>(high * (a.window_columns < left ? a.window_columns : left));
    }
  });
}

template <typename Arguments>
OES_TARGET void pool_grad(const Arguments& a, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) {
    auto* to = a.grad_image + c * a.rows * a.columns;
    const int64_t o = a.output[c];
    zero_row(a.rows * a.columns, a.add, to);
    for (int64_t i = 0; o >= 0 && i < a.out_rows; ++i) {
      const auto* __restrict grad = a.grad + (o * a.out_rows + i) * a.out_columns;
      if (a.place != nullptr) {
        const uint8_t* __restrict place = a.place + (o * a.out_rows + i) * a.out_columns;
        for (int64_t j = 0; j < a.out_columns; ++j) {
          const int64_t row = i * a.stride_rows + place[j] / a.window_columns;
          to[row * a.columns + j * a.stride_columns + place[j] % a.window_columns] += grad[j];
        }
        continue;
      }
      const int64_t first = i * a.stride_rows;
      const int64_t high = first + a.window_rows < a.rows ? a.window_rows : a.rows - first;
      for (int64_t j = 0; j < a.out_columns; ++j) {
        const int64_t left = a.columns - j * a.stride_columns;
        const int64_t wide = a.window_columns < left ? a.window_columns : left;
        const auto each = grad[j] / static_cast<std::remove_reference_t<decltype(*to)>>(high * wide);
        for (int64_t u = 0; u < high; ++u) {
          for (int64_t v = 0; v < wide; ++v) {
            to[(first + u) * a.columns + j * a.stride_columns + v] += each;
          }
        }
      }
    }
  }
}

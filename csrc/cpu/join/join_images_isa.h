// The loops of join_images, included once for each instruction set: see isa_variants.h.

// Calls f(channel, first pixel, pixels, task) for chunks begin .. end of all channels.
template <typename F>
OES_INLINE void each_chunk(int64_t pixels, int64_t begin, int64_t end, const F& f) {
  const int64_t chunks = ceil_div(pixels, kChunk);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task % chunks * kChunk;
    f(task / chunks, first, pixels - first < kChunk ? pixels - first : kChunk, task);
  }
}

// Calls f(channel, row) for the rows of strips begin .. end of all channels.
template <typename F>
OES_INLINE void each_row(int64_t rows, int64_t begin, int64_t end, const F& f) {
  const int64_t strips = ceil_div(rows, kStripRows);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t channel = task / strips, first = task % strips * kStripRows;
    const int64_t last = first + kStripRows < rows ? first + kStripRows : rows;
    for (int64_t row = first; row < last; ++row) {
      f(channel, row);
    }
  }
}

template <typename T>
OES_INLINE void add_row(const T* __restrict from, int64_t count, T* __restrict to) {
  for (int64_t j = 0; j < count; ++j) {
    to[j] += from[j];
  }
}

template <typename T>
OES_INLINE void put_row(const T* __restrict from, int64_t count, bool add, T* __restrict to) {
  if (add) {
    add_row(from, count, to);
  } else {
    std::copy(from, from + count, to);
  }
}

template <typename T>
OES_INLINE void zero_row(int64_t count, bool add, T* to) {
  if (!add) {
    std::fill(to, to + count, T(0));
  }
}

// A row of the image of a map, through its prologue.
template <typename A, typename T>
OES_INLINE void mapped_row(const A& a, int64_t channel, int64_t row, T* to) {
  norm::prologue_row(a.image.y + (channel * a.rows + row) * a.columns, a.image.prologue, channel, a.columns, to);
}

template <typename Arguments>
OES_TARGET void sum_images(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.out)>;
  each_chunk(a.pixels, begin, end, [&](int64_t o, int64_t from, int64_t count, int64_t) OES_LAMBDA {
    T* out = a.out + o * a.pixels + from;
    zero_row(a.first[o] < a.first[o + 1] ? 0 : count, false, out);
    alignas(64) T strip[kStrip];
    for (int64_t at = 0; at < count; at += kStrip) {
      const int64_t size = count - at < kStrip ? count - at : kStrip;
      for (int64_t t = a.first[o]; t < a.first[o + 1]; ++t) {
        const auto& image = a.images[a.input[t]];
        const int64_t c = a.channel[t];
        const T* source = image.y + c * a.pixels + from + at;
        if (t == a.first[o]) {
          norm::prologue_row(source, image.prologue, c, size, out + at);
        } else {
          norm::prologue_row(source, image.prologue, c, size, strip);
          add_row(strip, size, out + at);
        }
      }
    }
  });
}

template <typename Arguments>
OES_TARGET void sum_grad(const Arguments& a, int64_t begin, int64_t end) {
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t from, int64_t count, int64_t) OES_LAMBDA {
    auto* to = a.to + c * a.pixels + from;
    const int64_t first = a.first[c], last = a.first[c + 1];
    zero_row(first < last ? 0 : count, a.add, to);
    for (int64_t t = first; t < last; ++t) {
      put_row(a.grad + a.outputs[t] * a.pixels + from, count, a.add || t > first, to);
    }
  });
}

// A row of the image, `from` pixels, as columns of the result.
template <typename T>
OES_INLINE void stretch_row(
    const Axis<T>& axis, const T* __restrict row, int64_t from, int64_t to, T* __restrict result) {
  if (axis.form == Stretch::kTwiceNearest) {
    for (int64_t j = 0; j < from; ++j) {
      result[2 * j] = row[j];
      result[2 * j + 1] = row[j];
    }
  } else if (axis.form == Stretch::kTwiceLinear) {
    const T near = T(0.75), far = T(0.25);
    result[0] = row[0];
    for (int64_t j = 0; j + 1 < from; ++j) {
      result[2 * j + 1] = near * row[j] + far * row[j + 1];
      result[2 * j + 2] = far * row[j] + near * row[j + 1];
    }
    result[to - 1] = row[from - 1];
  } else {
    const int64_t* __restrict index = axis.index.data();
    const T* __restrict weights = axis.weights.data();
    for (int64_t j = 0; j < to; ++j) {
      result[j] = weights[2 * j] * row[index[2 * j]] + weights[2 * j + 1] * row[index[2 * j + 1]];
    }
  }
}

// The derivative: gradients of the columns of the image from those of the result.
template <typename T>
OES_INLINE void stretch_row_back(
    const Axis<T>& axis, const T* __restrict grad, int64_t from, int64_t to, T* __restrict result) {
  if (axis.form == Stretch::kTwiceNearest) {
    for (int64_t j = 0; j < from; ++j) {
      result[j] = grad[2 * j] + grad[2 * j + 1];
    }
  } else if (axis.form == Stretch::kTwiceLinear) {
    const T near = T(0.75), far = T(0.25);
    if (from == 1) {
      result[0] = grad[0] + grad[1];
      return;
    }
    result[0] = grad[0] + near * grad[1] + far * grad[2];
    for (int64_t j = 1; j + 1 < from; ++j) {
      result[j] = near * (grad[2 * j] + grad[2 * j + 1]) + far * (grad[2 * j - 1] + grad[2 * j + 2]);
    }
    result[from - 1] = grad[to - 1] + near * grad[to - 2] + far * grad[to - 3];
  } else {
    const int64_t* __restrict list = axis.back_list.data();
    const T* __restrict weights = axis.back_weights.data();
    for (int64_t j = 0; j < from; ++j) {
      T sum = T(0);
      for (int64_t t = axis.back_first[j]; t < axis.back_first[j + 1]; ++t) {
        sum += weights[t] * grad[list[t]];
      }
      result[j] = sum;
    }
  }
}

template <typename T>
OES_INLINE void weighted_rows(
    const T* __restrict one, T of_one, const T* __restrict two, T of_two, int64_t count, T* __restrict to) {
  for (int64_t j = 0; j < count; ++j) {
    to[j] = of_one * one[j] + of_two * two[j];
  }
}

template <typename Arguments>
OES_TARGET void resample(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.out)>;
  T* line = workspace<T>(a.columns + 2 * a.out_columns);
  T* stretched[2] = {line + a.columns, line + a.columns + a.out_columns}; // of even and odd rows
  int64_t of_channel = -1, have[2] = {-1, -1};
  each_row(a.out_rows, begin, end, [&](int64_t o, int64_t i) OES_LAMBDA {
    const int64_t c = a.channel[o];
    if (of_channel != c) {
      have[0] = have[1] = -1;
      of_channel = c;
    }
    const int64_t* rows = a.row_axis->index.data() + 2 * i;
    const T* weights = a.row_axis->weights.data() + 2 * i;
    for (int64_t k = 0; k < 2; ++k) {
      if ((k == 0 || weights[1] != T(0)) && have[rows[k] % 2] != rows[k]) {
        mapped_row(a, c, rows[k], line);
        stretch_row(*a.column_axis, line, a.columns, a.out_columns, stretched[rows[k] % 2]);
        have[rows[k] % 2] = rows[k];
      }
    }
    T* to = a.out + (o * a.out_rows + i) * a.out_columns;
    const T *one = stretched[rows[0] % 2], *two = stretched[rows[1] % 2];
    if (weights[1] == T(0) && weights[0] == T(1)) {
      std::copy(one, one + a.out_columns, to);
    } else {
      weighted_rows(one, weights[0], weights[1] == T(0) ? one : two, weights[1], a.out_columns, to);
    }
  });
}

template <typename T>
OES_INLINE void add_weighted_row(const T* __restrict from, T weight, int64_t count, T* __restrict to) {
  for (int64_t j = 0; j < count; ++j) {
    to[j] += weight * from[j];
  }
}

template <typename Arguments>
OES_TARGET void resample_grad(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.out)>;
  T* line = workspace<T>(a.out_columns + a.columns);
  T* result = line + a.out_columns;
  each_row(a.rows, begin, end, [&](int64_t c, int64_t i) OES_LAMBDA {
    T* to = a.grad_image + (c * a.rows + i) * a.columns;
    const int64_t o = a.output[c];
    if (o < 0) {
      zero_row(a.columns, a.add, to);
      return;
    }
    std::fill(line, line + a.out_columns, T(0));
    for (int64_t t = a.row_axis->back_first[i]; t < a.row_axis->back_first[i + 1]; ++t) {
      const T* from = a.grad + (o * a.out_rows + a.row_axis->back_list[t]) * a.out_columns;
      add_weighted_row(from, a.row_axis->back_weights[t], a.out_columns, line);
    }
    stretch_row_back(*a.column_axis, line, a.columns, a.out_columns, result);
    put_row(result, a.columns, a.add, to);
  });
}

template <typename Arguments>
OES_TARGET void crop(const Arguments& a, int64_t begin, int64_t end) {
  each_row(a.out_rows, begin, end, [&](int64_t o, int64_t i) OES_LAMBDA {
    const int64_t c = a.channel[o];
    norm::prologue_row(
        a.image.y + (c * a.rows + a.top + i) * a.columns + a.left, a.image.prologue, c, a.out_columns,
        a.out + (o * a.out_rows + i) * a.out_columns);
  });
}

template <typename Arguments>
OES_TARGET void crop_grad(const Arguments& a, int64_t begin, int64_t end) {
  each_row(a.rows, begin, end, [&](int64_t c, int64_t i) OES_LAMBDA {
    auto* to = a.grad_image + (c * a.rows + i) * a.columns;
    const int64_t o = a.output[c], row = i - a.top;
    if (o < 0 || row < 0 || row >= a.out_rows) {
      zero_row(a.columns, a.add, to);
      return;
    }
    zero_row(a.left, a.add, to);
    put_row(a.grad + (o * a.out_rows + row) * a.out_columns, a.out_columns, a.add, to + a.left);
    zero_row(a.columns - a.left - a.out_columns, a.add, to + a.left + a.out_columns);
  });
}

template <typename T>
OES_INLINE void spread_row(const T* __restrict from, int64_t count, int64_t step, T* __restrict to) {
  for (int64_t j = 0; j < count; ++j) {
    to[j * step] = from[j];
  }
}

template <typename T>
OES_INLINE void gather_row(const T* __restrict from, int64_t step, int64_t count, bool add, T* __restrict to) {
  for (int64_t j = 0; j < count; ++j) {
    to[j] = (add ? to[j] : T(0)) + from[j * step];
  }
}

template <typename Arguments>
OES_TARGET void pixel_shuffle(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.out)>;
  T* line = workspace<T>(a.columns);
  each_row(a.out_rows, begin, end, [&](int64_t o, int64_t i) OES_LAMBDA {
    T* to = a.out + (o * a.out_rows + i) * a.out_columns;
    for (int64_t phase = 0; phase < a.factor; ++phase) {
      const int64_t c = a.channel[(o * a.factor + i % a.factor) * a.factor + phase];
      if (c < 0) {
        std::fill(line, line + a.columns, T(0));
      } else {
        mapped_row(a, c, i / a.factor, line);
      }
      if (a.factor == 2) {
        spread_row(line, a.columns, 2, to + phase);
      } else {
        spread_row(line, a.columns, a.factor, to + phase);
      }
    }
  });
}

template <typename Arguments>
OES_TARGET void pixel_shuffle_grad(const Arguments& a, int64_t begin, int64_t end) {
  each_row(a.rows, begin, end, [&](int64_t c, int64_t i) OES_LAMBDA {
    auto* to = a.grad_image + (c * a.rows + i) * a.columns;
    if (a.output[c] < 0) {
      zero_row(a.columns, a.add, to);
      return;
    }
    const int64_t phases = a.factor * a.factor, o = a.output[c] / phases, phase = a.output[c] % phases;
    const auto* from = a.grad + (o * a.out_rows + i * a.factor + phase / a.factor) * a.out_columns + phase % a.factor;
    if (a.factor == 2) {
      gather_row(from, 2, a.columns, a.add, to);
    } else {
      gather_row(from, a.factor, a.columns, a.add, to);
    }
  });
}

template <typename Arguments>
OES_TARGET void prelu(const Arguments& a, int64_t begin, int64_t end) {
  const int64_t pixels = a.rows * a.columns;
  each_chunk(pixels, begin, end, [&](int64_t o, int64_t from, int64_t count, int64_t) OES_LAMBDA {
    const int64_t c = a.channel[o];
    auto* __restrict out = a.out + o * pixels + from;
    norm::prologue_row(a.image.y + c * pixels + from, a.image.prologue, c, count, out);
    const auto slope = a.slopes[o];
    for (int64_t j = 0; j < count; ++j) {
      out[j] = out[j] > 0 ? out[j] : slope * out[j];
    }
  });
}

template <typename Arguments>
OES_TARGET void prelu_grad(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.out)>;
  const int64_t pixels = a.rows * a.columns, chunks = ceil_div(pixels, kChunk);
  each_chunk(pixels, begin, end, [&](int64_t c, int64_t from, int64_t count, int64_t task) OES_LAMBDA {
    T* to = a.grad_image == nullptr ? nullptr : a.grad_image + c * pixels + from;
    const int64_t o = a.output[c];
    if (o < 0) {
      zero_row(to == nullptr ? 0 : count, a.add, to);
      return;
    }
    const T slope = a.slopes[o];
    const T* all = a.grad + o * pixels + from;
    alignas(64) T value[kStrip], below[kStrip], part[kStrip];
    norm::Sums<T> sums;
    for (int64_t at = 0; at < count; at += kStrip) {
      const int64_t size = count - at < kStrip ? count - at : kStrip;
      const T* __restrict grad = all + at;
      norm::prologue_row(a.image.y + c * pixels + from + at, a.image.prologue, c, size, value);
      for (int64_t j = 0; j < size; ++j) {
        part[j] = value[j] > T(0) ? grad[j] : slope * grad[j];
        below[j] = value[j] > T(0) ? T(0) : value[j];
      }
      sums.add(below, grad, size);
      if (to != nullptr) {
        put_row(part, size, a.add, to + at);
      }
    }
    double both[2];
    sums.finish(both);
    a.sums[o * chunks + task % chunks] = both[1];
  });
}

template <typename Arguments>
OES_TARGET void norm_grad(const Arguments& a, int64_t begin, int64_t end) {
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t) OES_LAMBDA {
    auto* grad = a.grad + c * a.pixels + first;
    const auto* __restrict y = a.of.y + c * a.pixels + first;
    const auto mean = a.of.mean[c], of_grad = a.of.a[c], of_y = a.of.b[c], plus = a.of.c[c];
    for (int64_t j = 0; j < count; ++j) {
      grad[j] = of_grad * grad[j] + (of_y * (y[j] - mean) + plus);
    }
  });
}

#include "cpu/join/pool_isa.h"

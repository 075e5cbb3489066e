// The loops of batch_norm_act, included once for each instruction set: see isa_variants.h.

constexpr int64_t kStrip = 512; // pixels between two loops over them: they stay in the first-level cache

// Calls f(channel, first pixel, pixels, chunk) for chunks begin .. end of all channels.
template <typename F>
OES_INLINE void each_chunk(int64_t pixels, int64_t begin, int64_t end, const F& f) {
  const int64_t chunks = chunks_of(pixels);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task % chunks * kChunk;
    f(task / chunks, first, pixels - first < kChunk ? pixels - first : kChunk, task);
  }
}

template <typename Arguments>
OES_TARGET void statistics(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_const_t<std::remove_reference_t<decltype(*a.y)>>;
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t chunk) OES_LAMBDA {
    const T* y = a.y + c * a.pixels + first;
    if (!a.mapped) {
      Moments<T> moments(y[0]);
      moments.add(y, count);
      moments.finish(count, a.moments + 2 * chunk);
      return;
    }
    const T mean = a.prologue.mean[c], scale = a.prologue.scale[c], shift = a.prologue.shift[c],
            slope = a.prologue.slope;
    with_act(a.prologue.act, [&](auto act) OES_LAMBDA {
      Moments<T> moments(activate<act.value>(scale * (y[0] - mean) + shift, slope));
      alignas(64) T strip[kStrip];
      for (int64_t at = 0; at < count; at += kStrip) {
        const int64_t size = count - at < kStrip ? count - at : kStrip;
        for (int64_t j = 0; j < size; ++j) {
          strip[j] = activate<act.value>(scale * (y[at + j] - mean) + shift, slope);
        }
        moments.add(strip, size);
      }
      moments.finish(count, a.moments + 2 * chunk);
    });
  });
}

template <typename Arguments>
OES_TARGET void activation_grad(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_const_t<std::remove_reference_t<decltype(*a.grad)>>;
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t chunk) OES_LAMBDA {
    const T mean = a.prologue.mean[c], scale = a.prologue.scale[c], shift = a.prologue.shift[c],
            slope = a.prologue.slope;
    const T mean2 = a.prologue.mean2[c];
    const T factor = a.second ? a.a[c] : T(1), of_value = a.second ? a.b[c] : T(0), plus = a.second ? a.c[c] : T(0);
    Sums<T> sums;
    alignas(64) T centred[kStrip];
    for (int64_t at = 0; at < count; at += kStrip) {
      const int64_t size = count - at < kStrip ? count - at : kStrip;
      const T* __restrict y = a.y + c * a.pixels + first + at;
      T* __restrict grad = a.grad + c * a.pixels + first + at;
      with_act(a.prologue.act, [&](auto act) OES_LAMBDA {
        for (int64_t j = 0; a.second && j < size; ++j) {
          const T n = scale * (y[j] - mean) + shift;
          grad[j] = factor * grad[j] + (of_value * (activate<act.value>(n, slope) - mean2) + plus);
        }
        for (int64_t j = 0; j < size; ++j) {
          centred[j] = y[j] - mean;
          grad[j] = grad[j] * activate_grad<act.value>(scale * centred[j] + shift, slope);
        }
      });
      sums.add(grad, centred, size);
    }
    sums.finish(a.sums + 2 * chunk);
  });
}

template <typename Arguments>
OES_TARGET void second_sums(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_const_t<std::remove_reference_t<decltype(*a.grad)>>;
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t chunk) OES_LAMBDA {
    const T mean = a.prologue.mean[c], scale = a.prologue.scale[c], shift = a.prologue.shift[c],
            slope = a.prologue.slope;
    const T mean2 = a.prologue.mean2[c];
    Sums<T> sums;
    alignas(64) T centred[kStrip];
    for (int64_t at = 0; at < count; at += kStrip) {
      const int64_t size = count - at < kStrip ? count - at : kStrip;
      const T* __restrict y = a.y + c * a.pixels + first + at;
      with_act(a.prologue.act, [&](auto act) OES_LAMBDA {
        for (int64_t j = 0; j < size; ++j) {
          centred[j] = activate<act.value>(scale * (y[j] - mean) + shift, slope) - mean2;
        }
      });
      sums.add(a.grad + c * a.pixels + first + at, centred, size);
    }
    sums.finish(a.sums + 2 * chunk);
  });
}

template <typename Arguments>
OES_TARGET void output(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.out)>;
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t) OES_LAMBDA {
    const T* __restrict y = a.y + c * a.pixels + first;
    T* __restrict out = a.out + c * a.pixels + first;
    const T shift = a.shift[c], slope = a.slope;
    if (a.grad == nullptr) {
      output_pixels(a.act, shift, slope, y, count, out);
      return;
    }
    const T* __restrict grad = a.grad + c * a.pixels + first;
    if (a.act == OutputAct::kSigmoid) {
      for (int64_t j = 0; j < count; ++j) {
        const auto pair = sigmoid_pair(y[j] + shift);
        out[j] = grad[j] * (pair.large * pair.small);
      }
    } else {
      for (int64_t j = 0; j < count; ++j) {
        out[j] = grad[j] * activate_grad<Act::kLeaky>(y[j] + shift, slope);
      }
    }
  });
}

template <typename Arguments>
OES_TARGET void output_loss(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.out)>;
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t chunk) OES_LAMBDA {
    const T factor = static_cast<T>(2 / static_cast<double>(a.channels * a.pixels));
    Sums<T> sums;
    alignas(64) T error[kStrip], weighted[kStrip];
    for (int64_t at = 0; at < count; at += kStrip) {
      const int64_t size = count - at < kStrip ? count - at : kStrip, from = c * a.pixels + first + at;
      output_loss_pixels(a.act, a.shift[c], a.slope, factor, a.target + from, size, a.y + from, a.out + from, error);
      if (a.weight != nullptr) {
        weigh_loss_pixels(a.weight + from, size, error, a.y + from, weighted);
      }
      sums.add(error, a.weight != nullptr ? weighted : error, size);
    }
    double both[2];
    sums.finish(both);
    a.sums[chunk] = both[1];
  });
}

template <typename Arguments>
OES_TARGET void map_image(const Arguments& a, int64_t begin, int64_t end) {
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t) OES_LAMBDA {
    prologue_row(a.y + c * a.pixels + first, a.prologue, c, count, a.out + c * a.pixels + first);
  });
}

template <typename Arguments>
OES_TARGET void grad_image(const Arguments& a, int64_t begin, int64_t end) {
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t) OES_LAMBDA {
    const int64_t at = c * a.pixels + first;
    prologue_grad_row(a.grad, c, at, count, a.out + at);
  });
}

template <typename Arguments>
OES_TARGET void map_padded(const Arguments& a, int64_t begin, int64_t end) {
  const int64_t high = a.border->high(), wide = a.border->wide();
  for (int64_t task = begin; task < end; ++task) {
    const int64_t c = task / high, from = a.border->rows[task % high];
    auto* to = a.to + task * wide;
    if (from < 0) {
      std::fill(to, to + wide, 0);
      continue;
    }
    prologue_row(a.from + (c * a.rows + from) * a.columns, a.prologue, c, a.columns, to + a.border->left);
    extend_row(*a.border, a.columns, to);
  }
}

template <typename T>
OES_TARGET void fold_padded(const PaddedRows<T>& a, int64_t begin, int64_t end) {
  const int64_t high = a.border->high(), wide = a.border->wide();
  T* __restrict sum = workspace<T>(wide);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t c = task / a.rows, i = task % a.rows;
    std::fill(sum, sum + wide, T(0));
    for (int32_t at = a.border->row_first[i]; at < a.border->row_first[i + 1]; ++at) {
      const T* __restrict from = a.from + (c * high + a.border->row_list[at]) * wide;
      for (int64_t j = 0; j < wide; ++j) {
        sum[j] += from[j];
      }
    }
    fold_row(*a.border, a.columns, sum, a.to + task * a.columns);
  }
}

// The loops of sparse_up_conv2d over a strip, backward, included once for each instruction set: see fma_tiles_isa.h.

#include "cpu/conv/sparse_up_conv2d_isa.h"

// sums[t] += products of grad[p] and source[offsets[t] + p] over a number of vectors, lane by lane.
template <int kTaps, typename T>
OES_ISA_INLINE void weight_grads_by_lane(
    const T* source, const int32_t* offsets, int64_t vectors, const T* grad, T* sums) {
  using V = Vector<T>;
  constexpr int lanes = kLanes<T>;
  constexpr int kVectors = OES_ISA == 0 ? 1 : 2;
  typename V::Type sum[kTaps][kVectors];
  const T* from[kTaps];
#pragma GCC unroll 16
  for (int k = 0; k < kTaps; ++k) {
    from[k] = source + offsets[k];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sum[k][v] = V::all(T(0));
    }
  }
  int64_t j = 0;
  for (; j + kVectors <= vectors; j += kVectors) {
    typename V::Type factor[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      factor[v] = V::load(grad + (j + v) * lanes);
    }
#pragma GCC unroll 16
    for (int k = 0; k < kTaps; ++k) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        sum[k][v] = V::fma(factor[v], V::load(from[k] + (j + v) * lanes), sum[k][v]);
      }
    }
  }
  if (j < vectors) {
    const typename V::Type factor = V::load(grad + j * lanes);
#pragma GCC unroll 16
    for (int k = 0; k < kTaps; ++k) {
      sum[k][0] = V::fma(factor, V::load(from[k] + j * lanes), sum[k][0]);
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < kTaps; ++k) {
    if constexpr (kVectors == 2) {
      sum[k][0] = sum[k][0] + sum[k][1];
    }
    V::store(sums + k * lanes, V::load(sums + k * lanes) + sum[k][0]);
  }
}

// The same of a number of taps, at most kTaps.
template <int kTaps, typename T>
OES_ISA_INLINE void weight_grads_of(
    const T* source, const int32_t* offsets, int64_t taps, int64_t vectors, const T* grad, T* sums) {
  if (taps == kTaps) {
    weight_grads_by_lane<kTaps>(source, offsets, vectors, grad, sums);
  } else if constexpr (kTaps > 1) {
    weight_grads_of<kTaps - 1>(source, offsets, taps, vectors, grad, sums);
  }
}

template <typename T>
OES_ISA_INLINE void weight_grads_by_lane(
    const T* source, const int32_t* offsets, int64_t taps, int64_t vectors, const T* grad, T* sums) {
  // Groups of about one size: the sums of a group of one or two would wait for each other.
  for (int64_t groups = (taps + 5) / 6, t = 0; groups > 0; --groups) {
    const int64_t count = (taps - t + groups - 1) / groups;
    weight_grads_of<6>(source, offsets + t, count, vectors, grad, sums + t * kLanes<T>);
    t += count;
  }
}

// A row of the gradient of y, its even and odd columns apart, with a zero before the odd and one behind the even.
// `line` is for a row of it.
template <typename T>
OES_ISA_INLINE void deinterleave_row(
    const norm::PrologueGrad<T>& g, int64_t channel, int64_t at, int64_t columns, T* line, T* even, T* odd) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  if (g.outputs != 0) {
    norm::prologue_grad_row(g, channel, at, 2 * columns, line);
    int64_t j = 0;
    for (; j + lanes <= columns; j += lanes) {
      V::deinterleave(V::load(line + 2 * j), V::load(line + 2 * j + lanes), even + j, odd + j);
    }
    for (; j < columns; ++j) {
      even[j] = line[2 * j];
      odd[j] = line[2 * j + 1];
    }
    odd[-1] = even[columns] = T(0);
    return;
  }
  const T* grad = g.grad + at;
  const T* y = g.y + at;
  const T mean = g.mean[channel], a = g.a[channel], b = g.b[channel], c = g.c[channel];
  const typename V::Type all_mean = V::all(mean), all_a = V::all(a), all_b = V::all(b), all_c = V::all(c);
  int64_t j = 0;
  for (; j + lanes <= columns; j += lanes) {
    const T *of_grad = grad + 2 * j, *of_y = y + 2 * j;
    const typename V::Type x = V::fma(all_a, V::load(of_grad), V::fma(all_b, V::load(of_y) - all_mean, all_c));
    const typename V::Type z =
        V::fma(all_a, V::load(of_grad + lanes), V::fma(all_b, V::load(of_y + lanes) - all_mean, all_c));
    V::deinterleave(x, z, even + j, odd + j);
  }
  for (; j < columns; ++j) {
    even[j] = a * grad[2 * j] + (b * (y[2 * j] - mean) + c);
    odd[j] = a * grad[2 * j + 1] + (b * (y[2 * j + 1] - mean) + c);
  }
  odd[-1] = even[columns] = T(0);
}

// Vectors as the derivative of the three columns of the kernel takes them from one row of the gradient of y.
template <typename T>
struct Spread {
  typename Vector<T>::Type of[3];
};

template <typename T>
OES_ISA_INLINE Spread<T> spread_columns(const T* even, const T* odd) {
  using V = Vector<T>;
  const typename V::Type e = V::load(even), o = V::load(odd);
  return {{o + V::load(even + 1), e + o, V::load(odd - 1) + e}};
}

// Gradients of the nine b of output o over a strip, [9][plane]: sums of 2 x 2 pixels of the gradient of y, and at the
// edge of the image of what its repetition took as well. `lines` holds the rows of it that the strip needs, parted.
template <typename T>
OES_ISA_INLINE void grads_of_b(
    const UpsampleConvGrad<T>& a, int64_t o, int64_t first, int64_t rows, int64_t plane, T* lines, T* to) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  const int64_t columns = a.columns, all = 2 * a.rows, high = 2 * rows + 2;
  const int64_t line = line_of<T>(columns);
  // Row t of the lines is row 2 first - 1 + t of y.
  const auto even_of = [&](int64_t t) OES_LAMBDA { return lines + 2 * t * line; };
  const auto odd_of = [&](int64_t t) OES_LAMBDA { return lines + (2 * t + 1) * line + lanes; };
  for (int64_t t = 0; t < high; ++t) {
    const int64_t row = 2 * first - 1 + t;
    if (row < 0 || row >= all) {
      for (int64_t j = 0; j < 2 * line; ++j) {
        lines[2 * t * line + j] = T(0);
      }
    } else {
      deinterleave_row(
          a.grad, o, (o * all + row) * 2 * columns, columns, lines + 2 * high * line, even_of(t), odd_of(t));
    }
  }
  const bool top = !a.zeros && first == 0, bottom = !a.zeros && first + rows == a.rows;
  for (int64_t j = 0; j < columns && columns >= lanes; j += lanes) {
    const int64_t at = columns - j < lanes ? columns - lanes : j;
    Spread<T> before = spread_columns<T>(even_of(0) + at, odd_of(0) + at);
    Spread<T> one = spread_columns<T>(even_of(1) + at, odd_of(1) + at);
    for (int64_t r = 0; r < rows; ++r) {
      const Spread<T> two = spread_columns<T>(even_of(2 * r + 2) + at, odd_of(2 * r + 2) + at);
      const Spread<T> three = spread_columns<T>(even_of(2 * r + 3) + at, odd_of(2 * r + 3) + at);
      T* out = to + r * columns + at;
#pragma GCC unroll 3
      for (int v = 0; v < 3; ++v) {
        typename V::Type upper = two.of[v] + three.of[v], lower = before.of[v] + one.of[v];
        if (top && r == 0) {
          upper = upper + one.of[v];
        }
        if (bottom && r + 1 == rows) {
          lower = lower + two.of[v];
        }
        V::store(out + v * plane, upper);
        V::store(out + (3 + v) * plane, one.of[v] + two.of[v]);
        V::store(out + (6 + v) * plane, lower);
      }
      before = two;
      one = three;
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t u = 0; u < 3; ++u) {
      // Rows from .. until of the lines, of which b of the kernel's row u is the sum.
      const int64_t from = top && r == 0 && u == 0 ? 1 : 2 * r + 2 - u;
      const int64_t until = bottom && r + 1 == rows && u == 2 ? 2 * r + 2 : 2 * r + 3 - u;
      T* out = to + 3 * u * plane + r * columns;
      for (int64_t j = 0; j < columns && columns < lanes; ++j) {
        T left = T(0), middle = T(0), right = T(0);
        for (int64_t t = from; t <= until; ++t) {
          left += odd_of(t)[j] + even_of(t)[j + 1];
          middle += even_of(t)[j] + odd_of(t)[j];
          right += odd_of(t)[j - 1] + even_of(t)[j];
        }
        out[j] = left;
        out[plane + j] = middle;
        out[2 * plane + j] = right;
      }
      for (int64_t t = from; !a.zeros && t <= until; ++t) {
        out[0] += even_of(t)[0];
        out[2 * plane + columns - 1] += odd_of(t)[columns - 1];
      }
    }
  }
  for (int64_t k = 0; k < 9; ++k) {
    for (int64_t j = rows * columns; j < vectors_of<T>(rows * columns) * lanes; ++j) {
      to[k * plane + j] = T(0);
    }
  }
}

// Pixels of the gradient of input c on their way out; see GradEpilogue.
template <typename T>
OES_ISA_INLINE void epilogue(
    const UpsampleConvGrad<T>& a, int64_t c, int64_t first, int64_t count, const T* __restrict grad, double* sums) {
  constexpr int64_t kPixels = 256; // between two loops over them
  T* __restrict out = a.grad_source + c * a.rows * a.columns + first;
  const T* __restrict source = a.source + c * a.rows * a.columns + first;
  if (a.epilogue == GradEpilogue::kNone) {
    for (int64_t j = 0; j < count; ++j) {
      out[j] = grad[j];
    }
    return;
  }
  const T mean = a.prologue.mean[c], scale = a.prologue.scale[c], shift = a.prologue.shift[c], slope = a.prologue.slope;
  const T mean2 = a.prologue.mean2[c];
  alignas(64) T centred[kPixels];
  norm::Sums<T> all;
  for (int64_t at = 0; at < count; at += kPixels) {
    const int64_t size = count - at < kPixels ? count - at : kPixels;
    norm::with_act(a.prologue.act, [&](auto act) OES_LAMBDA {
      if (a.epilogue == GradEpilogue::kActivation) {
        for (int64_t j = 0; j < size; ++j) {
          centred[j] = source[at + j] - mean;
          out[at + j] = grad[at + j] * norm::activate_grad<act.value>(scale * centred[j] + shift, slope);
        }
      } else {
        for (int64_t j = 0; j < size; ++j) {
          out[at + j] = grad[at + j];
          centred[j] = norm::activate<act.value>(scale * (source[at + j] - mean) + shift, slope) - mean2;
        }
      }
    });
    all.add(out + at, centred, size);
  }
  all.finish(sums);
}

// Where group `group` of `groups` starts in `all` channels; dense ones start where a tile does.
OES_ISA_INLINE int64_t start_of_group(int64_t group, int64_t groups, int64_t all, bool dense) {
  if (!dense) {
    return group * all / groups;
  }
  const int64_t from = group * ((all + kTileOutputs - 1) / kTileOutputs) / groups * kTileOutputs;
  return from < all ? from : all;
}

// The two products of outputs from .. to, whose gradients lie in `grads`.
template <typename T>
OES_ISA_INLINE void dense_pass(
    const UpsampleConvGrad<T>& a, int64_t from, int64_t to, int64_t own_from, int64_t own_to, int64_t in_from,
    int64_t in_to, int64_t vectors, const T* strip, const T* grads, T* of_chunk, T* of_inputs) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t kernel = a.kernel, size = kernel * a.inputs, plane = a.plane, taps = (to - from) * kernel;
  if (of_chunk != nullptr) {
    for_output_tiles(
        from > own_from ? from : own_from, to < own_to ? to : own_to,
        [&](auto outputs, int64_t o) OES_TARGET OES_LAMBDA {
          constexpr int kOutputs = outputs.value;
          for (int64_t k = 0; k < kernel; ++k) {
            // The last vectors of both hold zeros beyond the strip.
            weight_grad_tiles<kOutputs, true>(
                strip, a.offsets, a.inputs, 0, grads + ((o - from) * kernel + k) * plane, kernel * plane, 0, 1,
                vectors * lanes, strip, of_chunk + o * size + k * a.inputs * kOutputs);
          }
        });
  }
  const bool of_source = a.grad_source != nullptr;
  for (int64_t v = 0; of_source && v < vectors; v += kTileVectors) {
    const int64_t count = vectors - v < kTileVectors ? vectors - v : kTileVectors, pixel = v * lanes;
    for_output_tiles(in_from, in_to, [&](auto outputs, int64_t c) OES_TARGET OES_LAMBDA {
      const T* weights = a.back_weights + from * size + c * taps;
      T* out = of_inputs + c * plane + pixel;
      if (from == 0) {
        output_tiles<outputs.value, false>(grads + pixel, weights, a.back_offsets, taps, count, out, plane);
      } else {
        output_tiles<outputs.value, true>(grads + pixel, weights, a.back_offsets, taps, count, out, plane);
      }
    });
  }
}

template <typename T>
OES_TARGET void upsample_conv_grad(const UpsampleConvGrad<T>& a, int64_t begin, int64_t end) {
  const bool up = a.kernel == kUpsampleKernel;
  const int64_t columns = a.columns, kernel = a.kernel;
  const int64_t weights = a.dense ? a.outputs * kernel * a.inputs : a.first[a.outputs * kernel];
  const int64_t plane = a.plane;
  const int64_t size_of_lines = up ? 2 * (2 * a.strip_rows + 3) * line_of<T>(columns) : 0;
  const bool of_source = a.grad_source != nullptr;
  T* strip = workspace<T>((2 * a.inputs + a.outputs_at_once * kernel) * plane + size_of_lines);
  T* of_inputs = strip + a.inputs * plane;
  T* grads = of_inputs + a.inputs * plane;
  T* lines = grads + a.outputs_at_once * kernel * plane;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t group = task % a.groups, chunk = task / a.groups;
    const int64_t own_from = start_of_group(group, a.groups, a.outputs, a.dense),
                  own_to = start_of_group(group + 1, a.groups, a.outputs, a.dense);
    const int64_t in_from = start_of_group(group, a.groups, a.inputs, a.dense),
                  in_to = start_of_group(group + 1, a.groups, a.inputs, a.dense);
    T* of_chunk = a.sums == nullptr ? nullptr : a.sums + chunk * weights * (a.dense ? 1 : kLanes<T>);
    if (of_chunk != nullptr) {
      const auto sums_before = [&](int64_t o) OES_LAMBDA {
        return a.dense ? o * kernel * a.inputs : a.first[o * kernel] * kLanes<T>;
      };
      std::memset(of_chunk + sums_before(own_from), 0, (sums_before(own_to) - sums_before(own_from)) * sizeof(T));
    }
    for (int64_t at = chunk * a.strips / a.chunks; at < (chunk + 1) * a.strips / a.chunks; ++at) {
      const int64_t first = at * a.strip_rows;
      const int64_t rows = a.rows - first < a.strip_rows ? a.rows - first : a.strip_rows;
      const int64_t vectors = vectors_of<T>(rows * columns);
      if (of_chunk != nullptr) {
        load_strip(a.source, a.prologue, a.inputs, a.rows, columns, a.zeros, first, rows, 0, plane, strip);
      }
      for (int64_t pass = 0; pass < a.passes; ++pass) {
        const int64_t from = pass * a.outputs_at_once,
                      to = from + a.outputs_at_once < a.outputs ? from + a.outputs_at_once : a.outputs;
        for (int64_t o = from; o < to; ++o) {
          const bool own = of_chunk != nullptr && o >= own_from && o < own_to;
          if (!own && !of_source) {
            continue;
          }
          T* of_output = grads + (o - from) * kernel * plane;
          if (up) {
            grads_of_b(a, o, first, rows, plane, lines, of_output);
          } else {
            norm::prologue_grad_row(a.grad, o, (o * a.rows + first) * columns, rows * columns, of_output);
            for (int64_t j = rows * columns; j < vectors * kLanes<T>; ++j) {
              of_output[j] = T(0);
            }
          }
          for (int64_t v = 0; own && !a.dense && v < vectors; v += a.near_vectors) {
            const int64_t size = vectors - v < a.near_vectors ? vectors - v : a.near_vectors, pixel = v * kLanes<T>;
            for (int64_t k = 0; k < kernel; ++k) {
              const int64_t t = a.first[o * kernel + k];
              weight_grads_by_lane(
                  strip + pixel, a.offsets + t, a.first[o * kernel + k + 1] - t, size, of_output + k * plane + pixel,
                  of_chunk + t * kLanes<T>);
            }
          }
        }
        if (a.dense) {
          dense_pass(a, from, to, own_from, own_to, in_from, in_to, vectors, strip, grads, of_chunk, of_inputs);
          continue;
        }
        for (int64_t v = 0; of_source && v < vectors; v += kLoneTileVectors) {
          const int64_t size = vectors - v < kLoneTileVectors ? vectors - v : kLoneTileVectors, pixel = v * kLanes<T>;
          for (int64_t c = in_from; c < in_to; ++c) {
            const int64_t t = a.back_first[c * a.passes + pass], taps = a.back_first[c * a.passes + pass + 1] - t;
            T* out = of_inputs + c * plane + pixel;
            if (pass == 0) {
              products<false>(grads + pixel, a.back_weights + t, a.back_offsets + t, taps, size, out);
            } else if (taps != 0) {
              products<true>(grads + pixel, a.back_weights + t, a.back_offsets + t, taps, size, out);
            }
          }
        }
      }
      for (int64_t c = in_from; of_source && c < in_to; ++c) {
        epilogue(
            a, c, first * columns, rows * columns, of_inputs + c * plane, a.epilogue_sums + 2 * (at * a.inputs + c));
      }
    }
  }
}

template <typename T>
OES_TARGET void add_grads(const AddGrads<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t t = begin; t < end; ++t) {
    double sums[lanes] = {};
    for (int64_t chunk = 0; chunk < a.chunks; ++chunk) {
      const T* each = a.sums + (chunk * a.count + t) * lanes;
      for (int64_t k = 0; k < lanes; ++k) {
        sums[k] += static_cast<double>(each[k]);
      }
    }
    for (int64_t half = lanes / 2; half > 0; half /= 2) {
      for (int64_t k = 0; k < half; ++k) {
        sums[k] += sums[k + half];
      }
    }
    a.to[a.indices[a.order[t]]] += static_cast<T>(sums[0]) * a.scale;
  }
}

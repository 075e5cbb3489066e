// The loops of sparse_up_conv2d over a strip, included once per capability: see products_kernels.h.

#include "products_kernels.h"
#include "block_kernels.h"

constexpr int64_t kPiece = 12; // vectors of a tile

template <typename T>
OES_HERE int64_t vectors_of(int64_t count) {
  return (count + kLanes<T> - 1) / kLanes<T>;
}

// Elements of a row of columns with room for a vector on either side.
template <typename T>
OES_HERE int64_t line_of(int64_t columns) {
  return (vectors_of<T>(columns) + 2) * kLanes<T>;
}

// out[p] (+)= sum over the taps of weights[t] * source[offsets[t] + p] for a number of vectors, at most kPiece.
template <bool kAdd, int kVectors = kPiece, typename T>
OES_HERE void products(
    const T* source, const T* weights, const int32_t* offsets, int64_t taps, int64_t vectors, T* out) {
  if (vectors == kVectors) {
    tile<kVectors, kAdd>(source, weights, offsets, taps, out);
  } else if constexpr (kVectors > 1) {
    products<kAdd, kVectors - 1>(source, weights, offsets, taps, vectors, out);
  }
}

// sums[t] += products of grad[p] and source[offsets[t] + p] over a number of vectors, lane by lane.
template <int kTaps, typename T>
OES_HERE void products_back(
    const T* source, const int32_t* offsets, int64_t vectors, const T* grad, T* sums) {
  using V = Vector<T>;
  constexpr int lanes = kLanes<T>;
  constexpr int kVectors = OES_LEVEL == 0 ? 1 : 2;
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

template <typename T>
OES_HERE void products_back(
    const T* source, const int32_t* offsets, int64_t taps, int64_t vectors, const T* grad, T* sums) {
  constexpr int lanes = kLanes<T>;
  // Groups of about one size: the sums of a group of one or two would wait for each other.
  for (int64_t groups = (taps + 5) / 6, t = 0; groups > 0; --groups) {
    const int64_t count = (taps - t + groups - 1) / groups;
    switch (count) {
      case 6:
        products_back<6>(source, offsets + t, vectors, grad, sums + t * lanes);
        break;
      case 5:
        products_back<5>(source, offsets + t, vectors, grad, sums + t * lanes);
        break;
      case 4:
        products_back<4>(source, offsets + t, vectors, grad, sums + t * lanes);
        break;
      case 3:
        products_back<3>(source, offsets + t, vectors, grad, sums + t * lanes);
        break;
      case 2:
        products_back<2>(source, offsets + t, vectors, grad, sums + t * lanes);
        break;
      default:
        products_back<1>(source, offsets + t, vectors, grad, sums + t * lanes);
    }
    t += count;
  }
}

// Rows first .. first + count of all channels, mapped, into planes of the strip. With `edge` 1 a row has a pixel more
// on either side and may lie beyond the image: there the image's edge repeats, or lies zero. Zeros fill the last vector.
template <typename T>
OES_HERE void load_strip(
    const T* source,
    const PixelMap<T>& map,
    int64_t inputs,
    int64_t rows,
    int64_t columns,
    bool zeros,
    int64_t first,
    int64_t count,
    int64_t edge,
    int64_t plane,
    T* strip) {
  const int64_t pitch = columns + 2 * edge, end = vectors_of<T>(count * pitch) * kLanes<T>;
  for (int64_t c = 0; c < inputs; ++c) {
    const T* from = source + c * rows * columns;
    for (int64_t r = 0; r < count; ++r) {
      T* to = strip + c * plane + r * pitch;
      const int64_t row = first + r;
      if (zeros && (row < 0 || row >= rows)) {
        for (int64_t j = 0; j < pitch; ++j) {
          to[j] = T(0);
        }
        continue;
      }
      const int64_t inside = row < 0 ? 0 : row >= rows ? rows - 1 : row;
      // The same row of the next channel lies elsewhere, where nothing but this fetches it ahead.
      for (int64_t j = 0; c + 1 < inputs && j < columns; j += 64 / static_cast<int64_t>(sizeof(T))) {
        __builtin_prefetch(from + (rows + inside) * columns + j, 0, 2);
      }
      map_row(from + inside * columns, map, c, columns, to + edge);
      if (edge != 0) {
        to[0] = zeros ? T(0) : to[1];
        to[columns + 1] = zeros ? T(0) : to[columns];
      }
    }
    for (int64_t j = count * pitch; j < end; ++j) {
      strip[c * plane + j] = T(0);
    }
  }
}

// Two rows of y from the nine b of an output, [9][plane], whose rows have an edge: `at` is where the row lies that
// stands in the middle. The kernel's upper row adds to y from the row above and the middle one, its lower row from the
// middle one and the one below.
template <typename T>
struct Combined {
  typename Vector<T>::Type even, odd;
};

template <typename T>
OES_HERE Combined<T> combine_columns(const T* b, int64_t plane) {
  using V = Vector<T>;
  const typename V::Type left = V::load(b + 1), middle = V::load(b + plane + 1), right = V::load(b + 2 * plane + 1);
  return {V::load(b) + (middle + right), (left + middle) + V::load(b + 2 * plane + 2)};
}

// All rows of a strip of y, [2 rows, 2 columns], and the moments of it about its first pixel.
template <typename T>
OES_HERE void combine(const T* b, int64_t plane, int64_t rows, int64_t columns, T* out, double* moments) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  const int64_t pitch = columns + 2, wide = 2 * columns;
  if (columns < lanes) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t x = 0; x < 2 * wide; ++x) {
        const int64_t odd_row = x / wide, odd = x % 2, j = x % wide / 2;
        T sum = T(0);
        for (int64_t u = 0; u < 3; ++u) {
          const int64_t row = r + (u == 0 ? odd_row : u == 1 ? 1 : 1 + odd_row);
          const T* of_row = b + 3 * u * plane + row * pitch + j;
          sum += of_row[odd] + (of_row[plane + 1] + of_row[2 * plane + 1 + odd]);
        }
        out[r * 2 * wide + x] = sum;
      }
    }
    if (moments != nullptr) {
      Moments<T> all(out[0]);
      all.add(out, 2 * rows * wide);
      all.finish(2 * rows * wide, moments);
    }
    return;
  }
  alignas(64) T first_and_rest[2 * lanes];
  for (int64_t k = 0; k < 2 * lanes; ++k) {
    first_and_rest[k] = T(k < lanes ? 0 : 1);
  }
  typename V::Type pivot = V::all(T(0)), sum = V::all(T(0)), square = V::all(T(0));
  for (int64_t r = 0; r < rows; ++r) {
    T* to_row = out + r * 2 * wide;
    const int64_t row = (r + 1) * pitch;
    for (int64_t j = 0; j < columns; j += lanes) {
      // The last piece starts where a whole vector still fits; its pixels that were counted before count for nothing.
      const int64_t at = columns - j < lanes ? columns - lanes : j;
      const T* from = b + row + at;
      const Combined<T> above = combine_columns(from - pitch, plane), next = combine_columns(from, plane);
      const Combined<T> middle = combine_columns(from + 3 * plane, plane);
      const Combined<T> here = combine_columns(from + 6 * plane, plane), below = combine_columns(from + 6 * plane + pitch, plane);
      const typename V::Type pixels[4] = {
          above.even + (middle.even + here.even), above.odd + (middle.odd + here.odd),
          (next.even + middle.even) + below.even, (next.odd + middle.odd) + below.odd};
      T* to = to_row + 2 * at;
      V::store_both(to, pixels[0], pixels[1]);
      V::store_both(to + wide, pixels[2], pixels[3]);
      if (moments != nullptr) {
        if (j == 0 && r == 0) {
          pivot = V::all(out[0]);
        }
        const typename V::Type counted = V::load(first_and_rest + lanes - (j - at));
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          typename V::Type d = pixels[k] - pivot;
          if (j != at) {
            d = d * counted;
          }
          sum = sum + d;
          square = V::fma(d, d, square);
        }
      }
    }
  }
  if (moments != nullptr) {
    alignas(64) T of_lanes[2 * lanes];
    V::store(of_lanes, sum);
    V::store(of_lanes + lanes, square);
    double first = 0, second = 0;
    for (int64_t k = 0; k < lanes; ++k) {
      first += static_cast<double>(of_lanes[k]);
      second += static_cast<double>(of_lanes[lanes + k]);
    }
    const auto n = static_cast<double>(2 * rows * wide);
    moments[0] = static_cast<double>(out[0]) + first / n;
    moments[1] = second - first * first / n;
  }
}

// The vectors of a strip that a row of the kernel reads, in tiles of about one size: those of a short one would leave
// registers empty.
struct Tiles {
  int64_t begin, vectors, count;

  OES_INLINE int64_t from(int64_t tile) const {
    return begin + tile * vectors / count;
  }
};

template <typename T>
OES_TARGET void mix(const Mix<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<T>;
  const bool up = a.kernel == 9;
  const int64_t halo = up ? 1 : 0, side = up ? 3 : 1, columns = a.columns, pitch = columns + 2 * halo;
  const int64_t plane = a.plane, of_output = a.kernel * plane;
  T* strip = scratch<T>(a.inputs * plane + (a.dense ? kBlockRows : 1) * of_output);
  T* b = strip + a.inputs * plane;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit % a.groups, at = unit / a.groups;
    const int64_t first = at * a.strip_rows;
    const int64_t rows = a.rows - first < a.strip_rows ? a.rows - first : a.strip_rows;
    load_strip(a.source, a.map, a.inputs, a.rows, columns, a.zeros, first - halo, rows + 2 * halo, halo, plane, strip);
    const auto finish = [&](int64_t o, const T* sums) OES_TARGET OES_LAMBDA {
      double* moments = a.moments == nullptr ? nullptr : a.moments + 2 * (at * a.outputs + o);
      if (up) {
        combine(sums, plane, rows, columns, a.out + (o * a.rows + first) * 4 * columns, moments);
        return;
      }
      T* out = a.out + (o * a.rows + first) * columns;
      for (int64_t j = 0; j < rows * columns; ++j) {
        out[j] = sums[j];
      }
      if (moments != nullptr) {
        Moments<T> all(sums[0]);
        all.add(sums, rows * columns);
        all.finish(rows * columns, moments);
      }
    };
    // The kernel's upper row reads no pixel of the strip's last row, its lower one none of the first, the middle neither.
    Tiles tiles[3];
    int64_t most = 0;
    for (int64_t u = 0; u < side; ++u) {
      const int64_t from = up && u > 0 ? pitch / lanes : 0, size = (rows + 2 * halo - (up && u < 2 ? 1 : 0)) * pitch;
      const int64_t vectors = vectors_of<T>(size) - from;
      tiles[u] = {from, vectors, (vectors + a.tile - 1) / a.tile};
      most = most < tiles[u].count ? tiles[u].count : most;
    }
    // Calls f with every place of the kernel, tile by tile, so that the pixels of all channels stay in the first-level
    // cache for the sums of an output.
    const auto each_tile = [&](const auto& f) OES_TARGET OES_LAMBDA {
      for (int64_t i = 0; i < most; ++i) {
        for (int64_t u = 0; u < side; ++u) {
          if (i < tiles[u].count) {
            const int64_t from = tiles[u].from(i), vectors = tiles[u].from(i + 1) - from;
            for (int64_t k = side * u; k < side * (u + 1); ++k) {
              f(k, from * lanes, vectors);
            }
          }
        }
      }
    };
    if (a.dense) {
      const int64_t blocks_of_outputs = (a.outputs + kBlockRows - 1) / kBlockRows;
      const int64_t from_output = group * blocks_of_outputs / a.groups * kBlockRows;
      const int64_t end_output = (group + 1) * blocks_of_outputs / a.groups * kBlockRows;
      for_blocks(from_output, end_output < a.outputs ? end_output : a.outputs, [&](auto block_rows, int64_t o) OES_TARGET OES_LAMBDA {
        constexpr int kRows = block_rows.value;
        each_tile([&](int64_t k, int64_t pixel, int64_t vectors) OES_TARGET OES_LAMBDA {
          blocks<kRows, false>(
              strip + pixel, a.weights + o * a.kernel * a.inputs + k * a.inputs * kRows, a.offsets, a.inputs, vectors,
              b + k * plane + pixel, of_output);
        });
        for (int r = 0; r < kRows; ++r) {
          finish(o + r, b + r * of_output);
        }
      });
      continue;
    }
    for (int64_t o = group * a.outputs / a.groups; o < (group + 1) * a.outputs / a.groups; ++o) {
      const int64_t* taps = a.first + o * a.kernel;
      each_tile([&](int64_t k, int64_t pixel, int64_t vectors) OES_TARGET OES_LAMBDA {
        products<false>(
            strip + pixel, a.weights + taps[k], a.offsets + taps[k], taps[k + 1] - taps[k], vectors, b + k * plane + pixel);
      });
      finish(o, b);
    }
  }
}

// A row of the gradient of y, its even and odd columns apart, with a zero before the odd and one behind the even.
// `line` is for a row of it.
template <typename T>
OES_HERE void part_row(
    const PixelGrad<T>& g, int64_t channel, int64_t at, int64_t columns, T* line, T* even, T* odd) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  if (g.outputs != 0) {
    grad_row(g, channel, at, 2 * columns, line);
    int64_t j = 0;
    for (; j + lanes <= columns; j += lanes) {
      V::part(V::load(line + 2 * j), V::load(line + 2 * j + lanes), even + j, odd + j);
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
    const typename V::Type z = V::fma(all_a, V::load(of_grad + lanes), V::fma(all_b, V::load(of_y + lanes) - all_mean, all_c));
    V::part(x, z, even + j, odd + j);
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
OES_HERE Spread<T> spread_columns(const T* even, const T* odd) {
  using V = Vector<T>;
  const typename V::Type e = V::load(even), o = V::load(odd);
  return {{o + V::load(even + 1), e + o, V::load(odd - 1) + e}};
}

// Gradients of the nine b of output o over a strip, [9][plane]: sums of 2 x 2 pixels of the gradient of y, and at the
// edge of the image of what its repetition took as well. `lines` holds the rows of it that the strip needs, parted.
template <typename T>
OES_HERE void grads_of_b(const MixBack<T>& a, int64_t o, int64_t first, int64_t rows, int64_t plane, T* lines, T* to) {
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
      part_row(a.grad, o, (o * all + row) * 2 * columns, columns, lines + 2 * high * line, even_of(t), odd_of(t));
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

// Pixels of the gradient of input c on their way out; see Leave.
template <typename T>
OES_HERE void leave(const MixBack<T>& a, int64_t c, int64_t first, int64_t count, const T* __restrict grad, double* sums) {
  constexpr int64_t kPixels = 256; // between two loops over them
  T* __restrict out = a.grad_source + c * a.rows * a.columns + first;
  const T* __restrict source = a.source + c * a.rows * a.columns + first;
  if (a.leave == Leave::kPlain) {
    for (int64_t j = 0; j < count; ++j) {
      out[j] = grad[j];
    }
    return;
  }
  const T mean = a.map.mean[c], scale = a.map.scale[c], shift = a.map.shift[c], slope = a.map.slope;
  const T mean2 = a.map.mean2[c];
  alignas(64) T centred[kPixels];
  Sums<T> all;
  for (int64_t at = 0; at < count; at += kPixels) {
    const int64_t size = count - at < kPixels ? count - at : kPixels;
    with_act(a.map.act, [&](auto act) OES_LAMBDA {
      if (a.leave == Leave::kActivation) {
        for (int64_t j = 0; j < size; ++j) {
          centred[j] = source[at + j] - mean;
          out[at + j] = grad[at + j] * activate_grad<act.value>(scale * centred[j] + shift, slope);
        }
      } else {
        for (int64_t j = 0; j < size; ++j) {
          out[at + j] = grad[at + j];
          centred[j] = activate<act.value>(scale * (source[at + j] - mean) + shift, slope) - mean2;
        }
      }
    });
    all.add(out + at, centred, size);
  }
  all.finish(sums);
}

// Where part `part` of `parts` starts in `all` channels; dense ones are not cut inside a block.
OES_HERE int64_t part_of(int64_t part, int64_t parts, int64_t all, bool dense) {
  if (!dense) {
    return part * all / parts;
  }
  const int64_t from = part * ((all + kBlockRows - 1) / kBlockRows) / parts * kBlockRows;
  return from < all ? from : all;
}

// The two products of outputs from .. to, whose gradients lie in `grads`.
template <typename T>
OES_HERE void dense_block_back(
    const MixBack<T>& a, int64_t from, int64_t to, int64_t own_from, int64_t own_to, int64_t in_from, int64_t in_to,
    int64_t vectors, const T* strip, const T* grads, T* of_slot, T* mixed) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t kernel = a.kernel, size = kernel * a.inputs, plane = a.plane, taps = (to - from) * kernel;
  if (of_slot != nullptr) {
    for_blocks(from > own_from ? from : own_from, to < own_to ? to : own_to, [&](auto block_rows, int64_t o) OES_TARGET OES_LAMBDA {
      constexpr int kRows = block_rows.value;
      for (int64_t k = 0; k < kernel; ++k) {
        // The last vectors of both hold zeros beyond the strip.
        dot_blocks<kRows, true>(
            strip, a.offsets, a.inputs, 0, grads + ((o - from) * kernel + k) * plane, kernel * plane, 0, 1,
            vectors * lanes, strip, of_slot + o * size + k * a.inputs * kRows);
      }
    });
  }
  const bool of_source = a.grad_source != nullptr;
  for (int64_t v = 0; of_source && v < vectors; v += kBlockVectors) {
    const int64_t count = vectors - v < kBlockVectors ? vectors - v : kBlockVectors, pixel = v * lanes;
    for_blocks(in_from, in_to, [&](auto block_rows, int64_t c) OES_TARGET OES_LAMBDA {
      const T* weights = a.back_weights + from * size + c * taps;
      T* out = mixed + c * plane + pixel;
      if (from == 0) {
        blocks<block_rows.value, false>(grads + pixel, weights, a.back_offsets, taps, count, out, plane);
      } else {
        blocks<block_rows.value, true>(grads + pixel, weights, a.back_offsets, taps, count, out, plane);
      }
    });
  }
}

template <typename T>
OES_TARGET void mix_back(const MixBack<T>& a, int64_t begin, int64_t end) {
  const bool up = a.kernel == 9;
  const int64_t columns = a.columns, kernel = a.kernel;
  const int64_t weights = a.dense ? a.outputs * kernel * a.inputs : a.first[a.outputs * kernel];
  const int64_t plane = a.plane;
  const int64_t size_of_lines = up ? 2 * (2 * a.strip_rows + 3) * line_of<T>(columns) : 0;
  const bool of_source = a.grad_source != nullptr;
  T* strip = scratch<T>((2 * a.inputs + a.block * kernel) * plane + size_of_lines);
  T* mixed = strip + a.inputs * plane;
  T* grads = mixed + a.inputs * plane;
  T* lines = grads + a.block * kernel * plane;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t part = unit % a.parts, slot = unit / a.parts;
    const int64_t own_from = part_of(part, a.parts, a.outputs, a.dense), own_to = part_of(part + 1, a.parts, a.outputs, a.dense);
    const int64_t in_from = part_of(part, a.parts, a.inputs, a.dense), in_to = part_of(part + 1, a.parts, a.inputs, a.dense);
    T* of_slot = a.sums == nullptr ? nullptr : a.sums + slot * weights * (a.dense ? 1 : kLanes<T>);
    if (of_slot != nullptr) {
      const auto sums_before = [&](int64_t o) OES_LAMBDA {
        return a.dense ? o * kernel * a.inputs : a.first[o * kernel] * kLanes<T>;
      };
      std::memset(of_slot + sums_before(own_from), 0, (sums_before(own_to) - sums_before(own_from)) * sizeof(T));
    }
    for (int64_t at = slot * a.strips / a.slots; at < (slot + 1) * a.strips / a.slots; ++at) {
      const int64_t first = at * a.strip_rows;
      const int64_t rows = a.rows - first < a.strip_rows ? a.rows - first : a.strip_rows;
      const int64_t vectors = vectors_of<T>(rows * columns);
      if (of_slot != nullptr) {
        load_strip(a.source, a.map, a.inputs, a.rows, columns, a.zeros, first, rows, 0, plane, strip);
      }
      for (int64_t block = 0; block < a.blocks; ++block) {
        const int64_t from = block * a.block, to = from + a.block < a.outputs ? from + a.block : a.outputs;
        for (int64_t o = from; o < to; ++o) {
          const bool own = of_slot != nullptr && o >= own_from && o < own_to;
          if (!own && !of_source) {
            continue;
          }
          T* of_output = grads + (o - from) * kernel * plane;
          if (up) {
            grads_of_b(a, o, first, rows, plane, lines, of_output);
          } else {
            grad_row(a.grad, o, (o * a.rows + first) * columns, rows * columns, of_output);
            for (int64_t j = rows * columns; j < vectors * kLanes<T>; ++j) {
              of_output[j] = T(0);
            }
          }
          for (int64_t v = 0; own && !a.dense && v < vectors; v += a.piece) {
            const int64_t size = vectors - v < a.piece ? vectors - v : a.piece, pixel = v * kLanes<T>;
            for (int64_t k = 0; k < kernel; ++k) {
              const int64_t t = a.first[o * kernel + k];
              products_back(
                  strip + pixel, a.offsets + t, a.first[o * kernel + k + 1] - t, size, of_output + k * plane + pixel,
                  of_slot + t * kLanes<T>);
            }
          }
        }
        if (a.dense) {
          dense_block_back(a, from, to, own_from, own_to, in_from, in_to, vectors, strip, grads, of_slot, mixed);
          continue;
        }
        for (int64_t v = 0; of_source && v < vectors; v += kPiece) {
          const int64_t size = vectors - v < kPiece ? vectors - v : kPiece, pixel = v * kLanes<T>;
          for (int64_t c = in_from; c < in_to; ++c) {
            const int64_t t = a.back_first[c * a.blocks + block], taps = a.back_first[c * a.blocks + block + 1] - t;
            T* out = mixed + c * plane + pixel;
            if (block == 0) {
              products<false>(grads + pixel, a.back_weights + t, a.back_offsets + t, taps, size, out);
            } else if (taps != 0) {
              products<true>(grads + pixel, a.back_weights + t, a.back_offsets + t, taps, size, out);
            }
          }
        }
      }
      for (int64_t c = in_from; of_source && c < in_to; ++c) {
        leave(a, c, first * columns, rows * columns, mixed + c * plane, a.leave_sums + 2 * (at * a.inputs + c));
      }
    }
  }
}

template <typename T>
OES_TARGET void add_grads(const AddGrads<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t t = begin; t < end; ++t) {
    double sums[lanes] = {};
    for (int64_t slot = 0; slot < a.slots; ++slot) {
      const T* each = a.sums + (slot * a.count + t) * lanes;
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

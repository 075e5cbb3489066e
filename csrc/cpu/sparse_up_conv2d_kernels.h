// The loops of sparse_up_conv2d over a strip, included once per capability: see products_kernels.h.

#include "products_kernels.h"

constexpr int64_t kPiece = 12; // vectors of a tile

template <typename T>
OES_HERE int64_t vectors_of(int64_t count) {
  return (count + kLanes<T> - 1) / kLanes<T>;
}

// Elements from one plane of a strip to the next, for planes of that many: so that the same tile of many planes falls
// into different sets of the first-level cache, which a multiple of its 4096 bytes would not.
template <typename T>
OES_HERE int64_t plane_of(int64_t count) {
  constexpr int64_t way = 4096 / sizeof(T), tile = kPiece * kLanes<T>;
  const int64_t least = vectors_of<T>(count) * kLanes<T>;
  return least + ((tile - least) % way + way) % way;
}

// out[p] (+)= sum over the taps of weights[t] * source[channels[t] * plane + p] for a number of vectors, at most 12.
template <bool kAdd, typename T>
OES_HERE void products(
    const T* source,
    int64_t plane,
    const T* weights,
    const int32_t* channels,
    int64_t taps,
    int64_t vectors,
    T* out) {
  constexpr int64_t lanes = kLanes<T>;
  if (vectors == 12) {
    tile<1, 12, kAdd>(source, 0, weights, channels, plane, taps, out, 0, 0);
    return;
  }
  if (vectors >= 8) {
    tile<1, 8, kAdd>(source, 0, weights, channels, plane, taps, out, 0, 0);
    source += 8 * lanes;
    out += 8 * lanes;
    vectors -= 8;
  }
  if (vectors >= 4) {
    tile<1, 4, kAdd>(source, 0, weights, channels, plane, taps, out, 0, 0);
    source += 4 * lanes;
    out += 4 * lanes;
    vectors -= 4;
  }
  if (vectors >= 2) {
    tile<1, 2, kAdd>(source, 0, weights, channels, plane, taps, out, 0, 0);
    source += 2 * lanes;
    out += 2 * lanes;
    vectors -= 2;
  }
  if (vectors == 1) {
    tile<1, 1, kAdd>(source, 0, weights, channels, plane, taps, out, 0, 0);
  }
}

// sums[t] += products of grad[p] and source[channels[t] * plane + p] over a number of vectors, lane by lane.
template <int kTaps, typename T>
OES_HERE void products_back(
    const T* source, int64_t plane, const int32_t* channels, int64_t vectors, const T* grad, T* sums) {
  using V = Vector<T>;
  constexpr int lanes = kLanes<T>;
  constexpr int kVectors = OES_LEVEL == 0 ? 1 : 2;
  typename V::Type sum[kTaps][kVectors];
  const T* from[kTaps];
#pragma GCC unroll 16
  for (int k = 0; k < kTaps; ++k) {
    from[k] = source + channels[k] * plane;
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
    const T* source, int64_t plane, const int32_t* channels, int64_t taps, int64_t vectors, const T* grad, T* sums) {
  constexpr int lanes = kLanes<T>;
  // Groups of about one size: the sums of a group of one or two would wait for each other.
  for (int64_t groups = (taps + 5) / 6, t = 0; groups > 0; --groups) {
    const int64_t count = (taps - t + groups - 1) / groups;
    switch (count) {
      case 6:
        products_back<6>(source, plane, channels + t, vectors, grad, sums + t * lanes);
        break;
      case 5:
        products_back<5>(source, plane, channels + t, vectors, grad, sums + t * lanes);
        break;
      case 4:
        products_back<4>(source, plane, channels + t, vectors, grad, sums + t * lanes);
        break;
      case 3:
        products_back<3>(source, plane, channels + t, vectors, grad, sums + t * lanes);
        break;
      case 2:
        products_back<2>(source, plane, channels + t, vectors, grad, sums + t * lanes);
        break;
      default:
        products_back<1>(source, plane, channels + t, vectors, grad, sums + t * lanes);
    }
    t += count;
  }
}

// Rows first .. first + count of all channels, mapped, into planes of the strip. Beyond the image the edge repeats, or
// lies zero; zeros fill the last vector.
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
    int64_t plane,
    T* strip) {
  for (int64_t c = 0; c < inputs; ++c) {
    T* to = strip + c * plane;
    const T* from = source + c * rows * columns;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = first + r;
      if (zeros && (row < 0 || row >= rows)) {
        for (int64_t j = 0; j < columns; ++j) {
          to[r * columns + j] = T(0);
        }
        continue;
      }
      const int64_t inside = row < 0 ? 0 : row >= rows ? rows - 1 : row;
      map_row(from + inside * columns, map, c, columns, to + r * columns);
    }
    for (int64_t j = count * columns; j < vectors_of<T>(count * columns) * kLanes<T>; ++j) {
      to[j] = T(0);
    }
  }
}

// Sums of b along the rows: what of them even and odd columns of y take.
template <typename T>
OES_HERE void combine_columns(
    const T* __restrict left,
    const T* __restrict middle,
    const T* __restrict right,
    int64_t columns,
    bool zeros,
    T* __restrict even,
    T* __restrict odd) {
  const int64_t last = columns - 1;
  even[0] = (zeros ? T(0) : left[0]) + (middle[0] + right[0]);
  for (int64_t j = 1; j < columns; ++j) {
    even[j] = left[j - 1] + (middle[j] + right[j]);
  }
  for (int64_t j = 0; j < last; ++j) {
    odd[j] = (left[j] + middle[j]) + right[j + 1];
  }
  odd[last] = (left[last] + middle[last]) + (zeros ? T(0) : right[last]);
}

template <typename T>
OES_HERE void interleave_sums(
    const T* __restrict even0,
    const T* __restrict even1,
    const T* __restrict even2,
    const T* __restrict odd0,
    const T* __restrict odd1,
    const T* __restrict odd2,
    int64_t columns,
    T* __restrict out) {
  for (int64_t j = 0; j < columns; ++j) {
    out[2 * j] = even0[j] + (even1[j] + even2[j]);
    out[2 * j + 1] = odd0[j] + (odd1[j] + odd2[j]);
  }
}

template <typename T>
OES_TARGET void mix(const Mix<T>& a, int64_t begin, int64_t end) {
  const bool up = a.kernel == 9;
  const int64_t halo = up ? 1 : 0, columns = a.columns;
  const int64_t plane = plane_of<T>((a.strip_rows + 2 * halo) * columns + kLanes<T>);
  T* strip = scratch<T>((a.inputs + a.kernel + 6) * plane);
  T* b = strip + a.inputs * plane;
  T* e = b + a.kernel * plane; // [row of the kernel][even, odd]
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit % a.groups, at = unit / a.groups;
    const int64_t first = at * a.strip_rows;
    const int64_t rows = a.rows - first < a.strip_rows ? a.rows - first : a.strip_rows;
    load_strip(a.source, a.map, a.inputs, a.rows, columns, a.zeros, first - halo, rows + 2 * halo, plane, strip);
    for (int64_t o = group * a.outputs / a.groups; o < (group + 1) * a.outputs / a.groups; ++o) {
      // Piece by piece, so that the pixels of all channels stay in the first-level cache for the nine sums.
      const int64_t vectors = vectors_of<T>((rows + 2 * halo) * columns);
      for (int64_t piece = 0; piece < vectors; piece += a.piece) {
        const int64_t until = piece + a.piece < vectors ? piece + a.piece : vectors;
        for (int64_t k = 0; k < a.kernel; ++k) {
          const int64_t t = a.first[o * a.kernel + k], taps = a.first[o * a.kernel + k + 1] - t;
          for (int64_t v = piece; v < until; v += kPiece) {
            const int64_t size = until - v < kPiece ? until - v : kPiece, from = v * kLanes<T>;
            // The upper row of the kernel reads no pixel of the strip's last row, the others none of its first.
            if (up && (k < 3 ? from >= (rows + 1) * columns : from + size * kLanes<T> <= columns)) {
              continue;
            }
            products<false>(
                strip + from, plane, a.weights + t, a.channels + t, taps, size, b + k * plane + from);
          }
        }
      }
      double* moments = a.moments == nullptr ? nullptr : a.moments + 2 * (at * a.outputs + o);
      if (!up) {
        T* out = a.out + (o * a.rows + first) * columns;
        for (int64_t j = 0; j < rows * columns; ++j) {
          out[j] = b[j];
        }
        if (moments != nullptr) {
          Moments<T> sums(b[0]);
          sums.add(b, rows * columns);
          sums.finish(rows * columns, moments);
        }
        continue;
      }
      for (int64_t u = 0; u < 3; ++u) {
        const T* from = b + 3 * u * plane + (u == 0 ? 0 : columns);
        for (int64_t r = 0; r < (u == 1 ? rows : rows + 1); ++r) {
          const int64_t row = r * columns;
          combine_columns(
              from + row, from + plane + row, from + 2 * plane + row, columns, a.zeros, e + 2 * u * plane + row,
              e + (2 * u + 1) * plane + row);
        }
      }
      T* out = a.out + (o * a.rows + first) * 4 * columns;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = r * columns, next = row + columns;
        T* to = out + 4 * row;
        interleave_sums(
            e + row, e + 2 * plane + row, e + 4 * plane + row, e + plane + row, e + 3 * plane + row,
            e + 5 * plane + row, columns, to);
        interleave_sums(
            e + 4 * plane + next, e + next, e + 2 * plane + row, e + 5 * plane + next, e + plane + next,
            e + 3 * plane + row, columns, to + 2 * columns);
      }
      if (moments != nullptr) {
        Moments<T> sums(out[0]);
        sums.add(out, 4 * rows * columns);
        sums.finish(4 * rows * columns, moments);
      }
    }
  }
}

// The gradient of y along a row, summed for the three columns of the kernel: what the b of each takes of it. Its even
// and odd columns are first parted; beyond them lies zero.
template <typename T>
OES_HERE void spread_columns(
    const T* __restrict row,
    int64_t columns,
    bool zeros,
    T* __restrict even,
    T* __restrict odd,
    T* __restrict left,
    T* __restrict middle,
    T* __restrict right) {
  for (int64_t j = 0; j < columns; ++j) {
    even[j] = row[2 * j];
    odd[j] = row[2 * j + 1];
  }
  even[columns] = odd[-1] = T(0);
  for (int64_t j = 0; j < columns; ++j) {
    left[j] = odd[j] + even[j + 1];
    middle[j] = even[j] + odd[j];
    right[j] = odd[j - 1] + even[j];
  }
  if (!zeros) {
    left[0] += even[0];
    right[columns - 1] += odd[columns - 1];
  }
}

template <typename T>
OES_HERE void add_rows(const T* __restrict x, const T* __restrict y, int64_t count, T* __restrict to) {
  for (int64_t j = 0; j < count; ++j) {
    to[j] = x[j] + y[j];
  }
}

template <typename T>
OES_HERE void add_row(const T* __restrict x, int64_t count, T* __restrict to) {
  for (int64_t j = 0; j < count; ++j) {
    to[j] += x[j];
  }
}

// Gradients of the nine b of output o over a strip, [9][plane]; `sums` holds three rows for each row of y it needs.
template <typename T>
OES_HERE void grads_of_b(
    const MixBack<T>& a, int64_t o, int64_t first, int64_t rows, int64_t plane, T* sums, T* line, T* to) {
  const int64_t columns = a.columns, all = 2 * a.rows;
  const int64_t high = 2 * rows + 2;
  for (int64_t t = 0; t < high; ++t) {
    const int64_t row = 2 * first - 1 + t;
    T* out = sums + t * columns;
    if (row < 0 || row >= all) {
      for (int64_t v = 0; v < 3; ++v) {
        for (int64_t j = 0; j < columns; ++j) {
          out[v * high * columns + j] = T(0);
        }
      }
      continue;
    }
    grad_row(a.grad, o, (o * all + row) * 2 * columns, 2 * columns, line);
    spread_columns(
        line, columns, a.zeros, line + 2 * columns, line + 3 * columns + 2, out, out + high * columns,
        out + 2 * high * columns);
  }
  for (int64_t u = 0; u < 3; ++u) {
    for (int64_t v = 0; v < 3; ++v) {
      const T* from = sums + v * high * columns;
      T* out = to + (3 * u + v) * plane;
      for (int64_t r = 0; r < rows; ++r) {
        const T* row = from + (2 * r + 2 - u) * columns;
        add_rows(row, row + columns, columns, out + r * columns);
      }
      if (!a.zeros && u == 0 && first == 0) { // the edge repeated above the image
        add_row(from + columns, columns, out);
      }
      if (!a.zeros && u == 2 && first + rows == a.rows) { // and below it
        add_row(from + 2 * rows * columns, columns, out + (rows - 1) * columns);
      }
      for (int64_t j = rows * columns; j < vectors_of<T>(rows * columns) * kLanes<T>; ++j) {
        out[j] = T(0);
      }
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
  const T scale = a.map.scale[c], shift = a.map.shift[c], slope = a.map.slope, mean = a.mean[c];
  alignas(64) T result[kPixels], centred[kPixels];
  Sums<T> all;
  for (int64_t at = 0; at < count; at += kPixels) {
    const int64_t size = count - at < kPixels ? count - at : kPixels;
    if (a.leave == Leave::kActivation) {
      for (int64_t j = 0; j < size; ++j) {
        const T n = scale * source[at + j] + shift;
        result[j] = n < T(0) ? grad[at + j] * slope : grad[at + j];
        centred[j] = source[at + j] - mean;
      }
    } else {
      for (int64_t j = 0; j < size; ++j) {
        result[j] = grad[at + j];
        centred[j] = leaky(scale * source[at + j] + shift, slope) - mean;
      }
    }
    for (int64_t j = 0; j < size; ++j) {
      out[at + j] = result[j];
    }
    all.add(result, centred, size);
  }
  all.finish(sums);
}

template <typename T>
OES_TARGET void mix_back(const MixBack<T>& a, int64_t begin, int64_t end) {
  const bool up = a.kernel == 9;
  const int64_t columns = a.columns, kernel = a.kernel, weights = a.first[a.outputs * kernel];
  const int64_t plane = plane_of<T>(a.strip_rows * columns);
  const int64_t lines = up ? 3 * (2 * a.strip_rows + 2) * columns + 4 * columns + 2 : 0;
  T* strip = scratch<T>((2 * a.inputs + a.block * kernel) * plane + lines);
  T* mixed = strip + a.inputs * plane;
  T* grads = mixed + a.inputs * plane;
  T* sums = grads + a.block * kernel * plane;
  T* line = sums + (up ? 3 * (2 * a.strip_rows + 2) * columns : 0);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t part = unit % a.parts, slot = unit / a.parts;
    const int64_t own_from = part * a.outputs / a.parts, own_to = (part + 1) * a.outputs / a.parts;
    const int64_t in_from = part * a.inputs / a.parts, in_to = (part + 1) * a.inputs / a.parts;
    T* of_slot = a.sums == nullptr ? nullptr : a.sums + slot * weights * kLanes<T>;
    if (of_slot != nullptr) {
      for (int64_t t = a.first[own_from * kernel] * kLanes<T>; t < a.first[own_to * kernel] * kLanes<T>; ++t) {
        of_slot[t] = T(0);
      }
    }
    for (int64_t at = slot * a.strips / a.slots; at < (slot + 1) * a.strips / a.slots; ++at) {
      const int64_t first = at * a.strip_rows;
      const int64_t rows = a.rows - first < a.strip_rows ? a.rows - first : a.strip_rows;
      const int64_t vectors = vectors_of<T>(rows * columns);
      if (of_slot != nullptr) {
        load_strip(a.source, a.map, a.inputs, a.rows, columns, a.zeros, first, rows, plane, strip);
      }
      for (int64_t block = 0; block < a.blocks; ++block) {
        const int64_t from = block * a.block, to = from + a.block < a.outputs ? from + a.block : a.outputs;
        for (int64_t o = from; o < to; ++o) {
          const bool own = of_slot != nullptr && o >= own_from && o < own_to;
          if (!own && a.grad_source == nullptr) {
            continue;
          }
          T* of_output = grads + (o - from) * kernel * plane;
          if (up) {
            grads_of_b(a, o, first, rows, plane, sums, line, of_output);
          } else {
            grad_row(a.grad, o, (o * a.rows + first) * columns, rows * columns, of_output);
            for (int64_t j = rows * columns; j < vectors * kLanes<T>; ++j) {
              of_output[j] = T(0);
            }
          }
          for (int64_t v = 0; own && v < vectors; v += a.piece) {
            const int64_t size = vectors - v < a.piece ? vectors - v : a.piece, pixel = v * kLanes<T>;
            for (int64_t k = 0; k < kernel; ++k) {
              const int64_t t = a.first[o * kernel + k];
              products_back(
                  strip + pixel, plane, a.channels + t, a.first[o * kernel + k + 1] - t, size,
                  of_output + k * plane + pixel, of_slot + t * kLanes<T>);
            }
          }
        }
        for (int64_t v = 0; a.grad_source != nullptr && v < vectors; v += kPiece) {
          const int64_t size = vectors - v < kPiece ? vectors - v : kPiece, pixel = v * kLanes<T>;
          for (int64_t c = in_from; c < in_to; ++c) {
            const int64_t t = a.back_first[c * a.blocks + block], taps = a.back_first[c * a.blocks + block + 1] - t;
            T* out = mixed + c * plane + pixel;
            if (block == 0) {
              products<false>(grads + pixel, plane, a.back_weights + t, a.back_planes + t, taps, size, out);
            } else if (taps != 0) {
              products<true>(grads + pixel, plane, a.back_weights + t, a.back_planes + t, taps, size, out);
            }
          }
        }
      }
      for (int64_t c = in_from; a.grad_source != nullptr && c < in_to; ++c) {
        leave(a, c, first * columns, rows * columns, mixed + c * plane, a.leave_sums + 2 * (at * a.inputs + c));
      }
    }
  }
}

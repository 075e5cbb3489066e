#include "cpu/conv/conv_input.h"

#include <algorithm>

#include "cpu/core/workspace.h"
#include "cpu/core/tensor_checks.h"

namespace oes::frame {
namespace {

constexpr int64_t kRows = 32; // of a unit of work

int64_t place(Padding padding, int64_t at, int64_t size) {
  if (at >= 0 && at < size) {
    return at;
  }
  switch (padding) {
    case Padding::kReflect:
      return at < 0 ? -at : 2 * size - 2 - at;
    case Padding::kReplicate:
      return at < 0 ? 0 : size - 1;
    case Padding::kCircular:
      return at < 0 ? at + size : at - size;
    case Padding::kZeros:
      break;
  }
  return -1;
}

template <typename T>
OES_INLINE void bordered_row(const Frame<T>& a, int64_t channel, int64_t row, T* __restrict to) {
  const int64_t wide = static_cast<int64_t>(a.border->columns.size()), left = a.border->left;
  const int64_t from = a.border->rows[row];
  if (from < 0) {
    for (int64_t j = 0; j < wide; ++j) {
      to[j] = T(0);
    }
    return;
  }
  map_row(a.image + (channel * a.rows + from) * a.columns, a.map, channel, a.columns, to + left);
  for (int64_t j = 0; j < left; ++j) {
    const int32_t column = a.border->columns[j];
    to[j] = column < 0 ? T(0) : to[left + column];
  }
  for (int64_t j = left + a.columns; j < wide; ++j) {
    const int32_t column = a.border->columns[j];
    to[j] = column < 0 ? T(0) : to[left + column];
  }
}

template <typename T>
OES_INLINE void box_row(const T* __restrict upper, const T* __restrict lower, int64_t count, T* __restrict to) {
  for (int64_t j = 0; j < count; ++j) {
    to[j] = (upper[j] + upper[j + 1]) + (lower[j] + lower[j + 1]);
  }
}

template <typename T>
OES_INLINE void split_row(const T* __restrict from, int64_t count, T* __restrict even, T* __restrict odd) {
  const int64_t pairs = count / 2;
  for (int64_t j = 0; j < pairs; ++j) {
    even[j] = from[2 * j];
    odd[j] = from[2 * j + 1];
  }
  if (count % 2 != 0) {
    even[pairs] = from[count - 1];
    odd[pairs] = T(0);
  }
}

template <typename T>
OES_INLINE void merge_row(const T* __restrict even, const T* __restrict odd, int64_t count, T* __restrict to) {
  const int64_t pairs = count / 2;
  for (int64_t j = 0; j < pairs; ++j) {
    to[2 * j] = even[j];
    to[2 * j + 1] = odd[j];
  }
  if (count % 2 != 0) {
    to[count - 1] = even[pairs];
  }
}

template <typename T>
struct Make : Frame<T> {
  int64_t units; // of a channel
};

template <Capability, typename Arguments>
OES_INLINE void make_body(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.planes)>;
  const int64_t high = a.high(), wide = a.wide(), plane_rows = a.plane_rows(), plane_columns = a.plane_columns();
  const int64_t line = wide + 1;
  T* upper = scratch<T>(3 * line);
  T* lower = upper + line;
  T* summed = lower + line;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t c = unit / a.units, first = unit % a.units * kRows;
    const int64_t last = std::min(first + kRows, a.split ? 2 * plane_rows : high);
    T* planes = a.planes + c * a.plane_size();
    bool have = false; // `lower` holds the row above the next
    for (int64_t row = first; row < last; ++row) {
      T* to = a.split ? planes + ((row % 2) * 2 * plane_rows + row / 2) * plane_columns : planes + row * plane_columns;
      T* to_odd = to + plane_rows * plane_columns;
      if (row >= high) { // beyond the edge of odd sizes
        std::fill(to, to + plane_columns, T(0));
        std::fill(to_odd, to_odd + plane_columns, T(0));
        continue;
      }
      if (!a.box && !a.split) {
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
        if (!a.split) {
          box_row(upper, lower, wide, to);
          continue;
        }
        box_row(upper, lower, wide, summed);
      } else {
        bordered_row(a, c, row, upper);
        result = upper;
      }
      split_row(result, wide, to, to_odd);
    }
  }
}

template <Capability, typename Arguments>
OES_INLINE void make_back_body(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.grad_image)>;
  const int64_t high = a.high(), wide = a.wide(), plane_rows = a.plane_rows(), plane_columns = a.plane_columns();
  const int64_t full = static_cast<int64_t>(a.border->columns.size()), left = a.border->left;
  T* sum = scratch<T>(2 * (full + 1));
  T* line = sum + full + 1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t c = unit / a.units, first = unit % a.units * kRows;
    const int64_t last = std::min(first + kRows, a.rows);
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
          if (a.split) {
            const T* even = planes + ((row % 2) * 2 * plane_rows + row / 2) * plane_columns;
            merge_row(even, even + plane_rows * plane_columns, wide, line);
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
      T* __restrict grad = a.grad_image + (c * a.rows + i) * a.columns;
      for (int64_t j = 0; j < a.columns; ++j) {
        grad[j] = to[left + j];
      }
      for (int64_t j = 0; j < full; ++j) {
        if (j == left) {
          j += a.columns;
          if (j >= full) {
            break;
          }
        }
        if (a.border->columns[j] >= 0) {
          grad[a.border->columns[j]] += to[j];
        }
      }
    }
  }
}

template <Capability, typename Arguments>
OES_INLINE void bordered_body(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.out)>;
  for (int64_t c = begin; c < end; ++c) {
    T* to = a.out + c * a.high * a.pitch;
    std::fill(to, to + a.top * a.pitch, T(0));
    for (int64_t i = 0; i < a.rows; ++i) {
      T* row = to + (a.top + i) * a.pitch;
      std::fill(row, row + a.left, T(0));
      grad_row(a.grad, c, (c * a.rows + i) * a.columns, a.columns, row + a.left);
      std::fill(row + a.left + a.columns, row + a.pitch, T(0));
    }
    std::fill(to + (a.top + a.rows) * a.pitch, to + a.high * a.pitch + (c + 1 == a.channels ? a.left : 0), T(0));
  }
}

OES_CAPABILITIES(make)
OES_CAPABILITIES(make_back)
OES_CAPABILITIES(bordered)

} // namespace

Border border(Padding padding, int64_t rows, int64_t columns, int64_t left, int64_t right, int64_t top, int64_t bottom) {
  Border b;
  b.top = top;
  b.left = left;
  b.row_first.assign(rows + 1, 0);
  for (int64_t i = -top; i < rows + bottom; ++i) {
    b.rows.push_back(static_cast<int32_t>(place(padding, i, rows)));
  }
  for (int64_t j = -left; j < columns + right; ++j) {
    b.columns.push_back(static_cast<int32_t>(place(padding, j, columns)));
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (size_t at = 0; at < b.rows.size(); ++at) {
      if (b.rows[at] == i) {
        b.row_list.push_back(static_cast<int32_t>(at));
      }
    }
    b.row_first[i + 1] = static_cast<int32_t>(b.row_list.size());
  }
  return b;
}

template <typename T>
void make(const Frame<T>& frame) {
  Make<T> a{frame, 0};
  a.units = ((a.split ? 2 * a.plane_rows() : a.high()) + kRows - 1) / kRows;
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / (kRows * a.wide()));
  torch::stable::parallel_for(
      0, a.channels * a.units, grain, [&](int64_t begin, int64_t end) { make(a, begin, end); });
}

template <typename T>
void make_back(const Frame<T>& frame) {
  const Make<T> a{frame, (frame.rows + kRows - 1) / kRows};
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / (kRows * a.wide()));
  torch::stable::parallel_for(
      0, a.channels * a.units, grain, [&](int64_t begin, int64_t end) { make_back(a, begin, end); });
}

template <typename T>
void bordered(const Bordered<T>& a) {
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / (a.rows * a.columns));
  torch::stable::parallel_for(0, a.channels, grain, [&](int64_t begin, int64_t end) { bordered(a, begin, end); });
}

#define OES_INSTANTIATE(T)                \
  template void make(const Frame<T>&);    \
  template void make_back(const Frame<T>&); \
  template void bordered(const Bordered<T>&);
OES_INSTANTIATE(float)
OES_INSTANTIATE(double)

} // namespace oes::frame

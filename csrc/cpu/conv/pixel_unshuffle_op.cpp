// pixel_unshuffle and pixel_shuffle by 2 of an image padded to even sizes: its even and odd rows and columns, what a
// convolution of stride 2 reads, and back.
#include <algorithm>

#include "cpu/core/parallel.h"
#include "cpu/core/simd.h"
#include "cpu/core/tensor_checks.h"

namespace oes::conv {
namespace {

// Moves elements between an image and its four un-shuffled planes; `unshuffle` or back. Beyond the edge of odd sizes
// lies zero.
template <bool unshuffle, typename T>
void move_pixels(const T* from, T* to, int64_t channels, int64_t height, int64_t width) {
  const int64_t rows = ceil_div(height, 2), columns = ceil_div(width, 2);
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, height * width));
  parallel_for(0, channels * rows, grain * rows, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t channel = task / rows, i = task % rows;
      for (int64_t odd = 0; odd < 2; ++odd) {
        const int64_t y = 2 * i + odd;
        const int64_t even_plane = ((channel * 4 + 2 * odd) * rows + i) * columns;
        const int64_t odd_plane = even_plane + rows * columns;
        if constexpr (unshuffle) {
          T* __restrict even_columns = to + even_plane;
          T* __restrict odd_columns = to + odd_plane;
          if (y >= height) {
            std::fill(even_columns, even_columns + columns, T(0));
            std::fill(odd_columns, odd_columns + columns, T(0));
            continue;
          }
          const T* __restrict row = from + (channel * height + y) * width;
          for (int64_t j = 0; j < width / 2; ++j) {
            even_columns[j] = row[2 * j];
            odd_columns[j] = row[2 * j + 1];
          }
          if (width % 2 != 0) {
            even_columns[columns - 1] = row[width - 1];
            odd_columns[columns - 1] = T(0);
          }
        } else if (y < height) {
          T* __restrict row = to + (channel * height + y) * width;
          const T* __restrict even_columns = from + even_plane;
          const T* __restrict odd_columns = from + odd_plane;
          for (int64_t j = 0; j < width / 2; ++j) {
            row[2 * j] = even_columns[j];
            row[2 * j + 1] = odd_columns[j];
          }
          if (width % 2 != 0) {
            row[width - 1] = even_columns[columns - 1];
          }
        }
      }
    }
  });
}

Tensor pixel_unshuffle(Tensor x) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && x.is_contiguous(), "x: expected a contiguous CPU tensor [N, C, H, W]");
  check_vector("x", torch::stable::flatten(x), torch::stable::flatten(x));
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  Tensor result = torch::stable::new_empty(x, {n, c, 4, ceil_div(h, 2), ceil_div(w, 2)});
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    move_pixels<true>(pointer<const T>(x), pointer<T>(result), n * c, h, w);
  });
  return result;
}

Tensor pixel_shuffle(Tensor planes, int64_t height, int64_t width) {
  STD_TORCH_CHECK(
      planes.is_cpu() && planes.dim() == 5 && planes.is_contiguous() && planes.size(2) == 4 &&
          planes.size(3) == ceil_div(height, 2) && planes.size(4) == ceil_div(width, 2),
      "planes: expected the contiguous phases [N, C, 4, H', W'] of an image of that size");
  check_vector("planes", torch::stable::flatten(planes), torch::stable::flatten(planes));
  const int64_t n = planes.size(0), c = planes.size(1);
  Tensor result = torch::stable::new_empty(planes, {n, c, height, width});
  with_type(planes, [&](auto zero) {
    using T = decltype(zero);
    move_pixels<false>(pointer<const T>(planes), pointer<T>(result), n * c, height, width);
  });
  return result;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("phase_split_cpu", TORCH_BOX(&pixel_unshuffle));
  m.impl("phase_merge_cpu", TORCH_BOX(&pixel_shuffle));
}

} // namespace oes::conv

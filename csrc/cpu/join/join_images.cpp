#include "cpu/join/join_images.h"

#include <algorithm>
#include <type_traits>

#include "cpu/core/parallel.h"
#include "cpu/core/workspace.h"
#include "cpu/norm/moments.h"

namespace oes::join {
namespace {

constexpr int64_t kChunk = 8192; // pixels of a channel that a task takes
constexpr int64_t kStrip = 512; // of them between two loops: they stay in the first-level cache
constexpr int64_t kStripRows = 16; // rows of a channel that a task takes
constexpr int64_t kGrainPixels = 1 << 15; // that one thread takes at least

template <typename T>
struct NormGrad {
  norm::PrologueGrad<T> of;
  int64_t pixels;
  T* grad;
};

#define OES_ISA_FILE "cpu/join/join_images_isa.h"
#include "cpu/core/isa_variants.h"

// Calls f(begin, end) for the chunks of all channels, on several threads.
template <typename F>
void each_chunks(int64_t channels, int64_t pixels, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kGrainPixels / std::min(pixels, kChunk));
  parallel_for(0, channels * ceil_div(pixels, kChunk), grain, f);
}

// The same for strips of rows.
template <typename F>
void each_strips(int64_t channels, int64_t rows, int64_t columns, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kGrainPixels / (std::min(rows, kStripRows) * columns));
  parallel_for(0, channels * ceil_div(rows, kStripRows), grain, f);
}

} // namespace

template <typename T>
void Axis<T>::bind(const std::vector<int64_t>& indices, const std::vector<double>& of_indices, int64_t size) {
  index = indices;
  weights.assign(of_indices.begin(), of_indices.end());
  const auto results = static_cast<int64_t>(index.size() / 2);
  bool nearest = results == 2 * size, linear = results == 2 * size;
  for (int64_t i = 0; i < results; ++i) {
    const int64_t one = index[2 * i], two = index[2 * i + 1];
    const T w = weights[2 * i], v = weights[2 * i + 1];
    nearest = nearest && one == i / 2 && w == T(1) && v == T(0);
    const bool edge = i == 0 || i + 1 == results;
    const bool inside = one == (i - 1) / 2 && two == one + 1 && w == (i % 2 != 0 ? T(0.75) : T(0.25)) && w + v == T(1);
    linear = linear && (edge ? one == i / 2 && w == T(1) && v == T(0) : inside);
  }
  form = nearest ? Stretch::kTwiceNearest : linear ? Stretch::kTwiceLinear : Stretch::kAny;
  back_first.assign(size + 1, 0);
  back_list.clear();
  back_weights.clear();
  for (int64_t at = 0; at < size; ++at) {
    for (int64_t k = 0; k < 2 * results; ++k) {
      if (index[k] == at && weights[k] != T(0)) {
        back_list.push_back(k / 2);
        back_weights.push_back(weights[k]);
      }
    }
    back_first[at + 1] = static_cast<int64_t>(back_list.size());
  }
}

int64_t prelu_chunks(int64_t pixels) {
  return ceil_div(pixels, kChunk);
}

template <typename T>
void sum_images(const SumImages<T>& a) {
  each_chunks(a.outputs, a.pixels, [&](int64_t begin, int64_t end) { OES_DISPATCH(sum_images, a, begin, end); });
}

template <typename T>
void sum_grad(const SumGrad<T>& a) {
  each_chunks(a.channels, a.pixels, [&](int64_t begin, int64_t end) { OES_DISPATCH(sum_grad, a, begin, end); });
}

template <typename T>
void resample(const Resample<T>& a) {
  each_strips(
      a.outputs, a.out_rows, a.out_columns, [&](int64_t begin, int64_t end) { OES_DISPATCH(resample, a, begin, end); });
}

template <typename T>
void resample_grad(const Resample<T>& a) {
  each_strips(
      a.channels, a.rows, a.columns, [&](int64_t begin, int64_t end) { OES_DISPATCH(resample_grad, a, begin, end); });
}

template <typename T>
void pool(const Pool<T>& a) {
  each_strips(a.outputs, a.out_rows, a.stride_rows * a.columns, [&](int64_t begin, int64_t end) {
    if (a.place != nullptr) {
      OES_DISPATCH(max_pool, a, begin, end);
    } else {
      OES_DISPATCH(average_pool, a, begin, end);
    }
  });
}

template <typename T>
void pool_grad(const Pool<T>& a) {
  const int64_t grain = std::max<int64_t>(1, kGrainPixels / (a.rows * a.columns));
  parallel_for(0, a.channels, grain, [&](int64_t begin, int64_t end) { OES_DISPATCH(pool_grad, a, begin, end); });
}

template <typename T>
void crop(const Crop<T>& a) {
  each_strips(
      a.outputs, a.out_rows, a.out_columns, [&](int64_t begin, int64_t end) { OES_DISPATCH(crop, a, begin, end); });
}

template <typename T>
void crop_grad(const Crop<T>& a) {
  each_strips(
      a.channels, a.rows, a.columns, [&](int64_t begin, int64_t end) { OES_DISPATCH(crop_grad, a, begin, end); });
}

template <typename T>
void pixel_shuffle(const PixelShuffle<T>& a) {
  each_strips(a.outputs, a.out_rows, a.out_columns, [&](int64_t begin, int64_t end) {
    OES_DISPATCH(pixel_shuffle, a, begin, end);
  });
}

template <typename T>
void pixel_shuffle_grad(const PixelShuffle<T>& a) {
  each_strips(a.channels, a.rows, a.columns, [&](int64_t begin, int64_t end) {
    OES_DISPATCH(pixel_shuffle_grad, a, begin, end);
  });
}

template <typename T>
void prelu(const Prelu<T>& a) {
  each_chunks(a.outputs, a.rows * a.columns, [&](int64_t begin, int64_t end) { OES_DISPATCH(prelu, a, begin, end); });
}

template <typename T>
void prelu_grad(const Prelu<T>& a) {
  each_chunks(
      a.channels, a.rows * a.columns, [&](int64_t begin, int64_t end) { OES_DISPATCH(prelu_grad, a, begin, end); });
}

template <typename T>
void norm_grad(const norm::PrologueGrad<T>& of, int64_t channels, int64_t pixels, T* grad) {
  const NormGrad<T> a{of, pixels, grad};
  each_chunks(channels, pixels, [&](int64_t begin, int64_t end) { OES_DISPATCH(norm_grad, a, begin, end); });
}

template <typename T>
void add_to(const T* from, int64_t count, T* to) {
  const int64_t first[2] = {0, 1}, outputs[1] = {0};
  sum_grad(SumGrad<T>{1, count, first, outputs, from, true, to});
}

#define OES_INSTANTIATE(T)                                                     \
  template struct Axis<T>;                                                     \
  template void sum_images(const SumImages<T>&);                               \
  template void sum_grad(const SumGrad<T>&);                                   \
  template void resample(const Resample<T>&);                                  \
  template void resample_grad(const Resample<T>&);                             \
  template void pool(const Pool<T>&);                                          \
  template void pool_grad(const Pool<T>&);                                     \
  template void crop(const Crop<T>&);                                          \
  template void crop_grad(const Crop<T>&);                                     \
  template void pixel_shuffle(const PixelShuffle<T>&);                         \
  template void pixel_shuffle_grad(const PixelShuffle<T>&);                    \
  template void prelu(const Prelu<T>&);                                        \
  template void prelu_grad(const Prelu<T>&);                                   \
  template void norm_grad(const norm::PrologueGrad<T>&, int64_t, int64_t, T*); \
  template void add_to(const T*, int64_t, T*);
OES_INSTANTIATE(float)
OES_INSTANTIATE(double)

} // namespace oes::join

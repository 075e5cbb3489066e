#include "cpu/conv/winograd/conv2d.h"

#include <algorithm>

#include "cpu/core/output_tiles.h"
#include "cpu/core/parallel.h"

namespace oes::conv::winograd {
namespace {

constexpr int64_t kTilesOfGroup = 4; // that share the pixels of a frequency in the first-level cache

#define OES_ISA_FILE "cpu/conv/winograd/conv2d_isa.h"
#include "cpu/core/isa_variants.h"

constexpr int64_t kTasks = 4; // at least, where the planes can be cut into groups for it
constexpr int64_t kGrain = 1 << 13; // weights that one thread transforms at least
constexpr int64_t kWeights = isa_default::kWeights;
constexpr int64_t kMostRows = 8; // outputs of a tile

// Tiles of a strip.
template <typename T>
int64_t strip() {
  return (capability() == Capability::kDefault ? 2 : 3) * vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
}

// What the choice between the two forms goes by, measured with AVX2.
constexpr double kPixelsOfWeight = 25;
constexpr double kOfSource = 12, kOfResult = 7; // products for each pixel that is transformed

// Side of the tile, see fastest_tile. Times in products of a tile.
template <typename T>
int best_tile(const Shape& s) {
  const auto planes = static_cast<double>(s.backward ? s.inputs : s.outputs);
  const auto sources = static_cast<double>(s.backward ? s.outputs : s.inputs);
  const auto taps = static_cast<double>(s.kernel * s.kernel);
  // A weight that is packed or transformed and written costs as much as some pixels.
  const double direct = planes * sources * taps * (static_cast<double>(s.rows * s.columns) + kPixelsOfWeight);
  return fastest_tile(s, direct, [&](int tile) {
    const int64_t points = tile + s.window() - 1, phases = s.stride * s.stride;
    const int64_t lanes = vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
    const auto tiles = static_cast<double>(ceil_div(s.tiles(tile), lanes) * lanes);
    const double transforms = tiles * static_cast<double>(points * points) *
        (kOfSource * sources * static_cast<double>(s.backward ? 1 : phases) +
         kOfResult * planes * static_cast<double>(s.backward ? phases : 1));
    return planes * sources * static_cast<double>(s.frequencies(tile)) * (tiles + kPixelsOfWeight) + transforms;
  });
}

} // namespace

template <typename T>
bool Conv2d<T>::fits(const Shape& s) {
  return best_tile<T>(s) > 0;
}

template <typename T>
void Conv2d<T>::bind(const Shape& s) {
  shape_ = s;
  transforms_.bind(s, best_tile<T>(s));
  sum_ = {transforms_.tiles};
  for (int64_t i = 0; i < sum_.source_planes * sum_.source_classes; ++i) {
    offsets_.push_back(i * strip<T>());
  }
  sum_.offsets = offsets_.data();
  sum_.weights = weights_.reserve(sum_.planes * transforms_.taps.back());
  const int64_t groups = sum_.classes * ceil_div(sum_.planes, kTilesOfGroup * tile_outputs(capability()));
  sum_.strips = ceil_div(s.tiles(sum_.tile), strip<T>());
  sum_.tasks_of_strip = std::clamp<int64_t>(ceil_div(kTasks, sum_.strips), 1, groups);
}

template <typename T>
void Conv2d<T>::set(const T* weights, T scale) {
  const int64_t kernel_size = shape_.kernel * shape_.kernel, most = kTilesOfGroup * tile_outputs(capability());
  parallel_for(
      0, ceil_div(sum_.planes, most), std::max<int64_t>(1, kGrain / (most * sum_.source_planes * kernel_size)),
      [&](int64_t begin, int64_t end) {
        for (int64_t group = begin; group < end; ++group) {
          const int64_t from = group * most, to = std::min(from + most, sum_.planes);
          each_output_tile(from, to, [&](int64_t p, int rows) { set_tile(weights, scale, from, to, p, rows); });
        }
      });
}

// The weights of `rows` planes from p on, which belong to the group from .. to.
template <typename T>
void Conv2d<T>::set_tile(const T* weights, T scale, int64_t from, int64_t to, int64_t p, int64_t rows) {
  const int64_t window = shape_.window(), kernel_size = shape_.kernel * shape_.kernel;
  const int64_t all = sum_.points * sum_.points, size = kWeights * rows;
  const int64_t of_plane = shape_.backward ? kernel_size : shape_.inputs * kernel_size;
  const int64_t of_source = shape_.backward ? shape_.inputs * kernel_size : kernel_size;
  // Tap by tap, [kWeights][rows], and zeros for the taps that there are not.
  alignas(64) T natural[(kMostKernelTaps + 1) * kWeights * kMostRows] = {}, result[36 * kWeights * kMostRows];
  for (int64_t q = 0; q < sum_.source_planes; q += kWeights) {
    const int64_t some = std::min(kWeights, sum_.source_planes - q);
    for (int64_t i = 0; i < some; ++i) {
      for (int64_t r = 0; r < rows; ++r) {
        const T* kernel = weights + (p + r) * of_plane + (q + i) * of_source;
        T* at = natural + i * rows + r;
        for (int64_t t = 0; t < kernel_size; ++t) {
          at[t * size] = kernel[t];
        }
      }
    }
    for (int64_t k = 0; k < sum_.classes; ++k) {
      const int64_t* taps = transforms_.taps.data() + k * all;
      T* of_group = weights_.data() + sum_.planes * taps[0] + from * (taps[all] - taps[0]);
      for (int64_t of_class = 0; of_class < sum_.source_classes; ++of_class) {
        const int64_t* kernel_taps = transforms_.kernel_taps.data() + (k + of_class) * window * window;
        OES_DISPATCH(
            transform_weights, natural, kernel_taps, transforms_.to_points.data(), scale, sum_.tile, sum_.points, rows,
            result);
        for (int64_t f = 0; f < all; ++f) {
          const int64_t order = transforms_.class_order[f * sum_.source_classes + of_class],
                        sources = taps[f + 1] - taps[f];
          if (order >= 0 && sources > 0) {
            T* to_tile = of_group + (taps[f] - taps[0]) * (to - from) + (p - from) * sources;
            std::copy_n(result + f * size, some * rows, to_tile + (order * sum_.source_planes + q) * rows);
          }
        }
      }
    }
  }
}

template <typename T>
void Conv2d<T>::run(const T* source, T* out) const {
  TapSum<T> a = sum_;
  a.source = source;
  a.out = out;
  winograd::run(a);
}

template <typename T>
void run(const TapSum<T>& a) {
  parallel_for(
      0, a.strips * a.tasks_of_strip, 1, [&](int64_t begin, int64_t end) { OES_DISPATCH(sum, a, begin, end); });
}

template void run(const TapSum<float>&);
template void run(const TapSum<double>&);
template class Conv2d<float>;
template class Conv2d<double>;

} // namespace oes::conv::winograd

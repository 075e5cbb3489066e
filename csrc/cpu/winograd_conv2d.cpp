#include "winograd_conv2d.h"

#include <algorithm>

#include "block.h"
#include "tensors.h"

namespace oes::winograd_conv2d {
namespace {

// Points of the transforms, but for the one at infinity. Of the pairs for six points tried, these round least: about
// as much as the direct sum, +-1 and +-2 or +-1/2 twice as much. Their squares are exact.
constexpr double kPoints4[] = {0, 1, -1};
constexpr double kPoints6[] = {0, 0.75, -0.75, 1.5, -1.5};

constexpr int64_t kBlocksOfPart = 4; // that share the pixels of a frequency in the first-level cache

#define OES_KERNELS "winograd_conv2d_kernels.h"
#include "levels.h"

constexpr int64_t kUnits = 4; // of work at least, where the planes can be cut into groups for it
constexpr int64_t kGrain = 1 << 13; // weights that one thread transforms at least
constexpr int64_t kWeights = level_default::kWeights;
constexpr int64_t kMostRows = 8; // of a block
constexpr int64_t kMostPlaces = 36; // of a kernel

// Tiles of a strip.
template <typename T>
int64_t strip() {
  return (capability() == Capability::kDefault ? 2 : 3) * vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
}

// What the choice between the two forms goes by, measured with AVX2.
constexpr double kWorthwhile = 0.85; // of the direct sum's time at most
constexpr double kPixelsOfWeight = 25;
constexpr double kOfSource = 12, kOfResult = 7; // products for each pixel that is transformed

// Rows of the window: taps of the even rows, where there are two classes.
int64_t window_of(int64_t kernel, int64_t stride) {
  return (kernel - 1) / stride + 1;
}

// [points, window]: values of a polynomial with these coefficients, over the products of the points' distances.
template <typename T>
std::vector<T> values(const double* points, int64_t count, int64_t window) {
  std::vector<T> result;
  for (int64_t i = 0; i < count; ++i) {
    double scale = 1;
    for (int64_t j = 0; j < count; ++j) {
      scale *= i == j ? 1 : points[i] - points[j];
    }
    double power = 1;
    for (int64_t k = 0; k < window; ++k) {
      result.push_back(static_cast<T>(power / scale));
      power *= points[i];
    }
  }
  result.insert(result.end(), window, T(0)); // at infinity
  result.back() = T(1);
  return result;
}

} // namespace

// Side of the tile that takes least time, 0: the direct sum does. Times in products of a block.
template <typename T>
int best_tile(const typename Conv<T>::Shape& s) {
  const int64_t window = window_of(s.kernel, s.stride), phases = s.stride * s.stride;
  if (!(window == 3 && s.kernel <= 6) && !(window == 5 && s.stride == 1)) {
    return 0;
  }
  const auto planes = static_cast<double>(s.backward ? s.inputs : s.outputs);
  const auto sources = static_cast<double>(s.backward ? s.outputs : s.inputs);
  const auto taps = static_cast<double>(s.kernel * s.kernel);
  // A weight that is packed or transformed and written costs as much as some pixels.
  double least = kWorthwhile * planes * sources * taps * (static_cast<double>(s.rows * s.columns) + kPixelsOfWeight);
  int best = 0;
  for (const int tile : {2, 4}) {
    if (s.rows < tile || s.columns < tile || (tile == 4 && s.stride == 1)) {
      continue;
    }
    const int64_t points = tile + window - 1, lanes = vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
    const int64_t fewer = s.kernel % s.stride == 0 ? points : points - 1; // frequencies of the odd rows or columns
    const int64_t frequencies = phases == 1 ? points * points : (points + fewer) * (points + fewer);
    const auto tiles =
        static_cast<double>(ceil_div(ceil_div(s.rows, tile) * ceil_div(s.columns, tile), lanes) * lanes);
    const double transforms = tiles * static_cast<double>(points * points) *
        (kOfSource * sources * static_cast<double>(s.backward ? 1 : phases) +
         kOfResult * planes * static_cast<double>(s.backward ? phases : 1));
    const double time = planes * sources * static_cast<double>(frequencies) * (tiles + kPixelsOfWeight) + transforms;
    if (time < least) {
      least = time;
      best = tile;
    }
  }
  return best;
}

template <typename T>
bool Conv<T>::fits(const Shape& s) {
  return best_tile<T>(s) > 0;
}

template <typename T>
void Conv<T>::bind(const Shape& s) {
  shape_ = s;
  const int64_t window = window_of(s.kernel, s.stride), phases = s.stride * s.stride;
  sum_ = {};
  sum_.tile = best_tile<T>(s);
  sum_.points = static_cast<int>(sum_.tile + window - 1);
  sum_.rows = s.rows;
  sum_.columns = s.columns;
  sum_.pitch = s.pitch;
  sum_.source_plane = s.source_plane;
  sum_.planes = s.backward ? s.inputs : s.outputs;
  sum_.source_planes = s.backward ? s.outputs : s.inputs;
  sum_.classes = s.backward ? phases : 1;
  sum_.source_classes = s.backward ? 1 : phases;
  kernel_taps_.clear();
  for (int64_t phase = 0; phase < phases; ++phase) {
    for (int64_t i = 0; i < window * window; ++i) {
      const int64_t a = i / window, b = i % window;
      const int64_t u = (s.backward ? window - 1 - a : a) * s.stride + phase / s.stride;
      const int64_t v = (s.backward ? window - 1 - b : b) * s.stride + phase % s.stride;
      kernel_taps_.push_back(u < s.kernel && v < s.kernel ? u * s.kernel + v : kMostPlaces);
    }
  }
  to_points_ = sum_.points == 4 ? values<T>(kPoints4, 3, window) : values<T>(kPoints6, 5, window);
  bind_frequencies(window);
  sum_.weights = weights_.reserve(sum_.planes * taps_.back());
  sum_.taps = taps_.data();
  sum_.places = places_.data();
  sum_.slots = slots_.data();
  sum_.offsets = offsets_.data();
  const int64_t tiles = ceil_div(s.rows, sum_.tile) * ceil_div(s.columns, sum_.tile);
  const int64_t parts = sum_.classes * ceil_div(sum_.planes, kBlocksOfPart * block_rows(capability()));
  sum_.strips = ceil_div(tiles, strip<T>());
  sum_.groups = std::clamp<int64_t>(ceil_div(kUnits, sum_.strips), 1, parts);
}

// Which classes have which frequencies: a class whose rows lack the window's last tap (its first, backward) has
// nothing at infinity (at zero), likewise for its columns.
template <typename T>
void Conv<T>::bind_frequencies(int64_t window) {
  const int64_t points = sum_.points;
  const auto has = [&](int64_t phase, int64_t f) {
    const int64_t end = shape_.backward ? 0 : window - 1, point = shape_.backward ? 0 : points - 1;
    const int64_t* taps = kernel_taps_.data() + phase * window * window;
    const int64_t row = f / points == point ? end : shape_.backward ? window - 1 : 0;
    const int64_t column = f % points == point ? end : shape_.backward ? window - 1 : 0;
    return taps[row * window + column] < kMostPlaces;
  };
  taps_ = {0};
  places_ = {0};
  slots_.clear();
  offsets_.clear();
  for (int64_t k = 0; k < sum_.classes; ++k) {
    for (int64_t f = 0; f < points * points; ++f) {
      int64_t slots = 0;
      for (int64_t of_source = 0; of_source < sum_.source_classes; ++of_source) {
        const bool used = has(shape_.backward ? k : of_source, f);
        if (k == 0) {
          slots_.push_back(shape_.backward ? 0 : used ? slots : -1);
        }
        slots += used ? 1 : 0;
      }
      taps_.push_back(taps_.back() + slots * sum_.source_planes);
      if (k == 0) {
        places_.push_back(places_.back() + (shape_.backward ? 1 : slots) * sum_.source_planes);
      }
    }
  }
  for (int64_t i = 0; i < sum_.source_planes * sum_.source_classes; ++i) {
    offsets_.push_back(i * strip<T>());
  }
}

template <typename T>
void Conv<T>::set(const T* weights, T scale) {
  const int64_t places = shape_.kernel * shape_.kernel, most = kBlocksOfPart * block_rows(capability());
  torch::stable::parallel_for(
      0, ceil_div(sum_.planes, most), std::max<int64_t>(1, kGrain / (most * sum_.source_planes * places)),
      [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
          const int64_t from = part * most, to = std::min(from + most, sum_.planes);
          each_block(from, to, [&](int64_t p, int rows) { set_block(weights, scale, from, to, p, rows); });
        }
      });
}

// The weights of `rows` planes from p on, which belong to the part from .. to.
template <typename T>
void Conv<T>::set_block(const T* weights, T scale, int64_t from, int64_t to, int64_t p, int64_t rows) {
  const int64_t window = window_of(shape_.kernel, shape_.stride), places = shape_.kernel * shape_.kernel;
  const int64_t all = sum_.points * sum_.points, size = kWeights * rows;
  const int64_t of_plane = shape_.backward ? places : shape_.inputs * places;
  const int64_t of_source = shape_.backward ? shape_.inputs * places : places;
  // Tap by tap, [kWeights][rows], and zeros for the taps that there are not.
  alignas(64) T natural[(kMostPlaces + 1) * kWeights * kMostRows] = {}, result[36 * kWeights * kMostRows];
  for (int64_t q = 0; q < sum_.source_planes; q += kWeights) {
    const int64_t some = std::min(kWeights, sum_.source_planes - q);
    for (int64_t i = 0; i < some; ++i) {
      for (int64_t r = 0; r < rows; ++r) {
        const T* kernel = weights + (p + r) * of_plane + (q + i) * of_source;
        T* at = natural + i * rows + r;
        for (int64_t t = 0; t < places; ++t) {
          at[t * size] = kernel[t];
        }
      }
    }
    for (int64_t k = 0; k < sum_.classes; ++k) {
      const int64_t* taps = taps_.data() + k * all;
      T* of_part = weights_.data() + sum_.planes * taps[0] + from * (taps[all] - taps[0]);
      for (int64_t of_class = 0; of_class < sum_.source_classes; ++of_class) {
        const int64_t* kernel_taps = kernel_taps_.data() + (k + of_class) * window * window;
        OES_AT_LEVEL(
            transform_weights, natural, kernel_taps, to_points_.data(), scale, sum_.tile, sum_.points, rows, result);
        for (int64_t f = 0; f < all; ++f) {
          const int64_t slot = slots_[f * sum_.source_classes + of_class], sources = taps[f + 1] - taps[f];
          if (slot >= 0 && sources > 0) {
            T* to_block = of_part + (taps[f] - taps[0]) * (to - from) + (p - from) * sources;
            std::copy_n(result + f * size, some * rows, to_block + (slot * sum_.source_planes + q) * rows);
          }
        }
      }
    }
  }
}

template <typename T>
void Conv<T>::run(const T* source, T* out) const {
  Sum<T> a = sum_;
  a.source = source;
  a.out = out;
  winograd_conv2d::run(a);
}

template <typename T>
void run(const Sum<T>& a) {
  torch::stable::parallel_for(0, a.strips * a.groups, 1, [&](int64_t begin, int64_t end) {
    OES_AT_LEVEL(sum, a, begin, end);
  });
}

template void run(const Sum<float>&);
template void run(const Sum<double>&);
template class Conv<float>;
template class Conv<double>;

} // namespace oes::winograd_conv2d

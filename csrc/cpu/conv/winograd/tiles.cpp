#include "cpu/conv/winograd/tiles.h"

namespace oes::conv::winograd {
namespace {

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

template <typename T>
void Transforms<T>::bind(const Shape& s, int tile) {
  const int64_t window = s.window(), phases = s.stride * s.stride;
  tiles = {};
  tiles.tile = tile;
  tiles.points = static_cast<int>(tile + window - 1);
  tiles.rows = s.rows;
  tiles.columns = s.columns;
  tiles.pitch = s.pitch;
  tiles.source_plane = s.source_plane;
  tiles.planes = s.backward ? s.inputs : s.outputs;
  tiles.source_planes = s.backward ? s.outputs : s.inputs;
  tiles.classes = s.backward ? phases : 1;
  tiles.source_classes = s.backward ? 1 : phases;
  kernel_taps.clear();
  for (int64_t phase = 0; phase < phases; ++phase) {
    for (int64_t i = 0; i < window * window; ++i) {
      const int64_t a = i / window, b = i % window;
      const int64_t u = (s.backward ? window - 1 - a : a) * s.stride + phase / s.stride;
      const int64_t v = (s.backward ? window - 1 - b : b) * s.stride + phase % s.stride;
      kernel_taps.push_back(u < s.kernel && v < s.kernel ? u * s.kernel + v : kMostKernelTaps);
    }
  }
  to_points = tiles.points == 4 ? values<T>(kPoints4, 3, window) : values<T>(kPoints6, 5, window);
  bind_frequencies(s);
  tiles.taps = taps.data();
  tiles.pixel_first = pixel_first.data();
  tiles.class_order = class_order.data();
}

// Which classes have which frequencies: a class whose rows lack the window's last tap (its first, backward) has
// nothing at infinity (at zero), likewise for its columns.
template <typename T>
void Transforms<T>::bind_frequencies(const Shape& s) {
  const int64_t points = tiles.points, window = s.window();
  const auto has = [&](int64_t phase, int64_t f) {
    const int64_t end = s.backward ? 0 : window - 1, point = s.backward ? 0 : points - 1;
    const int64_t* of_phase = kernel_taps.data() + phase * window * window;
    const int64_t row = f / points == point ? end : s.backward ? window - 1 : 0;
    const int64_t column = f % points == point ? end : s.backward ? window - 1 : 0;
    return of_phase[row * window + column] < kMostKernelTaps;
  };
  taps = {0};
  pixel_first = {0};
  class_order.clear();
  for (int64_t k = 0; k < tiles.classes; ++k) {
    for (int64_t f = 0; f < points * points; ++f) {
      int64_t count = 0;
      for (int64_t of_source = 0; of_source < tiles.source_classes; ++of_source) {
        const bool used = has(s.backward ? k : of_source, f);
        if (k == 0) {
          class_order.push_back(s.backward ? 0 : used ? count : -1);
        }
        count += used ? 1 : 0;
      }
      taps.push_back(taps.back() + count * tiles.source_planes);
      if (k == 0) {
        pixel_first.push_back(pixel_first.back() + (s.backward ? 1 : count) * tiles.source_planes);
      }
    }
  }
}

template struct Transforms<float>;
template struct Transforms<double>;

} // namespace oes::conv::winograd

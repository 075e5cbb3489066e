#include "cpu/conv/winograd/weight_grad.h"

#include "cpu/core/workspace.h"
#include "cpu/core/tensor_checks.h"

namespace oes::winograd {
namespace {

#define OES_KERNELS "cpu/conv/winograd/weight_grad_isa.h"
#include "cpu/core/isa_variants.h"

constexpr int64_t kUnits = 4; // of work at least, where the inputs can be cut into groups for it
constexpr int64_t kStripsOfShare = 16; // about: every share transforms its sums, and long sums round more
constexpr int64_t kInputsOfGroup = 8; // at least: every group transforms all gradients
constexpr int64_t kGrain = 1 << 15; // sums that one thread adds up at least
constexpr int64_t kMostLanes = 16;
constexpr int64_t kTaps = 32; // whose sums are added up together

template <typename T>
int64_t lanes_of() {
  return vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
}

template <typename T>
int64_t strip() {
  return level_default::kStripVectors * lanes_of<T>();
}

// What the choice between the two forms goes by, measured with AVX2.
constexpr double kPixelsOfWeight = 25; // that the direct sum takes as long for as to add up a weight's parts
constexpr double kOfSource = 12, kOfResult = 8; // products for each pixel or gradient that is transformed
constexpr double kOfSum = 18; // and for each sum

// How the tiles and the inputs are cut.
template <typename T>
struct Cut {
  int64_t strips, shares, inputs, groups;

  Cut(const Shape& s, int64_t tile) {
    strips = ceil_div(s.tiles(tile), strip<T>());
    shares = ceil_div(strips, kStripsOfShare);
    const int64_t most = std::clamp<int64_t>(s.inputs / kInputsOfGroup, 1, ceil_div(kUnits, shares));
    inputs = ceil_div(s.inputs, most);
    groups = ceil_div(s.inputs, inputs);
  }
};

// Side of the tile, see fastest_tile. Times in products of a block.
template <typename T>
int best_tile(const Shape& s) {
  const auto pixels = static_cast<double>((s.rows - 1) * s.pitch + s.columns);
  const auto inputs = static_cast<double>(s.inputs), outputs = static_cast<double>(s.outputs);
  const auto padded = static_cast<double>(ceil_div(s.outputs, lanes_of<T>()) * lanes_of<T>());
  const double direct = outputs * inputs * static_cast<double>(s.kernel * s.kernel) * (pixels + kPixelsOfWeight);
  return fastest_tile(s, direct, [&](int tile) {
    const Cut<T> cut(s, tile);
    const auto tiles = static_cast<double>(s.tiles(tile)), frequencies = static_cast<double>(s.frequencies(tile));
    const auto points = static_cast<double>(tile + s.window() - 1);
    return frequencies * inputs * padded * (tiles + kOfSum * static_cast<double>(cut.shares)) +
        tiles * kOfSource * frequencies * inputs +
        tiles * kOfResult * points * points * padded * static_cast<double>(cut.groups);
  });
}

} // namespace

template <typename T>
bool Grad<T>::fits(const Shape& s) {
  return best_tile<T>(s) > 0;
}

template <typename T>
void Grad<T>::bind(const Shape& s, int64_t grad_plane, int64_t grad_pitch) {
  const int tile = best_tile<T>(s);
  const Cut<T> cut(s, tile);
  Shape of_group = s;
  of_group.inputs = cut.inputs;
  form_.bind(of_group, tile);
  dot_ = {form_.tiles, nullptr, nullptr, grad_plane, grad_pitch, form_.kernel_taps.data(), form_.to_points.data(),
          s.inputs, s.kernel * s.kernel, cut.strips, cut.shares, cut.groups};
}

template <typename T>
int64_t Grad<T>::share() const {
  return ceil_div(dot_.planes, lanes_of<T>()) * lanes_of<T>() * dot_.inputs * dot_.kernel_places;
}

template <typename T>
void Grad<T>::run(const T* source, const T* grad, T* sums) const {
  Dot<T> a = dot_;
  a.source = source;
  a.grad = grad;
  a.partial = sums;
  torch::stable::parallel_for(0, a.shares * a.groups, 1, [&](int64_t begin, int64_t end) {
    OES_AT_LEVEL(dots, a, begin, end);
  });
}

template <typename T>
void Grad<T>::add(const T* sums, T scale, T* grad) const {
  const int64_t lanes = lanes_of<T>(), outputs = dot_.planes, taps = dot_.inputs * dot_.kernel_places;
  torch::stable::parallel_for(
      0, ceil_div(outputs, lanes), std::max<int64_t>(1, kGrain / (lanes * taps * dot_.shares)),
      [&](int64_t begin, int64_t end) {
        for (int64_t vector = begin; vector < end; ++vector) {
          const int64_t rows = std::min(lanes, outputs - vector * lanes);
          for (int64_t t = 0; t < taps; t += kTaps) {
            const int64_t some = std::min(kTaps, taps - t);
            double sum[kTaps * kMostLanes] = {};
            for (int64_t k = 0; k < dot_.shares; ++k) {
              const T* each = sums + k * share() + (vector * taps + t) * lanes;
              for (int64_t i = 0; i < some * lanes; ++i) {
                sum[i] += static_cast<double>(each[i]);
              }
            }
            for (int64_t r = 0; r < rows; ++r) {
              T* to = grad + (vector * lanes + r) * taps + t;
              for (int64_t i = 0; i < some; ++i) {
                to[i] += static_cast<T>(sum[i * lanes + r]) * scale;
              }
            }
          }
        }
      });
}

template class Grad<float>;
template class Grad<double>;

} // namespace oes::winograd

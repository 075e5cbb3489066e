#include "cpu/conv/winograd/weight_grad.h"

#include "cpu/core/parallel.h"
#include "cpu/core/workspace.h"

namespace oes::conv::winograd {
namespace {

#define OES_ISA_FILE "cpu/conv/winograd/weight_grad_isa.h"
#include "cpu/core/isa_variants.h"

constexpr int64_t kTasks = 4; // at least, where the inputs can be cut into groups for it
constexpr int64_t kStripsOfChunk = 16; // about: every chunk transforms its sums, and long sums round more
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
  return isa_default::kStripVectors * lanes_of<T>();
}

// What the choice between the two forms goes by, measured with AVX2.
constexpr double kPixelsOfWeight = 25; // that the direct sum takes as long for as to add up a weight's sums
constexpr double kOfSource = 12, kOfResult = 8; // products for each pixel or gradient that is transformed
constexpr double kOfSum = 18; // and for each sum

// How the tiles and the inputs are tasks.
template <typename T>
struct Tasks {
  int64_t strips, chunks, inputs, groups;

  Tasks(const Shape& s, int64_t tile) {
    strips = ceil_div(s.tiles(tile), strip<T>());
    chunks = ceil_div(strips, kStripsOfChunk);
    const int64_t most = std::clamp<int64_t>(s.inputs / kInputsOfGroup, 1, ceil_div(kTasks, chunks));
    inputs = ceil_div(s.inputs, most);
    groups = ceil_div(s.inputs, inputs);
  }
};

// Side of the tile, see fastest_tile. Times in products of a tile.
template <typename T>
int best_tile(const Shape& s) {
  const auto pixels = static_cast<double>((s.rows - 1) * s.pitch + s.columns);
  const auto inputs = static_cast<double>(s.inputs), outputs = static_cast<double>(s.outputs);
  const auto padded = static_cast<double>(ceil_div(s.outputs, lanes_of<T>()) * lanes_of<T>());
  const double direct = outputs * inputs * static_cast<double>(s.kernel * s.kernel) * (pixels + kPixelsOfWeight);
  return fastest_tile(s, direct, [&](int tile) {
    const Tasks<T> tasks(s, tile);
    const auto tiles = static_cast<double>(s.tiles(tile)), frequencies = static_cast<double>(s.frequencies(tile));
    const auto points = static_cast<double>(tile + s.window() - 1);
    return frequencies * inputs * padded * (tiles + kOfSum * static_cast<double>(tasks.chunks)) +
        tiles * kOfSource * frequencies * inputs +
        tiles * kOfResult * points * points * padded * static_cast<double>(tasks.groups);
  });
}

} // namespace

template <typename T>
bool WeightGrad<T>::fits(const Shape& s) {
  return best_tile<T>(s) > 0;
}

template <typename T>
void WeightGrad<T>::bind(const Shape& s, int64_t grad_plane, int64_t grad_pitch) {
  const int tile = best_tile<T>(s);
  const Tasks<T> tasks(s, tile);
  Shape of_group = s;
  of_group.inputs = tasks.inputs;
  transforms_.bind(of_group, tile);
  grad_ = {
      transforms_.tiles,
      nullptr,
      nullptr,
      grad_plane,
      grad_pitch,
      transforms_.kernel_taps.data(),
      transforms_.to_points.data(),
      s.inputs,
      s.kernel * s.kernel,
      tasks.strips,
      tasks.chunks,
      tasks.groups};
}

template <typename T>
int64_t WeightGrad<T>::chunk_sums() const {
  return ceil_div(grad_.planes, lanes_of<T>()) * lanes_of<T>() * grad_.inputs * grad_.kernel_size;
}

template <typename T>
void WeightGrad<T>::run(const T* source, const T* grad, T* sums) const {
  FrequencyGrad<T> a = grad_;
  a.source = source;
  a.grad = grad;
  a.partial = sums;
  parallel_for(
      0, a.chunks * a.groups, 1, [&](int64_t begin, int64_t end) { OES_DISPATCH(weight_grad, a, begin, end); });
}

template <typename T>
void WeightGrad<T>::add(const T* sums, T scale, T* grad) const {
  const int64_t lanes = lanes_of<T>(), outputs = grad_.planes, taps = grad_.inputs * grad_.kernel_size;
  parallel_for(
      0, ceil_div(outputs, lanes), std::max<int64_t>(1, kGrain / (lanes * taps * grad_.chunks)),
      [&](int64_t begin, int64_t end) {
        for (int64_t vector = begin; vector < end; ++vector) {
          const int64_t rows = std::min(lanes, outputs - vector * lanes);
          for (int64_t t = 0; t < taps; t += kTaps) {
            const int64_t some = std::min(kTaps, taps - t);
            double sum[kTaps * kMostLanes] = {};
            for (int64_t k = 0; k < grad_.chunks; ++k) {
              const T* each = sums + k * chunk_sums() + (vector * taps + t) * lanes;
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

template class WeightGrad<float>;
template class WeightGrad<double>;

} // namespace oes::conv::winograd

#include "cpu/conv/sparse_up_conv2d.h"

#include <algorithm>
#include <numeric>

#include "cpu/core/output_tiles.h"
#include "cpu/core/parallel.h"
#include "cpu/core/workspace.h"
#include "cpu/norm/moments.h"

namespace oes::conv {
namespace {

#define OES_ISA_FILE "cpu/conv/sparse_up_conv2d_backward_isa.h"
#include "cpu/core/isa_variants.h"

constexpr int64_t kCache = 320 << 10; // bytes of a strip with all that is made of it
constexpr int64_t kNear = 20 << 10; // bytes in the first-level cache
constexpr int64_t kTasks = 8; // at least, where it can be cut
constexpr int64_t kOutputsAtOnce = 4, kDenseOutputsAtOnce = 8; // outputs whose gradients lie in the cache together
constexpr int64_t kChunkPixels = 2048; // of a chunk at least: adding up many chunks takes longer than filling them
constexpr int64_t kFewChunks = 4, kMostChunks = 16;
constexpr int64_t kLoneTileVectors = 12; // of a tile: fewer pixels than that leave registers empty
constexpr int64_t kTileVectors = 3; // of a tile of several outputs
constexpr int64_t kGrainSums = 1 << 13; // of weights that one thread adds up at least
constexpr int64_t kGrain = 1 << 15; // weights that one thread orders at least

// Rows of a strip of which each row takes `bytes`, about equal strips.
int64_t rows_of_strip(int64_t rows, int64_t columns, int64_t bytes, int64_t element) {
  const int64_t least = std::min(rows, ceil_div(kLoneTileVectors * vector_bytes(capability()) / element, columns));
  const int64_t most = std::min(rows, std::max(least, kCache / bytes));
  return ceil_div(rows, ceil_div(rows, most));
}

// Elements from one plane of a strip to the next, for planes of that many: so that the same tile of many planes falls
// into different sets of the first-level cache, which a multiple of its ways' 4096 bytes would not.
int64_t plane_of(int64_t count, int64_t lanes, int64_t element) {
  const int64_t way = 4096 / element, least = ceil_div(count, lanes) * lanes;
  return least + ((kLoneTileVectors * lanes - least) % way + way) % way;
}

template <typename T>
void plan_tasks(UpsampleConv<T>& a) {
  const int64_t lanes = vector_bytes(capability()) / static_cast<int64_t>(sizeof(T)),
                halo = a.kernel == kUpsampleKernel ? 1 : 0;
  const int64_t together = a.dense ? tile_outputs(capability()) : 1; // outputs
  const int64_t bytes = (a.inputs + a.kernel * together) * a.columns * static_cast<int64_t>(sizeof(T));
  a.strip_rows = rows_of_strip(a.rows, a.columns, bytes, sizeof(T));
  a.strips = ceil_div(a.rows, a.strip_rows);
  a.plane = plane_of((a.strip_rows + 2 * halo) * (a.columns + 2 * halo) + lanes, lanes, sizeof(T));
  a.groups = std::clamp<int64_t>(ceil_div(kTasks, a.strips), 1, ceil_div(a.outputs, together));
  a.tile = a.dense ? kTileVectors : kLoneTileVectors;
}

template <typename T>
void plan_tasks(UpsampleConvGrad<T>& a) {
  const int64_t most = a.dense ? kDenseOutputsAtOnce : kOutputsAtOnce;
  a.outputs_at_once =
      std::max<int64_t>(1, std::min(a.outputs, a.kernel == kUpsampleKernel ? most : most * kUpsampleKernel));
  a.passes = ceil_div(a.outputs, a.outputs_at_once);
  const int64_t bytes = (2 * a.inputs + a.outputs_at_once * a.kernel + 6) * a.columns * sizeof(T);
  a.strip_rows = rows_of_strip(a.rows, a.columns, bytes, sizeof(T));
  a.strips = ceil_div(a.rows, a.strip_rows);
  a.lanes = vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
  a.plane = plane_of(a.strip_rows * a.columns, a.lanes, sizeof(T));
  a.chunks = std::min(a.strips, std::clamp(a.rows * a.columns / kChunkPixels, kFewChunks, kMostChunks));
  a.near_vectors = std::max<int64_t>(kLoneTileVectors, kNear / (vector_bytes(capability()) * a.inputs));
  a.lanes = vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
  a.groups = a.strips >= kTasks ? 1 : std::min<int64_t>(ceil_div(kTasks, a.strips), 4);
}

} // namespace

template <typename T>
void UpsampleConvWeights<T>::bind(
    int64_t inputs, int64_t outputs, int64_t rows, int64_t columns, int64_t kernel, bool zeros,
    const std::vector<int64_t>* all_taps) {
  forward = {inputs, outputs, rows, columns, kernel, zeros};
  backward = {inputs, outputs, rows, columns, kernel, zeros};
  forward.dense = backward.dense = all_taps == nullptr;
  plan_tasks(forward);
  plan_tasks(backward);
  if (forward.dense) {
    bind_dense();
    return;
  }
  const std::vector<int64_t>& taps = *all_taps;
  const auto size = static_cast<int64_t>(taps.size()) / 4, side = kernel == kUpsampleKernel ? int64_t(3) : int64_t(1);
  const auto b_of = [&](int64_t t) { return taps[4 * t] * kernel + taps[4 * t + 2] * side + taps[4 * t + 3]; };
  const auto pass_of = [&](int64_t t) {
    return taps[4 * t + 1] * backward.passes + taps[4 * t] / backward.outputs_at_once;
  };
  // (o, u, v, c), and for the derivative (c, pass of o, o, u, v).
  order_.resize(size);
  std::iota(order_.begin(), order_.end(), int64_t(0));
  std::stable_sort(order_.begin(), order_.end(), [&](int64_t x, int64_t y) { return b_of(x) < b_of(y); });
  back_order_ = order_;
  std::stable_sort(
      back_order_.begin(), back_order_.end(), [&](int64_t x, int64_t y) { return pass_of(x) < pass_of(y); });
  first_.assign(outputs * kernel + 1, 0);
  back_first_.assign(inputs * backward.passes + 1, 0);
  offsets_.clear();
  source_offsets_.clear();
  back_offsets_.clear();
  for (const int64_t t : order_) {
    ++first_[b_of(t) + 1];
    offsets_.push_back(static_cast<int32_t>(taps[4 * t + 1] * forward.plane));
    source_offsets_.push_back(static_cast<int32_t>(taps[4 * t + 1] * backward.plane));
  }
  for (const int64_t t : back_order_) {
    ++back_first_[pass_of(t) + 1];
    back_offsets_.push_back(static_cast<int32_t>(b_of(t) % (backward.outputs_at_once * kernel) * backward.plane));
  }
  std::partial_sum(first_.begin(), first_.end(), first_.begin());
  std::partial_sum(back_first_.begin(), back_first_.end(), back_first_.begin());
  weights_.resize(size);
  back_weights_.resize(size);
  forward.first = backward.first = first_.data();
  forward.offsets = offsets_.data();
  forward.weights = weights_.data();
  backward.offsets = source_offsets_.data();
  backward.back_first = back_first_.data();
  backward.back_offsets = back_offsets_.data();
  backward.back_weights = back_weights_.data();
}

template <typename T>
void UpsampleConvWeights<T>::bind_dense() {
  weights_.resize(forward.outputs * forward.kernel * forward.inputs);
  back_weights_.resize(weights_.size());
  for (int64_t c = 0; c < forward.inputs; ++c) {
    offsets_.push_back(static_cast<int32_t>(c * forward.plane));
    source_offsets_.push_back(static_cast<int32_t>(c * backward.plane));
  }
  for (int64_t k = 0; k < backward.outputs_at_once * backward.kernel; ++k) {
    back_offsets_.push_back(static_cast<int32_t>(k * backward.plane));
  }
  forward.offsets = offsets_.data();
  forward.weights = weights_.data();
  backward.offsets = source_offsets_.data();
  backward.back_offsets = back_offsets_.data();
  backward.back_weights = back_weights_.data();
}

// Calls f(first output, outputs) for all tiles of outputs, on several threads.
template <typename F>
void each_tile(int64_t outputs, int64_t weights_of_output, const F& f) {
  const int most = tile_outputs(capability());
  const int64_t grain = std::max<int64_t>(1, kGrain / (most * weights_of_output));
  parallel_for(0, ceil_div(outputs, most), grain, [&](int64_t begin, int64_t end) {
    each_output_tile(begin * most, std::min(end * most, outputs), f);
  });
}

template <typename T>
void UpsampleConvWeights<T>::set_dense(const T* from, T scale) {
  const int64_t inputs = forward.inputs, kernel = forward.kernel, size = inputs * kernel;
  each_tile(forward.outputs, size, [&](int64_t o, int rows) {
    T* to = weights_.data() + o * size;
    for (int64_t c = 0; c < inputs; ++c) {
      for (int64_t k = 0; k < kernel; ++k) {
        for (int r = 0; r < rows; ++r) {
          to[(k * inputs + c) * rows + r] = from[(o + r) * size + c * kernel + k] * scale;
        }
      }
    }
  });
  each_tile(inputs, forward.outputs * kernel, [&](int64_t c, int rows) {
    for (int64_t o = 0; o < forward.outputs; ++o) {
      const int64_t first = o / backward.outputs_at_once * backward.outputs_at_once,
                    of_pass = std::min(backward.outputs_at_once, forward.outputs - first);
      T* to = back_weights_.data() + first * size + c * of_pass * kernel + (o - first) * kernel * rows;
      for (int64_t k = 0; k < kernel; ++k) {
        for (int r = 0; r < rows; ++r) {
          to[k * rows + r] = from[o * size + (c + r) * kernel + k] * scale;
        }
      }
    }
  });
}

template <typename T>
void UpsampleConvWeights<T>::add_dense_grads(const T* sums, T scale, T* to) const {
  const int64_t inputs = forward.inputs, kernel = forward.kernel, size = inputs * kernel;
  each_tile(forward.outputs, size * backward.chunks, [&](int64_t o, int rows) {
    const T* from = sums + o * size;
    for (int64_t c = 0; c < inputs; ++c) {
      for (int64_t k = 0; k < kernel; ++k) {
        for (int r = 0; r < rows; ++r) {
          double sum = 0;
          for (int64_t chunk = 0; chunk < backward.chunks; ++chunk) {
            sum += static_cast<double>(from[chunk * forward.outputs * size + (k * inputs + c) * rows + r]);
          }
          to[(o + r) * size + c * kernel + k] += static_cast<T>(sum) * scale;
        }
      }
    }
  });
}

template <typename T>
void UpsampleConvWeights<T>::set(const T* from, const int64_t* indices, T scale) {
  for (int64_t t = 0; t < count(); ++t) {
    weights_[t] = from[indices[order_[t]]] * scale;
    back_weights_[t] = from[indices[back_order_[t]]] * scale;
  }
}

template <typename T>
void UpsampleConvWeights<T>::add_grads(const T* sums, const int64_t* indices, T scale, T* to) const {
  const AddGrads<T> a{sums, backward.chunks, count(), order_.data(), indices, scale, to};
  parallel_for(0, count(), kGrainSums / backward.chunks, [&](int64_t begin, int64_t end) {
    OES_DISPATCH(add_grads, a, begin, end);
  });
}

template <typename T>
void upsample_conv(const UpsampleConv<T>& a) {
  parallel_for(
      0, a.strips * a.groups, 1, [&](int64_t begin, int64_t end) { OES_DISPATCH(upsample_conv, a, begin, end); });
}

template <typename T>
void upsample_conv_grad(const UpsampleConvGrad<T>& a) {
  parallel_for(
      0, a.chunks * a.groups, 1, [&](int64_t begin, int64_t end) { OES_DISPATCH(upsample_conv_grad, a, begin, end); });
}

template void upsample_conv(const UpsampleConv<float>&);
template void upsample_conv(const UpsampleConv<double>&);
template void upsample_conv_grad(const UpsampleConvGrad<float>&);
template void upsample_conv_grad(const UpsampleConvGrad<double>&);
template class UpsampleConvWeights<float>;
template class UpsampleConvWeights<double>;

} // namespace oes::conv

#include "cpu/conv/sparse_up_conv2d.h"

#include <algorithm>
#include <numeric>

#include "cpu/core/output_tiles.h"
#include "cpu/core/workspace.h"
#include "cpu/conv/sparse_conv2d.h"
#include "cpu/core/tensor_checks.h"

namespace oes::mixing {
namespace {

#define OES_KERNELS "cpu/conv/sparse_up_conv2d_backward_isa.h"
#include "cpu/core/isa_variants.h"

constexpr int64_t kCache = 320 << 10; // bytes of a strip with all that is made of it
constexpr int64_t kNear = 20 << 10; // bytes in the first-level cache
constexpr int64_t kUnits = 8; // of work at least, where it can be cut
constexpr int64_t kBlock = 4, kDenseBlock = 8; // outputs whose gradients lie in the cache together
constexpr int64_t kSlotPixels = 2048; // of a slot at least: adding up many slots takes longer than filling them
constexpr int64_t kFewSlots = 4, kSlots = 16;
constexpr int64_t kVectors = 12; // of a tile: fewer pixels than that leave registers empty
constexpr int64_t kBlockVectors = 3; // of a tile of several outputs
constexpr int64_t kGrainSums = 1 << 13; // of weights that one thread adds up at least
constexpr int64_t kGrain = 1 << 15; // weights that one thread orders at least

// Rows of a strip of which each row takes `bytes`, about equal strips.
int64_t rows_of_strip(int64_t rows, int64_t columns, int64_t bytes, int64_t element) {
  const int64_t least = std::min(rows, ceil_div(kVectors * vector_bytes(capability()) / element, columns));
  const int64_t most = std::min(rows, std::max(least, kCache / bytes));
  return ceil_div(rows, ceil_div(rows, most));
}

// Elements from one plane of a strip to the next, for planes of that many: so that the same tile of many planes falls
// into different sets of the first-level cache, which a multiple of its ways' 4096 bytes would not.
int64_t plane_of(int64_t count, int64_t lanes, int64_t element) {
  const int64_t way = 4096 / element, least = ceil_div(count, lanes) * lanes;
  return least + ((kVectors * lanes - least) % way + way) % way;
}

template <typename T>
void cut(Mix<T>& a) {
  const int64_t lanes = vector_bytes(capability()) / static_cast<int64_t>(sizeof(T)), halo = a.kernel == 9 ? 1 : 0;
  const int64_t together = a.dense ? block_rows(capability()) : 1; // outputs
  const int64_t bytes = (a.inputs + a.kernel * together) * a.columns * static_cast<int64_t>(sizeof(T));
  a.strip_rows = rows_of_strip(a.rows, a.columns, bytes, sizeof(T));
  a.strips = ceil_div(a.rows, a.strip_rows);
  a.plane = plane_of((a.strip_rows + 2 * halo) * (a.columns + 2 * halo) + lanes, lanes, sizeof(T));
  a.groups = std::clamp<int64_t>(ceil_div(kUnits, a.strips), 1, ceil_div(a.outputs, together));
  a.tile = a.dense ? kBlockVectors : kVectors;
}

template <typename T>
void cut(MixBack<T>& a) {
  const int64_t block = a.dense ? kDenseBlock : kBlock;
  a.block = std::max<int64_t>(1, std::min(a.outputs, a.kernel == 9 ? block : block * 9));
  a.blocks = ceil_div(a.outputs, a.block);
  const int64_t bytes = (2 * a.inputs + a.block * a.kernel + 6) * a.columns * sizeof(T);
  a.strip_rows = rows_of_strip(a.rows, a.columns, bytes, sizeof(T));
  a.strips = ceil_div(a.rows, a.strip_rows);
  a.lanes = vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
  a.plane = plane_of(a.strip_rows * a.columns, a.lanes, sizeof(T));
  a.slots = std::min(a.strips, std::clamp(a.rows * a.columns / kSlotPixels, kFewSlots, kSlots));
  a.piece = std::max<int64_t>(kVectors, kNear / (vector_bytes(capability()) * a.inputs));
  a.lanes = vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
  a.parts = a.strips >= kUnits ? 1 : std::min<int64_t>(ceil_div(kUnits, a.strips), 4);
}

} // namespace

template <typename T>
void Weights<T>::bind(
    int64_t inputs, int64_t outputs, int64_t rows, int64_t columns, int64_t kernel, bool zeros,
    const std::vector<int64_t>* all_taps) {
  mix = {inputs, outputs, rows, columns, kernel, zeros};
  back = {inputs, outputs, rows, columns, kernel, zeros};
  mix.dense = back.dense = all_taps == nullptr;
  cut(mix);
  cut(back);
  if (mix.dense) {
    bind_dense();
    return;
  }
  const std::vector<int64_t>& taps = *all_taps;
  const auto size = static_cast<int64_t>(taps.size()) / 4, side = kernel == 9 ? int64_t(3) : int64_t(1);
  const auto b_of = [&](int64_t t) { return taps[4 * t] * kernel + taps[4 * t + 2] * side + taps[4 * t + 3]; };
  const auto block_of = [&](int64_t t) { return taps[4 * t + 1] * back.blocks + taps[4 * t] / back.block; };
  // (o, u, v, c), and for the derivative (c, block of o, o, u, v).
  order_.resize(size);
  std::iota(order_.begin(), order_.end(), int64_t(0));
  std::stable_sort(order_.begin(), order_.end(), [&](int64_t x, int64_t y) { return b_of(x) < b_of(y); });
  back_order_ = order_;
  std::stable_sort(
      back_order_.begin(), back_order_.end(), [&](int64_t x, int64_t y) { return block_of(x) < block_of(y); });
  first_.assign(outputs * kernel + 1, 0);
  back_first_.assign(inputs * back.blocks + 1, 0);
  offsets_.clear();
  source_offsets_.clear();
  back_offsets_.clear();
  for (const int64_t t : order_) {
    ++first_[b_of(t) + 1];
    offsets_.push_back(static_cast<int32_t>(taps[4 * t + 1] * mix.plane));
    source_offsets_.push_back(static_cast<int32_t>(taps[4 * t + 1] * back.plane));
  }
  for (const int64_t t : back_order_) {
    ++back_first_[block_of(t) + 1];
    back_offsets_.push_back(static_cast<int32_t>(b_of(t) % (back.block * kernel) * back.plane));
  }
  std::partial_sum(first_.begin(), first_.end(), first_.begin());
  std::partial_sum(back_first_.begin(), back_first_.end(), back_first_.begin());
  weights_.resize(size);
  back_weights_.resize(size);
  mix.first = back.first = first_.data();
  mix.offsets = offsets_.data();
  mix.weights = weights_.data();
  back.offsets = source_offsets_.data();
  back.back_first = back_first_.data();
  back.back_offsets = back_offsets_.data();
  back.back_weights = back_weights_.data();
}

template <typename T>
void Weights<T>::bind_dense() {
  weights_.resize(mix.outputs * mix.kernel * mix.inputs);
  back_weights_.resize(weights_.size());
  for (int64_t c = 0; c < mix.inputs; ++c) {
    offsets_.push_back(static_cast<int32_t>(c * mix.plane));
    source_offsets_.push_back(static_cast<int32_t>(c * back.plane));
  }
  for (int64_t k = 0; k < back.block * back.kernel; ++k) {
    back_offsets_.push_back(static_cast<int32_t>(k * back.plane));
  }
  mix.offsets = offsets_.data();
  mix.weights = weights_.data();
  back.offsets = source_offsets_.data();
  back.back_offsets = back_offsets_.data();
  back.back_weights = back_weights_.data();
}

// Calls f(block of outputs) for all of them, on several threads.
template <typename F>
void each_output_block(int64_t outputs, int64_t weights_of_output, const F& f) {
  const int most = block_rows(capability());
  const int64_t grain = std::max<int64_t>(1, kGrain / (most * weights_of_output));
  torch::stable::parallel_for(0, ceil_div(outputs, most), grain, [&](int64_t begin, int64_t end) {
    each_block(begin * most, std::min(end * most, outputs), f);
  });
}

template <typename T>
void Weights<T>::set_dense(const T* from, T scale) {
  const int64_t inputs = mix.inputs, kernel = mix.kernel, size = inputs * kernel;
  each_output_block(mix.outputs, size, [&](int64_t o, int rows) {
    T* to = weights_.data() + o * size;
    for (int64_t c = 0; c < inputs; ++c) {
      for (int64_t k = 0; k < kernel; ++k) {
        for (int r = 0; r < rows; ++r) {
          to[(k * inputs + c) * rows + r] = from[(o + r) * size + c * kernel + k] * scale;
        }
      }
    }
  });
  each_output_block(inputs, mix.outputs * kernel, [&](int64_t c, int rows) {
    for (int64_t o = 0; o < mix.outputs; ++o) {
      const int64_t first = o / back.block * back.block, of_block = std::min(back.block, mix.outputs - first);
      T* to = back_weights_.data() + first * size + c * of_block * kernel + (o - first) * kernel * rows;
      for (int64_t k = 0; k < kernel; ++k) {
        for (int r = 0; r < rows; ++r) {
          to[k * rows + r] = from[o * size + (c + r) * kernel + k] * scale;
        }
      }
    }
  });
}

template <typename T>
void Weights<T>::add_dense_grads(const T* sums, T scale, T* to) const {
  const int64_t inputs = mix.inputs, kernel = mix.kernel, size = inputs * kernel;
  each_output_block(mix.outputs, size * back.slots, [&](int64_t o, int rows) {
    const T* from = sums + o * size;
    for (int64_t c = 0; c < inputs; ++c) {
      for (int64_t k = 0; k < kernel; ++k) {
        for (int r = 0; r < rows; ++r) {
          double sum = 0;
          for (int64_t slot = 0; slot < back.slots; ++slot) {
            sum += static_cast<double>(from[slot * mix.outputs * size + (k * inputs + c) * rows + r]);
          }
          to[(o + r) * size + c * kernel + k] += static_cast<T>(sum) * scale;
        }
      }
    }
  });
}

template <typename T>
void Weights<T>::set(const T* from, const int64_t* indices, T scale) {
  for (int64_t t = 0; t < count(); ++t) {
    weights_[t] = from[indices[order_[t]]] * scale;
    back_weights_[t] = from[indices[back_order_[t]]] * scale;
  }
}

template <typename T>
void Weights<T>::add_grads(const T* sums, const int64_t* indices, T scale, T* to) const {
  const AddGrads<T> a{sums, back.slots, count(), order_.data(), indices, scale, to};
  torch::stable::parallel_for(
      0, count(), kGrainSums / back.slots, [&](int64_t begin, int64_t end) { OES_AT_LEVEL(add_grads, a, begin, end); });
}

template <typename T>
void mix(const Mix<T>& a) {
  torch::stable::parallel_for(0, a.strips * a.groups, 1, [&](int64_t begin, int64_t end) {
    OES_AT_LEVEL(mix, a, begin, end);
  });
}

template <typename T>
void mix_back(const MixBack<T>& a) {
  torch::stable::parallel_for(0, a.slots * a.parts, 1, [&](int64_t begin, int64_t end) {
    OES_AT_LEVEL(mix_back, a, begin, end);
  });
}

template void mix(const Mix<float>&);
template void mix(const Mix<double>&);
template void mix_back(const MixBack<float>&);
template void mix_back(const MixBack<double>&);
template class Weights<float>;
template class Weights<double>;

} // namespace oes::mixing

#include "cpu/conv/dense_conv2d.h"

#include <algorithm>

#include "cpu/core/output_tiles.h"
#include "cpu/core/workspace.h"
#include "cpu/core/parallel.h"

namespace oes::conv {
namespace {

#define OES_ISA_FILE "cpu/conv/dense_conv2d_isa.h"
#include "cpu/core/isa_variants.h"

constexpr int64_t kTasks = 16; // at least, where the outputs can be cut into groups for it
constexpr int64_t kStripTiles = 8; // of a strip of a flat image
constexpr int64_t kStripRows = 8;
constexpr int64_t kPixelsOfRow = 144; // about, that are summed together
constexpr int64_t kPixelsOfRows = 1024; // of several rows whose products are summed in registers
constexpr int64_t kNear = 20 << 10; // bytes of pixels in the first-level cache
constexpr int64_t kCache = 48 << 10; // and in the second
constexpr int64_t kGrain = 1 << 15; // weights that one thread packs at least

// Pixels of a tile.
template <typename T>
int64_t tile() {
  return (capability() == Capability::kDefault ? 2 : 3) * vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
}

template <typename T>
void plan_tasks(DenseTapSum<T>& a) {
  a.strip = a.flat ? kStripTiles * tile<T>() : kStripRows;
  a.strips = ceil_div(a.flat ? (a.rows - 1) * a.pitch + a.columns : a.rows, a.strip);
  const int64_t blocks = a.classes * ceil_div(a.planes, tile_outputs(capability()));
  a.groups = a.flat ? std::clamp<int64_t>(ceil_div(kTasks, a.strips), 1, blocks) : 1;
}

// The convolution of a flat image as Winograd's sums take it.
template <typename T>
winograd::Shape forward_shape(
    int64_t inputs, int64_t kernel, int64_t stride, const SparseTapSum<T>& of_outputs,
    const SparseTapSum<T>& of_inputs) {
  return {false, inputs, of_outputs.planes, kernel, stride, of_outputs.rows, of_outputs.columns, of_inputs.pitch,
          of_inputs.rows * of_inputs.columns};
}

} // namespace

template <typename T>
bool DenseConv2d<T>::wants_flat(
    int64_t inputs, int64_t kernel_rows, int64_t kernel_columns, int64_t stride,
    const SparseTapSum<T>& of_outputs, const SparseTapSum<T>& of_inputs) {
  return kernel_rows == kernel_columns &&
      winograd::Conv2d<T>::fits(forward_shape(inputs, kernel_rows, stride, of_outputs, of_inputs));
}

template <typename T>
bool DenseConv2d<T>::fits(bool flat, int64_t rows, int64_t columns, int64_t pitch) {
  return (flat ? (rows - 1) * pitch + columns : columns) >= tile<T>();
}

template <typename T>
void DenseConv2d<T>::bind(
    int64_t inputs,
    int64_t kernel_rows,
    int64_t kernel_columns,
    int64_t stride,
    bool flat,
    const SparseTapSum<T>& of_outputs,
    const SparseTapSum<T>& of_inputs,
    const SparseWeightGrad<T>& of_weights,
    const std::vector<int64_t>& offsets,
    int64_t top,
    int64_t left,
    int64_t bordered_plane) {
  const int64_t outputs = of_outputs.planes, kernel_size = kernel_rows * kernel_columns, phases = stride * stride;
  inputs_ = inputs;
  offsets_.assign(offsets.begin(), offsets.begin() + inputs * kernel_size);
  first_ = {0, inputs * kernel_size};
  back_first_ = {0};
  for (int64_t phase = 0; phase < phases; ++phase) {
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t tap = 0; tap < kernel_size; ++tap) {
        const int64_t u = tap / kernel_columns, v = tap % kernel_columns;
        if (u % stride * stride + v % stride == phase) {
          back_taps_.push_back(o * inputs * kernel_size + tap);
          back_offsets_.push_back(
              o * bordered_plane + (top - u / stride) * of_inputs.pitch + left - v / stride);
        }
      }
    }
    back_first_.push_back(static_cast<int64_t>(back_taps_.size()));
  }
  bind_winograd(kernel_rows, kernel_columns, stride, flat, of_outputs, of_inputs, of_weights);
  weights_.resize(winograd_.bound() ? 0 : outputs * inputs * kernel_size);
  back_weights_.resize(back_winograd_.bound() ? 0 : outputs * inputs * kernel_size);
  forward = {nullptr, nullptr, weights_.data(), offsets_.data(), first_.data(), 1, outputs,
             of_outputs.rows, of_outputs.columns, of_outputs.pitch, flat};
  backward = {nullptr, nullptr, back_weights_.data(), back_offsets_.data(), back_first_.data(), phases, inputs,
              of_inputs.rows, of_inputs.columns, of_inputs.pitch, true};
  plan_tasks(forward);
  plan_tasks(backward);
  weight_grad = {nullptr, nullptr, nullptr, offsets_.data(), outputs, inputs * kernel_size,
         of_weights.rows, of_weights.columns, of_weights.pitch, of_weights.grad_pitch, of_weights.grad_plane,
         of_weights.strips, of_weights.strip_rows, 1, flat};
  const auto at_once = [&](int64_t bytes, int64_t pixels) {
    return std::max<int64_t>(1, bytes / (phases * pixels * static_cast<int64_t>(sizeof(T)))) * kernel_size;
  };
  forward.taps_at_once = at_once(kNear, (top + 1) * kPixelsOfRow);
  forward.planes_at_once = forward.taps_at_once / kernel_size * phases;
  forward.wide = forward.pitch / (inputs * phases);
  forward.ahead = top + 1;
  weight_grad.ahead = of_weights.ahead;
  weight_grad.rows_at_once = flat ? 1 : std::max<int64_t>(1, kPixelsOfRows / weight_grad.columns);
  weight_grad.taps_at_once = at_once(kCache, flat ? std::min(weight_grad.columns, weight_grad.strip_rows) : (weight_grad.rows_at_once + top) * weight_grad.columns);
  weight_grad.groups = std::clamp<int64_t>(ceil_div(kTasks, weight_grad.strips), 1, ceil_div(outputs, tile_outputs(capability())));
}

// Square kernels over flat images, where they are faster so.
template <typename T>
void DenseConv2d<T>::bind_winograd(
    int64_t kernel_rows,
    int64_t kernel_columns,
    int64_t stride,
    bool flat,
    const SparseTapSum<T>& of_outputs,
    const SparseTapSum<T>& of_inputs,
    const SparseWeightGrad<T>& of_weights) {
  if (!flat || kernel_rows != kernel_columns) {
    return;
  }
  const winograd::Shape ahead = forward_shape(inputs_, kernel_rows, stride, of_outputs, of_inputs);
  const winograd::Shape back{
      true, inputs_, of_outputs.planes, kernel_rows, stride, of_inputs.rows, of_inputs.columns, of_inputs.pitch,
      of_weights.grad_plane};
  if (winograd::Conv2d<T>::fits(ahead)) {
    winograd_.bind(ahead);
  }
  if (winograd::Conv2d<T>::fits(back)) {
    back_winograd_.bind(back);
  }
  if (winograd::WeightGrad<T>::fits(ahead)) {
    winograd_grad_.bind(ahead, of_weights.grad_plane, of_weights.grad_pitch);
  }
}

template <typename T>
void DenseConv2d<T>::set(const T* weights, T scale, bool backward_too) {
  if (winograd_.bound()) {
    winograd_.set(weights, scale);
  } else {
    set_forward(weights, scale);
  }
  if (backward_too && back_winograd_.bound()) {
    back_winograd_.set(weights, scale);
  } else if (backward_too) {
    set_backward(weights, scale);
  }
}

template <typename T>
void DenseConv2d<T>::set_forward(const T* weights, T scale) {
  const int64_t taps = weight_grad.taps;
  const int most = tile_outputs(capability());
  parallel_for(
      0, ceil_div(weight_grad.outputs, most), std::max<int64_t>(1, kGrain / (most * taps)), [&](int64_t begin, int64_t end) {
        each_output_tile(begin * most, std::min(end * most, weight_grad.outputs), [&](int64_t o, int rows) {
          T* to = weights_.data() + o * taps;
          for (int64_t t = 0; t < taps; ++t) {
            for (int r = 0; r < rows; ++r) {
              to[t * rows + r] = weights[(o + r) * taps + t] * scale;
            }
          }
        });
      });
}

template <typename T>
void DenseConv2d<T>::set_backward(const T* weights, T scale) {
  const int64_t kernel_size = weight_grad.taps / inputs_;
  const int most = tile_outputs(capability());
  parallel_for(
      0, ceil_div(inputs_, most), std::max<int64_t>(1, kGrain / (most * weight_grad.outputs * kernel_size)),
      [&](int64_t begin, int64_t end) {
        each_output_tile(begin * most, std::min(end * most, inputs_), [&](int64_t c, int rows) {
          for (int64_t k = 0; k < backward.classes; ++k) {
            const int64_t from = back_first_[k], count = back_first_[k + 1] - from;
            T* to = back_weights_.data() + inputs_ * from + c * count;
            for (int64_t t = 0; t < count; ++t) {
              const T* each = weights + back_taps_[from + t] + c * kernel_size;
              for (int r = 0; r < rows; ++r) {
                to[t * rows + r] = each[r * kernel_size] * scale;
              }
            }
          }
        });
      });
}

template <typename T>
void DenseConv2d<T>::run_forward(const T* source, T* out) const {
  if (winograd_.bound()) {
    return winograd_.run(source, out);
  }
  DenseTapSum<T> a = forward;
  a.source = source;
  a.out = out;
  run(a);
}

template <typename T>
void DenseConv2d<T>::run_backward(const T* source, T* out) const {
  if (back_winograd_.bound()) {
    return back_winograd_.run(source, out);
  }
  DenseTapSum<T> a = backward;
  a.source = source;
  a.out = out;
  run(a);
}

template <typename T>
void DenseConv2d<T>::run_weight_grad(const T* source, const T* grad, T* sums) const {
  if (winograd_grad_.bound()) {
    return winograd_grad_.run(source, grad, sums);
  }
  DenseWeightGrad<T> a = weight_grad;
  a.source = source;
  a.grad = grad;
  a.partial = sums;
  run(a);
}

template <typename T>
void DenseConv2d<T>::add_grads(const T* sums, T scale, T* grad) const {
  if (winograd_grad_.bound()) {
    return winograd_grad_.add(sums, scale, grad);
  }
  const int64_t taps = weight_grad.taps, size = weight_grad.outputs * taps;
  const int most = tile_outputs(capability());
  parallel_for(
      0, ceil_div(weight_grad.outputs, most), std::max<int64_t>(1, kGrain / (most * taps * weight_grad.strips)),
      [&](int64_t begin, int64_t end) {
        each_output_tile(begin * most, std::min(end * most, weight_grad.outputs), [&](int64_t o, int rows) {
          for (int64_t t = 0; t < taps; ++t) {
            double sum[8] = {};
            for (int64_t strip = 0; strip < weight_grad.strips; ++strip) {
              const T* each = sums + strip * size + o * taps + t * rows;
              for (int r = 0; r < rows; ++r) {
                sum[r] += static_cast<double>(each[r]);
              }
            }
            for (int r = 0; r < rows; ++r) {
              grad[(o + r) * taps + t] += static_cast<T>(sum[r]) * scale;
            }
          }
        });
      });
}

template <typename T>
void run(const DenseTapSum<T>& a) {
  parallel_for(0, a.strips * a.groups, 1, [&](int64_t begin, int64_t end) {
    OES_DISPATCH(tap_sum, a, begin, end);
  });
}

template <typename T>
void run(const DenseWeightGrad<T>& a) {
  parallel_for(0, a.strips * a.groups, 1, [&](int64_t begin, int64_t end) {
    OES_DISPATCH(weight_grad, a, begin, end);
  });
}

template void run(const DenseTapSum<float>&);
template void run(const DenseTapSum<double>&);
template void run(const DenseWeightGrad<float>&);
template void run(const DenseWeightGrad<double>&);
template class DenseConv2d<float>;
template class DenseConv2d<double>;

} // namespace oes::conv

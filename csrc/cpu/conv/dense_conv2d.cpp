#include "cpu/conv/dense_conv2d.h"

#include <algorithm>

#include "cpu/core/output_tiles.h"
#include "cpu/core/parallel.h"
#include "cpu/core/workspace.h"

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
  const int64_t tiles = a.classes * ceil_div(a.planes, tile_outputs(capability()));
  a.groups = a.flat ? std::clamp<int64_t>(ceil_div(kTasks, a.strips), 1, tiles) : 1;
}

// A convolution of a flat image as Winograd's sums take it.
winograd::Shape winograd_shape(const ConvShape& s, bool backward) {
  if (backward) {
    return {
        true,
        s.inputs,
        s.outputs,
        s.kernel_rows,
        s.stride,
        s.plane_rows,
        s.plane_columns,
        s.padded_grad().pitch,
        s.padded_grad_plane()};
  }
  return {false,         s.inputs,        s.outputs,
          s.kernel_rows, s.stride,        s.rows,
          s.columns,     s.plane_columns, s.plane_rows * s.plane_columns};
}

} // namespace

template <typename T>
bool DenseConv2d<T>::wants_flat(const ConvShape& shape) {
  return shape.kernel_rows == shape.kernel_columns && winograd::Conv2d<T>::fits(winograd_shape(shape, false));
}

template <typename T>
bool DenseConv2d<T>::fits(bool flat, int64_t rows, int64_t columns, int64_t pitch) {
  return (flat ? (rows - 1) * pitch + columns : columns) >= tile<T>();
}

template <typename T>
void DenseConv2d<T>::bind(const ConvShape& shape) {
  const TapPlanes planes = shape.planes();
  const PaddedGradPlanes padded = shape.padded_grad();
  const int64_t kernel_size = shape.kernel_size(), phases = planes.phases();
  inputs_ = shape.inputs;
  first_ = {0, shape.inputs * kernel_size};
  for (int64_t c = 0; c < shape.inputs; ++c) {
    for (int64_t tap = 0; tap < kernel_size; ++tap) {
      offsets_.push_back(planes.offset_of(c, tap / shape.kernel_columns, tap % shape.kernel_columns));
    }
  }
  back_first_ = {0};
  for (int64_t phase = 0; phase < phases; ++phase) {
    for (int64_t o = 0; o < shape.outputs; ++o) {
      for (int64_t tap = 0; tap < kernel_size; ++tap) {
        const int64_t u = tap / shape.kernel_columns, v = tap % shape.kernel_columns;
        if (planes.plane_of(0, u, v) == phase) {
          back_taps_.push_back(o * shape.inputs * kernel_size + tap);
          back_offsets_.push_back(padded.offset_of(o, u, v));
        }
      }
    }
    back_first_.push_back(static_cast<int64_t>(back_taps_.size()));
  }
  bind_winograd(shape);
  weights_.resize(winograd_.bound() ? 0 : shape.weight_numel());
  back_weights_.resize(back_winograd_.bound() ? 0 : shape.weight_numel());
  const bool flat = !shape.row_major;
  forward_ = {nullptr,       nullptr,    weights_.data(), offsets_.data(), first_.data(), 1,
              shape.outputs, shape.rows, shape.columns,   planes.pitch(),  flat};
  backward_ = {nullptr, nullptr,      back_weights_.data(), back_offsets_.data(), back_first_.data(),
               phases,  shape.inputs, shape.plane_rows,     shape.plane_columns,  padded.pitch,
               true};
  plan_tasks(forward_);
  plan_tasks(backward_);
  const SparseWeightGrad<T> grad = weight_grad_sum<T>(shape);
  grad_ = {
      nullptr,
      nullptr,
      nullptr,
      offsets_.data(),
      shape.outputs,
      shape.inputs * kernel_size,
      grad.rows,
      grad.columns,
      grad.pitch,
      grad.grad_pitch,
      grad.grad_plane,
      grad.strips,
      grad.strip_rows,
      1,
      flat};
  const auto at_once = [&](int64_t bytes, int64_t pixels) {
    return std::max<int64_t>(1, bytes / (phases * pixels * static_cast<int64_t>(sizeof(T)))) * kernel_size;
  };
  forward_.taps_at_once = at_once(kNear, (padded.top + 1) * kPixelsOfRow);
  forward_.planes_at_once = forward_.taps_at_once / kernel_size * phases;
  forward_.wide = forward_.pitch / planes.planes();
  forward_.ahead = padded.top + 1;
  grad_.ahead = grad.ahead;
  grad_.rows_at_once = flat ? 1 : std::max<int64_t>(1, kPixelsOfRows / grad_.columns);
  const int64_t pixels =
      flat ? std::min(grad_.columns, grad_.strip_rows) : (grad_.rows_at_once + padded.top) * grad_.columns;
  grad_.taps_at_once = at_once(kCache, pixels);
  const int64_t tiles = ceil_div(shape.outputs, tile_outputs(capability()));
  grad_.groups = std::clamp<int64_t>(ceil_div(kTasks, grad_.strips), 1, tiles);
}

// Square kernels over flat images, where they are faster so.
template <typename T>
void DenseConv2d<T>::bind_winograd(const ConvShape& shape) {
  if (shape.row_major || shape.kernel_rows != shape.kernel_columns) {
    return;
  }
  const winograd::Shape forward = winograd_shape(shape, false), backward = winograd_shape(shape, true);
  if (winograd::Conv2d<T>::fits(forward)) {
    winograd_.bind(forward);
  }
  if (winograd::Conv2d<T>::fits(backward)) {
    back_winograd_.bind(backward);
  }
  if (winograd::WeightGrad<T>::fits(forward)) {
    winograd_grad_.bind(forward, shape.padded_grad_plane(), shape.padded_grad().pitch);
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
  const int64_t taps = grad_.taps;
  const int most = tile_outputs(capability());
  parallel_for(
      0, ceil_div(grad_.outputs, most), std::max<int64_t>(1, kGrain / (most * taps)), [&](int64_t begin, int64_t end) {
        each_output_tile(begin * most, std::min(end * most, grad_.outputs), [&](int64_t o, int rows) {
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
  const int64_t kernel_size = grad_.taps / inputs_;
  const int most = tile_outputs(capability());
  parallel_for(
      0, ceil_div(inputs_, most), std::max<int64_t>(1, kGrain / (most * grad_.outputs * kernel_size)),
      [&](int64_t begin, int64_t end) {
        each_output_tile(begin * most, std::min(end * most, inputs_), [&](int64_t c, int rows) {
          for (int64_t k = 0; k < backward_.classes; ++k) {
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
  DenseTapSum<T> a = forward_;
  a.source = source;
  a.out = out;
  run(a);
}

template <typename T>
void DenseConv2d<T>::run_backward(const T* source, T* out) const {
  if (back_winograd_.bound()) {
    return back_winograd_.run(source, out);
  }
  DenseTapSum<T> a = backward_;
  a.source = source;
  a.out = out;
  run(a);
}

template <typename T>
void DenseConv2d<T>::run_weight_grad(const T* source, const T* grad, T* sums) const {
  if (winograd_grad_.bound()) {
    return winograd_grad_.run(source, grad, sums);
  }
  DenseWeightGrad<T> a = grad_;
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
  const int64_t taps = grad_.taps, size = grad_.outputs * taps;
  const int most = tile_outputs(capability());
  parallel_for(
      0, ceil_div(grad_.outputs, most), std::max<int64_t>(1, kGrain / (most * taps * grad_.strips)),
      [&](int64_t begin, int64_t end) {
        each_output_tile(begin * most, std::min(end * most, grad_.outputs), [&](int64_t o, int rows) {
          for (int64_t t = 0; t < taps; ++t) {
            double sum[8] = {};
            for (int64_t strip = 0; strip < grad_.strips; ++strip) {
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
  parallel_for(0, a.strips * a.groups, 1, [&](int64_t begin, int64_t end) { OES_DISPATCH(tap_sum, a, begin, end); });
}

template <typename T>
void run(const DenseWeightGrad<T>& a) {
  parallel_for(
      0, a.strips * a.groups, 1, [&](int64_t begin, int64_t end) { OES_DISPATCH(weight_grad, a, begin, end); });
}

template void run(const DenseTapSum<float>&);
template void run(const DenseTapSum<double>&);
template void run(const DenseWeightGrad<float>&);
template void run(const DenseWeightGrad<double>&);
template class DenseConv2d<float>;
template class DenseConv2d<double>;

} // namespace oes::conv

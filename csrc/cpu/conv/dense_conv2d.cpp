#include "cpu/conv/dense_conv2d.h"

#include <algorithm>

#include "cpu/core/output_tiles.h"
#include "cpu/core/workspace.h"
#include "cpu/core/tensor_checks.h"

namespace oes::dense_conv2d {
namespace {

#define OES_KERNELS "cpu/conv/dense_conv2d_isa.h"
#include "cpu/core/isa_variants.h"

constexpr int64_t kUnits = 16; // of work at least, where the outputs can be cut into groups for it
constexpr int64_t kTiles = 8; // of a strip of a flat image
constexpr int64_t kRowsOfStrip = 8;
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
void cut(Gather<T>& a) {
  a.strip = a.flat ? kTiles * tile<T>() : kRowsOfStrip;
  a.strips = ceil_div(a.flat ? (a.rows - 1) * a.pitch + a.columns : a.rows, a.strip);
  const int64_t blocks = a.classes * ceil_div(a.planes, block_rows(capability()));
  a.groups = a.flat ? std::clamp<int64_t>(ceil_div(kUnits, a.strips), 1, blocks) : 1;
}

// The convolution of a flat image as Winograd's sums take it.
template <typename T>
winograd::Shape shape_ahead(
    int64_t inputs, int64_t kernel, int64_t stride, const sparse_conv2d::Gather<T>& of_outputs,
    const sparse_conv2d::Gather<T>& of_inputs) {
  return {false, inputs, of_outputs.planes, kernel, stride, of_outputs.rows, of_outputs.columns, of_inputs.pitch,
          of_inputs.rows * of_inputs.columns};
}

} // namespace

template <typename T>
bool Conv<T>::wants_flat(
    int64_t inputs, int64_t kernel_rows, int64_t kernel_columns, int64_t stride,
    const sparse_conv2d::Gather<T>& of_outputs, const sparse_conv2d::Gather<T>& of_inputs) {
  return kernel_rows == kernel_columns &&
      winograd::Conv<T>::fits(shape_ahead(inputs, kernel_rows, stride, of_outputs, of_inputs));
}

template <typename T>
bool Conv<T>::fits(bool flat, int64_t rows, int64_t columns, int64_t pitch) {
  return (flat ? (rows - 1) * pitch + columns : columns) >= tile<T>();
}

template <typename T>
void Conv<T>::bind(
    int64_t inputs,
    int64_t kernel_rows,
    int64_t kernel_columns,
    int64_t stride,
    bool flat,
    const sparse_conv2d::Gather<T>& of_outputs,
    const sparse_conv2d::Gather<T>& of_inputs,
    const sparse_conv2d::Dot<T>& of_weights,
    const std::vector<int64_t>& offsets,
    int64_t top,
    int64_t left,
    int64_t bordered_plane) {
  const int64_t outputs = of_outputs.planes, places = kernel_rows * kernel_columns, phases = stride * stride;
  inputs_ = inputs;
  offsets_.assign(offsets.begin(), offsets.begin() + inputs * places);
  first_ = {0, inputs * places};
  back_first_ = {0};
  for (int64_t phase = 0; phase < phases; ++phase) {
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t place = 0; place < places; ++place) {
        const int64_t u = place / kernel_columns, v = place % kernel_columns;
        if (u % stride * stride + v % stride == phase) {
          back_taps_.push_back(o * inputs * places + place);
          back_offsets_.push_back(
              o * bordered_plane + (top - u / stride) * of_inputs.pitch + left - v / stride);
        }
      }
    }
    back_first_.push_back(static_cast<int64_t>(back_taps_.size()));
  }
  bind_winograd(kernel_rows, kernel_columns, stride, flat, of_outputs, of_inputs, of_weights);
  weights_.resize(winograd_.bound() ? 0 : outputs * inputs * places);
  back_weights_.resize(back_winograd_.bound() ? 0 : outputs * inputs * places);
  forward = {nullptr, nullptr, weights_.data(), offsets_.data(), first_.data(), 1, outputs,
             of_outputs.rows, of_outputs.columns, of_outputs.pitch, flat};
  backward = {nullptr, nullptr, back_weights_.data(), back_offsets_.data(), back_first_.data(), phases, inputs,
              of_inputs.rows, of_inputs.columns, of_inputs.pitch, true};
  cut(forward);
  cut(backward);
  dot = {nullptr, nullptr, nullptr, offsets_.data(), outputs, inputs * places,
         of_weights.rows, of_weights.columns, of_weights.pitch, of_weights.grad_pitch, of_weights.grad_plane,
         of_weights.strips, of_weights.strip_rows, 1, flat};
  const auto at_once = [&](int64_t bytes, int64_t pixels) {
    return std::max<int64_t>(1, bytes / (phases * pixels * static_cast<int64_t>(sizeof(T)))) * places;
  };
  forward.taps_at_once = at_once(kNear, (top + 1) * kPixelsOfRow);
  forward.planes_at_once = forward.taps_at_once / places * phases;
  forward.wide = forward.pitch / (inputs * phases);
  forward.ahead = top + 1;
  dot.ahead = of_weights.ahead;
  dot.rows_at_once = flat ? 1 : std::max<int64_t>(1, kPixelsOfRows / dot.columns);
  dot.taps_at_once = at_once(kCache, flat ? std::min(dot.columns, dot.strip_rows) : (dot.rows_at_once + top) * dot.columns);
  dot.groups = std::clamp<int64_t>(ceil_div(kUnits, dot.strips), 1, ceil_div(outputs, block_rows(capability())));
}

// Square kernels over flat images, where they are faster so.
template <typename T>
void Conv<T>::bind_winograd(
    int64_t kernel_rows,
    int64_t kernel_columns,
    int64_t stride,
    bool flat,
    const sparse_conv2d::Gather<T>& of_outputs,
    const sparse_conv2d::Gather<T>& of_inputs,
    const sparse_conv2d::Dot<T>& of_weights) {
  if (!flat || kernel_rows != kernel_columns) {
    return;
  }
  const winograd::Shape ahead = shape_ahead(inputs_, kernel_rows, stride, of_outputs, of_inputs);
  const winograd::Shape back{
      true, inputs_, of_outputs.planes, kernel_rows, stride, of_inputs.rows, of_inputs.columns, of_inputs.pitch,
      of_weights.grad_plane};
  if (winograd::Conv<T>::fits(ahead)) {
    winograd_.bind(ahead);
  }
  if (winograd::Conv<T>::fits(back)) {
    back_winograd_.bind(back);
  }
  if (winograd::Grad<T>::fits(ahead)) {
    winograd_grad_.bind(ahead, of_weights.grad_plane, of_weights.grad_pitch);
  }
}

template <typename T>
void Conv<T>::set(const T* weights, T scale, bool backward_too) {
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
void Conv<T>::set_forward(const T* weights, T scale) {
  const int64_t taps = dot.taps;
  const int most = block_rows(capability());
  torch::stable::parallel_for(
      0, ceil_div(dot.outputs, most), std::max<int64_t>(1, kGrain / (most * taps)), [&](int64_t begin, int64_t end) {
        each_block(begin * most, std::min(end * most, dot.outputs), [&](int64_t o, int rows) {
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
void Conv<T>::set_backward(const T* weights, T scale) {
  const int64_t places = dot.taps / inputs_;
  const int most = block_rows(capability());
  torch::stable::parallel_for(
      0, ceil_div(inputs_, most), std::max<int64_t>(1, kGrain / (most * dot.outputs * places)),
      [&](int64_t begin, int64_t end) {
        each_block(begin * most, std::min(end * most, inputs_), [&](int64_t c, int rows) {
          for (int64_t k = 0; k < backward.classes; ++k) {
            const int64_t from = back_first_[k], count = back_first_[k + 1] - from;
            T* to = back_weights_.data() + inputs_ * from + c * count;
            for (int64_t t = 0; t < count; ++t) {
              const T* each = weights + back_taps_[from + t] + c * places;
              for (int r = 0; r < rows; ++r) {
                to[t * rows + r] = each[r * places] * scale;
              }
            }
          }
        });
      });
}

template <typename T>
void Conv<T>::run_forward(const T* source, T* out) const {
  if (winograd_.bound()) {
    return winograd_.run(source, out);
  }
  Gather<T> a = forward;
  a.source = source;
  a.out = out;
  run(a);
}

template <typename T>
void Conv<T>::run_backward(const T* source, T* out) const {
  if (back_winograd_.bound()) {
    return back_winograd_.run(source, out);
  }
  Gather<T> a = backward;
  a.source = source;
  a.out = out;
  run(a);
}

template <typename T>
void Conv<T>::run_dot(const T* source, const T* grad, T* sums) const {
  if (winograd_grad_.bound()) {
    return winograd_grad_.run(source, grad, sums);
  }
  Dot<T> a = dot;
  a.source = source;
  a.grad = grad;
  a.partial = sums;
  run(a);
}

template <typename T>
void Conv<T>::add_grads(const T* sums, T scale, T* grad) const {
  if (winograd_grad_.bound()) {
    return winograd_grad_.add(sums, scale, grad);
  }
  const int64_t taps = dot.taps, size = dot.outputs * taps;
  const int most = block_rows(capability());
  torch::stable::parallel_for(
      0, ceil_div(dot.outputs, most), std::max<int64_t>(1, kGrain / (most * taps * dot.strips)),
      [&](int64_t begin, int64_t end) {
        each_block(begin * most, std::min(end * most, dot.outputs), [&](int64_t o, int rows) {
          for (int64_t t = 0; t < taps; ++t) {
            double sum[8] = {};
            for (int64_t strip = 0; strip < dot.strips; ++strip) {
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
void run(const Gather<T>& a) {
  torch::stable::parallel_for(0, a.strips * a.groups, 1, [&](int64_t begin, int64_t end) {
    OES_AT_LEVEL(gather, a, begin, end);
  });
}

template <typename T>
void run(const Dot<T>& a) {
  torch::stable::parallel_for(0, a.strips * a.groups, 1, [&](int64_t begin, int64_t end) {
    OES_AT_LEVEL(dots, a, begin, end);
  });
}

template void run(const Gather<float>&);
template void run(const Gather<double>&);
template void run(const Dot<float>&);
template void run(const Dot<double>&);
template class Conv<float>;
template class Conv<double>;

} // namespace oes::dense_conv2d

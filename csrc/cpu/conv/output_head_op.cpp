// The operators of oes_fast/ops/output_head.py.
#include <algorithm>
#include <optional>
#include <tuple>

#include "cpu/conv/plain_conv.h"
#include "cpu/core/parallel.h"
#include "cpu/core/tensor_checks.h"
#include "cpu/norm/batch_norm_act.h"

namespace oes::conv {
namespace {

std::vector<int64_t> all_taps(int64_t outputs, int64_t inputs) {
  std::vector<int64_t> taps;
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t c = 0; c < inputs; ++c) {
      taps.insert(taps.end(), {o, c, 0, 0});
    }
  }
  return taps;
}

void check_head(const Tensor& x, const Tensor& weight, const Tensor& target) {
  STD_TORCH_CHECK(
      x.is_cpu() && x.dim() == 4 && target.is_cpu() && target.dim() == 4 && target.is_contiguous() && weight.is_cpu() &&
          weight.dim() == 2 && weight.is_contiguous() && weight.size(1) == x.size(1) && target.size(0) == x.size(0) &&
          target.size(1) == weight.size(0) && target.size(2) <= x.size(2) && target.size(3) <= x.size(3) &&
          target.numel() > 0,
      "x, weight, target: expected [N, C, H, W], [O, C] and [N, O, H', W'] on the CPU, H' <= H, W' <= W");
  check_vector("weight", torch::stable::flatten(weight), torch::stable::flatten(weight));
  STD_TORCH_CHECK(
      x.scalar_type() == weight.scalar_type() && target.scalar_type() == weight.scalar_type(),
      "x, target: expected the dtype of weight");
}

// The pixels of x that the target has, contiguous.
Tensor cropped(Tensor x, const Tensor& target) {
  for (int64_t dim = 2; dim < 4; ++dim) {
    if (x.size(dim) != target.size(dim)) {
      x = torch::stable::narrow(x, dim, 0, target.size(dim));
    }
  }
  return torch::stable::contiguous(x);
}

template <typename T>
double sum_of_squares(const T* x, const T* y, int64_t count) {
  constexpr int64_t kStrip = 512;
  double sum = 0;
  T difference[kStrip];
  for (int64_t at = 0; at < count; at += kStrip) {
    const int64_t size = std::min(kStrip, count - at);
    for (int64_t j = 0; j < size; ++j) {
      difference[j] = x[at + j] - y[at + j];
    }
    norm::Sums<T> sums;
    sums.add(difference, difference, size);
    double both[2];
    sums.finish(both);
    sum += both[1];
  }
  return sum;
}

std::tuple<Tensor, Tensor> output_head(
    Tensor x, Tensor weight, std::optional<Tensor> bias, Tensor target, bool sigmoid) {
  check_head(x, weight, target);
  x = cropped(x, target);
  const int64_t images = x.size(0), outputs = weight.size(0), pixels = x.size(2) * x.size(3);
  Tensor output = torch::stable::empty_like(target), loss = torch::stable::new_empty(target, {});
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> shift(images * outputs);
    if (bias.has_value()) {
      check_vector("bias", *bias, *bias);
      STD_TORCH_CHECK(
          bias->numel() == outputs && bias->scalar_type() == x.scalar_type(), "bias: expected ", outputs,
          " elements of the dtype of x");
      for (size_t i = 0; i < shift.size(); ++i) {
        shift[i] = pointer<const T>(*bias)[i % outputs];
      }
    }
    PlainConv<T> conv(x.size(1), outputs, x.size(2), x.size(3), 1, all_taps(outputs, x.size(1)));
    conv.forward(images, pointer<const T>(x), pointer<const T>(weight), pointer<T>(output));
    norm::output(
        norm::Output<T>{
            images * outputs, pixels, sigmoid ? OutputAct::kSigmoid : OutputAct::kLeaky, T(1), pointer<const T>(output),
            shift.data(), nullptr, pointer<T>(output)});
    *pointer<T>(loss) = static_cast<T>(
        sum_of_squares(pointer<const T>(output), pointer<const T>(target), output.numel()) /
        static_cast<double>(output.numel()));
  });
  return {output, loss};
}

std::tuple<Tensor, Tensor, Tensor> output_head_backward(
    std::optional<Tensor> grad_output, std::optional<Tensor> grad_loss, Tensor x, Tensor weight, Tensor output,
    Tensor target, bool sigmoid, bool needs_x, bool needs_weight, bool needs_bias) {
  check_head(x, weight, target);
  const int64_t images = x.size(0), outputs = weight.size(0), count = target.numel();
  const Tensor crop = cropped(x, target);
  Tensor grad_crop = needs_x ? torch::stable::empty_like(crop) : torch::stable::new_empty(x, {0});
  Tensor grad_weight = needs_weight ? torch::stable::empty_like(weight) : torch::stable::new_empty(x, {0});
  Tensor grad_bias = torch::stable::new_empty(x, {needs_bias ? outputs : 0});
  const Tensor before = torch::stable::empty_like(target); // gradient before the sigmoid
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    T* g = pointer<T>(before);
    const T *out = pointer<const T>(output), *wanted = pointer<const T>(target);
    const T* direct = grad_output.has_value() ? pointer<const T>(*grad_output) : nullptr;
    const T factor = grad_loss.has_value() ? T(2) * *pointer<const T>(*grad_loss) / static_cast<T>(count) : T(0);
    parallel_for(0, count, 1 << 15, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T of_output = (direct == nullptr ? T(0) : direct[i]) + factor * (out[i] - wanted[i]);
        g[i] = sigmoid ? of_output * (out[i] * (T(1) - out[i])) : of_output;
      }
    });
    PlainConv<T> conv(x.size(1), outputs, crop.size(2), crop.size(3), 1, all_taps(outputs, x.size(1)));
    conv.backward(
        images, g, pointer<const T>(crop), pointer<const T>(weight), needs_x ? pointer<T>(grad_crop) : nullptr,
        needs_weight ? pointer<T>(grad_weight) : nullptr);
    const int64_t pixels = crop.size(2) * crop.size(3);
    for (int64_t o = 0; needs_bias && o < outputs; ++o) {
      double sum = 0;
      for (int64_t n = 0; n < images; ++n) {
        const T* plane = g + (n * outputs + o) * pixels;
        for (int64_t j = 0; j < pixels; ++j) {
          sum += static_cast<double>(plane[j]);
        }
      }
      pointer<T>(grad_bias)[o] = static_cast<T>(sum);
    }
  });
  if (!needs_x || grad_crop.numel() == x.numel()) {
    return {grad_crop, grad_weight, grad_bias};
  }
  Tensor grad_x = torch::stable::empty_like(x);
  torch::stable::fill_(grad_x, 0);
  Tensor rows = torch::stable::narrow(grad_x, 2, 0, target.size(2));
  Tensor inside = torch::stable::narrow(rows, 3, 0, target.size(3));
  torch::stable::copy_(inside, grad_crop);
  return {grad_x, grad_weight, grad_bias};
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("output_head_cpu", TORCH_BOX(&output_head));
  m.impl("output_head_backward_cpu", TORCH_BOX(&output_head_backward));
}

} // namespace oes::conv

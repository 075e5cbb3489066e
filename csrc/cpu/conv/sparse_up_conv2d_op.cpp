// The operators of oes_fast/ops/sparse_up_conv2d.py.
#include <tuple>

#include "cpu/conv/plain_conv.h"
#include "cpu/core/tensor_checks.h"

namespace oes::conv {
namespace {

std::vector<int64_t> read_taps(const Tensor& x, const Tensor& values, const Tensor& taps, int64_t outputs) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && x.is_contiguous(), "x: expected a contiguous CPU tensor [N, C, H, W]");
  check_vector("values", values, values);
  STD_TORCH_CHECK(x.scalar_type() == values.scalar_type(), "x: expected the dtype of values");
  STD_TORCH_CHECK(
      taps.is_cpu() && taps.scalar_type() == ScalarType::Int && taps.is_contiguous() && taps.dim() == 2 &&
          taps.size(0) == values.numel() && taps.size(1) == 4,
      "taps: expected contiguous int32 CPU tensor of shape [", values.numel(), ", 4]");
  const auto* from = pointer<const int32_t>(taps);
  std::vector<int64_t> result(from, from + taps.numel());
  for (size_t t = 0; t < result.size(); t += 4) {
    STD_TORCH_CHECK(
        result[t] >= 0 && result[t] < outputs && result[t + 1] >= 0 && result[t + 1] < x.size(1) &&
            result[t + 2] >= 0 && result[t + 2] < 3 && result[t + 3] >= 0 && result[t + 3] < 3,
        "taps: expected indices inside a weight of 3 x 3");
  }
  return result;
}

Tensor sparse_up_conv2d(Tensor x, Tensor values, Tensor taps, Tensor by_input, int64_t outputs) {
  const std::vector<int64_t> list = read_taps(x, values, taps, outputs);
  Tensor y = torch::stable::new_empty(x, {x.size(0), outputs, 2 * x.size(2), 2 * x.size(3)});
  if (y.numel() != 0) {
    with_type(x, [&](auto zero) {
      using T = decltype(zero);
      PlainConv<T> conv(x.size(1), outputs, x.size(2), x.size(3), kUpsampleKernel, list);
      conv.forward(x.size(0), pointer<const T>(x), pointer<const T>(values), pointer<T>(y));
    });
  }
  return y;
}

std::tuple<Tensor, Tensor> sparse_up_conv2d_backward(
    Tensor grad, Tensor x, Tensor values, Tensor taps, Tensor by_input, bool needs_x, bool needs_values) {
  STD_TORCH_CHECK(
      grad.is_cpu() && grad.dim() == 4 && grad.is_contiguous() && grad.scalar_type() == x.scalar_type() &&
          grad.size(0) == x.size(0) && grad.size(2) == 2 * x.size(2) && grad.size(3) == 2 * x.size(3),
      "grad: expected a contiguous CPU tensor of the shape and dtype of the result");
  const std::vector<int64_t> list = read_taps(x, values, taps, grad.size(1));
  Tensor grad_x = needs_x ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  Tensor grad_values = torch::stable::new_empty(values, {needs_values ? values.numel() : 0});
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    if (grad.numel() == 0 || x.numel() == 0) {
      std::fill_n(pointer<T>(grad_x), grad_x.numel(), T(0));
      std::fill_n(pointer<T>(grad_values), grad_values.numel(), T(0));
      return;
    }
    PlainConv<T> conv(x.size(1), grad.size(1), x.size(2), x.size(3), kUpsampleKernel, list);
    conv.backward(
        x.size(0), pointer<const T>(grad), pointer<const T>(x), pointer<const T>(values),
        needs_x ? pointer<T>(grad_x) : nullptr, needs_values ? pointer<T>(grad_values) : nullptr);
  });
  return {grad_x, grad_values};
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("sparse_up_conv2d_cpu", TORCH_BOX(&sparse_up_conv2d));
  m.impl("sparse_up_conv2d_backward_cpu", TORCH_BOX(&sparse_up_conv2d_backward));
}

} // namespace oes::conv

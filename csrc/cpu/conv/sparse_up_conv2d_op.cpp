// The operators of oes_fast/ops/sparse_up_conv2d.py and oes_fast/ops/output_head.py: both mix channels.
#include <algorithm>
#include <numeric>
#include <optional>

#include "cpu/norm/batch_norm_act.h"
#include "cpu/core/workspace.h"
#include "cpu/conv/sparse_up_conv2d.h"
#include "cpu/core/tensor_checks.h"

namespace oes::mixing {
namespace {

// Maps of `channels` that leave pixels as they are.
template <typename T>
struct Identity {
  std::vector<T> ones, zeros;
  explicit Identity(int64_t channels) : ones(channels, T(1)), zeros(channels) {}
  PixelMap<T> map() const {
    return {zeros.data(), ones.data(), zeros.data(), zeros.data(), ones.data(), zeros.data(), T(1), Act::kLeaky};
  }
  PixelGrad<T> grad(const T* of) const {
    return {of, of, zeros.data(), ones.data(), zeros.data(), zeros.data()};
  }
};

// One convolution of several images with weights 0, 1, 2, ...
template <typename T>
struct Mixer {
  int64_t inputs, outputs, pixels, high_pixels;
  Weights<T> weights;
  std::vector<int64_t> indices;
  Identity<T> identity;

  Mixer(int64_t inputs_, int64_t outputs_, int64_t rows, int64_t columns, int64_t kernel, const std::vector<int64_t>& taps)
      : inputs(inputs_), outputs(outputs_), pixels(rows * columns), high_pixels(kernel == 9 ? 4 * pixels : pixels),
        indices(taps.size() / 4), identity(std::max(inputs, outputs)) {
    weights.bind(inputs, outputs, rows, columns, kernel, false, &taps);
    std::iota(indices.begin(), indices.end(), int64_t(0));
  }

  void forward(int64_t images, const T* x, const T* values, T* y) {
    weights.set(values, indices.data(), T(1));
    for (int64_t n = 0; n < images; ++n) {
      Mix<T> a = weights.mix;
      a.map = identity.map();
      a.source = x + n * inputs * pixels;
      a.out = y + n * outputs * high_pixels;
      a.moments = nullptr;
      mix(a);
    }
  }

  // grad_x and grad_values may be nullptr; grad_values is written.
  void backward(int64_t images, const T* grad, const T* x, const T* values, T* grad_x, T* grad_values) {
    weights.set(values, indices.data(), T(1));
    Aligned<T> sums;
    if (grad_values != nullptr) {
      std::fill_n(grad_values, weights.count(), T(0));
    }
    for (int64_t n = 0; n < images; ++n) {
      MixBack<T> a = weights.back;
      a.map = identity.map();
      a.source = x + n * inputs * pixels;
      a.grad = identity.grad(grad + n * outputs * high_pixels);
      a.grad_source = grad_x == nullptr ? nullptr : grad_x + n * inputs * pixels;
      a.leave = Leave::kPlain;
      a.sums = grad_values == nullptr ? nullptr : sums.reserve(std::max<int64_t>(1, weights.sums()));
      mix_back(a);
      if (grad_values != nullptr) {
        weights.add_grads(a.sums, indices.data(), T(1), grad_values);
      }
    }
  }
};

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
      Mixer<T> mixer(x.size(1), outputs, x.size(2), x.size(3), 9, list);
      mixer.forward(x.size(0), pointer<const T>(x), pointer<const T>(values), pointer<T>(y));
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
    Mixer<T> mixer(x.size(1), grad.size(1), x.size(2), x.size(3), 9, list);
    mixer.backward(
        x.size(0), pointer<const T>(grad), pointer<const T>(x), pointer<const T>(values),
        needs_x ? pointer<T>(grad_x) : nullptr, needs_values ? pointer<T>(grad_values) : nullptr);
  });
  return {grad_x, grad_values};
}

// ---- output_head

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
      x.is_cpu() && x.dim() == 4 && target.is_cpu() && target.dim() == 4 && target.is_contiguous() &&
          weight.is_cpu() && weight.dim() == 2 && weight.is_contiguous() && weight.size(1) == x.size(1) &&
          target.size(0) == x.size(0) && target.size(1) == weight.size(0) && target.size(2) <= x.size(2) &&
          target.size(3) <= x.size(3) && target.numel() > 0,
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
  constexpr int64_t kPiece = 512;
  double sum = 0;
  T difference[kPiece];
  for (int64_t at = 0; at < count; at += kPiece) {
    const int64_t size = std::min(kPiece, count - at);
    for (int64_t j = 0; j < size; ++j) {
      difference[j] = x[at + j] - y[at + j];
    }
    Sums<T> sums;
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
      STD_TORCH_CHECK(bias->numel() == outputs && bias->scalar_type() == x.scalar_type(), "bias: expected ", outputs, " elements of the dtype of x");
      for (size_t i = 0; i < shift.size(); ++i) {
        shift[i] = pointer<const T>(*bias)[i % outputs];
      }
    }
    Mixer<T> mixer(x.size(1), outputs, x.size(2), x.size(3), 1, all_taps(outputs, x.size(1)));
    mixer.forward(images, pointer<const T>(x), pointer<const T>(weight), pointer<T>(output));
    batch_norm_act::output(batch_norm_act::Output<T>{
        images * outputs, pixels, sigmoid ? Last::kSigmoid : Last::kLeaky, T(1),
        pointer<const T>(output), shift.data(), nullptr, pointer<T>(output)});
    *pointer<T>(loss) = static_cast<T>(
        sum_of_squares(pointer<const T>(output), pointer<const T>(target), output.numel()) /
        static_cast<double>(output.numel()));
  });
  return {output, loss};
}

std::tuple<Tensor, Tensor, Tensor> output_head_backward(
    std::optional<Tensor> grad_output,
    std::optional<Tensor> grad_loss,
    Tensor x,
    Tensor weight,
    Tensor output,
    Tensor target,
    bool sigmoid,
    bool needs_x,
    bool needs_weight,
    bool needs_bias) {
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
    torch::stable::parallel_for(0, count, 1 << 15, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T of_output = (direct == nullptr ? T(0) : direct[i]) + factor * (out[i] - wanted[i]);
        g[i] = sigmoid ? of_output * (out[i] * (T(1) - out[i])) : of_output;
      }
    });
    Mixer<T> mixer(x.size(1), outputs, crop.size(2), crop.size(3), 1, all_taps(outputs, x.size(1)));
    mixer.backward(
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
  m.impl("sparse_up_conv2d_cpu", TORCH_BOX(&sparse_up_conv2d));
  m.impl("sparse_up_conv2d_backward_cpu", TORCH_BOX(&sparse_up_conv2d_backward));
  m.impl("output_head_cpu", TORCH_BOX(&output_head));
  m.impl("output_head_backward_cpu", TORCH_BOX(&output_head_backward));
}

} // namespace oes::mixing

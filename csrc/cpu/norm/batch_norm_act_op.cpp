// The operators of oes_fast/ops/batch_norm_act.py.
#include <cmath>
#include <optional>
#include <vector>

#include "cpu/core/tensor_checks.h"
#include "cpu/core/workspace.h"
#include "cpu/norm/batch_norm_act.h"

namespace oes::norm {
namespace {

constexpr int64_t kNone = 0, kLeakyRelu = 1, kElu = 2, kSilu = 3; // indices into reference.ACTIVATIONS

Act act_of(int64_t activation) {
  STD_TORCH_CHECK(activation >= kNone && activation <= kSilu, "activation: expected 0 to 3, got ", activation);
  return activation == kElu ? Act::kElu : activation == kSilu ? Act::kSilu : Act::kLeaky;
}

struct Shape {
  int64_t images, channels, rows, columns;
  int64_t planes() const {
    return images * channels;
  }
  int64_t pixels() const {
    return rows * columns;
  }
};

Shape check(const Tensor& x, const Tensor& like) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && x.is_contiguous(), "x: expected a contiguous CPU tensor [N, C, H, W]");
  check_vector("x", torch::stable::flatten(x), torch::stable::flatten(like));
  return {x.size(0), x.size(1), x.size(2), x.size(3)};
}

// A vector of the channels as double, `rest` where there is none.
template <typename T>
std::vector<double> read(const char* name, const std::optional<Tensor>& vector, const Shape& s, double rest) {
  std::vector<double> result(s.channels, rest);
  if (vector.has_value()) {
    STD_TORCH_CHECK(
        vector->is_cpu() && vector->numel() == s.channels && vector->is_contiguous(), name, ": expected ", s.channels,
        " elements, contiguous on the CPU");
    for (int64_t c = 0; c < s.channels; ++c) {
      result[c] = static_cast<double>(pointer<const T>(*vector)[c]);
    }
  }
  return result;
}

// The prologues of the planes, one entry for each plane of each image.
template <typename T>
struct Prologues {
  std::vector<T> scale, shift, ones, zeros, mean;
  std::vector<double> rstd;
  Act act;
  T slope;

  Prologues(
      const Shape& s, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
      const std::vector<double>& means, const std::vector<double>& vars, double eps, int64_t activation, double slope_)
      : ones(s.planes(), T(1)),
        zeros(s.planes()),
        act(act_of(activation)),
        slope(activation == kNone ? T(1) : static_cast<T>(slope_)) {
    const std::vector<double> gamma = read<T>("weight", weight, s, 1), beta = read<T>("bias", bias, s, 0);
    for (int64_t c = 0; c < s.channels; ++c) {
      rstd.push_back(1 / std::sqrt(vars[c] + eps));
    }
    for (int64_t p = 0; p < s.planes(); ++p) {
      const int64_t c = p % s.channels;
      scale.push_back(static_cast<T>(gamma[c] * rstd[c]));
      shift.push_back(static_cast<T>(beta[c]));
      mean.push_back(static_cast<T>(means[c]));
    }
  }

  Prologue<T> of_planes() const {
    return {mean.data(), scale.data(), shift.data(), zeros.data(), ones.data(), zeros.data(), slope, act};
  }
};

// Mean and biased variance of every channel, over all images.
template <typename T>
void measure(const Tensor& x, const Shape& s, std::vector<double>& mean, std::vector<double>& var) {
  const int64_t chunks = chunks_of(s.pixels());
  std::vector<double> moments(2 * s.planes() * chunks);
  statistics(Statistics<T>{s.planes(), s.pixels(), pointer<const T>(x), {}, false, moments.data()});
  mean.assign(s.channels, 0);
  var.assign(s.channels, 0);
  for (int64_t c = 0; c < s.channels; ++c) {
    Merged all;
    for (int64_t at = 0; at < s.images * chunks; ++at) {
      const int64_t chunk = at % chunks, plane = at / chunks * s.channels + c;
      const double* of_chunk = moments.data() + 2 * (plane * chunks + chunk);
      all.add(static_cast<double>(std::min(kChunk, s.pixels() - chunk * kChunk)), of_chunk[0], of_chunk[1]);
    }
    mean[c] = all.mean;
    var[c] = all.squares / all.count;
  }
}

template <typename T>
Tensor written(const Tensor& like, const std::vector<double>& values) {
  Tensor result = torch::stable::new_empty(like, {static_cast<int64_t>(values.size())});
  for (size_t i = 0; i < values.size(); ++i) {
    pointer<T>(result)[i] = static_cast<T>(values[i]);
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act(
    Tensor x, std::optional<Tensor> weight, std::optional<Tensor> bias, std::optional<Tensor> mean,
    std::optional<Tensor> var, double eps, int64_t activation, double slope, int64_t pad) {
  const Shape s = check(x, x);
  Tensor y = torch::stable::new_empty(x, {s.images, s.channels, s.rows + 2 * pad, s.columns + 2 * pad});
  return with_type(x, [&](auto zero) {
    using T = decltype(zero);
    std::vector<double> means, vars;
    if (mean.has_value() && var.has_value()) {
      means = read<T>("mean", mean, s, 0);
      vars = read<T>("var", var, s, 1);
    } else {
      measure<T>(x, s, means, vars);
    }
    const Prologues<T> prologues(s, weight, bias, means, vars, eps, activation, slope);
    if (pad == 0) {
      map_image(pointer<const T>(x), prologues.of_planes(), s.planes(), s.pixels(), pointer<T>(y));
    } else if (s.planes() != 0) {
      const Border border = make_border(Padding::kReflect, s.rows, s.columns, pad, pad, pad, pad);
      map_padded(pointer<const T>(x), prologues.of_planes(), s.planes(), s.rows, s.columns, border, pointer<T>(y));
    }
    return std::tuple<Tensor, Tensor, Tensor>{y, written<T>(x, means), written<T>(x, vars)};
  });
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act_backward(
    Tensor grad, Tensor x, std::optional<Tensor> weight, std::optional<Tensor> bias, Tensor mean, Tensor var,
    double eps, int64_t activation, double slope, int64_t pad, bool of_batch, bool needs_x, bool needs_weight,
    bool needs_bias) {
  const Shape s = check(x, x);
  const Shape padded = check(grad, grad);
  STD_TORCH_CHECK(
      padded.planes() == s.planes() && padded.rows == s.rows + 2 * pad && padded.columns == s.columns + 2 * pad,
      "grad: expected the shape of the result");
  return with_type(x, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<double> means = read<T>("mean", mean, s, 0), vars = read<T>("var", var, s, 1);
    const Prologues<T> prologues(s, weight, bias, means, vars, eps, activation, slope);
    Aligned<T> memory;
    T* of_norm = memory.reserve(std::max<int64_t>(1, s.planes() * s.pixels()));
    if (pad == 0 || s.planes() == 0) {
      std::copy_n(pointer<const T>(grad), s.planes() * s.pixels(), of_norm);
    } else {
      const Border border = make_border(Padding::kReflect, s.rows, s.columns, pad, pad, pad, pad);
      fold_padded(pointer<const T>(grad), s.planes(), s.rows, s.columns, border, of_norm);
    }
    const int64_t chunks = chunks_of(s.pixels());
    std::vector<double> sums(2 * s.planes() * chunks);
    ActivationGrad<T> a{s.planes(), s.pixels(), pointer<const T>(x), prologues.of_planes()};
    a.grad = of_norm;
    a.sums = sums.data();
    activation_grad(a);
    std::vector<double> grad_weight(s.channels), grad_bias(s.channels);
    for (int64_t p = 0; p < s.planes(); ++p) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        grad_bias[p % s.channels] += sums[2 * (p * chunks + chunk)];
        grad_weight[p % s.channels] += sums[2 * (p * chunks + chunk) + 1] * prologues.rstd[p % s.channels];
      }
    }
    Tensor grad_x = needs_x ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
    if (needs_x && s.planes() * s.pixels() != 0) {
      std::vector<T> factor, of_x, plus;
      const double n = static_cast<double>(s.images * s.pixels());
      for (int64_t p = 0; p < s.planes(); ++p) {
        const int64_t c = p % s.channels;
        const double scale = static_cast<double>(prologues.scale[p]);
        const double b = of_batch ? -scale * prologues.rstd[c] * grad_weight[c] / n : 0;
        factor.push_back(prologues.scale[p]);
        of_x.push_back(static_cast<T>(b));
        plus.push_back(static_cast<T>(of_batch ? -scale * grad_bias[c] / n : 0));
      }
      grad_image(
          PrologueGrad<T>{of_norm, pointer<const T>(x), prologues.mean.data(), factor.data(), of_x.data(), plus.data()},
          s.planes(), s.pixels(), pointer<T>(grad_x));
    }
    if (!needs_weight) {
      grad_weight.clear();
    }
    if (!needs_bias) {
      grad_bias.clear();
    }
    return std::tuple<Tensor, Tensor, Tensor>{grad_x, written<T>(x, grad_weight), written<T>(x, grad_bias)};
  });
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("batch_norm_act_cpu", TORCH_BOX(&batch_norm_act));
  m.impl("batch_norm_act_backward_cpu", TORCH_BOX(&batch_norm_act_backward));
}

} // namespace oes::norm

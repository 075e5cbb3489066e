// Adam on the kept weights: see oes_fast/reference/masked_adam.py.
#include <cmath>
#include <optional>

#include "cpu/core/tensor_checks.h"

namespace oes::masked_adam {
namespace {

template <typename T>
struct Step {
  T *weights, *exp_avg, *exp_avg_sq;
  const T* grad;
  const bool* mask; // nullptr: all are kept
  T beta1, beta1_rest, beta2, beta2_rest, step_size, second_scale, eps;
};

template <Capability, typename Arguments>
OES_INLINE void take_body(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.weights)>;
  constexpr int64_t kPiece = 512;
  alignas(64) T kept[kPiece];
  for (int64_t first = begin; first < end; first += kPiece) {
    const int64_t count = end - first < kPiece ? end - first : kPiece;
    const T* __restrict grad = a.grad + first;
    if (a.mask != nullptr) { // not a product: NaN that is not kept counts for nothing
      for (int64_t i = 0; i < count; ++i) {
        kept[i] = a.mask[first + i] ? grad[i] : T(0);
      }
      grad = kept;
    }
    T* __restrict weights = a.weights + first;
    T* __restrict exp_avg = a.exp_avg + first;
    T* __restrict exp_avg_sq = a.exp_avg_sq + first;
    for (int64_t i = 0; i < count; ++i) {
      const T g = grad[i];
      const T mean = exp_avg[i] * a.beta1 + g * a.beta1_rest;
      const T square = exp_avg_sq[i] * a.beta2 + g * g * a.beta2_rest;
      exp_avg[i] = mean;
      exp_avg_sq[i] = square;
      weights[i] -= a.step_size * mean / (std::sqrt(square) * a.second_scale + a.eps);
    }
  }
}

OES_CAPABILITIES(take)

void masked_adam(
    Tensor weights,
    Tensor grad,
    Tensor exp_avg,
    Tensor exp_avg_sq,
    std::optional<Tensor> mask,
    int64_t step,
    double lr,
    double beta1,
    double beta2,
    double eps) {
  check_vector("weights", weights, weights);
  check_vector("grad", grad, weights);
  check_vector("exp_avg", exp_avg, weights);
  check_vector("exp_avg_sq", exp_avg_sq, weights);
  if (mask.has_value()) {
    STD_TORCH_CHECK(
        mask->is_cpu() && mask->scalar_type() == ScalarType::Bool && mask->is_contiguous() &&
            mask->numel() == weights.numel(),
        "mask: expected a contiguous bool CPU tensor of ",
        weights.numel(),
        " elements");
  }
  const auto taken = static_cast<double>(step + 1);
  with_type(weights, [&](auto zero) {
    using T = decltype(zero);
    const Step<T> a{
        pointer<T>(weights),
        pointer<T>(exp_avg),
        pointer<T>(exp_avg_sq),
        pointer<const T>(grad),
        mask.has_value() ? pointer<const bool>(*mask) : nullptr,
        static_cast<T>(beta1),
        static_cast<T>(1 - beta1),
        static_cast<T>(beta2),
        static_cast<T>(1 - beta2),
        static_cast<T>(lr / (1 - std::pow(beta1, taken))),
        static_cast<T>(1 / std::sqrt(1 - std::pow(beta2, taken))),
        static_cast<T>(eps)};
    torch::stable::parallel_for(
        0, weights.numel(), kTile * kGrain, [&](int64_t begin, int64_t end) { take(a, begin, end); });
  });
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("masked_adam_cpu", TORCH_BOX(&masked_adam));
}

} // namespace oes::masked_adam

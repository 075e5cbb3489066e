// Adam on the kept weights: see oes_fast/reference/masked_adam.py.
#include <cmath>
#include <optional>

#include "cpu/core/parallel.h"
#include "cpu/core/simd.h"
#include "cpu/core/tensor_checks.h"

namespace oes::mask {
namespace {

template <typename T>
struct Step {
  T *weights, *exp_avg, *exp_avg_sq;
  const T* grad;
  const bool* mask; // nullptr: all are kept
  T beta1, beta1_rest, beta2, beta2_rest, step_size, second_scale, eps;
};

#define OES_ISA_FILE "cpu/mask/masked_adam_isa.h"
#include "cpu/core/isa_variants.h"

constexpr int64_t kGrain = 1 << 14; // weights that one thread takes at least

void masked_adam(
    Tensor weights, Tensor grad, Tensor exp_avg, Tensor exp_avg_sq, std::optional<Tensor> mask, int64_t step, double lr,
    double beta1, double beta2, double eps) {
  check_vector("weights", weights, weights);
  check_vector("grad", grad, weights);
  check_vector("exp_avg", exp_avg, weights);
  check_vector("exp_avg_sq", exp_avg_sq, weights);
  if (mask.has_value()) {
    STD_TORCH_CHECK(
        mask->is_cpu() && mask->scalar_type() == ScalarType::Bool && mask->is_contiguous() &&
            mask->numel() == weights.numel(),
        "mask: expected a contiguous bool CPU tensor of ", weights.numel(), " elements");
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
    parallel_for(
        0, weights.numel(), kGrain, [&](int64_t begin, int64_t end) { OES_DISPATCH(masked_adam, a, begin, end); });
  });
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("masked_adam_cpu", TORCH_BOX(&masked_adam));
}

} // namespace oes::mask

// Chain rule through the sampled mask, KL gradient and Adam in one pass: see oes_fast/reference/mask_update.py.
#include <cmath>
#include <vector>

#include "common/mask_kl.h"
#include "cpu/core/tensor_checks.h"
#include "cpu/mask/relaxed_mask.h"

namespace oes::mask {
namespace {

constexpr int kLanes = 16; // partial sums of the KL value in a tile, added in one fixed order

enum class Kl { kNone, kGradient, kGradientAndValue };

template <typename T, Kl kKl>
struct Update {
  using Scalar = T;
  static constexpr Kl kl_part = kKl;
  PhiloxKey key;
  int64_t numel;
  T inverse_temperature;
  T kl, kl_offset; // log(p0 / (1 - p0))
  double log_density, log_rest;
  T beta1_rest, beta2, beta2_rest; // 1 - beta1, beta2, 1 - beta2
  T step_size, second_scale, eps;
  const T* grad;
  const T* w0;
  T* logits;
  T* exp_avg;
  T* exp_avg_sq;
  double* kl_of_tile;
};

#define OES_ISA_FILE "cpu/mask/mask_update_isa.h"
#include "cpu/core/isa_variants.h"

struct Options {
  int64_t seed, step;
  double temperature, kl, density, lr, beta1, beta2, eps;
};

template <typename T, Kl kKl>
double run(
    const Tensor& logits, const Tensor& grad, const Tensor& w0, const Tensor& exp_avg, const Tensor& exp_avg_sq,
    const Options& o) {
  const int64_t tiles = philox_tiles(logits.numel());
  std::vector<double> kl_of_tile(kKl == Kl::kGradientAndValue ? tiles : 0);
  const auto taken = static_cast<double>(o.step + 1);
  const Update<T, kKl> a{
      PhiloxKey(o.seed, o.step, kMaskNoise),
      logits.numel(),
      static_cast<T>(1 / o.temperature),
      static_cast<T>(o.kl),
      static_cast<T>(std::log(o.density / (1 - o.density))),
      std::log(o.density),
      std::log1p(-o.density),
      static_cast<T>(1 - o.beta1),
      static_cast<T>(o.beta2),
      static_cast<T>(1 - o.beta2),
      static_cast<T>(o.lr / (1 - std::pow(o.beta1, taken))),
      static_cast<T>(1 / std::sqrt(1 - std::pow(o.beta2, taken))),
      static_cast<T>(o.eps),
      pointer<T>(grad),
      pointer<T>(w0),
      pointer<T>(logits),
      pointer<T>(exp_avg),
      pointer<T>(exp_avg_sq),
      kl_of_tile.data()};
  parallel_for(0, tiles, kPhiloxGrain, [&](int64_t begin, int64_t end) { OES_DISPATCH(update, a, begin, end); });
  double sum = 0;
  for (double of_tile : kl_of_tile) { // in the order of the tiles, whatever thread made them
    sum += of_tile;
  }
  return sum;
}

Tensor mask_update(
    Tensor logits, Tensor grad, Tensor w0, Tensor exp_avg, Tensor exp_avg_sq, int64_t seed, int64_t step,
    double temperature, double kl, double density, double lr, double beta1, double beta2, double eps, bool kl_value) {
  check_vector("logits", logits, grad);
  check_vector("grad", grad, logits);
  check_vector("w0", w0, logits);
  check_vector("exp_avg", exp_avg, logits);
  check_vector("exp_avg_sq", exp_avg_sq, logits);
  const Options o{seed, step, temperature, kl, density, lr, beta1, beta2, eps};
  const double sum = with_type(logits, [&](auto zero) {
    using T = decltype(zero);
    if (kl_value) {
      return run<T, Kl::kGradientAndValue>(logits, grad, w0, exp_avg, exp_avg_sq, o);
    }
    if (kl != 0) {
      return run<T, Kl::kGradient>(logits, grad, w0, exp_avg, exp_avg_sq, o);
    }
    return run<T, Kl::kNone>(logits, grad, w0, exp_avg, exp_avg_sq, o);
  });
  Tensor value = torch::stable::new_empty(logits, {});
  torch::stable::fill_(value, sum);
  return value;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("mask_update_cpu", TORCH_BOX(&mask_update));
}

} // namespace oes::mask

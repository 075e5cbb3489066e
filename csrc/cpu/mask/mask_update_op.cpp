// Chain rule through the sampled mask, KL gradient and Adam in one pass: see oes_fast/reference/mask_update.py.
#include <cmath>
#include <vector>

#include "cpu/mask/relaxed_mask.h"
#include "cpu/core/tensor_checks.h"

namespace oes {
namespace {

constexpr double kKlEps = 1e-6; // inside the logarithms, as in reference/mask_kl.py
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

template <Capability kCapability, typename Arguments>
OES_INLINE void update_body(const Arguments& a, int64_t begin, int64_t end) {
  using T = typename Arguments::Scalar;
  constexpr bool has_gradient = Arguments::kl_part != Kl::kNone;
  constexpr bool has_value = Arguments::kl_part == Kl::kGradientAndValue;
  alignas(64) uint32_t words[kTile];
  alignas(64) T decay[kTile]; // e = exp(-|s|)
  alignas(64) T gradient[kTile]; // of the loss, then of all
  alignas(64) T kl_gradient[has_gradient ? kTile : 1]; // P Q at first
  alignas(64) T log_argument[has_gradient ? kTile : 1], correction[has_gradient ? kTile : 1];
  alignas(64) typename Real<T>::Bits exponent[has_gradient ? kTile : 1];
  alignas(64) T kl_terms[has_value ? kTile : 1];
  const T eps = static_cast<T>(kKlEps);
  const T log_density = static_cast<T>(a.log_density), log_rest = static_cast<T>(a.log_rest);
  // Copies, since stores through the pointers might change what `a` refers to.
  const T scale = a.inverse_temperature, kl = a.kl, kl_offset = a.kl_offset;
  const T beta1_rest = a.beta1_rest, beta2 = a.beta2, beta2_rest = a.beta2_rest;
  const T step_size = a.step_size, second_scale = a.second_scale, adam_eps = a.eps;
  for (int64_t tile = begin; tile < end; ++tile) {
    philox_tile<kCapability>(a.key, tile, words);
    const int64_t start = tile * kTile;
    const int64_t count = a.numel - start < kTile ? a.numel - start : kTile;
    const T* __restrict grad = a.grad + start;
    const T* __restrict w0 = a.w0 + start;
    T* __restrict logits = a.logits + start;
    T* __restrict exp_avg = a.exp_avg + start;
    T* __restrict exp_avg_sq = a.exp_avg_sq + start;
    if (has_gradient || needs_decay(scale)) {
      decay_tile(logits, count, decay);
    }
    relaxed_tile<Relaxed::kVariance>(
        words, logits, decay, count, scale,
        [=, to = &gradient[0]](int64_t i, T variance) OES_LAMBDA { to[i] = grad[i] * w0[i] * variance * scale; });
    if constexpr (has_gradient) {
      // With P >= Q the two probabilities, A = P + eps and B = Q + eps, the derivative of the KL term is
      // P Q [+-(log(A / B) + P / A - Q / B) - log(p0 / (1 - p0))]. Here P = 1 / (1 + e) and Q = e / (1 + e) are
      // cleared of their denominator, and one division serves all.
      for (int64_t i = 0; i < count; ++i) {
        const T e = decay[i];
        const T denominator = T(1) + e, cleared_eps = eps * denominator;
        const T larger = T(1) + cleared_eps, smaller = e + cleared_eps;
        const auto split = split_ratio(larger, smaller);
        const T sum = larger + split.scaled, product = larger * smaller, square = denominator * denominator;
        const T others = product * square, inverse = T(1) / (others * sum), of_others = inverse * sum;
        log_argument[i] = (larger - split.scaled) * (inverse * others);
        exponent[i] = split.exponent;
        correction[i] = cleared_eps * (T(1) - e) * (of_others * square);
        kl_gradient[i] = e * (of_others * product);
      }
      for (int64_t i = 0; i < count; ++i) {
        const T s = logits[i];
        const T log_odds = log_from_split(log_argument[i], exponent[i]);
        const T bracket = log_odds + correction[i];
        gradient[i] += kl * (kl_gradient[i] * (with_sign(bracket, s) - kl_offset));
        if constexpr (has_value) {
          const T e = decay[i];
          const T p = T(1) / (T(1) + e);
          const T log_larger = -log_ratio(T(1), p + eps);
          const T of_larger = p * (log_larger - (s < T(0) ? log_rest : log_density));
          const T of_smaller = (e * p) * (log_larger - log_odds - (s < T(0) ? log_density : log_rest));
          kl_terms[i] = of_larger + of_smaller;
        }
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      const T g = gradient[i];
      const T first = exp_avg[i] + (g - exp_avg[i]) * beta1_rest;
      const T second = exp_avg_sq[i] * beta2 + g * g * beta2_rest;
      exp_avg[i] = first;
      exp_avg_sq[i] = second;
      logits[i] = logits[i] - step_size * first / (std::sqrt(second) * second_scale + adam_eps);
    }
    if constexpr (has_value) {
      for (int64_t i = count; i < kTile; ++i) {
        kl_terms[i] = T(0);
      }
      double lanes[kLanes] = {};
      for (int i = 0; i < kTile; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
          lanes[lane] += static_cast<double>(kl_terms[i + lane]);
        }
      }
      double sum = 0;
      for (double lane : lanes) {
        sum += lane;
      }
      a.kl_of_tile[tile] = sum;
    }
  }
}

OES_CAPABILITIES(update)

struct Options {
  int64_t seed, step;
  double temperature, kl, density, lr, beta1, beta2, eps;
};

template <typename T, Kl kKl>
double run(
    const Tensor& logits,
    const Tensor& grad,
    const Tensor& w0,
    const Tensor& exp_avg,
    const Tensor& exp_avg_sq,
    const Options& o) {
  const int64_t tiles = tiles_of(logits.numel());
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
  torch::stable::parallel_for(0, tiles, kGrain, [&](int64_t begin, int64_t end) { update(a, begin, end); });
  double sum = 0;
  for (double of_tile : kl_of_tile) { // in the order of the tiles, whatever thread made them
    sum += of_tile;
  }
  return sum;
}

Tensor mask_update(
    Tensor logits,
    Tensor grad,
    Tensor w0,
    Tensor exp_avg,
    Tensor exp_avg_sq,
    int64_t seed,
    int64_t step,
    double temperature,
    double kl,
    double density,
    double lr,
    double beta1,
    double beta2,
    double eps,
    bool kl_value) {
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

} // namespace oes

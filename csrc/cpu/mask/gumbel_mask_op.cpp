// w0 * sigmoid((s + L) / T) and its gradients, the noise L drawn on the way: see oes_fast/reference/gumbel_mask.py.
#include <tuple>

#include "cpu/mask/relaxed_mask.h"
#include "cpu/core/tensor_checks.h"

namespace oes {
namespace {

template <typename T>
struct Forward {
  using Scalar = T;
  PhiloxKey key;
  int64_t numel;
  T inverse_temperature;
  const T* w0;
  const T* logits;
  T* masked;
};

template <typename T>
struct Backward {
  using Scalar = T;
  PhiloxKey key;
  int64_t numel;
  T inverse_temperature;
  const T* grad;
  const T* w0;
  const T* logits;
  T* grad_w0; // nullptr where it is not asked for
  T* grad_logits;
};

template <Capability kCapability, typename Arguments>
OES_INLINE void forward_body(const Arguments& a, int64_t begin, int64_t end) {
  using T = typename Arguments::Scalar;
  alignas(64) uint32_t words[kTile];
  alignas(64) T decay[kTile];
  const T scale = a.inverse_temperature;
  for (int64_t tile = begin; tile < end; ++tile) {
    philox_tile<kCapability>(a.key, tile, words);
    const int64_t start = tile * kTile;
    const int64_t count = a.numel - start < kTile ? a.numel - start : kTile;
    const T* __restrict w0 = a.w0 + start;
    const T* __restrict logits = a.logits + start;
    T* __restrict masked = a.masked + start;
    if (needs_decay(scale)) {
      decay_tile(logits, count, decay);
    }
    relaxed_tile<Relaxed::kMask>(
        words, logits, decay, count, scale, [=](int64_t i, T m) OES_LAMBDA { masked[i] = w0[i] * m; });
  }
}

template <Capability kCapability, typename Arguments>
OES_INLINE void backward_body(const Arguments& a, int64_t begin, int64_t end) {
  using T = typename Arguments::Scalar;
  alignas(64) uint32_t words[kTile];
  alignas(64) T decay[kTile];
  const T scale = a.inverse_temperature;
  for (int64_t tile = begin; tile < end; ++tile) {
    philox_tile<kCapability>(a.key, tile, words);
    const int64_t start = tile * kTile;
    const int64_t count = a.numel - start < kTile ? a.numel - start : kTile;
    const T* __restrict grad = a.grad + start;
    const T* __restrict logits = a.logits + start;
    if (needs_decay(scale)) {
      decay_tile(logits, count, decay);
    }
    if (a.grad_w0 != nullptr) {
      T* __restrict grad_w0 = a.grad_w0 + start;
      relaxed_tile<Relaxed::kMask>(
          words, logits, decay, count, scale, [=](int64_t i, T m) OES_LAMBDA { grad_w0[i] = grad[i] * m; });
    }
    if (a.grad_logits != nullptr) {
      const T* __restrict w0 = a.w0 + start;
      T* __restrict grad_logits = a.grad_logits + start;
      relaxed_tile<Relaxed::kVariance>(
          words, logits, decay, count, scale,
          [=](int64_t i, T variance) OES_LAMBDA { grad_logits[i] = grad[i] * w0[i] * variance * scale; });
    }
  }
}

OES_CAPABILITIES(forward)
OES_CAPABILITIES(backward)

void gumbel_mask_out(Tensor masked, Tensor w0, Tensor logits, int64_t seed, int64_t step, double temperature) {
  check_vector("masked", masked, logits);
  check_vector("w0", w0, logits);
  check_vector("logits", logits, w0);
  with_type(w0, [&](auto zero) {
    using T = decltype(zero);
    const Forward<T> a{
        PhiloxKey(seed, step, kMaskNoise), w0.numel(),     static_cast<T>(1 / temperature),
        pointer<T>(w0),                    pointer<T>(logits), pointer<T>(masked)};
    torch::stable::parallel_for(
        0, tiles_of(a.numel), kGrain, [&](int64_t begin, int64_t end) { forward(a, begin, end); });
  });
}

Tensor gumbel_mask(Tensor w0, Tensor logits, int64_t seed, int64_t step, double temperature) {
  Tensor masked = torch::stable::empty_like(w0);
  gumbel_mask_out(masked, w0, logits, seed, step, temperature);
  return masked;
}

std::tuple<Tensor, Tensor> gumbel_mask_backward(
    Tensor grad,
    Tensor w0,
    Tensor logits,
    int64_t seed,
    int64_t step,
    double temperature,
    bool needs_w0,
    bool needs_logits) {
  check_vector("grad", grad, logits);
  check_vector("w0", w0, logits);
  check_vector("logits", logits, w0);
  Tensor grad_w0 = torch::stable::new_empty(w0, {needs_w0 ? w0.numel() : 0});
  Tensor grad_logits = torch::stable::new_empty(w0, {needs_logits ? w0.numel() : 0});
  with_type(w0, [&](auto zero) {
    using T = decltype(zero);
    const Backward<T> a{
        PhiloxKey(seed, step, kMaskNoise),
        w0.numel(),
        static_cast<T>(1 / temperature),
        pointer<T>(grad),
        pointer<T>(w0),
        pointer<T>(logits),
        needs_w0 ? pointer<T>(grad_w0) : nullptr,
        needs_logits ? pointer<T>(grad_logits) : nullptr};
    torch::stable::parallel_for(
        0, tiles_of(a.numel), kGrain, [&](int64_t begin, int64_t end) { backward(a, begin, end); });
  });
  return {grad_w0, grad_logits};
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("gumbel_mask_cpu", TORCH_BOX(&gumbel_mask));
  m.impl("gumbel_mask_out_cpu", TORCH_BOX(&gumbel_mask_out));
  m.impl("gumbel_mask_backward_cpu", TORCH_BOX(&gumbel_mask_backward));
}

} // namespace oes

// w0 * sigmoid((s + L) / T) and its gradients, the noise L drawn on the way: see oes_fast/reference/gumbel_mask.py.
#include <tuple>

#include "cpu/core/tensor_checks.h"
#include "cpu/mask/relaxed_mask.h"

namespace oes::mask {
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

#define OES_ISA_FILE "cpu/mask/gumbel_mask_isa.h"
#include "cpu/core/isa_variants.h"

void gumbel_mask_out(Tensor masked, Tensor w0, Tensor logits, int64_t seed, int64_t step, double temperature) {
  check_vector("masked", masked, logits);
  check_vector("w0", w0, logits);
  check_vector("logits", logits, w0);
  with_type(w0, [&](auto zero) {
    using T = decltype(zero);
    const Forward<T> a{
        PhiloxKey(seed, step, kMaskNoise),
        w0.numel(),
        static_cast<T>(1 / temperature),
        pointer<T>(w0),
        pointer<T>(logits),
        pointer<T>(masked)};
    parallel_for(0, philox_tiles(a.numel), kPhiloxGrain, [&](int64_t begin, int64_t end) {
      OES_DISPATCH(forward, a, begin, end);
    });
  });
}

Tensor gumbel_mask(Tensor w0, Tensor logits, int64_t seed, int64_t step, double temperature) {
  Tensor masked = torch::stable::empty_like(w0);
  gumbel_mask_out(masked, w0, logits, seed, step, temperature);
  return masked;
}

std::tuple<Tensor, Tensor> gumbel_mask_backward(
    Tensor grad, Tensor w0, Tensor logits, int64_t seed, int64_t step, double temperature, bool needs_w0,
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
    parallel_for(0, philox_tiles(a.numel), kPhiloxGrain, [&](int64_t begin, int64_t end) {
      OES_DISPATCH(backward, a, begin, end);
    });
  });
  return {grad_w0, grad_logits};
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("gumbel_mask_cpu", TORCH_BOX(&gumbel_mask));
  m.impl("gumbel_mask_out_cpu", TORCH_BOX(&gumbel_mask_out));
  m.impl("gumbel_mask_backward_cpu", TORCH_BOX(&gumbel_mask_backward));
}

} // namespace oes::mask

// Running statistics of a batch norm: see oes_fast/reference/running_stats.py.
#include <optional>

#include "cpu/core/tensor_checks.h"

namespace oes::norm {
namespace {

void running_stats(
    Tensor running_mean, Tensor running_var, Tensor mean, Tensor var, std::optional<Tensor> channels,
    std::optional<Tensor> offset, double momentum, double correction) {
  check_vector("running_mean", running_mean, running_mean);
  check_vector("running_var", running_var, running_mean);
  check_vector("mean", mean, mean);
  check_vector("var", var, mean);
  STD_TORCH_CHECK(mean.scalar_type() == running_mean.scalar_type(), "mean: expected the dtype of running_mean");
  if (channels.has_value()) {
    STD_TORCH_CHECK(
        channels->is_cpu() && channels->scalar_type() == ScalarType::Long && channels->is_contiguous() &&
            channels->numel() == mean.numel(),
        "channels: expected a contiguous int64 CPU tensor of ", mean.numel(), " elements");
  } else {
    STD_TORCH_CHECK(mean.numel() == running_mean.numel(), "mean: expected ", running_mean.numel(), " elements");
  }
  if (offset.has_value()) {
    check_vector("offset", *offset, mean);
  }
  with_type(mean, [&](auto zero) {
    using T = decltype(zero);
    const auto weight = static_cast<T>(momentum), factor = static_cast<T>(correction);
    T *of_mean = pointer<T>(running_mean), *of_var = pointer<T>(running_var);
    for (int64_t i = 0; i < mean.numel(); ++i) {
      const int64_t at = channels.has_value() ? pointer<const int64_t>(*channels)[i] : i;
      STD_TORCH_CHECK(at >= 0 && at < running_mean.numel(), "channels: expected indices into running_mean, got ", at);
      const T m = pointer<const T>(mean)[i] + (offset.has_value() ? pointer<const T>(*offset)[i] : T(0));
      const T v = pointer<const T>(var)[i] * factor;
      of_mean[at] += weight * (m - of_mean[at]);
      of_var[at] += weight * (v - of_var[at]);
    }
  });
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("running_stats_cpu", TORCH_BOX(&running_stats));
}

} // namespace oes::norm

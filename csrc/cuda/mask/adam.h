// The numbers of Adam, which masked_adam and mask_update take; a clock gives two of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>

namespace oes::cuda::mask {

struct AdamOptions {
  double lr, beta1, beta2, eps;
};

template <typename T>
struct Adam {
  T beta1, beta1_rest, beta2, beta2_rest, eps;
  // Of the bias corrections: lr / (1 - beta1^(t + 1)) and (1 - beta2^(t + 1))^(-1/2) of step t.
  T step_size, second_scale;
  const int64_t* ticks; // [1], the step, where a launch is recorded once and repeated; else nullptr
  const T* corrections; // [rows, 2]: those of step t in row t mod rows
  int64_t rows;

  Adam(const AdamOptions& o, int64_t step, const int64_t* ticks_, const T* corrections_, int64_t rows_)
      : beta1(static_cast<T>(o.beta1)),
        beta1_rest(static_cast<T>(1 - o.beta1)),
        beta2(static_cast<T>(o.beta2)),
        beta2_rest(static_cast<T>(1 - o.beta2)),
        eps(static_cast<T>(o.eps)),
        step_size(static_cast<T>(o.lr / (1 - std::pow(o.beta1, static_cast<double>(step + 1))))),
        second_scale(static_cast<T>(1 / std::sqrt(1 - std::pow(o.beta2, static_cast<double>(step + 1))))),
        ticks(ticks_),
        corrections(corrections_),
        rows(rows_) {
    if (ticks != nullptr && (corrections == nullptr || rows < 1)) {
      throw std::invalid_argument("corrections: expected rows of two where there are ticks");
    }
  }
};

} // namespace oes::cuda::mask

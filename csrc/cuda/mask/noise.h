// The noise alone, for callers that need it stored and for tests: see oes_fast/reference/philox.py.
#pragma once

#include "common/philox_constants.h"
#include "cuda/core/platform.h"

namespace oes::cuda::mask {

struct RandomBits {
  int64_t seed, step;
  uint32_t stream;
  int64_t numel;
  int64_t* words;
};

template <typename T>
struct LogisticFromBits {
  int64_t numel;
  const int64_t* words;
  T* noise;
};

void random_bits(const RandomBits& a, cudaStream_t stream);

// For float and double.
template <typename T>
void logistic_from_bits(const LogisticFromBits<T>& a, cudaStream_t stream);

} // namespace oes::cuda::mask

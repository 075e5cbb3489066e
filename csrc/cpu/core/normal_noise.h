// Normal noise added to a row of elements: see oes_fast/reference/philox.py.
#pragma once

#include "cpu/core/philox.h"

namespace oes {

struct NormalNoise {
  PhiloxKey key;
  int64_t numel;
  const float* base; // may be `out`
  const float* stds; // of each element; nullptr: `std` for all
  float std;
  float* out;
  int64_t first; // element that `base`, `stds` and `out` begin with; a multiple of kPhiloxTile
};

// Of elements begin * kPhiloxTile .. end * kPhiloxTile - 1, up to numel.
void normal_noise(const NormalNoise& a, int64_t begin, int64_t end);

} // namespace oes

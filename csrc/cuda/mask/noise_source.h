// Where the noise of a launch comes from.
#pragma once

#include <cstdint>

namespace oes::cuda::mask {

// What the words of the noise are a function of, beside the element. In memory where a launch is recorded once and
// repeated (`ticks`), or where every network has noise of its own (`seeds`).
struct NoiseSource {
  int64_t seed, step;
  const int64_t* seeds; // [networks]; nullptr: `seed` for all
  const int64_t* ticks; // [1]; nullptr: `step`
};

} // namespace oes::cuda::mask

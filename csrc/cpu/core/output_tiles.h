// Tiles of outputs that are computed together because all of them read the same taps, see output_tiles_isa.h.
//
// Outputs are cut into tiles of tile_outputs(), what is left over into smaller ones. A matrix of weights
// [outputs][taps] is stored tile by tile, [taps][outputs of the tile]: the one that starts at output o lies at o *
// taps.
#pragma once

#include "cpu/core/simd.h"

namespace oes {

constexpr int tile_outputs(Capability capability) {
  return capability == Capability::kAvx512 ? 8 : 4;
}

// Of the next tile, where that many outputs are left.
constexpr int outputs_of_tile(int64_t left, int most) {
  return left >= most ? most : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

// Calls f(first output, outputs) for every tile of from .. to.
template <typename F>
void each_output_tile(int64_t from, int64_t to, const F& f) {
  const int most = tile_outputs(capability());
  for (int64_t first = from; first < to;) {
    const int outputs = outputs_of_tile(to - first, most);
    f(first, outputs);
    first += outputs;
  }
}

} // namespace oes

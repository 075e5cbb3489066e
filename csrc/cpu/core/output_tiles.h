// Blocks: outputs that are computed together because all of them read the same taps, see output_tiles_isa.h.
//
// Rows are cut into blocks of tile_outputs(), what is left over into smaller ones. A matrix of weights [rows][taps] is
// stored block by block, [taps][rows of the block]: the one that starts at row r lies at r * taps.
#pragma once

#include "cpu/core/simd.h"

namespace oes {

constexpr int tile_outputs(Capability capability) {
  return capability == Capability::kAvx512 ? 8 : 4;
}

// Of the next block, where that many rows are left.
constexpr int outputs_of_tile(int64_t left, int most) {
  return left >= most ? most : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

// Calls f(first row, rows) for every block of rows from .. to.
template <typename F>
void each_output_tile(int64_t from, int64_t to, const F& f) {
  const int most = tile_outputs(capability());
  for (int64_t row = from; row < to;) {
    const int rows = outputs_of_tile(to - row, most);
    f(row, rows);
    row += rows;
  }
}

} // namespace oes

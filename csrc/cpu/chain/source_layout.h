// A constant source of a chain laid out as its first convolution reads it, with noise added on the way: with a border,
// summed over 2 x 2 pixels, its even and odd rows and columns apart. The rounding is that of these steps one by one.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/core/philox.h"

namespace oes::chain {

class SourceLayout {
 public:
  // Which channels of the image are laid out, in order, and which of its rows and columns stand where in the bordered
  // one; -1: zero. `row_major`: see ChainConv::constant_source_row_major.
  SourceLayout(
      int64_t image_channels, int64_t image_rows, int64_t image_columns, std::vector<int64_t> channels,
      std::vector<int64_t> rows, std::vector<int64_t> columns, bool box, bool phases, bool row_major);

  // Writes what lies at `planes` but for the slack behind.
  template <typename T>
  void write(const T* image, T* planes) const;

  // The same of image + std * N(0, 1), see oes_fast/reference/philox.py; the element's number is its place in the
  // image.
  void write_noisy(const float* image, float* planes, float std, const PhiloxKey& key) const;

  int64_t image_size() const { // elements
    return image_channels_ * image_rows_ * image_columns_;
  }
  int64_t planes_size() const {
    return static_cast<int64_t>(channels_.size()) * (phases_ ? 4 : 1) * plane_rows_ * plane_columns_;
  }

 private:
  template <typename T, typename Rows>
  void write_rows(T* planes, const Rows& rows) const;

  int64_t image_channels_, image_rows_, image_columns_;
  std::vector<int64_t> channels_, rows_, columns_;
  int64_t run_first_ = 0, run_last_ = 0; // bordered columns that show columns of the image side by side
  bool box_, phases_, row_major_;
  int64_t high_, wide_; // of the bordered, summed image
  int64_t plane_rows_, plane_columns_;
};

} // namespace oes::chain

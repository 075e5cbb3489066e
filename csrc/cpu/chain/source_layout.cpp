#include "cpu/chain/source_layout.h"

#include <algorithm>
#include <type_traits>

#include "common/chain_checks.h"
#include "cpu/core/normal_noise.h"
#include "cpu/core/parallel.h"
#include "cpu/core/plane_rows.h"
#include "cpu/core/workspace.h"

namespace oes::chain {
namespace {

constexpr int64_t kStripRows = 32; // of planes, which one task makes

template <typename T>
struct SourceRows {
  const Border* border;
  int64_t columns, high, wide, plane_columns;
  bool box, phases;
  const T* image; // of the channel, from row `first` on
  int64_t first;
  T* planes; // of the channel
  int64_t row_step, plane_step; // elements from a row, a plane to the next
  T* lines; // two of the bordered image
};

#define OES_ISA_FILE "cpu/chain/source_layout_isa.h"
#include "cpu/core/isa_variants.h"

} // namespace

SourceLayout::SourceLayout(
    int64_t image_channels, int64_t rows, int64_t columns, std::vector<int64_t> channels, Padding padding,
    std::array<int64_t, 4> border, bool box, bool phases, bool row_major)
    : image_channels_(image_channels),
      rows_(rows),
      columns_(columns),
      channels_(std::move(channels)),
      box_(box),
      phases_(phases),
      row_major_(row_major) {
  expect(image_channels > 0 && rows > 0 && columns > 0 && !channels_.empty(), "source: expected an image");
  for (const int64_t channel : channels_) {
    expect(channel >= 0 && channel < image_channels, "source: expected channels of the image");
  }
  const auto [left, right, top, bottom] = border;
  for (const int64_t size : border) {
    // Reflected, a border shows no pixel twice; no mode shows more than the image.
    expect(
        size >= 0 && (padding == Padding::kZeros || padding == Padding::kReplicate || size < std::min(rows, columns)),
        "source: expected a border narrower than the image");
  }
  border_ = make_border(padding, rows, columns, left, right, top, bottom);
  high_ = border_.high() - (box ? 1 : 0);
  wide_ = border_.wide() - (box ? 1 : 0);
  expect(high_ > 0 && wide_ > 0, "source: expected two rows and columns");
  plane_rows_ = phases ? ceil_div(high_, 2) : high_;
  plane_columns_ = phases ? ceil_div(wide_, 2) : wide_;
}

// rows(channel, first, last) gives rows first .. last - 1 of that channel of the image, in a workspace or where they
// lie.
template <typename T, typename Rows>
void SourceLayout::write_rows(T* planes, const Rows& rows) const {
  const int64_t phases = phases_ ? 4 : 1, strips = ceil_div(plane_rows_, kStripRows);
  const auto count = static_cast<int64_t>(channels_.size());
  const int64_t plane = row_major_ ? plane_columns_ : plane_rows_ * plane_columns_;
  const int64_t row_step = row_major_ ? count * phases * plane_columns_ : plane_columns_;
  parallel_for(0, count * strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t channel = task / strips, from = task % strips * kStripRows;
      const int64_t to = std::min(from + kStripRows, plane_rows_);
      const int64_t last = std::min((phases_ ? 2 * to : to) + (box_ ? 1 : 0), border_.high());
      int64_t low = rows_, high = 0; // of the image
      for (int64_t row = phases_ ? 2 * from : from; row < last; ++row) {
        if (border_.rows[row] >= 0) {
          low = std::min<int64_t>(low, border_.rows[row]);
          high = std::max<int64_t>(high, border_.rows[row] + 1);
        }
      }
      low = std::min(low, high);
      const auto [image, lines] = rows(channels_[channel], low, high);
      const SourceRows<T> a{&border_, columns_, high_,    wide_, plane_columns_,
                            box_,     phases_,  image,    low,   planes + channel * phases * plane,
                            row_step, plane,    lines};
      OES_DISPATCH(source_rows, a, from, to);
    }
  });
}

template <typename T>
void SourceLayout::write(const T* image, T* planes) const {
  struct Found {
    const T* image;
    T* lines;
  };
  write_rows(planes, [&](int64_t channel, int64_t first, int64_t) {
    return Found{image + (channel * rows_ + first) * columns_, workspace<T>(2 * border_.wide() + 2)};
  });
}

void SourceLayout::write_noisy(const float* image, float* planes, float std, const PhiloxKey& key) const {
  struct Found {
    const float* image;
    float* lines;
  };
  write_rows(planes, [&](int64_t channel, int64_t first, int64_t last) {
    const int64_t begin = (channel * rows_ + first) * columns_, end = (channel * rows_ + last) * columns_;
    const int64_t tile = begin / kPhiloxTile, aligned = tile * kPhiloxTile;
    float* noisy = workspace<float>(philox_tiles(end - aligned) * kPhiloxTile + 2 * border_.wide() + 2);
    normal_noise(
        {key, std::min(philox_tiles(end) * kPhiloxTile, image_size()), image + aligned, nullptr, std, noisy, aligned},
        tile, philox_tiles(end));
    return Found{noisy + (begin - aligned), noisy + philox_tiles(end - aligned) * kPhiloxTile};
  });
}

template void SourceLayout::write(const float*, float*) const;
template void SourceLayout::write(const double*, double*) const;

} // namespace oes::chain

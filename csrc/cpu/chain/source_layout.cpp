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
  const int64_t *rows, *columns; // of the bordered image
  int64_t bordered, run_first, run_last; // columns
  int64_t image_columns, high, wide, plane_columns;
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
    int64_t image_channels, int64_t image_rows, int64_t image_columns, std::vector<int64_t> channels,
    std::vector<int64_t> rows, std::vector<int64_t> columns, bool box, bool phases, bool row_major)
    : image_channels_(image_channels),
      image_rows_(image_rows),
      image_columns_(image_columns),
      channels_(std::move(channels)),
      rows_(std::move(rows)),
      columns_(std::move(columns)),
      box_(box),
      phases_(phases),
      row_major_(row_major) {
  const auto within = [](const std::vector<int64_t>& indices, int64_t least, int64_t end) {
    return !indices.empty() &&
        std::all_of(indices.begin(), indices.end(), [&](int64_t i) { return i >= least && i < end; });
  };
  expect(image_channels > 0 && image_rows > 0 && image_columns > 0, "source: expected an image");
  expect(within(channels_, 0, image_channels), "source: expected channels of the image");
  expect(within(rows_, -1, image_rows), "source: expected rows of the image, or -1");
  expect(within(columns_, -1, image_columns), "source: expected columns of the image, or -1");
  high_ = static_cast<int64_t>(rows_.size()) - (box ? 1 : 0);
  wide_ = static_cast<int64_t>(columns_.size()) - (box ? 1 : 0);
  expect(high_ > 0 && wide_ > 0, "source: expected two rows and columns");
  for (int64_t first = 0, last = 0; first < static_cast<int64_t>(columns_.size()); first = last) {
    last = first + 1;
    while (columns_[first] >= 0 && last < static_cast<int64_t>(columns_.size()) &&
           columns_[last] == columns_[last - 1] + 1) {
      ++last;
    }
    if (columns_[first] >= 0 && last - first > run_last_ - run_first_) {
      run_first_ = first;
      run_last_ = last;
    }
  }
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
      const int64_t last = std::min((phases_ ? 2 * to : to) + (box_ ? 1 : 0), static_cast<int64_t>(rows_.size()));
      int64_t low = image_rows_, high = 0; // of the image
      for (int64_t row = phases_ ? 2 * from : from; row < last; ++row) {
        if (rows_[row] >= 0) {
          low = std::min(low, rows_[row]);
          high = std::max(high, rows_[row] + 1);
        }
      }
      low = std::min(low, high);
      const auto [image, lines] = rows(channels_[channel], low, high);
      SourceRows<T> a{};
      a.rows = rows_.data();
      a.columns = columns_.data();
      a.bordered = static_cast<int64_t>(columns_.size());
      a.run_first = run_first_;
      a.run_last = run_last_;
      a.image_columns = image_columns_;
      a.high = high_;
      a.wide = wide_;
      a.plane_columns = plane_columns_;
      a.box = box_;
      a.phases = phases_;
      a.image = image;
      a.first = low;
      a.planes = planes + channel * phases * plane;
      a.row_step = row_step;
      a.plane_step = plane;
      a.lines = lines;
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
    return Found{image + (channel * image_rows_ + first) * image_columns_, workspace<T>(2 * columns_.size() + 2)};
  });
}

void SourceLayout::write_noisy(const float* image, float* planes, float std, const PhiloxKey& key) const {
  struct Found {
    const float* image;
    float* lines;
  };
  write_rows(planes, [&](int64_t channel, int64_t first, int64_t last) {
    const int64_t begin = (channel * image_rows_ + first) * image_columns_;
    const int64_t end = (channel * image_rows_ + last) * image_columns_;
    const int64_t tile = begin / kPhiloxTile, aligned = tile * kPhiloxTile;
    float* noisy = workspace<float>(philox_tiles(end - aligned) * kPhiloxTile + 2 * columns_.size() + 2);
    normal_noise(
        {key, std::min(philox_tiles(end) * kPhiloxTile, image_size()), image + aligned, nullptr, std, noisy, aligned},
        tile, philox_tiles(end));
    return Found{noisy + (begin - aligned), noisy + philox_tiles(end - aligned) * kPhiloxTile};
  });
}

template void SourceLayout::write(const float*, float*) const;
template void SourceLayout::write(const double*, double*) const;

} // namespace oes::chain

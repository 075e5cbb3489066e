#include <algorithm>

#include "cuda/conv/conv_plan.h"

namespace oes::cuda::conv {
namespace {

constexpr int kThreads = 256;
constexpr size_t kSharedBytes = 46 * 1024;
constexpr int kBlocksEach = 3; // of a processor, where there are tiles for them

template <typename T>
PlaneReader<T> reader_of(const Reading& reading, int channels, int rows, int columns) {
  return {
      nullptr,
      nullptr,
      {},
      nullptr,
      0,
      channels,
      rows,
      columns,
      reading.border.top,
      reading.border.left,
      reading.border.bottom,
      reading.border.right,
      reading.border.padding,
      reading.box,
      reading.unshuffle};
}

template <typename T>
void point(PlaneReader<T>& r, const Image<T>& image) {
  r.y = image.y;
  r.grad = image.grad;
  r.prologue = image.prologue;
  r.grad_numbers = image.grad_numbers;
  r.network_stride = image.shared ? 0 : static_cast<int64_t>(r.channels) * r.rows * r.columns;
}

// Instructions of a warp for all taps at each of the cells of a lane, see the kernel.
double instructions(int64_t taps, int group, int cells) {
  return static_cast<double>(taps) * (1 + cells * (2 + group) + 124.0 * group / 32);
}

} // namespace

template <typename T>
WeightGradPlan<T>::WeightGradPlan(
    const WeightGradSpec& spec, int image_rows, int image_columns, int grad_rows, int grad_columns, double scale,
    const Machine& machine, WeightTable<T>& grads)
    : image_is_fixed_(spec.image_is_fixed) {
  const bool fixed = spec.image_is_fixed;
  args_.fixed = reader_of<T>(
      spec.fixed, spec.fixed_channels, fixed ? image_rows : grad_rows, fixed ? image_columns : grad_columns);
  args_.moving = reader_of<T>(
      spec.moving, spec.moving_channels, fixed ? grad_rows : image_rows, fixed ? grad_columns : image_columns);
  args_.rows = spec.rows;
  args_.columns = spec.columns;
  const bool small = spec.rows <= 16 && spec.columns <= 16;
  shape_.cells = small ? 2 : 8;
  args_.tile_columns = small ? 8 : spec.columns <= 20 ? 16 : 32;
  args_.tile_rows = 32 * shape_.cells / args_.tile_columns;
  shape_.group = 1;
  for (const int group : {4}) {
    const double now = instructions(count_grouped_taps(spec.taps, shape_.group), shape_.group, shape_.cells);
    const double then = instructions(count_grouped_taps(spec.taps, group), group, shape_.cells);
    shape_.group = then < now ? group : shape_.group;
  }
  shape_.threads = kThreads;
  int reach_rows = 0, reach_columns = 0;
  for (const Tap& t : spec.taps) {
    reach_rows = std::max(reach_rows, t.row);
    reach_columns = std::max(reach_columns, t.column);
  }
  args_.staged_rows = args_.tile_rows + reach_rows;
  args_.staged_columns = args_.tile_columns + reach_columns;
  args_.pitch = args_.staged_columns;
  while (args_.tile_columns < 32 && args_.pitch % 32 != args_.tile_columns % 32) {
    ++args_.pitch; // the lanes of a warp read 32 banks
  }
  args_.plane = args_.staged_rows * args_.pitch;
  args_.column_tiles = (spec.columns + args_.tile_columns - 1) / args_.tile_columns;
  args_.tiles = args_.column_tiles * ((spec.rows + args_.tile_rows - 1) / args_.tile_rows);

  const StagedPlanes planes{spec.moving.unshuffle * spec.moving.unshuffle, args_.pitch, args_.plane};
  TapLists lists;
  for (int chunk = spec.moving_channels;; chunk = (chunk + 1) / 2) {
    lists = make_tap_lists(spec.taps, spec.fixed_channels, shape_.group, 1, spec.moving_channels, chunk, planes);
    args_.chunk_channels = chunk;
    args_.chunks = lists.chunks;
    args_.most_taps = lists.most_taps;
    shape_.shared_bytes = weight_grad_shared_bytes(args_, shape_);
    const bool fits = shape_.shared_bytes <= kSharedBytes;
    // More chunks where there would be too few blocks.
    const bool enough = lists.groups * lists.chunks * args_.tiles * machine.networks >= machine.processors;
    if ((fits && (enough || chunk <= 4)) || chunk == 1) {
      break;
    }
  }
  groups_ = lists.groups;
  const int blocks = groups_ * args_.chunks * machine.networks;
  args_.slots = std::clamp((kBlocksEach * machine.processors + blocks - 1) / blocks, 1, args_.tiles);
  begins_ = DeviceArray<int>(lists.begins);
  offsets_ = DeviceArray<int>(lists.offsets);
  args_.begins = begins_.data();
  args_.offsets = offsets_.data();
  args_.slot_stride = static_cast<int64_t>(lists.index.size());
  partials_ = DeviceArray<T>(static_cast<size_t>(machine.networks) * args_.slots * args_.slot_stride);
  args_.partials = partials_.data();
  grads.add(lists.index, scale);
  WeightSegment<T>& segment = grads.segments.back();
  segment.partials = partials_.data();
  segment.slots = args_.slots;
  segment.slot_stride = args_.slot_stride;
}

template <typename T>
void WeightGradPlan<T>::run(const Image<T>& image, const Image<T>& grad, int networks, cudaStream_t stream) const {
  WeightGradArgs<T> a = args_;
  point(a.fixed, image_is_fixed_ ? image : grad);
  point(a.moving, image_is_fixed_ ? grad : image);
  weight_grad(a, shape_, groups_, networks, stream);
}

template <typename T>
std::string WeightGradPlan<T>::description() const {
  return "groups of " + std::to_string(shape_.group) + ", tiles of " + std::to_string(args_.tile_rows) + " x " +
      std::to_string(args_.tile_columns) + ", " + std::to_string(args_.chunks) + " chunks, " +
      std::to_string(args_.slots * groups_ * args_.chunks) + " blocks of " + std::to_string(shape_.threads) + ", " +
      std::to_string(shape_.shared_bytes / 1024) + " KB";
}

template class WeightGradPlan<float>;
template class WeightGradPlan<double>;

} // namespace oes::cuda::conv

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/conv/conv_plan.h"
#include "cuda/conv/staged_plan.h"

namespace oes::cuda::conv {
namespace {

constexpr int kBlocksEach = 3; // of a processor, where there are tiles for them

TapCounts counts_of(const WeightGradSpec& spec, int group) {
  return {spec.taps, spec.fixed_channels, group, 1, spec.moving_channels};
}

// Cycles of a processor for so many taps at 32 cells: it starts four instructions a cycle, and one load from shared
// memory or exchange between lanes. See the kernels.
double cycles(double taps, const WeightGradShape& s) {
  if (s.products == Products::kFloat32) {
    const double issued = 2 + s.cells * (1 + s.group) + 124.0 * s.group / 32, loads = 1 + s.cells + 31.0 * s.group / 32;
    return taps * std::max(issued / 4, loads) / s.cells;
  }
  const bool three = s.products == Products::kTf32x3;
  const double rows = s.group / 16, columns = 4, loads = 4 * rows + 2 * columns;
  const double products = rows * columns * (three ? 3 : 1), issued = loads * (three ? 5 : 3) + products + 6;
  return taps / (8 * columns) * 4 * std::max({issued / 4, loads, 2 * products});
}

// Groups and products that take the fewest cycles.
template <typename T>
WeightGradShape choose(const WeightGradSpec& spec, int cells, const Machine& machine) {
  std::vector<WeightGradShape> shapes;
  for (const int group : {1, 4}) {
    shapes.push_back({Products::kFloat32, group, cells, kThreads, 0});
  }
  for (const int group : {16, 32}) {
    if (machine.products != Products::kFloat32 && std::is_same_v<T, float>) {
      shapes.push_back({machine.products, group, cells, kThreads, 0});
    }
  }
  if (std::any_of(shapes.begin(), shapes.end(), [&](const auto& s) { return machine.allows(s.group); })) {
    std::erase_if(shapes, [&](const auto& s) { return !machine.allows(s.group); });
  }
  std::vector<double> takes;
  for (const WeightGradShape& s : shapes) {
    takes.push_back(cycles(static_cast<double>(counts_of(spec, s.group).all()), s));
  }
  return shapes[std::min_element(takes.begin(), takes.end()) - takes.begin()];
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
  const Reach reach = reach_of(spec.taps);
  const int pitch = weight_grad_pitch(8);
  const bool small = (spec.rows <= 16 && spec.columns <= 16) || 16 + reach.columns > pitch;
  shape_ = choose<T>(spec, small ? 2 : 8, machine);
  args_.tile_columns = small ? 8 : spec.columns <= 20 || 32 + reach.columns > pitch ? 16 : 32;
  args_.tile_rows = 32 * shape_.cells / args_.tile_columns;
  args_.staged_rows = args_.tile_rows + reach.rows;
  args_.staged_columns = args_.tile_columns + reach.columns;
  const bool exact = shape_.products == Products::kFloat32;
  args_.pitch = exact && weight_grad_pitch(shape_.cells) != 0
      ? weight_grad_pitch(shape_.cells)
      : pitch_for(args_.staged_columns, args_.tile_columns, exact ? shape_.cells : 1);
  args_.plane = args_.staged_rows * args_.pitch;
  args_.column_tiles = (spec.columns + args_.tile_columns - 1) / args_.tile_columns;
  args_.tiles = args_.column_tiles * ((spec.rows + args_.tile_rows - 1) / args_.tile_rows);

  const StagedPlanes planes{spec.moving.unshuffle * spec.moving.unshuffle, args_.pitch, args_.plane};
  const WeightGradLists lists = divide(spec, planes, machine);
  const int blocks = args_.ranges * args_.chunks * machine.networks;
  args_.slots = std::clamp((kBlocksEach * machine.processors + blocks - 1) / blocks, 1, args_.tiles);
  begins_ = DeviceArray<int>(lists.begins);
  item_begins_ = DeviceArray<int>(lists.item_begins);
  offsets_ = DeviceArray<int>(lists.offsets);
  items_ = DeviceArray<int>(lists.items);
  args_.begins = begins_.data();
  args_.item_begins = item_begins_.data();
  args_.offsets = offsets_.data();
  args_.items = reinterpret_cast<const WeightGradItem*>(items_.data());
  taps_ = lists.taps();
  args_.slot_stride = static_cast<int64_t>(lists.index.size());
  partials_ = DeviceArray<T>(static_cast<size_t>(machine.networks) * args_.slots * args_.slot_stride);
  args_.partials = partials_.data();
  grads.add(lists.index, scale);
  WeightSegment<T>& segment = grads.segments.back();
  segment.partials = partials_.data();
  segment.slots = args_.slots;
  segment.slot_stride = args_.slot_stride;
}

// Which channels a block has: as few pixels as can be are staged, by as many blocks as there are processors.
template <typename T>
WeightGradLists WeightGradPlan<T>::divide(
    const WeightGradSpec& spec, const StagedPlanes& planes, const Machine& machine) {
  const int batch = weight_grad_batch(shape_.products, shape_.group), group = shape_.group;
  // The registers let a processor have two blocks; it keeps a kilobyte of each.
  const size_t most = std::min<size_t>(kSharedBytesAlone, machine.shared_bytes / 2 - 1024);
  const TapCounts counts = counts_of(spec, group);
  const double compute = cycles(static_cast<double>(counts.all()), shape_) * shape_.cells * 4 * 32 /
      18; // in staged pixels of 18 instructions
  double least = 0;
  int best_range = 0, best_chunk = 0;
  for (int range = (spec.fixed_channels + group - 1) / group * group;; range = (range / group + 1) / 2 * group) {
    for (int chunk = spec.moving_channels;; chunk = (chunk + 1) / 2) {
      const int ranges = (spec.fixed_channels + range - 1) / range;
      const int chunks = (spec.moving_channels + chunk - 1) / chunk;
      args_.range_channels = range;
      args_.chunk_channels = chunk;
      args_.most_taps = counts.most(range / group, chunk);
      if (weight_grad_shared_bytes(args_, shape_) <= most || (range == group && chunk == 1)) {
        const double moving = static_cast<double>(ranges) * spec.moving_channels * planes.planes * args_.plane *
            (spec.moving.box ? 2 : 1);
        const double fixed = static_cast<double>(chunks) * spec.fixed_channels * 32 * shape_.cells;
        const double blocks = static_cast<double>(ranges) * chunks * args_.tiles * machine.networks;
        const double now = (moving + fixed + compute) / std::min(1.0, blocks / machine.processors);
        if (least == 0 || now < least) {
          least = now;
          best_range = range;
          best_chunk = chunk;
        }
      }
      if (chunk == 1) {
        break;
      }
    }
    if (range == group) {
      break;
    }
  }
  WeightGradLists best = make_weight_grad_lists(
      spec.taps, spec.fixed_channels, group, best_range, spec.moving_channels, best_chunk, batch, planes);
  args_.range_channels = best_range;
  args_.chunk_channels = best_chunk;
  args_.ranges = best.ranges;
  args_.chunks = best.chunks;
  args_.most_taps = best.most_taps;
  shape_.shared_bytes = weight_grad_shared_bytes(args_, shape_);
  return best;
}

template <typename T>
void WeightGradPlan<T>::run(const Image<T>& image, const Image<T>& grad, int networks, cudaStream_t stream) const {
  WeightGradArgs<T> a = args_;
  point(a.fixed, image_is_fixed_ ? image : grad);
  point(a.moving, image_is_fixed_ ? grad : image);
  weight_grad(a, shape_, networks, stream);
}

template <typename T>
std::string WeightGradPlan<T>::description() const {
  return std::string(name_of(shape_.products)) + ", groups of " + std::to_string(shape_.group) + ", tiles of " +
      std::to_string(args_.tile_rows) + " x " + std::to_string(args_.tile_columns) + ", " +
      std::to_string(args_.chunks) + (args_.chunks == 1 ? " chunk, " : " chunks, ") +
      std::to_string(args_.slots * args_.ranges * args_.chunks) + " blocks of " + std::to_string(shape_.threads);
}

template <typename T>
LaunchWork WeightGradPlan<T>::work(int networks) const {
  const bool exact = shape_.products == Products::kFloat32, three = shape_.products == Products::kTf32x3;
  const int group = shape_.group, cells = args_.tile_rows * args_.tile_columns;
  const double tiles = static_cast<double>(args_.tiles) * networks, taps = static_cast<double>(taps_);
  const int side = args_.moving.unshuffle;
  const double planes = static_cast<double>(args_.moving.channels) * side * side;
  const double moving = planes * args_.staged_rows * args_.staged_columns * (args_.moving.box ? 2 : 1) * args_.ranges;
  LaunchWork work{};
  work.kernel = exact ? "weight_grad_kernel<" + std::to_string(group) + ", " + std::to_string(shape_.cells) + ">"
                      : "weight_grad_mma_kernel<" + std::to_string(group / 16) + (three ? ", true>" : ", false>");
  work.blocks = static_cast<int64_t>(args_.slots) * args_.ranges * args_.chunks * networks;
  work.threads = shape_.threads;
  work.shared_bytes = static_cast<int64_t>(shape_.shared_bytes);
  work.products = exact ? tiles * taps * group * cells : tiles * taps / 8 * group / 16 * cells / 8 * (three ? 3 : 1);
  work.staged = tiles * (moving + static_cast<double>(args_.ranges) * args_.chunks * args_.range_channels * cells);
  work.outputs = static_cast<double>(networks) * args_.slots * taps * group;
  work.alone = taps / (args_.ranges * args_.chunks) * args_.tiles / args_.slots / (kThreads / 32);
  work.chunks = (args_.tiles + args_.slots - 1) / args_.slots;
  return work;
}

template class WeightGradPlan<float>;
template class WeightGradPlan<double>;

} // namespace oes::cuda::conv

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/conv/conv_plan.h"
#include "cuda/conv/staged_plan.h"

namespace oes::cuda::conv {
namespace {

// Instructions that a processor starts in a cycle, and loads from shared memory, with so many warps on it: measured on
// an H100, where eight warps start one in a cycle and more than 14 hardly more than 1.7.
double started(double warps) {
  return std::min(1.7, warps / 8);
}

struct Tile {
  int rows, columns;
};

int tiles_for(int cells, int capacity) {
  return (cells + capacity - 1) / capacity;
}

TapCounts counts_of(const TapSumSpec& spec, int group) {
  return {spec.taps, spec.outputs, group, spec.side * spec.side, spec.channels};
}

} // namespace

// Everything but the pitch and the chunks of channels.
template <typename T>
TapSumArgs<T> TapSumPlan<T>::tiled(const TapSumSpec& spec, const Reach& reach, int tile_rows, int tile_columns) const {
  TapSumArgs<T> a = args_;
  const int lost = spec.box ? 1 : 0; // cells of a tile that only the box needs
  a.tile_rows = tile_rows;
  a.tile_columns = tile_columns;
  a.row_tiles = tiles_for(spec.row_cells, tile_rows - lost);
  a.column_tiles = tiles_for(spec.column_cells, tile_columns - lost);
  a.staged_rows = tile_rows + reach.rows;
  a.staged_columns = tile_columns + reach.columns;
  return a;
}

// Cycles of a device with that many processors, by instructions and by the time a block takes.
template <typename T>
double TapSumPlan<T>::cost(
    const TapSumSpec& spec, const TapSumArgs<T>& a, const TapSumShape& s, int64_t taps, const Machine& machine) const {
  const double groups = (spec.outputs + s.group - 1) / s.group, tiles = a.row_tiles * a.column_tiles;
  const double blocks = groups * tiles * machine.networks;
  const double planes = static_cast<double>(spec.channels) * spec.reading.unshuffle * spec.reading.unshuffle;
  const double staged = planes * a.staged_rows * a.staged_columns * (spec.reading.box ? 2 : 1);
  const double block_taps = static_cast<double>(taps) / groups;
  const double outputs = static_cast<double>(s.group) * s.side * s.side * a.tile_rows * a.tile_columns;
  // Of a warp: instructions, of which a processor starts four a cycle, and loads from shared memory, one a cycle.
  double issued, loads, alone; // alone: cycles of a thread for its taps
  if (s.products == Products::kFloat32) {
    const double of_tap = 1 + s.cells + (s.group + 3) / 4;
    const double warps = block_taps * s.threads / a.splits / 32;
    loads = warps * of_tap;
    issued = warps * (of_tap + 2 + s.cells * s.group);
    alone = block_taps / a.splits * (4 + of_tap + s.cells * s.group);
  } else {
    const double rows = s.cells, columns = s.group / 8, numbers = 4 * rows + 2 * columns;
    const double products = rows * columns * (s.products == Products::kTf32x3 ? 3 : 1);
    const double eights = block_taps / kMmaTaps, warps = eights * s.threads / 32;
    loads = warps * std::max(numbers + 4, 2 * products); // a product of 16 x 8 x 8 takes two cycles
    issued = warps * (4 + numbers * (s.products == Products::kTf32x3 ? 5 : 3) + products);
    alone = eights * (30 + numbers + products * 4);
  }
  issued += (staged * 12 + outputs * 30) / 32;
  loads += (staged * 2 + outputs * 4) / 32;
  // Registers let a processor have two blocks of 256 threads, of the largest kernels one: see the launch bounds.
  const bool large = s.side * s.side * s.group * s.cells >= (s.products == Products::kFloat32 ? 64 : 128);
  const double each = std::max(1.0, blocks / machine.processors), warps = each * s.threads / 32.0;
  const double a_cycle = started(std::min(large ? 8.0 : 16.0, warps));
  const double work = each * std::max(issued / a_cycle, loads / 0.6);
  const double of_block = 1500.0 * a.chunks + staged / s.threads * 40 + alone + outputs / s.threads * 40;
  const double resident = std::max(1.0, std::min(4.0, blocks / machine.processors));
  const double waves = std::max(1.0, blocks / (machine.processors * resident));
  // The last block of a group adds up what its tiles have left, a warp for each output.
  const double turns = std::ceil(s.group / (s.threads / 32.0));
  const double last = turns * (1500 + std::ceil(tiles / 128) * 600);
  return std::max(work, waves * of_block) + last;
}

template <typename T>
bool TapSumPlan<T>::choose(const TapSumSpec& spec, const Machine& machine, Products products) {
  constexpr std::array<Tile, 7> kTiles = {{{8, 32}, {16, 32}, {32, 32}, {8, 8}, {16, 16}, {8, 16}, {16, 8}}};
  const bool exact = products == Products::kFloat32;
  const std::vector<int> groups = exact ? std::vector<int>{1, 4, 8, 16, 20} : std::vector<int>{16, 32};
  const int planes = spec.reading.unshuffle * spec.reading.unshuffle;
  const int widest = std::max({spec.border.top, spec.border.bottom, spec.border.left, spec.border.right});
  const Reach reach = reach_of(spec.taps);
  bool found = false;
  for (const int group : groups) {
    if (!machine.allows(group)) {
      continue;
    }
    const int64_t taps = counts_of(spec, group).all();
    for (const Tile& tile : kTiles) {
      TapSumArgs<T> a = tiled(spec, reach, tile.rows, tile.columns);
      // The sums of all outputs lie side by side, on tensor cores those of eight at a time.
      if (sizeof(T) * (exact ? group : 8) * spec.side * spec.side * tile.rows * tile.columns > kSharedBytes) {
        continue;
      }
      // A pixel of the border and the one that it is a copy of lie in one tile.
      const auto fits = [&](int tiles, int cells) {
        return tiles == 1 || spec.border.padding == Padding::kZeros || spec.side * (cells / tiles) > 2 * widest;
      };
      if (!fits(a.row_tiles, spec.row_cells) || !fits(a.column_tiles, spec.column_cells)) {
        continue;
      }
      for (const int cells : {1, 2, 4}) {
        TapSumShape s{products, group, cells, spec.side, kThreads, 0};
        // Threads that stand side by side on the cells of a tile; on tensor cores warps, each on 16 of them.
        const int part = tile.rows * tile.columns / cells;
        if (!has_tap_sum<T>(s) || (exact ? part > kThreads || part % 32 != 0 : part != kThreads / 32 * 16)) {
          continue;
        }
        const int pitch = exact ? tap_sum_pitch(group, cells) : 0;
        if (pitch != 0 && (a.staged_columns > pitch || tile.columns < 16)) {
          continue;
        }
        a.pitch = pitch != 0 ? pitch : pitch_for(a.staged_columns, tile.columns, exact ? cells : 1);
        a.plane = a.staged_rows * a.pitch;
        for (int splits = 1; splits == 1 || (exact && part * splits <= kThreads); splits *= 2) {
          s.threads = exact ? part * splits : kThreads;
          a.splits = splits;
          const double whole = static_cast<double>(sizeof(T)) * planes * a.plane * spec.channels;
          const double blocks = static_cast<double>((spec.outputs + group - 1) / group) * a.row_tiles * a.column_tiles;
          const bool alone = blocks * machine.networks <= 2 * machine.processors;
          a.chunks = static_cast<int>(whole / ((alone ? kSharedBytesAlone : kSharedBytes) / 2)) + 1;
          const double now = cost(spec, a, s, taps, machine);
          if (cost_ == 0 || now < cost_) {
            found = true;
            cost_ = now;
            args_ = a;
            shape_ = s;
          }
        }
      }
    }
  }
  return found;
}

template <typename T>
TapSumPlan<T>::TapSumPlan(
    const TapSumSpec& spec, int rows, int columns, double scale, const Machine& machine, WeightTable<T>& packed) {
  const Reading& reading = spec.reading;
  args_.reader = reader_of<T>(reading, spec.channels, rows, columns);
  args_.first_row = args_.first_column = spec.first_cell;
  args_.row_cells = spec.row_cells;
  args_.column_cells = spec.column_cells;
  Epilogue<T>& e = args_.epilogue;
  e.box = spec.box;
  e.box_first = spec.box_first;
  e.outputs = spec.outputs;
  e.rows = spec.rows;
  e.columns = spec.columns;
  e.padding = spec.border.padding;
  e.top = spec.border.top;
  e.left = spec.border.left;
  e.bottom = spec.border.bottom;
  e.right = spec.border.right;
  // Tensor cores only where they win: they compute all taps of a group, also those that the mask drops. Where groups
  // are asked for, they are taken if they have them.
  const bool rounds = machine.products != Products::kFloat32;
  const bool exact = (machine.groups.empty() || !rounds) && choose(spec, machine, Products::kFloat32);
  const bool rounded = rounds && choose(spec, machine, machine.products);
  Machine any = machine;
  any.groups.clear();
  if (!exact && !rounded && !choose(spec, machine, Products::kFloat32) && !choose(spec, any, Products::kFloat32)) {
    throw std::invalid_argument("convolution: its border is too wide for the CUDA kernels");
  }
  // As many channels at a time as fit.
  const int64_t blocks =
      static_cast<int64_t>((spec.outputs + shape_.group - 1) / shape_.group) * chunks() * machine.networks;
  const size_t most = blocks <= 2 * machine.processors ? kSharedBytesAlone : kSharedBytes;
  const StagedPlanes planes{reading.unshuffle * reading.unshuffle, args_.pitch, args_.plane};
  const int multiple = shape_.products == Products::kFloat32 ? 1 : kMmaTaps;
  const TapCounts counts = counts_of(spec, shape_.group);
  for (int chunk = spec.channels;; chunk = (chunk + 1) / 2) {
    args_.chunk_channels = chunk;
    args_.chunks = tiles_for(spec.channels, chunk);
    args_.most_taps = counts.most(1, chunk, multiple);
    shape_.shared_bytes = tap_sum_shared_bytes(args_, shape_);
    if (shape_.shared_bytes <= most || chunk == 1) {
      break;
    }
  }
  const TapLists lists = make_tap_lists(
      spec.taps, spec.outputs, shape_.group, spec.side * spec.side, spec.channels, args_.chunk_channels, planes,
      multiple);
  groups_ = lists.groups;
  taps_ = lists.taps();
  begins_ = DeviceArray<int>(lists.begins);
  offsets_ = DeviceArray<int>(lists.offsets);
  args_.begins = begins_.data();
  args_.offsets = offsets_.data();
  begin_ = packed.add(lists.index, scale);
}

template <typename T>
void TapSumPlan<T>::run(
    const Image<T>& image, Epilogue<T> epilogue, const T* packed, int64_t packed_stride, int networks,
    cudaStream_t stream) const {
  TapSumArgs<T> a = args_;
  point(a.reader, image);
  a.weights = packed + begin_;
  a.weights_stride = packed_stride;
  const Epilogue<T>& known = args_.epilogue;
  epilogue.box = known.box;
  epilogue.box_first = known.box_first;
  epilogue.outputs = known.outputs;
  epilogue.rows = known.rows;
  epilogue.columns = known.columns;
  epilogue.padding = known.padding;
  epilogue.top = known.top;
  epilogue.left = known.left;
  epilogue.bottom = known.bottom;
  epilogue.right = known.right;
  epilogue.finalise.channels = known.outputs;
  epilogue.finalise.chunks = chunks();
  epilogue.finalise.pixels = static_cast<int64_t>(known.rows) * known.columns;
  a.epilogue = epilogue;
  tap_sum(a, shape_, groups_, networks, stream);
}

template <typename T>
std::string TapSumPlan<T>::description() const {
  return std::string(name_of(shape_.products)) + ", groups of " + std::to_string(shape_.group) + ", tiles of " +
      std::to_string(args_.tile_rows) + " x " + std::to_string(args_.tile_columns) + ", " +
      std::to_string(args_.splits) + (args_.splits == 1 ? " part, " : " parts, ") + std::to_string(args_.chunks) +
      (args_.chunks == 1 ? " chunk, " : " chunks, ") + std::to_string(groups_ * chunks()) + " blocks of " +
      std::to_string(shape_.threads);
}

template <typename T>
LaunchWork TapSumPlan<T>::work(int networks) const {
  const bool exact = shape_.products == Products::kFloat32;
  const int group = shape_.group, cells = args_.tile_rows * args_.tile_columns;
  const double tiles = static_cast<double>(chunks()) * networks, taps = static_cast<double>(taps_);
  const int side = args_.reader.unshuffle;
  const double planes = static_cast<double>(args_.reader.channels) * side * side;
  LaunchWork work{};
  work.kernel = exact ? "tap_sum_kernel<" + std::to_string(group) + ", " + std::to_string(shape_.cells) + ", " +
          std::to_string(shape_.side) + ">"
                      : "tap_sum_mma_kernel<" + std::to_string(shape_.cells) + ", " + std::to_string(group / 8) + ", " +
          std::to_string(shape_.side) + (shape_.products == Products::kTf32x3 ? ", true>" : ", false>");
  work.blocks = static_cast<int64_t>(tiles) * groups_;
  work.threads = shape_.threads;
  work.shared_bytes = static_cast<int64_t>(shape_.shared_bytes);
  work.products = exact
      ? tiles * taps * group * cells
      : tiles * taps / kMmaTaps * group / 8 * cells / 16 * (shape_.products == Products::kTf32x3 ? 3 : 1);
  work.staged = tiles * groups_ * planes * args_.staged_rows * args_.staged_columns * (args_.reader.box ? 2 : 1);
  work.outputs = static_cast<double>(networks) * args_.epilogue.outputs * args_.epilogue.rows * args_.epilogue.columns;
  work.alone = taps / groups_ / (exact ? args_.splits : kMmaTaps);
  work.chunks = args_.chunks;
  return work;
}

template class TapSumPlan<float>;
template class TapSumPlan<double>;

} // namespace oes::cuda::conv

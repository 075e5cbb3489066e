// Lists of taps as the kernels walk them, made once on the host.
#pragma once

#include <cstdint>
#include <vector>

namespace oes::cuda::conv {

// A weight of a convolution, as one sum over taps sees it.
struct Tap {
  int output, phase; // whose sum it belongs to
  int channel, plane; // of what is read: plane of the channel, row of the un-shuffle first
  int row, column; // where in the plane
  int weight; // index into the flat vector
};

// How what is read lies in the staged tile.
struct StagedPlanes {
  int planes; // of a channel
  int pitch, plane; // elements of a row, of a plane
};

// Outputs in groups: a tap of a group has a weight for each output of it, index -1 where that output lacks the tap.
struct TapLists {
  int groups, chunks;
  std::vector<int> begins; // [groups, chunks, phases] + 1
  std::vector<int> offsets; // [taps]
  std::vector<int> index; // [taps, group]

  int64_t taps() const {
    return static_cast<int64_t>(offsets.size());
  }
};

// `multiple`: each list has a multiple of so many taps, the last of them without weights.
TapLists make_tap_lists(
    const std::vector<Tap>& taps, int outputs, int group, int phases, int channels, int chunk_channels,
    const StagedPlanes& planes, int multiple = 1);

// The same for gradients of weights: each range of groups, and chunk of channels, has its taps group by group, and
// items of at most `batch` of them.
struct WeightGradLists {
  int ranges, chunks, most_taps; // most_taps: of a range and a chunk of channels
  std::vector<int> begins, item_begins; // [ranges, chunks] + 1
  std::vector<int> offsets; // [taps]
  std::vector<int> items; // [items, 3]: first tap and how many, first output of the group in its range
  std::vector<int> index; // [taps, group]

  int64_t taps() const {
    return static_cast<int64_t>(offsets.size());
  }
};

WeightGradLists make_weight_grad_lists(
    const std::vector<Tap>& taps, int outputs, int group, int range_outputs, int channels, int chunk_channels,
    int batch, const StagedPlanes& planes);

// How many taps groups of a size have, without making the lists.
class TapCounts {
 public:
  TapCounts(const std::vector<Tap>& taps, int outputs, int group, int phases, int channels);

  // Of the groups together.
  int64_t all() const {
    return all_;
  }

  // Of a range of groups and a chunk of channels, at most; those of each phase filled up to a multiple.
  int most(int range_groups, int chunk_channels, int multiple = 1) const;

 private:
  int groups_, phases_, channels_;
  int64_t all_ = 0;
  std::vector<int> of_channel_; // [groups, phases, channels]
};

} // namespace oes::cuda::conv

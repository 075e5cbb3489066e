#include "cuda/conv/tap_lists.h"

#include <algorithm>

namespace oes::cuda::conv {
namespace {

// Numbers the places that taps can have, in the order of the lists: group of outputs, chunk of channels, phase,
// channel, plane, row, column. A dense network has millions of taps, so they are put in order by counting, not by
// comparing.
class Places {
 public:
  Places(const std::vector<Tap>& taps, int outputs, int group, int phases, int channels, int chunk_channels)
      : group_(group),
        chunk_channels_(chunk_channels),
        chunks_((channels + chunk_channels - 1) / chunk_channels),
        phases_(phases),
        groups_((outputs + group - 1) / group) {
    for (const Tap& t : taps) {
      planes_ = std::max(planes_, t.plane + 1);
      rows_ = std::max(rows_, t.row + 1);
      columns_ = std::max(columns_, t.column + 1);
    }
  }

  // Of a group, a chunk of channels and a phase.
  int64_t of_list() const {
    return static_cast<int64_t>(chunk_channels_) * planes_ * rows_ * columns_;
  }

  int64_t count() const {
    return static_cast<int64_t>(groups_) * chunks_ * phases_ * of_list();
  }

  int64_t operator()(const Tap& t) const {
    const int64_t list =
        (static_cast<int64_t>(t.output / group_) * chunks_ + t.channel / chunk_channels_) * phases_ + t.phase;
    const int64_t plane = (list * chunk_channels_ + t.channel % chunk_channels_) * planes_ + t.plane;
    return (plane * rows_ + t.row) * columns_ + t.column;
  }

 private:
  int group_, chunk_channels_, chunks_, phases_, groups_, planes_ = 1, rows_ = 1, columns_ = 1;
};

constexpr int kNone = -1, kTaken = 0; // before taps are numbered

} // namespace

TapLists make_tap_lists(
    const std::vector<Tap>& taps, int outputs, int group, int phases, int channels, int chunk_channels,
    const StagedPlanes& planes, int multiple) {
  TapLists lists{(outputs + group - 1) / group, (channels + chunk_channels - 1) / chunk_channels, {}, {}, {}};
  const Places places(taps, outputs, group, phases, channels, chunk_channels);
  std::vector<int> number(places.count(), kNone); // of the tap at each place
  for (const Tap& t : taps) {
    number[places(t)] = kTaken;
  }
  int next = 0;
  auto place = number.begin();
  for (int list = 0; list < lists.groups * lists.chunks * phases; ++list) {
    lists.begins.push_back(next);
    for (int64_t in_list = 0; in_list < places.of_list(); ++in_list, ++place) {
      if (*place == kTaken) {
        *place = next++;
      }
    }
    next = (next + multiple - 1) / multiple * multiple;
  }
  lists.begins.push_back(next);
  lists.offsets.assign(next, 0);
  lists.index.assign(static_cast<int64_t>(next) * group, kNone);
  for (const Tap& t : taps) {
    const int tap = number[places(t)];
    const int of_plane = t.channel % chunk_channels * planes.planes + t.plane;
    lists.offsets[tap] = of_plane * planes.plane + t.row * planes.pitch + t.column;
    lists.index[static_cast<int64_t>(tap) * group + t.output % group] = t.weight;
  }
  return lists;
}

WeightGradLists make_weight_grad_lists(
    const std::vector<Tap>& taps, int outputs, int group, int range_outputs, int channels, int chunk_channels,
    int batch, const StagedPlanes& planes) {
  WeightGradLists lists{(outputs + range_outputs - 1) / range_outputs,
                        (channels + chunk_channels - 1) / chunk_channels,
                        0,
                        {},
                        {},
                        {},
                        {},
                        {}};
  const TapLists all = make_tap_lists(taps, outputs, group, 1, channels, chunk_channels, planes);
  const int groups = range_outputs / group;
  for (int range = 0; range < lists.ranges; ++range) {
    for (int chunk = 0; chunk < lists.chunks; ++chunk) {
      const auto first = static_cast<int>(lists.taps());
      lists.begins.push_back(first);
      lists.item_begins.push_back(static_cast<int>(lists.items.size() / 3));
      for (int g = range * groups; g < std::min((range + 1) * groups, all.groups); ++g) {
        const int begin = all.begins[g * all.chunks + chunk], end = all.begins[g * all.chunks + chunk + 1];
        const int place = static_cast<int>(lists.taps()) - first - begin; // of tap 0
        for (int t = begin; t < end; t += batch) {
          lists.items.insert(lists.items.end(), {place + t, std::min(batch, end - t), (g - range * groups) * group});
        }
        lists.offsets.insert(lists.offsets.end(), all.offsets.begin() + begin, all.offsets.begin() + end);
        lists.index.insert(
            lists.index.end(), all.index.begin() + static_cast<int64_t>(begin) * group,
            all.index.begin() + static_cast<int64_t>(end) * group);
      }
      lists.most_taps = std::max(lists.most_taps, static_cast<int>(lists.taps()) - first);
    }
  }
  lists.begins.push_back(static_cast<int>(lists.taps()));
  lists.item_begins.push_back(static_cast<int>(lists.items.size() / 3));
  return lists;
}

TapCounts::TapCounts(const std::vector<Tap>& taps, int outputs, int group, int phases, int channels)
    : groups_((outputs + group - 1) / group), phases_(phases), channels_(channels) {
  const Places places(taps, outputs, group, phases, channels, channels);
  of_channel_.resize(static_cast<int64_t>(groups_) * phases * channels);
  std::vector<char> there(places.count());
  for (const Tap& t : taps) {
    char& before = there[places(t)];
    const int more = before == 0 ? 1 : 0;
    before = 1;
    of_channel_[(static_cast<int64_t>(t.output / group) * phases + t.phase) * channels + t.channel] += more;
    all_ += more;
  }
}

int TapCounts::most(int range_groups, int chunk_channels, int multiple) const {
  const int ranges = (groups_ + range_groups - 1) / range_groups;
  const int chunks = (channels_ + chunk_channels - 1) / chunk_channels;
  std::vector<int> sums(static_cast<int64_t>(ranges) * chunks * phases_);
  auto count = of_channel_.begin();
  for (int g = 0; g < groups_; ++g) {
    for (int phase = 0; phase < phases_; ++phase) {
      for (int c = 0; c < channels_; ++c, ++count) {
        sums[(g / range_groups * chunks + c / chunk_channels) * phases_ + phase] += *count;
      }
    }
  }
  int most = 0;
  for (size_t first = 0; first < sums.size(); first += phases_) {
    int filled = 0;
    for (int phase = 0; phase < phases_; ++phase) {
      filled += (sums[first + phase] + multiple - 1) / multiple * multiple;
    }
    most = std::max(most, filled);
  }
  return most;
}

} // namespace oes::cuda::conv

#include "cuda/conv/tap_lists.h"

#include <algorithm>
#include <tuple>

namespace oes::cuda::conv {
namespace {

auto place(const Tap& t, int group, int chunk_channels) {
  return std::make_tuple(t.output / group, t.channel / chunk_channels, t.phase, t.channel, t.plane, t.row, t.column);
}

} // namespace

TapLists make_tap_lists(
    std::vector<Tap> taps, int outputs, int group, int phases, int channels, int chunk_channels,
    const StagedPlanes& planes, int multiple) {
  TapLists lists{(outputs + group - 1) / group, (channels + chunk_channels - 1) / chunk_channels, 0, {}, {}, {}};
  std::sort(taps.begin(), taps.end(), [&](const Tap& one, const Tap& other) {
    return place(one, group, chunk_channels) < place(other, group, chunk_channels);
  });
  size_t next = 0;
  for (int g = 0; g < lists.groups; ++g) {
    for (int chunk = 0; chunk < lists.chunks; ++chunk) {
      const int64_t first = lists.taps();
      for (int phase = 0; phase < phases; ++phase) {
        lists.begins.push_back(static_cast<int>(lists.taps()));
        const Tap* before = nullptr;
        for (; next < taps.size(); ++next) {
          const Tap& t = taps[next];
          if (t.output / group != g || t.channel / chunk_channels != chunk || t.phase != phase) {
            break;
          }
          if (before == nullptr || place(*before, group, chunk_channels) != place(t, group, chunk_channels)) {
            const int of_plane = t.channel % chunk_channels * planes.planes + t.plane;
            lists.offsets.push_back(of_plane * planes.plane + t.row * planes.pitch + t.column);
            lists.index.insert(lists.index.end(), group, -1);
          }
          before = &t;
          lists.index[lists.index.size() - group + t.output % group] = t.weight;
        }
        while ((lists.taps() - lists.begins.back()) % multiple != 0) {
          lists.offsets.push_back(0);
          lists.index.insert(lists.index.end(), group, -1);
        }
      }
      lists.most_taps = std::max(lists.most_taps, static_cast<int>(lists.taps() - first));
    }
  }
  lists.begins.push_back(static_cast<int>(lists.taps()));
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

int64_t count_grouped_taps(const std::vector<Tap>& taps, int group) {
  int rows = 1, columns = 1, planes = 1, channels = 1, phases = 1, outputs = 1;
  for (const Tap& t : taps) {
    rows = std::max(rows, t.row + 1);
    columns = std::max(columns, t.column + 1);
    planes = std::max(planes, t.plane + 1);
    channels = std::max(channels, t.channel + 1);
    phases = std::max(phases, t.phase + 1);
    outputs = std::max(outputs, t.output + 1);
  }
  const int64_t groups = (outputs + group - 1) / group;
  std::vector<bool> there(groups * phases * channels * planes * rows * columns);
  int64_t count = 0;
  for (const Tap& t : taps) {
    const int64_t of_channel = (static_cast<int64_t>(t.output / group) * phases + t.phase) * channels + t.channel;
    const int64_t at = ((of_channel * planes + t.plane) * rows + t.row) * columns + t.column;
    count += there[at] ? 0 : 1;
    there[at] = true;
  }
  return count;
}

} // namespace oes::cuda::conv

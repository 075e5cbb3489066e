// Members of Chain that bind it to its layers and sizes. Included by chain.cpp alone.
#pragma once

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "cpu/chain/chain.h"

namespace oes::chain {
namespace {

void expect(bool holds, const char* what) {
  if (!holds) {
    throw std::invalid_argument(what);
  }
}

// Whether first <= index < end for all.
bool all_in(const Indices& indices, int64_t first, int64_t end) {
  return std::all_of(indices.begin(), indices.end(), [&](int64_t i) { return first <= i && i < end; });
}

} // namespace

template <typename T>
Chain<T>::Chain(int64_t channels, int64_t rows, int64_t columns, bool fixed, int64_t weights)
    : fixed_(fixed), channels_(channels), rows_(rows), columns_(columns), weights_(weights) {
  expect(channels > 0 && rows > 0 && columns > 0 && weights >= 0, "chain: expected an image and weights");
  identity_.assign(channels, T(1));
  none_.assign(channels, T(0));
}

template <typename T>
void Chain<T>::add_conv(const ConvSpec& spec) {
  expect(!finished_, "convolution: expected a chain that is not finished");
  links_.emplace_back();
  Link& link = links_.back();
  const bool first = links_.size() == 1;
  const Link* before = first ? nullptr : &links_[links_.size() - 2];
  link.spec = spec;
  link.inputs = first ? channels_ : before->spec.outputs;
  link.rows = first ? rows_ : before->out_rows;
  link.columns = first ? columns_ : before->out_columns;
  check_conv(link, before);
  if (!link.head()) {
    bind_form(link);
  }
  link.ones.assign(spec.outputs, T(1));
  link.zeros.assign(spec.outputs, T(0));
  link.offset.resize(spec.bias.size());
  if (link.direct()) {
    bind_direct(link);
  } else if (link.head()) {
    bind_head(link, before);
  } else {
    bind_mixing(link);
  }
  link.y.reserve(spec.outputs * link.pixels());
}

template <typename T>
void Chain<T>::check_conv(const Link& link, const Link* before) const {
  const ConvSpec& spec = link.spec;
  expect(spec.taps.size() == 4 * spec.weights.size(), "taps: expected four numbers for each weight");
  expect(before == nullptr || !before->norms.empty(), "convolution: expected a norm before it");
  expect(
      spec.outputs > 0 && spec.kernel_rows > 0 && spec.kernel_columns > 0 && (spec.stride == 1 || spec.stride == 2),
      "convolution: expected outputs, a kernel, and a stride of 1 or 2");
  expect(all_in(spec.weights, 0, weights_), "weights: expected indices inside the flat vector");
  expect(
      spec.first_weight < 0 || (spec.weights.empty() && spec.first_weight + link.places() <= weights_),
      "first_weight: expected all weights inside the flat vector, and none named beside them");
  expect(static_cast<int64_t>(spec.bias.size()) >= spec.outputs, "bias: expected an index for each output");
  expect(all_in(spec.bias, -1, weights_), "bias: expected indices inside the flat vector");
  expect(spec.border.size() == 4 && all_in(spec.border, 0, INT32_MAX), "border: expected four widths");
  if (spec.padding == Padding::kReflect || spec.padding == Padding::kCircular) {
    const int64_t most = spec.padding == Padding::kReflect ? 0 : 1;
    expect(
        std::max(spec.border[0], spec.border[1]) < link.columns + most &&
            std::max(spec.border[2], spec.border[3]) < link.rows + most,
        "border: expected less than the image");
  }
  const auto constants = static_cast<int64_t>(before == nullptr ? 0 : before->norms.back().constants.size());
  expect(spec.constant_taps.size() % 3 == 0, "constant_taps: expected three numbers for each");
  for (size_t i = 0; i < spec.constant_taps.size(); i += 3) {
    const int64_t* tap = &spec.constant_taps[i];
    expect(
        tap[0] >= 0 && tap[0] < static_cast<int64_t>(spec.bias.size()) && tap[1] >= 0 && tap[1] < weights_ &&
            tap[2] >= 0 && tap[2] < constants,
        "constant_taps: expected an output, a weight and a constant that are there");
  }
  for (size_t t = 0; t < spec.weights.size(); ++t) {
    const int64_t* tap = &spec.taps[4 * t];
    expect(
        tap[0] >= 0 && tap[0] < spec.outputs && tap[1] >= 0 && tap[1] < link.inputs && tap[2] >= 0 &&
            tap[2] < spec.kernel_rows && tap[3] >= 0 && tap[3] < spec.kernel_columns &&
            (t == 0 || std::lexicographical_compare(tap - 4, tap, tap, tap + 4)),
        "taps: expected ascending indices inside the weight");
  }
}

// The weights as the sparse or the dense form of a convolution takes them.
template <typename T>
void Chain<T>::bind_form(Link& link) {
  ConvSpec& spec = link.spec;
  const bool all = spec.first_weight >= 0;
  link.dense = spec.dense;
  if (link.direct()) {
    const int64_t* b = spec.border.data();
    const int64_t rows = (link.rows + b[2] + b[3] - (spec.box ? 1 : 0) - spec.kernel_rows) / spec.stride + 1;
    const int64_t columns = (link.columns + b[0] + b[1] - (spec.box ? 1 : 0) - spec.kernel_columns) / spec.stride + 1;
    link.dense = link.dense && rows > 0 && dense_conv2d::Conv<T>::fits(!fixed(link), rows, columns, columns);
  }
  if (all && !link.dense) {
    for (int64_t t = 0; t < link.places(); ++t) {
      const int64_t uv = t % (spec.kernel_rows * spec.kernel_columns), oc = t / (spec.kernel_rows * spec.kernel_columns);
      spec.taps.insert(
          spec.taps.end(),
          {oc / link.inputs, oc % link.inputs, uv / spec.kernel_columns, uv % spec.kernel_columns});
      spec.weights.push_back(spec.first_weight + t);
    }
  }
  if (link.dense && !all) {
    link.all_weights.assign(link.places(), T(0));
    link.all_grads.resize(link.places());
    for (size_t t = 0; t < spec.weights.size(); ++t) {
      const int64_t* tap = &spec.taps[4 * t];
      link.positions.push_back(
          ((tap[0] * link.inputs + tap[1]) * spec.kernel_rows + tap[2]) * spec.kernel_columns + tap[3]);
    }
  }
}

template <typename T>
void Chain<T>::add_norm(const NormSpec& spec) {
  expect(!links_.empty() && links_.back().norms.size() < 2, "norm: expected one or two behind a convolution");
  Link& link = links_.back();
  expect(!link.head(), "norm: expected none behind the head");
  check_norm(link, spec);
  const auto channels = static_cast<size_t>(link.spec.outputs);
  Norm norm;
  norm.spec = spec;
  for (std::vector<T>* each : {&norm.scale, &norm.shift, &norm.a, &norm.b, &norm.c, &norm.mean}) {
    each->resize(channels);
  }
  norm.rstd.resize(channels);
  norm.constants.resize(spec.constants.size());
  link.norms.push_back(std::move(norm));
}

template <typename T>
void Chain<T>::check_norm(const Link& link, const NormSpec& spec) const {
  expect(!finished_, "norm: expected a chain that is not finished");
  const auto channels = static_cast<size_t>(link.spec.outputs);
  expect(spec.gamma.size() == channels && spec.beta.size() == channels, "norm: expected a weight for each channel");
  expect(
      all_in(spec.gamma, -1, weights_) && all_in(spec.beta, -1, weights_) && all_in(spec.constants, 0, weights_),
      "norm: expected indices inside the flat vector");
  expect(spec.eps >= 0 && spec.copies >= 1, "norm: expected eps >= 0 and one copy or more");
  if (!spec.tracks) {
    return;
  }
  // What a constant channel has before the norm: the convolution's offset, or the constant of the norm before.
  const size_t before = link.norms.empty() ? link.offset.size() - channels : link.norms[0].constants.size();
  expect(spec.places.size() == channels && all_in(spec.places, 0, INT32_MAX), "places: expected one for each channel");
  expect(
      spec.tracked.size() == spec.tracked_places.size() && all_in(spec.tracked, -1, static_cast<int64_t>(before)) &&
          all_in(spec.tracked_places, 0, INT32_MAX),
      "tracked: expected constants that are there, with a place for each");
}

template <typename T>
void Chain<T>::finish(Last act, double slope) {
  expect(!links_.empty() && !finished_, "chain: expected a convolution, and to be finished once");
  finished_ = true;
  act_ = act;
  slope_ = static_cast<T>(slope);
  ends_in_norm_ = !links_.back().norms.empty();
  int64_t grads = channels_ * rows_ * columns_, planes = 1, bordered = 1, partial = 1, moments = 1;
  for (Link& link : links_) {
    grads = std::max(grads, link.spec.outputs * link.pixels());
    moments = std::max(moments, 2 * link.spec.outputs * batch_norm_act::chunks_of(link.pixels()));
    if (link.direct()) {
      planes = std::max(planes, link.inputs * link.frame.plane_size());
      bordered = std::max(bordered, link.gather_back.source_image + link.bordered.left);
      const auto taps = static_cast<int64_t>(link.spec.weights.size());
      partial = std::max(partial, link.dense ? link.dense_conv.sums() : link.dot.strips * taps);
    } else if (link.head()) {
      const int64_t parts = output_head::chunks_of(link.pixels()) * link.inputs;
      moments = std::max(moments, 2 * parts);
      head_sums_.reserve(kMostBehind * parts);
    } else {
      moments = std::max(moments, 2 * link.mixing.mix.strips * link.spec.outputs);
      moments = std::max(moments, 2 * link.mixing.back.strips * link.inputs);
      partial = std::max(partial, link.mixing.sums());
    }
  }
  for (Aligned<T>& buffer : grads_) {
    buffer.reserve(grads);
  }
  grad_planes_.reserve(planes);
  bordered_.reserve(bordered + winograd::kSlack);
  partial_.reserve(partial);
  moments_.reserve(moments);
}

template <typename T>
std::vector<int64_t> Chain<T>::shape() const {
  const Link& last = links_.back();
  return {last.spec.outputs, last.out_rows, last.out_columns};
}

template <typename T>
int64_t Chain<T>::source_size() const {
  const Link& first = links_.front();
  if (!fixed_) {
    return channels_ * rows_ * columns_;
  }
  return channels_ * first.frame.plane_size() + (first.flat ? winograd::kSlack : 0);
}

template <typename T>
Indices Chain<T>::statistics_sizes() const {
  Indices sizes;
  for (const Link& link : links_) {
    for (const Norm& norm : link.norms) {
      int64_t most = -1;
      for (const Indices* places : {&norm.spec.places, &norm.spec.tracked_places}) {
        for (const int64_t place : *places) {
          most = norm.spec.tracks ? std::max(most, place) : most;
        }
      }
      sizes.push_back(most + 1);
    }
  }
  return sizes;
}

template <typename T>
void Chain<T>::bind_direct(Link& link) {
  const ConvSpec& spec = link.spec;
  const bool split = spec.stride == 2;
  const int64_t* b = spec.border.data();
  link.border = frame::border(spec.padding, link.rows, link.columns, b[0], b[1], b[2], b[3]);
  frame::Frame<T>& f = link.frame;
  f = {};
  f.channels = link.inputs;
  f.rows = link.rows;
  f.columns = link.columns;
  f.border = &link.border;
  f.box = spec.box;
  f.split = split;
  link.out_rows = (f.high() - spec.kernel_rows) / spec.stride + 1;
  link.out_columns = (f.wide() - spec.kernel_columns) / spec.stride + 1;
  expect(f.high() >= spec.kernel_rows && f.wide() >= spec.kernel_columns, "image: expected the size of the kernel");
  if (!fixed(link)) {
    f.planes = link.planes.reserve(link.inputs * f.plane_size() + winograd::kSlack);
  }
  const int64_t source_rows = f.plane_rows(), source_columns = f.plane_columns(), s = spec.stride;
  const int64_t phases = split ? 4 : 1, top = (spec.kernel_rows - 1) / s, left = (spec.kernel_columns - 1) / s;
  link.bordered = {spec.outputs, link.out_rows, link.out_columns, top, left, source_rows + top, source_columns};
  const int64_t bordered_plane = (source_rows + top) * source_columns;
  link.gather = {nullptr, nullptr, nullptr, nullptr, nullptr, spec.outputs, link.out_rows, link.out_columns,
                 source_columns, link.inputs * f.plane_size()};
  link.gather_back = {nullptr, nullptr, nullptr, nullptr, nullptr, link.inputs * phases, source_rows, source_columns,
                      source_columns, spec.outputs * bordered_plane};
  // Rows of all planes side by side are one piece of memory; Winograd's sums take squares of pixels instead.
  link.flat = !fixed(link) ||
      (link.dense && dense_conv2d::Conv<T>::wants_flat(
                         link.inputs, spec.kernel_rows, spec.kernel_columns, s, link.gather, link.gather_back));
  if (!link.flat) {
    link.gather.pitch *= link.inputs * phases;
    link.gather.planes_of_row = link.inputs * phases;
  }
  link.gather.ahead = top + 1;
  sparse_conv2d::Dot<T>& d = link.dot;
  d = {nullptr, nullptr, nullptr, nullptr, nullptr, spec.outputs};
  d.rows = link.out_rows;
  d.columns = link.out_columns;
  d.pitch = link.gather.pitch;
  d.grad_pitch = source_columns;
  d.source_image = link.gather.source_image;
  d.grad_plane = bordered_plane;
  d.ahead = link.flat ? 0 : top;
  sparse_conv2d::cut(d, link.flat, 1);
  bind_taps(link, bordered_plane);
}

// Where the taps of a direct convolution read, forward and backward.
template <typename T>
void Chain<T>::bind_taps(Link& link, int64_t bordered_plane) {
  const ConvSpec& spec = link.spec;
  const int64_t s = spec.stride, phases = s * s, top = link.bordered.top, left = link.bordered.left;
  const int64_t source_rows = link.frame.plane_rows(), source_columns = link.frame.plane_columns();
  const auto plane_of = [&](int64_t c, int64_t u, int64_t v) { return c * phases + u % s * s + v % s; };
  const auto offset_of = [&](int64_t c, int64_t u, int64_t v) {
    const int64_t plane = plane_of(c, u, v);
    return link.flat ? (plane * source_rows + u / s) * source_columns + v / s
                     : (u / s * link.inputs * phases + plane) * source_columns + v / s;
  };
  if (link.dense) {
    for (int64_t c = 0; c < link.inputs; ++c) {
      for (int64_t u = 0; u < spec.kernel_rows; ++u) {
        for (int64_t v = 0; v < spec.kernel_columns; ++v) {
          link.offsets.push_back(offset_of(c, u, v));
        }
      }
    }
    link.dense_conv.bind(
        link.inputs, spec.kernel_rows, spec.kernel_columns, s, link.flat, link.gather, link.gather_back, link.dot,
        link.offsets, top, left, bordered_plane);
    return;
  }
  const auto taps = static_cast<int64_t>(spec.weights.size());
  link.weights.resize(taps);
  link.back_weights.resize(taps);
  link.offsets.resize(taps);
  link.first.assign(spec.outputs + 1, 0);
  link.back_first.assign(link.inputs * phases + 1, 0);
  std::vector<int64_t> plane(taps);
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t* tap = &spec.taps[4 * t];
    plane[t] = plane_of(tap[1], tap[2], tap[3]);
    link.offsets[t] = offset_of(tap[1], tap[2], tap[3]);
    ++link.first[tap[0] + 1];
    ++link.back_first[plane[t] + 1];
    link.back_order.push_back(t);
  }
  std::partial_sum(link.first.begin(), link.first.end(), link.first.begin());
  std::partial_sum(link.back_first.begin(), link.back_first.end(), link.back_first.begin());
  std::stable_sort(
      link.back_order.begin(), link.back_order.end(), [&](int64_t a, int64_t b) { return plane[a] < plane[b]; });
  for (const int64_t t : link.back_order) {
    const int64_t* tap = &spec.taps[4 * t];
    link.back_offsets.push_back(
        tap[0] * bordered_plane + (top - tap[2] / s) * source_columns + left - tap[3] / s);
  }
  const auto set = [](sparse_conv2d::Gather<T>& g, const std::vector<T>& weights, const Indices& offsets, const Indices& first) {
    g.weights = weights.data();
    g.offsets = offsets.data();
    g.first = first.data();
  };
  set(link.gather, link.weights, link.offsets, link.first);
  set(link.gather_back, link.back_weights, link.back_offsets, link.back_first);
  link.dot.offsets = link.offsets.data();
  link.dot.first = link.first.data();
  link.dot.taps = taps;
}

template <typename T>
void Chain<T>::bind_mixing(Link& link) {
  const ConvSpec& spec = link.spec;
  const bool up = spec.kind == ConvKind::kUp;
  const int64_t kernel = up ? 9 : 1;
  expect(spec.kernel_rows * spec.kernel_columns == kernel, "convolution: expected a 3 x 3 or 1 x 1 kernel");
  expect(!fixed(link), "convolution: expected a direct one to read a fixed source");
  expect(
      up ? spec.padding == Padding::kZeros || spec.padding == Padding::kReplicate : all_in(spec.border, 0, 1),
      "convolution: expected a border of zeros or replicated pixels, none of a pointwise one");
  expect(spec.stride == 1 && !spec.box, "convolution: expected a direct one to have a stride or sums of pixels");
  link.out_rows = link.rows * (up ? 2 : 1);
  link.out_columns = link.columns * (up ? 2 : 1);
  link.mixing.bind(
      link.inputs, spec.outputs, link.rows, link.columns, kernel, spec.padding == Padding::kZeros,
      link.dense ? nullptr : &spec.taps);
}

template <typename T>
void Chain<T>::bind_head(Link& link, const Link* before) {
  const ConvSpec& spec = link.spec;
  expect(spec.kernel_rows * spec.kernel_columns == 1 && spec.outputs <= kMostBehind, "head: expected 1 x 1 and four outputs at most");
  expect(before != nullptr && before->norms.size() == 1, "head: expected a single norm before it");
  link.out_rows = link.rows;
  link.out_columns = link.columns;
  head_weights_.resize(link.inputs * kMostBehind);
}

} // namespace oes::chain

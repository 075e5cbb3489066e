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
  blocks_.emplace_back();
  ConvBlock& block = blocks_.back();
  const bool first = blocks_.size() == 1;
  const ConvBlock* before = first ? nullptr : &blocks_[blocks_.size() - 2];
  block.spec = spec;
  block.inputs = first ? channels_ : before->spec.outputs;
  block.rows = first ? rows_ : before->out_rows;
  block.columns = first ? columns_ : before->out_columns;
  check_conv(block, before);
  if (!block.head()) {
    bind_form(block);
  }
  block.ones.assign(spec.outputs, T(1));
  block.zeros.assign(spec.outputs, T(0));
  block.offset.resize(spec.bias.size());
  if (block.direct()) {
    bind_direct(block);
  } else if (block.head()) {
    bind_head(block, before);
  } else {
    bind_upsample(block);
  }
  block.y.reserve(spec.outputs * block.pixels());
}

template <typename T>
void Chain<T>::check_conv(const ConvBlock& block, const ConvBlock* before) const {
  const ConvSpec& spec = block.spec;
  expect(spec.taps.size() == 4 * spec.weights.size(), "taps: expected four numbers for each weight");
  expect(before == nullptr || !before->norms.empty(), "convolution: expected a norm before it");
  expect(
      spec.outputs > 0 && spec.kernel_rows > 0 && spec.kernel_columns > 0 && (spec.stride == 1 || spec.stride == 2),
      "convolution: expected outputs, a kernel, and a stride of 1 or 2");
  expect(all_in(spec.weights, 0, weights_), "weights: expected indices inside the flat vector");
  expect(
      spec.first_weight < 0 || (spec.weights.empty() && spec.first_weight + block.weight_numel() <= weights_),
      "first_weight: expected all weights inside the flat vector, and none named beside them");
  expect(static_cast<int64_t>(spec.bias.size()) >= spec.outputs, "bias: expected an index for each output");
  expect(all_in(spec.bias, -1, weights_), "bias: expected indices inside the flat vector");
  expect(spec.border.size() == 4 && all_in(spec.border, 0, INT32_MAX), "border: expected four widths");
  if (spec.padding == Padding::kReflect || spec.padding == Padding::kCircular) {
    const int64_t most = spec.padding == Padding::kReflect ? 0 : 1;
    expect(
        std::max(spec.border[0], spec.border[1]) < block.columns + most &&
            std::max(spec.border[2], spec.border[3]) < block.rows + most,
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
        tap[0] >= 0 && tap[0] < spec.outputs && tap[1] >= 0 && tap[1] < block.inputs && tap[2] >= 0 &&
            tap[2] < spec.kernel_rows && tap[3] >= 0 && tap[3] < spec.kernel_columns &&
            (t == 0 || std::lexicographical_compare(tap - 4, tap, tap, tap + 4)),
        "taps: expected ascending indices inside the weight");
  }
}

// The weights as the sparse or the dense form of a convolution takes them.
template <typename T>
void Chain<T>::bind_form(ConvBlock& block) {
  ConvSpec& spec = block.spec;
  const bool all = spec.first_weight >= 0;
  block.dense = spec.dense;
  if (block.direct()) {
    const int64_t* b = spec.border.data();
    const int64_t rows = (block.rows + b[2] + b[3] - (spec.box ? 1 : 0) - spec.kernel_rows) / spec.stride + 1;
    const int64_t columns = (block.columns + b[0] + b[1] - (spec.box ? 1 : 0) - spec.kernel_columns) / spec.stride + 1;
    block.dense = block.dense && rows > 0 && conv::DenseConv2d<T>::fits(!fixed(block), rows, columns, columns);
  }
  if (all && !block.dense) {
    for (int64_t t = 0; t < block.weight_numel(); ++t) {
      const int64_t uv = t % (spec.kernel_rows * spec.kernel_columns), oc = t / (spec.kernel_rows * spec.kernel_columns);
      spec.taps.insert(
          spec.taps.end(),
          {oc / block.inputs, oc % block.inputs, uv / spec.kernel_columns, uv % spec.kernel_columns});
      spec.weights.push_back(spec.first_weight + t);
    }
  }
  if (block.dense && !all) {
    block.all_weights.assign(block.weight_numel(), T(0));
    block.all_grads.resize(block.weight_numel());
    for (size_t t = 0; t < spec.weights.size(); ++t) {
      const int64_t* tap = &spec.taps[4 * t];
      block.positions.push_back(
          ((tap[0] * block.inputs + tap[1]) * spec.kernel_rows + tap[2]) * spec.kernel_columns + tap[3]);
    }
  }
}

template <typename T>
void Chain<T>::add_norm(const NormSpec& spec) {
  expect(!blocks_.empty() && blocks_.back().norms.size() < 2, "norm: expected one or two behind a convolution");
  ConvBlock& block = blocks_.back();
  expect(!block.head(), "norm: expected none behind the head");
  check_norm(block, spec);
  const auto channels = static_cast<size_t>(block.spec.outputs);
  Norm norm;
  norm.spec = spec;
  for (std::vector<T>* each : {&norm.scale, &norm.shift, &norm.a, &norm.b, &norm.c, &norm.mean}) {
    each->resize(channels);
  }
  norm.rstd.resize(channels);
  norm.constants.resize(spec.constants.size());
  block.norms.push_back(std::move(norm));
}

template <typename T>
void Chain<T>::check_norm(const ConvBlock& block, const NormSpec& spec) const {
  expect(!finished_, "norm: expected a chain that is not finished");
  const auto channels = static_cast<size_t>(block.spec.outputs);
  expect(spec.gamma.size() == channels && spec.beta.size() == channels, "norm: expected a weight for each channel");
  expect(
      all_in(spec.gamma, -1, weights_) && all_in(spec.beta, -1, weights_) && all_in(spec.constants, 0, weights_),
      "norm: expected indices inside the flat vector");
  expect(spec.eps >= 0 && spec.copies >= 1, "norm: expected eps >= 0 and one copy or more");
  if (!spec.tracks) {
    return;
  }
  // What a constant channel has before the norm: the convolution's offset, or the constant of the norm before.
  const size_t before = block.norms.empty() ? block.offset.size() - channels : block.norms[0].constants.size();
  expect(spec.places.size() == channels && all_in(spec.places, 0, INT32_MAX), "places: expected one for each channel");
  expect(
      spec.tracked.size() == spec.tracked_places.size() && all_in(spec.tracked, -1, static_cast<int64_t>(before)) &&
          all_in(spec.tracked_places, 0, INT32_MAX),
      "tracked: expected constants that are there, with a place for each");
}

template <typename T>
void Chain<T>::finish(OutputAct act, double slope) {
  expect(!blocks_.empty() && !finished_, "chain: expected a convolution, and to be finished once");
  finished_ = true;
  act_ = act;
  slope_ = static_cast<T>(slope);
  ends_in_norm_ = !blocks_.back().norms.empty();
  int64_t grads = channels_ * rows_ * columns_, planes = 1, padded = 1, partial = 1, moments = 1;
  for (ConvBlock& block : blocks_) {
    grads = std::max(grads, block.spec.outputs * block.pixels());
    moments = std::max(moments, 2 * block.spec.outputs * norm::chunks_of(block.pixels()));
    if (block.direct()) {
      planes = std::max(planes, block.inputs * block.input.plane_size());
      padded = std::max(padded, block.gather_back.source_image + block.padded_grad.left);
      const auto taps = static_cast<int64_t>(block.spec.weights.size());
      partial = std::max(partial, block.dense ? block.dense_conv.sums() : block.dot.strips * taps);
    } else if (block.head()) {
      const int64_t parts = conv::head_chunks(block.pixels()) * block.inputs;
      moments = std::max(moments, 2 * parts);
      head_sums_.reserve(norm::kMostHeadOutputs * parts);
    } else {
      moments = std::max(moments, 2 * block.upsample.forward.strips * block.spec.outputs);
      moments = std::max(moments, 2 * block.upsample.backward.strips * block.inputs);
      partial = std::max(partial, block.upsample.sums());
    }
  }
  for (Aligned<T>& buffer : grads_) {
    buffer.reserve(grads);
  }
  grad_planes_.reserve(planes);
  padded_grad_.reserve(padded + conv::winograd::kSlack);
  partial_.reserve(partial);
  moments_.reserve(moments);
}

template <typename T>
std::vector<int64_t> Chain<T>::shape() const {
  const ConvBlock& last = blocks_.back();
  return {last.spec.outputs, last.out_rows, last.out_columns};
}

template <typename T>
int64_t Chain<T>::source_size() const {
  const ConvBlock& first = blocks_.front();
  if (!fixed_) {
    return channels_ * rows_ * columns_;
  }
  return channels_ * first.input.plane_size() + (first.flat ? conv::winograd::kSlack : 0);
}

template <typename T>
Indices Chain<T>::statistics_sizes() const {
  Indices sizes;
  for (const ConvBlock& block : blocks_) {
    for (const Norm& norm : block.norms) {
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
void Chain<T>::bind_direct(ConvBlock& block) {
  const ConvSpec& spec = block.spec;
  const bool split = spec.stride == 2;
  const int64_t* b = spec.border.data();
  block.border = make_border(spec.padding, block.rows, block.columns, b[0], b[1], b[2], b[3]);
  conv::ConvInput<T>& f = block.input;
  f = {};
  f.channels = block.inputs;
  f.rows = block.rows;
  f.columns = block.columns;
  f.border = &block.border;
  f.box = spec.box;
  f.unshuffle = split;
  block.out_rows = (f.high() - spec.kernel_rows) / spec.stride + 1;
  block.out_columns = (f.wide() - spec.kernel_columns) / spec.stride + 1;
  expect(f.high() >= spec.kernel_rows && f.wide() >= spec.kernel_columns, "image: expected the size of the kernel");
  if (!fixed(block)) {
    f.planes = block.planes.reserve(block.inputs * f.plane_size() + conv::winograd::kSlack);
  }
  const int64_t source_rows = f.plane_rows(), source_columns = f.plane_columns(), s = spec.stride;
  const int64_t phases = split ? 4 : 1, top = (spec.kernel_rows - 1) / s, left = (spec.kernel_columns - 1) / s;
  block.padded_grad = {spec.outputs, block.out_rows, block.out_columns, top, left, source_rows + top, source_columns, left};
  const int64_t padded_plane = (source_rows + top) * source_columns;
  block.gather = {nullptr, nullptr, nullptr, nullptr, nullptr, spec.outputs, block.out_rows, block.out_columns,
                 source_columns, block.inputs * f.plane_size()};
  block.gather_back = {nullptr, nullptr, nullptr, nullptr, nullptr, block.inputs * phases, source_rows, source_columns,
                      source_columns, spec.outputs * padded_plane};
  // Rows of all planes side by side are one piece of memory; Winograd's sums take squares of pixels instead.
  block.flat = !fixed(block) ||
      (block.dense && conv::DenseConv2d<T>::wants_flat(
                         block.inputs, spec.kernel_rows, spec.kernel_columns, s, block.gather, block.gather_back));
  if (!block.flat) {
    block.gather.pitch *= block.inputs * phases;
    block.gather.planes_of_row = block.inputs * phases;
  }
  block.gather.ahead = top + 1;
  conv::SparseWeightGrad<T>& d = block.dot;
  d = {nullptr, nullptr, nullptr, nullptr, nullptr, spec.outputs};
  d.rows = block.out_rows;
  d.columns = block.out_columns;
  d.pitch = block.gather.pitch;
  d.grad_pitch = source_columns;
  d.source_image = block.gather.source_image;
  d.grad_plane = padded_plane;
  d.ahead = block.flat ? 0 : top;
  conv::plan_tasks(d, block.flat, 1);
  bind_taps(block, padded_plane);
}

// Where the taps of a direct convolution read, forward and backward.
template <typename T>
void Chain<T>::bind_taps(ConvBlock& block, int64_t padded_plane) {
  const ConvSpec& spec = block.spec;
  const int64_t s = spec.stride, phases = s * s, top = block.padded_grad.top, left = block.padded_grad.left;
  const int64_t source_rows = block.input.plane_rows(), source_columns = block.input.plane_columns();
  const auto plane_of = [&](int64_t c, int64_t u, int64_t v) { return c * phases + u % s * s + v % s; };
  const auto offset_of = [&](int64_t c, int64_t u, int64_t v) {
    const int64_t plane = plane_of(c, u, v);
    return block.flat ? (plane * source_rows + u / s) * source_columns + v / s
                     : (u / s * block.inputs * phases + plane) * source_columns + v / s;
  };
  if (block.dense) {
    for (int64_t c = 0; c < block.inputs; ++c) {
      for (int64_t u = 0; u < spec.kernel_rows; ++u) {
        for (int64_t v = 0; v < spec.kernel_columns; ++v) {
          block.offsets.push_back(offset_of(c, u, v));
        }
      }
    }
    block.dense_conv.bind(
        block.inputs, spec.kernel_rows, spec.kernel_columns, s, block.flat, block.gather, block.gather_back, block.dot,
        block.offsets, top, left, padded_plane);
    return;
  }
  const auto taps = static_cast<int64_t>(spec.weights.size());
  block.weights.resize(taps);
  block.back_weights.resize(taps);
  block.offsets.resize(taps);
  block.first.assign(spec.outputs + 1, 0);
  block.back_first.assign(block.inputs * phases + 1, 0);
  std::vector<int64_t> plane(taps);
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t* tap = &spec.taps[4 * t];
    plane[t] = plane_of(tap[1], tap[2], tap[3]);
    block.offsets[t] = offset_of(tap[1], tap[2], tap[3]);
    ++block.first[tap[0] + 1];
    ++block.back_first[plane[t] + 1];
    block.back_order.push_back(t);
  }
  std::partial_sum(block.first.begin(), block.first.end(), block.first.begin());
  std::partial_sum(block.back_first.begin(), block.back_first.end(), block.back_first.begin());
  std::stable_sort(
      block.back_order.begin(), block.back_order.end(), [&](int64_t a, int64_t b) { return plane[a] < plane[b]; });
  for (const int64_t t : block.back_order) {
    const int64_t* tap = &spec.taps[4 * t];
    block.back_offsets.push_back(
        tap[0] * padded_plane + (top - tap[2] / s) * source_columns + left - tap[3] / s);
  }
  const auto set = [](conv::SparseTapSum<T>& g, const std::vector<T>& weights, const Indices& offsets, const Indices& first) {
    g.weights = weights.data();
    g.offsets = offsets.data();
    g.first = first.data();
  };
  set(block.gather, block.weights, block.offsets, block.first);
  set(block.gather_back, block.back_weights, block.back_offsets, block.back_first);
  block.dot.offsets = block.offsets.data();
  block.dot.first = block.first.data();
  block.dot.taps = taps;
}

template <typename T>
void Chain<T>::bind_upsample(ConvBlock& block) {
  const ConvSpec& spec = block.spec;
  const bool up = spec.kind == ConvKind::kUpsample;
  const int64_t kernel = up ? 9 : 1;
  expect(spec.kernel_rows * spec.kernel_columns == kernel, "convolution: expected a 3 x 3 or 1 x 1 kernel");
  expect(!fixed(block), "convolution: expected a direct one to read a fixed source");
  expect(
      up ? spec.padding == Padding::kZeros || spec.padding == Padding::kReplicate : all_in(spec.border, 0, 1),
      "convolution: expected a border of zeros or replicated pixels, none of a pointwise one");
  expect(spec.stride == 1 && !spec.box, "convolution: expected a direct one to have a stride or sums of pixels");
  block.out_rows = block.rows * (up ? 2 : 1);
  block.out_columns = block.columns * (up ? 2 : 1);
  block.upsample.bind(
      block.inputs, spec.outputs, block.rows, block.columns, kernel, spec.padding == Padding::kZeros,
      block.dense ? nullptr : &spec.taps);
}

template <typename T>
void Chain<T>::bind_head(ConvBlock& block, const ConvBlock* before) {
  const ConvSpec& spec = block.spec;
  expect(spec.kernel_rows * spec.kernel_columns == 1 && spec.outputs <= norm::kMostHeadOutputs, "head: expected 1 x 1 and four outputs at most");
  expect(before != nullptr && before->norms.size() == 1, "head: expected a single norm before it");
  block.out_rows = block.rows;
  block.out_columns = block.columns;
  head_weights_.resize(block.inputs * norm::kMostHeadOutputs);
}

} // namespace oes::chain

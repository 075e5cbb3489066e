// Members of Chain that evaluate it. Included by chain.cpp alone.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/chain/chain.h"

namespace oes::chain {

template <typename T>
norm::Prologue<T> Chain<T>::map_of(const ConvBlock& block) const {
  const Norm& one = block.norms[0];
  const Norm* two = block.norms.size() > 1 ? &block.norms[1] : nullptr;
  const T *zeros = block.zeros.data(), *ones = block.ones.data();
  return {one.mean.data(), one.scale.data(), one.shift.data(),
          two == nullptr ? zeros : two->mean.data(), two == nullptr ? ones : two->scale.data(),
          two == nullptr ? zeros : two->shift.data(), static_cast<T>(one.spec.slope), one.spec.act};
}

// The source as it is.
template <typename T>
norm::Prologue<T> Chain<T>::source_map() const {
  return {none_.data(), identity_.data(), none_.data(), none_.data(), identity_.data(), none_.data(), T(1), Act::kLeaky};
}

template <typename T>
double Chain<T>::forward(
    const T* weights, const T* source, T* out, const std::vector<T*>& running, const T* target) {
  size_t statistics = 0;
  has_loss_ = target != nullptr && !ends_in_norm_;
  for (size_t l = 0; l < blocks_.size(); ++l) {
    ConvBlock& block = blocks_[l];
    const ConvBlock* before = l == 0 ? nullptr : &blocks_[l - 1];
    set_weights(block, weights);
    offsets(block, before == nullptr ? nullptr : &before->norms.back(), weights);
    if (block.head()) {
      return conv::output_head(conv::OutputHeadForward<T>{
          head(), act_, slope_, block.offset.data(), target, out, block.y.data(), moments_.data()});
    }
    const norm::Prologue<T> map = before == nullptr ? source_map() : map_of(*before);
    convolve(block, before == nullptr ? source : before->y.data(), map);
    for (size_t which = 0; which < block.norms.size(); ++which) {
      const int64_t chunks = norm::chunks_of(block.pixels());
      const bool strips = which == 0 && !block.direct(); // they come from the convolution
      if (!strips) {
        norm::Statistics<T> s{block.spec.outputs, block.pixels(), block.y.data(), {}, which == 1,
                                        moments_.data()};
        s.prologue = which == 1 ? map_of(block) : s.prologue;
        norm::statistics(s);
      }
      T* mean = running.empty() ? nullptr : running[statistics];
      T* var = running.empty() ? nullptr : running[statistics + 1];
      statistics += 2;
      normalise(block, which, moments_.data(), strips ? block.upsample.forward.strips : chunks, !strips, weights, mean, var);
    }
  }
  ConvBlock& last = blocks_.back();
  if (ends_in_norm_) {
    norm::map_image(last.y.data(), map_of(last), last.spec.outputs, last.pixels(), out);
    return 0;
  }
  if (target != nullptr) {
    return norm::output_loss(norm::OutputLoss<T>{
        last.spec.outputs, last.pixels(), act_, slope_, last.y.data(), last.offset.data(), target, out,
        moments_.data()});
  }
  norm::output(norm::Output<T>{
      last.spec.outputs, last.pixels(), act_, slope_, last.y.data(), last.offset.data(), nullptr, out});
  return 0;
}

template <typename T>
void Chain<T>::set_weights(ConvBlock& block, const T* weights) {
  const auto scale = static_cast<T>(block.spec.scale);
  const int64_t* indices = block.spec.weights.data();
  if (block.head()) {
    each_head_weight([&](int64_t place, int64_t index) { head_weights_[place] = weights[index] * scale; });
  } else if (block.dense) {
    const T* all = weights + block.spec.first_weight;
    if (block.spec.first_weight < 0) {
      for (size_t t = 0; t < block.positions.size(); ++t) {
        block.all_weights[block.positions[t]] = weights[indices[t]];
      }
      all = block.all_weights.data();
    }
    if (block.direct()) {
      block.dense_conv.set(all, scale, !fixed(block));
    } else {
      block.upsample.set_dense(all, scale);
    }
  } else if (block.direct()) {
    for (size_t t = 0; t < block.weights.size(); ++t) {
      block.weights[t] = weights[indices[t]] * scale;
    }
  } else {
    block.upsample.set(weights, indices, scale);
  }
}

template <typename T>
conv::OutputHead<T> Chain<T>::head() const {
  const ConvBlock &last = blocks_.back(), &before = blocks_[blocks_.size() - 2];
  return {last.inputs, last.spec.outputs, last.pixels(), map_of(before), before.y.data(), head_weights_.data()};
}

// Calls f(place in head_weights_, index) for every weight of the head.
template <typename T>
template <typename F>
void Chain<T>::each_head_weight(const F& f) const {
  const ConvBlock& last = blocks_.back();
  for (int64_t t = 0; last.spec.first_weight >= 0 && t < last.weight_numel(); ++t) {
    f(t % last.inputs * norm::kMostHeadOutputs + t / last.inputs, last.spec.first_weight + t);
  }
  for (size_t t = 0; t < last.spec.weights.size(); ++t) {
    f(last.spec.taps[4 * t + 1] * norm::kMostHeadOutputs + last.spec.taps[4 * t], last.spec.weights[t]);
  }
}

template <typename T>
void Chain<T>::convolve(ConvBlock& block, const T* source, const norm::Prologue<T>& map) {
  if (!block.direct()) {
    conv::UpsampleConv<T> a = block.upsample.forward;
    a.prologue = map;
    a.source = source;
    a.out = block.y.data();
    a.moments = block.norms.empty() ? nullptr : moments_.data();
    conv::upsample_conv(a);
    return;
  }
  if (!fixed(block)) {
    conv::ConvInput<T> f = block.input;
    f.border = &block.border;
    f.prologue = map;
    f.image = source;
    conv::conv_input(f);
  }
  const T* planes = fixed(block) ? source : block.planes.data();
  if (block.dense) {
    block.dense_conv.run_forward(planes, block.y.data());
    return;
  }
  conv::SparseTapSum<T> g = block.gather;
  g.source = planes;
  g.out = block.y.data();
  conv::run(g, 1, static_cast<int64_t>(block.weights.size()) * block.pixels());
}

template <typename T>
void Chain<T>::offsets(ConvBlock& block, const Norm* before, const T* weights) {
  for (size_t o = 0; o < block.offset.size(); ++o) {
    const int64_t index = block.spec.bias[o];
    block.offset[o] = index < 0 ? T(0) : weights[index];
  }
  const T factor = static_cast<T>(block.spec.scale * (block.spec.box ? 4 : 1));
  for (size_t i = 0; i < block.spec.constant_taps.size(); i += 3) {
    const int64_t* tap = &block.spec.constant_taps[i];
    block.offset[tap[0]] += weights[tap[1]] * factor * before->constants[tap[2]];
  }
}

template <typename T>
void Chain<T>::normalise(
    ConvBlock& block, size_t which, const double* moments, int64_t parts, bool chunks, const T* weights, T* mean, T* var) {
  Norm& norm = block.norms[which];
  const NormSpec& spec = norm.spec;
  const int64_t channels = block.spec.outputs, pixels = block.pixels();
  const double momentum = spec.momentum;
  for (int64_t c = 0; c < channels; ++c) {
    norm::Merged all;
    for (int64_t part = 0; part < parts; ++part) {
      const double* of_part = moments + 2 * (chunks ? c * parts + part : part * channels + c);
      const int64_t size = chunks ? norm::kChunk : block.upsample.forward.strip_rows * (pixels / block.rows);
      all.add(static_cast<double>(std::min(size, pixels - part * size)), of_part[0], of_part[1]);
    }
    const double variance = all.squares / all.count;
    const double rstd = 1 / std::sqrt(variance + spec.eps);
    const double gamma = spec.gamma[c] < 0 ? 1 : static_cast<double>(weights[spec.gamma[c]]);
    const double beta = spec.beta[c] < 0 ? 0 : static_cast<double>(weights[spec.beta[c]]);
    norm.rstd[c] = rstd;
    norm.mean[c] = static_cast<T>(all.mean);
    norm.scale[c] = static_cast<T>(gamma * rstd);
    norm.shift[c] = static_cast<T>(beta);
    if (mean != nullptr && spec.tracks) {
      const double count = all.count * static_cast<double>(spec.copies);
      const double offset = which == 0 ? static_cast<double>(block.offset[c]) : 0;
      T& m = mean[spec.places[c]];
      T& v = var[spec.places[c]];
      m = static_cast<T>((1 - momentum) * m + momentum * (all.mean + offset));
      v = static_cast<T>((1 - momentum) * v + momentum * variance * count / (count - 1));
    }
  }
  for (size_t i = 0; mean != nullptr && spec.tracks && i < spec.tracked.size(); ++i) {
    const int64_t from = spec.tracked[i];
    const T k = from < 0 ? T(0) : which == 0 ? block.offset[channels + from] : block.norms[0].constants[from];
    T& m = mean[spec.tracked_places[i]];
    T& v = var[spec.tracked_places[i]];
    m = static_cast<T>((1 - momentum) * m + momentum * k);
    v = static_cast<T>((1 - momentum) * v);
  }
  for (size_t i = 0; i < spec.constants.size(); ++i) {
    norm.constants[i] = norm::with_act(spec.act, [&](auto act) {
      return norm::activate<act.value>(weights[spec.constants[i]], static_cast<T>(spec.slope));
    });
  }
}

} // namespace oes::chain

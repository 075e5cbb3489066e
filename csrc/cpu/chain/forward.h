// Members of Chain that evaluate it. Included by chain.cpp alone.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/chain/chain.h"

namespace oes::chain {

template <typename T>
PixelMap<T> Chain<T>::map_of(const Link& link) const {
  const Norm& one = link.norms[0];
  const Norm* two = link.norms.size() > 1 ? &link.norms[1] : nullptr;
  const T *zeros = link.zeros.data(), *ones = link.ones.data();
  return {one.mean.data(), one.scale.data(), one.shift.data(),
          two == nullptr ? zeros : two->mean.data(), two == nullptr ? ones : two->scale.data(),
          two == nullptr ? zeros : two->shift.data(), static_cast<T>(one.spec.slope), one.spec.act};
}

// The source as it is.
template <typename T>
PixelMap<T> Chain<T>::source_map() const {
  return {none_.data(), identity_.data(), none_.data(), none_.data(), identity_.data(), none_.data(), T(1), Act::kLeaky};
}

template <typename T>
double Chain<T>::forward(
    const T* weights, const T* source, T* out, const std::vector<T*>& running, const T* target) {
  size_t statistics = 0;
  has_loss_ = target != nullptr && !ends_in_norm_;
  for (size_t l = 0; l < links_.size(); ++l) {
    Link& link = links_[l];
    const Link* before = l == 0 ? nullptr : &links_[l - 1];
    set_weights(link, weights);
    offsets(link, before == nullptr ? nullptr : &before->norms.back(), weights);
    if (link.head()) {
      return output_head::forward(output_head::Forward<T>{
          head(), act_, slope_, link.offset.data(), target, out, link.y.data(), moments_.data()});
    }
    const PixelMap<T> map = before == nullptr ? source_map() : map_of(*before);
    convolve(link, before == nullptr ? source : before->y.data(), map);
    for (size_t which = 0; which < link.norms.size(); ++which) {
      const int64_t chunks = batch_norm_act::chunks_of(link.pixels());
      const bool strips = which == 0 && !link.direct(); // they come from the convolution
      if (!strips) {
        batch_norm_act::Statistics<T> s{link.spec.outputs, link.pixels(), link.y.data(), {}, which == 1,
                                        moments_.data()};
        s.map = which == 1 ? map_of(link) : s.map;
        batch_norm_act::statistics(s);
      }
      T* mean = running.empty() ? nullptr : running[statistics];
      T* var = running.empty() ? nullptr : running[statistics + 1];
      statistics += 2;
      normalise(link, which, moments_.data(), strips ? link.mixing.mix.strips : chunks, !strips, weights, mean, var);
    }
  }
  Link& last = links_.back();
  if (ends_in_norm_) {
    batch_norm_act::map_image(last.y.data(), map_of(last), last.spec.outputs, last.pixels(), out);
    return 0;
  }
  if (target != nullptr) {
    return batch_norm_act::output_loss(batch_norm_act::OutputLoss<T>{
        last.spec.outputs, last.pixels(), act_, slope_, last.y.data(), last.offset.data(), target, out,
        moments_.data()});
  }
  batch_norm_act::output(batch_norm_act::Output<T>{
      last.spec.outputs, last.pixels(), act_, slope_, last.y.data(), last.offset.data(), nullptr, out});
  return 0;
}

template <typename T>
void Chain<T>::set_weights(Link& link, const T* weights) {
  const auto scale = static_cast<T>(link.spec.scale);
  const int64_t* indices = link.spec.weights.data();
  if (link.head()) {
    each_head_weight([&](int64_t place, int64_t index) { head_weights_[place] = weights[index] * scale; });
  } else if (link.dense) {
    const T* all = weights + link.spec.first_weight;
    if (link.spec.first_weight < 0) {
      for (size_t t = 0; t < link.positions.size(); ++t) {
        link.all_weights[link.positions[t]] = weights[indices[t]];
      }
      all = link.all_weights.data();
    }
    if (link.direct()) {
      link.dense_conv.set(all, scale, !fixed(link));
    } else {
      link.mixing.set_dense(all, scale);
    }
  } else if (link.direct()) {
    for (size_t t = 0; t < link.weights.size(); ++t) {
      link.weights[t] = weights[indices[t]] * scale;
    }
  } else {
    link.mixing.set(weights, indices, scale);
  }
}

template <typename T>
output_head::Head<T> Chain<T>::head() const {
  const Link &last = links_.back(), &before = links_[links_.size() - 2];
  return {last.inputs, last.spec.outputs, last.pixels(), map_of(before), before.y.data(), head_weights_.data()};
}

// Calls f(place in head_weights_, index) for every weight of the head.
template <typename T>
template <typename F>
void Chain<T>::each_head_weight(const F& f) const {
  const Link& last = links_.back();
  for (int64_t t = 0; last.spec.first_weight >= 0 && t < last.places(); ++t) {
    f(t % last.inputs * kMostBehind + t / last.inputs, last.spec.first_weight + t);
  }
  for (size_t t = 0; t < last.spec.weights.size(); ++t) {
    f(last.spec.taps[4 * t + 1] * kMostBehind + last.spec.taps[4 * t], last.spec.weights[t]);
  }
}

template <typename T>
void Chain<T>::convolve(Link& link, const T* source, const PixelMap<T>& map) {
  if (!link.direct()) {
    mixing::Mix<T> a = link.mixing.mix;
    a.map = map;
    a.source = source;
    a.out = link.y.data();
    a.moments = link.norms.empty() ? nullptr : moments_.data();
    mixing::mix(a);
    return;
  }
  if (!fixed(link)) {
    frame::Frame<T> f = link.frame;
    f.border = &link.border;
    f.map = map;
    f.image = source;
    frame::make(f);
  }
  const T* planes = fixed(link) ? source : link.planes.data();
  if (link.dense) {
    link.dense_conv.run_forward(planes, link.y.data());
    return;
  }
  sparse_conv2d::Gather<T> g = link.gather;
  g.source = planes;
  g.out = link.y.data();
  sparse_conv2d::run(g, 1, static_cast<int64_t>(link.weights.size()) * link.pixels());
}

template <typename T>
void Chain<T>::offsets(Link& link, const Norm* before, const T* weights) {
  for (size_t o = 0; o < link.offset.size(); ++o) {
    const int64_t index = link.spec.bias[o];
    link.offset[o] = index < 0 ? T(0) : weights[index];
  }
  const T factor = static_cast<T>(link.spec.scale * (link.spec.box ? 4 : 1));
  for (size_t i = 0; i < link.spec.constant_taps.size(); i += 3) {
    const int64_t* tap = &link.spec.constant_taps[i];
    link.offset[tap[0]] += weights[tap[1]] * factor * before->constants[tap[2]];
  }
}

template <typename T>
void Chain<T>::normalise(
    Link& link, size_t which, const double* moments, int64_t parts, bool chunks, const T* weights, T* mean, T* var) {
  Norm& norm = link.norms[which];
  const NormSpec& spec = norm.spec;
  const int64_t channels = link.spec.outputs, pixels = link.pixels();
  const double momentum = spec.momentum;
  for (int64_t c = 0; c < channels; ++c) {
    Merged all;
    for (int64_t part = 0; part < parts; ++part) {
      const double* of_part = moments + 2 * (chunks ? c * parts + part : part * channels + c);
      const int64_t size = chunks ? batch_norm_act::kChunk : link.mixing.mix.strip_rows * (pixels / link.rows);
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
      const double offset = which == 0 ? static_cast<double>(link.offset[c]) : 0;
      T& m = mean[spec.places[c]];
      T& v = var[spec.places[c]];
      m = static_cast<T>((1 - momentum) * m + momentum * (all.mean + offset));
      v = static_cast<T>((1 - momentum) * v + momentum * variance * count / (count - 1));
    }
  }
  for (size_t i = 0; mean != nullptr && spec.tracks && i < spec.tracked.size(); ++i) {
    const int64_t from = spec.tracked[i];
    const T k = from < 0 ? T(0) : which == 0 ? link.offset[channels + from] : link.norms[0].constants[from];
    T& m = mean[spec.tracked_places[i]];
    T& v = var[spec.tracked_places[i]];
    m = static_cast<T>((1 - momentum) * m + momentum * k);
    v = static_cast<T>((1 - momentum) * v);
  }
  for (size_t i = 0; i < spec.constants.size(); ++i) {
    norm.constants[i] = with_act(spec.act, [&](auto act) {
      return activate<act.value>(weights[spec.constants[i]], static_cast<T>(spec.slope));
    });
  }
}

} // namespace oes::chain

// Members of Chain that differentiate it. Included by chain.cpp alone.
#pragma once

#include <algorithm>

#include "cpu/chain/forward.h"

namespace oes::chain {

template <typename T>
void Chain<T>::backward(const T* weights, const T* source, const T* grad, T* grad_weights, T* grad_source) {
  Link& end = links_.back();
  T* of_y = grad == nullptr ? end.y.data() : grads_[0].data(); // the forward has left it there
  T* of_source = grads_[1].data();
  T* spare = grads_[0].data();
  if (ends_in_norm_) {
    std::copy_n(grad, end.spec.outputs * end.pixels(), of_y);
    norm_back(end, nullptr, of_y, grad_weights);
  } else {
    if (grad != nullptr) {
      batch_norm_act::output(batch_norm_act::Output<T>{
          end.spec.outputs, end.pixels(), act_, slope_, end.y.data(), end.offset.data(), grad, of_y});
    }
    offset_back(end, links_.size() == 1 ? nullptr : &links_[links_.size() - 2].norms.back(), of_y, weights, grad_weights);
  }
  if (end.head()) {
    head_back(of_y, grad_weights);
    norm_back(links_[links_.size() - 2], &end, nullptr, grad_weights);
  }
  for (size_t l = links_.size() - (end.head() ? 1 : 0); l-- > 0;) {
    Link& link = links_[l];
    const bool behind = end.head() && l + 2 == links_.size();
    const PixelGrad<T> of_result = behind ? grad_behind(link, of_y) : grad_of(link, of_y);
    if (l == 0) {
      conv_back(link, nullptr, source, source_map(), of_result, grad_source, grad_weights);
      break;
    }
    Link& before = links_[l - 1];
    conv_back(link, &before, before.y.data(), map_of(before), of_result, of_source, grad_weights);
    norm_back(before, &link, of_source, grad_weights);
    of_y = of_source;
    std::swap(of_source, spare);
  }
}

template <typename T>
PixelGrad<T> Chain<T>::grad_of(const Link& link, const T* grad) const {
  const T* zeros = link.zeros.data();
  if (link.norms.empty()) {
    return {grad, link.y.data(), zeros, link.ones.data(), zeros, zeros};
  }
  const Norm& norm = link.norms[0];
  return {grad, link.y.data(), norm.mean.data(), norm.a.data(), norm.b.data(), norm.c.data()};
}

template <typename T>
PixelGrad<T> Chain<T>::grad_behind(const Link& link, const T* grad) const {
  PixelGrad<T> result = grad_of(link, grad);
  result.outputs = links_.back().spec.outputs;
  result.pixels = link.pixels();
  result.weights = head_weights_.data();
  result.map = map_of(link);
  return result;
}

template <typename T>
void Chain<T>::head_back(const T* grad, T* grad_weights) {
  const output_head::Head<T> h = head();
  output_head::backward(output_head::Backward<T>{h, grad, moments_.data(), head_sums_.data()});
  each_head_weight([&](int64_t place, int64_t index) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < output_head::chunks_of(h.pixels); ++chunk) {
      sum += head_sums_.data()[chunk * h.channels * kMostBehind + place];
    }
    grad_weights[index] += static_cast<T>(sum) * static_cast<T>(links_.back().spec.scale);
  });
}

template <typename T>
void Chain<T>::norm_back(Link& link, const Link* reader, T* grad, T* grad_weights) {
  const int64_t channels = link.spec.outputs, pixels = link.pixels(), chunks = batch_norm_act::chunks_of(pixels);
  Norm& one = link.norms[0];
  // Sums of a channel: of the gradient, and of it times the centred pixels; and what follows for the weights and for
  // the gradient of the norm's input, a * grad + b * (input - mean) + c.
  const auto derive = [&](Norm& norm, int64_t parts, int64_t next_part, int64_t next_channel) {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, product = 0;
      for (int64_t part = 0; part < parts; ++part) {
        const double* sums = moments_.data() + 2 * (c * next_channel + part * next_part);
        sum += sums[0];
        product += sums[1];
      }
      const double rstd = norm.rstd[c], scale = static_cast<double>(norm.scale[c]);
      const auto n = static_cast<double>(pixels);
      const double slope = -scale * rstd * rstd * product / n;
      norm.a[c] = norm.scale[c];
      norm.b[c] = static_cast<T>(slope);
      norm.c[c] = static_cast<T>(-scale * sum / n);
      if (norm.spec.gamma[c] >= 0) {
        grad_weights[norm.spec.gamma[c]] += static_cast<T>(product * rstd);
      }
      if (norm.spec.beta[c] >= 0) {
        grad_weights[norm.spec.beta[c]] += static_cast<T>(sum);
      }
    }
  };
  const bool begun = reader != nullptr && !reader->direct();
  if (begun) {
    const int64_t parts = reader->head() ? output_head::chunks_of(pixels) : reader->mixing.back.strips;
    derive(link.norms.back(), parts, channels, 1);
    if (link.norms.size() == 1) {
      return;
    }
  }
  batch_norm_act::ActivationGrad<T> a{channels, pixels, link.y.data(), map_of(link)};
  if (link.norms.size() > 1) {
    Norm& two = link.norms[1];
    if (!begun) {
      batch_norm_act::second_sums(batch_norm_act::SecondSums<T>{
          channels, pixels, link.y.data(), map_of(link), grad, moments_.data()});
      derive(two, chunks, 1, chunks);
    }
    a.second = true;
    a.a = two.a.data();
    a.b = two.b.data();
    a.c = two.c.data();
  }
  a.grad = grad;
  a.sums = moments_.data();
  batch_norm_act::activation_grad(a);
  derive(one, chunks, 1, chunks);
}

template <typename T>
void Chain<T>::conv_back(
    Link& link,
    const Link* before,
    const T* source,
    const PixelMap<T>& map,
    PixelGrad<T> grad,
    T* grad_source,
    T* grad_weights) {
  if (!link.direct()) {
    mixing::MixBack<T> a = link.mixing.back;
    a.map = map;
    a.source = source;
    a.grad = grad;
    a.grad_source = grad_source;
    if (before != nullptr) {
      a.leave = before->norms.size() > 1 ? mixing::Leave::kSecondSums : mixing::Leave::kActivation;
      a.leave_sums = moments_.data();
    }
    a.sums = partial_.data();
    mixing::mix_back(a);
    add_grads(link, a.sums, grad_weights);
    return;
  }
  frame::Bordered<T> b = link.bordered;
  b.grad = grad;
  b.out = bordered_.data();
  frame::bordered(b);
  const T* planes = fixed(link) ? source : link.planes.data();
  const T* centre = bordered_.data() + b.top * b.pitch + b.left;
  const auto taps = static_cast<int64_t>(link.weights.size());
  const int64_t macs = taps * link.pixels();
  if (link.dense) {
    link.dense_conv.run_dot(planes, centre, partial_.data());
  } else {
    sparse_conv2d::Dot<T> d = link.dot;
    d.source = planes;
    d.grad = centre;
    d.partial = partial_.data();
    sparse_conv2d::run(d, 1, macs);
  }
  add_grads(link, partial_.data(), grad_weights);
  if (grad_source == nullptr) {
    return;
  }
  if (link.dense) {
    link.dense_conv.run_backward(bordered_.data(), grad_planes_.data());
  } else {
    for (int64_t t = 0; t < taps; ++t) {
      link.back_weights[t] = link.weights[link.back_order[t]];
    }
    sparse_conv2d::Gather<T> g = link.gather_back;
    g.source = bordered_.data();
    g.out = grad_planes_.data();
    sparse_conv2d::run(g, 1, macs);
  }
  frame::Frame<T> f = link.frame;
  f.grad_planes = grad_planes_.data();
  f.grad_image = grad_source;
  frame::make_back(f);
}

// Adds up the parts of the gradient of every weight.
template <typename T>
void Chain<T>::add_grads(Link& link, const T* sums, T* grad_weights) {
  const auto scale = static_cast<T>(link.spec.scale);
  const int64_t* indices = link.spec.weights.data();
  if (link.dense) {
    T* all = grad_weights + link.spec.first_weight;
    if (link.spec.first_weight < 0) {
      std::fill(link.all_grads.begin(), link.all_grads.end(), T(0));
      all = link.all_grads.data();
    }
    if (link.direct()) {
      link.dense_conv.add_grads(sums, scale, all);
    } else {
      link.mixing.add_dense_grads(sums, scale, all);
    }
    for (size_t t = 0; t < link.positions.size(); ++t) {
      grad_weights[indices[t]] += all[link.positions[t]];
    }
  } else if (link.direct()) {
    sparse_conv2d::add_grads(link.dot, sums, indices, scale, grad_weights);
  } else {
    link.mixing.add_grads(sums, indices, scale, grad_weights);
  }
}

// Of a last convolution with no norm behind it: gradient of its bias and of what constant channels add.
template <typename T>
void Chain<T>::offset_back(Link& link, const Norm* before, const T* grad, const T* weights, T* grad_weights) {
  const int64_t pixels = link.pixels();
  std::vector<double> sums(link.spec.outputs);
  const bool any = std::any_of(link.spec.bias.begin(), link.spec.bias.end(), [](int64_t i) { return i >= 0; });
  if (!any && link.spec.constant_taps.empty()) {
    return;
  }
  batch_norm_act::statistics(batch_norm_act::Statistics<T>{
      link.spec.outputs, pixels, grad, {}, false, moments_.data()});
  const int64_t chunks = batch_norm_act::chunks_of(pixels);
  for (int64_t o = 0; o < link.spec.outputs; ++o) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t size = std::min(batch_norm_act::kChunk, pixels - chunk * batch_norm_act::kChunk);
      sums[o] += moments_.data()[2 * (o * chunks + chunk)] * static_cast<double>(size);
    }
    if (link.spec.bias[o] >= 0) {
      grad_weights[link.spec.bias[o]] += static_cast<T>(sums[o]);
    }
  }
  const double factor = link.spec.scale * (link.spec.box ? 4 : 1);
  for (size_t i = 0; i < link.spec.constant_taps.size(); i += 3) {
    const int64_t* tap = &link.spec.constant_taps[i];
    const int64_t beta = before->spec.constants[tap[2]];
    const auto slope = static_cast<double>(with_act(before->spec.act, [&](auto act) {
      return activate_grad<act.value>(weights[beta], static_cast<T>(before->spec.slope));
    }));
    const double of_constant = sums[tap[0]] * factor * static_cast<double>(weights[tap[1]]);
    grad_weights[tap[1]] += static_cast<T>(sums[tap[0]] * factor * static_cast<double>(before->constants[tap[2]]));
    grad_weights[beta] += static_cast<T>(of_constant * slope);
  }
}

} // namespace oes::chain

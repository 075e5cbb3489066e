// Members of Chain that differentiate it. Included by chain.cpp alone.
#pragma once

#include <algorithm>

#include "cpu/chain/forward.h"

namespace oes::chain {

template <typename T>
void Chain<T>::backward(const T* weights, const T* source, const T* grad, T* grad_weights, T* grad_source) {
  ConvBlock& end = blocks_.back();
  T* of_y = grad == nullptr ? end.y.data() : grads_[0].data(); // the forward has left it there
  T* of_source = grads_[1].data();
  T* spare = grads_[0].data();
  if (ends_in_norm_) {
    std::copy_n(grad, end.spec.outputs * end.pixels(), of_y);
    norm_back(end, nullptr, of_y, grad_weights);
  } else {
    if (grad != nullptr) {
      norm::output(norm::Output<T>{
          end.spec.outputs, end.pixels(), act_, slope_, end.y.data(), end.offset.data(), grad, of_y});
    }
    offset_back(end, blocks_.size() == 1 ? nullptr : &blocks_[blocks_.size() - 2].norms.back(), of_y, weights, grad_weights);
  }
  if (end.head()) {
    head_back(of_y, grad_weights);
    norm_back(blocks_[blocks_.size() - 2], &end, nullptr, grad_weights);
  }
  for (size_t l = blocks_.size() - (end.head() ? 1 : 0); l-- > 0;) {
    ConvBlock& block = blocks_[l];
    const bool behind = end.head() && l + 2 == blocks_.size();
    const norm::PrologueGrad<T> of_result = behind ? grad_behind(block, of_y) : grad_of(block, of_y);
    if (l == 0) {
      conv_back(block, nullptr, source, source_map(), of_result, grad_source, grad_weights);
      break;
    }
    ConvBlock& before = blocks_[l - 1];
    conv_back(block, &before, before.y.data(), map_of(before), of_result, of_source, grad_weights);
    norm_back(before, &block, of_source, grad_weights);
    of_y = of_source;
    std::swap(of_source, spare);
  }
}

template <typename T>
norm::PrologueGrad<T> Chain<T>::grad_of(const ConvBlock& block, const T* grad) const {
  const T* zeros = block.zeros.data();
  if (block.norms.empty()) {
    return {grad, block.y.data(), zeros, block.ones.data(), zeros, zeros};
  }
  const Norm& norm = block.norms[0];
  return {grad, block.y.data(), norm.mean.data(), norm.a.data(), norm.b.data(), norm.c.data()};
}

template <typename T>
norm::PrologueGrad<T> Chain<T>::grad_behind(const ConvBlock& block, const T* grad) const {
  norm::PrologueGrad<T> result = grad_of(block, grad);
  result.outputs = blocks_.back().spec.outputs;
  result.pixels = block.pixels();
  result.weights = head_weights_.data();
  result.prologue = map_of(block);
  return result;
}

template <typename T>
void Chain<T>::head_back(const T* grad, T* grad_weights) {
  const conv::OutputHead<T> h = head();
  conv::output_head_backward(conv::OutputHeadBackward<T>{h, grad, moments_.data(), head_sums_.data()});
  each_head_weight([&](int64_t place, int64_t index) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < conv::head_chunks(h.pixels); ++chunk) {
      sum += head_sums_.data()[chunk * h.channels * norm::kMostHeadOutputs + place];
    }
    grad_weights[index] += static_cast<T>(sum) * static_cast<T>(blocks_.back().spec.scale);
  });
}

template <typename T>
void Chain<T>::norm_back(ConvBlock& block, const ConvBlock* reader, T* grad, T* grad_weights) {
  const int64_t channels = block.spec.outputs, pixels = block.pixels(), chunks = norm::chunks_of(pixels);
  Norm& one = block.norms[0];
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
    const int64_t parts = reader->head() ? conv::head_chunks(pixels) : reader->upsample.backward.strips;
    derive(block.norms.back(), parts, channels, 1);
    if (block.norms.size() == 1) {
      return;
    }
  }
  norm::ActivationGrad<T> a{channels, pixels, block.y.data(), map_of(block)};
  if (block.norms.size() > 1) {
    Norm& two = block.norms[1];
    if (!begun) {
      norm::second_sums(norm::SecondNormSums<T>{
          channels, pixels, block.y.data(), map_of(block), grad, moments_.data()});
      derive(two, chunks, 1, chunks);
    }
    a.second = true;
    a.a = two.a.data();
    a.b = two.b.data();
    a.c = two.c.data();
  }
  a.grad = grad;
  a.sums = moments_.data();
  norm::activation_grad(a);
  derive(one, chunks, 1, chunks);
}

template <typename T>
void Chain<T>::conv_back(
    ConvBlock& block,
    const ConvBlock* before,
    const T* source,
    const norm::Prologue<T>& map,
    norm::PrologueGrad<T> grad,
    T* grad_source,
    T* grad_weights) {
  if (!block.direct()) {
    conv::UpsampleConvGrad<T> a = block.upsample.backward;
    a.prologue = map;
    a.source = source;
    a.grad = grad;
    a.grad_source = grad_source;
    if (before != nullptr) {
      a.epilogue = before->norms.size() > 1 ? conv::GradEpilogue::kSecondNormSums : conv::GradEpilogue::kActivation;
      a.epilogue_sums = moments_.data();
    }
    a.sums = partial_.data();
    conv::upsample_conv_grad(a);
    add_grads(block, a.sums, grad_weights);
    return;
  }
  conv::PaddedGrad<T> b = block.padded_grad;
  b.grad = grad;
  b.out = padded_grad_.data();
  conv::padded_grad(b);
  const T* planes = fixed(block) ? source : block.planes.data();
  const T* centre = padded_grad_.data() + b.top * b.pitch + b.left;
  const auto taps = static_cast<int64_t>(block.weights.size());
  const int64_t macs = taps * block.pixels();
  if (block.dense) {
    block.dense_conv.run_weight_grad(planes, centre, partial_.data());
  } else {
    conv::SparseWeightGrad<T> d = block.dot;
    d.source = planes;
    d.grad = centre;
    d.partial = partial_.data();
    conv::run(d, 1, macs);
  }
  add_grads(block, partial_.data(), grad_weights);
  if (grad_source == nullptr) {
    return;
  }
  if (block.dense) {
    block.dense_conv.run_backward(padded_grad_.data(), grad_planes_.data());
  } else {
    for (int64_t t = 0; t < taps; ++t) {
      block.back_weights[t] = block.weights[block.back_order[t]];
    }
    conv::SparseTapSum<T> g = block.gather_back;
    g.source = padded_grad_.data();
    g.out = grad_planes_.data();
    conv::run(g, 1, macs);
  }
  conv::ConvInput<T> f = block.input;
  f.grad_planes = grad_planes_.data();
  f.grad_image = grad_source;
  conv::conv_input_backward(f);
}

// Adds up the parts of the gradient of every weight.
template <typename T>
void Chain<T>::add_grads(ConvBlock& block, const T* sums, T* grad_weights) {
  const auto scale = static_cast<T>(block.spec.scale);
  const int64_t* indices = block.spec.weights.data();
  if (block.dense) {
    T* all = grad_weights + block.spec.first_weight;
    if (block.spec.first_weight < 0) {
      std::fill(block.all_grads.begin(), block.all_grads.end(), T(0));
      all = block.all_grads.data();
    }
    if (block.direct()) {
      block.dense_conv.add_grads(sums, scale, all);
    } else {
      block.upsample.add_dense_grads(sums, scale, all);
    }
    for (size_t t = 0; t < block.positions.size(); ++t) {
      grad_weights[indices[t]] += all[block.positions[t]];
    }
  } else if (block.direct()) {
    conv::add_grads(block.dot, sums, indices, scale, grad_weights);
  } else {
    block.upsample.add_grads(sums, indices, scale, grad_weights);
  }
}

// Of a last convolution with no norm behind it: gradient of its bias and of what constant channels add.
template <typename T>
void Chain<T>::offset_back(ConvBlock& block, const Norm* before, const T* grad, const T* weights, T* grad_weights) {
  const int64_t pixels = block.pixels();
  std::vector<double> sums(block.spec.outputs);
  const bool any = std::any_of(block.spec.bias.begin(), block.spec.bias.end(), [](int64_t i) { return i >= 0; });
  if (!any && block.spec.constant_taps.empty()) {
    return;
  }
  norm::statistics(norm::Statistics<T>{
      block.spec.outputs, pixels, grad, {}, false, moments_.data()});
  const int64_t chunks = norm::chunks_of(pixels);
  for (int64_t o = 0; o < block.spec.outputs; ++o) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t size = std::min(norm::kChunk, pixels - chunk * norm::kChunk);
      sums[o] += moments_.data()[2 * (o * chunks + chunk)] * static_cast<double>(size);
    }
    if (block.spec.bias[o] >= 0) {
      grad_weights[block.spec.bias[o]] += static_cast<T>(sums[o]);
    }
  }
  const double factor = block.spec.scale * (block.spec.box ? 4 : 1);
  for (size_t i = 0; i < block.spec.constant_taps.size(); i += 3) {
    const int64_t* tap = &block.spec.constant_taps[i];
    const int64_t beta = before->spec.constants[tap[2]];
    const auto slope = static_cast<double>(norm::with_act(before->spec.act, [&](auto act) {
      return norm::activate_grad<act.value>(weights[beta], static_cast<T>(before->spec.slope));
    }));
    const double of_constant = sums[tap[0]] * factor * static_cast<double>(weights[tap[1]]);
    grad_weights[tap[1]] += static_cast<T>(sums[tap[0]] * factor * static_cast<double>(before->constants[tap[2]]));
    grad_weights[beta] += static_cast<T>(of_constant * slope);
  }
}

} // namespace oes::chain

#include "cpu/chain/chain.h"

#include <algorithm>

#include "common/chain_checks.h"
#include "cpu/chain/conv_weights.h"
#include "cpu/norm/batch_norm_act.h"

namespace oes::chain {

template <typename T>
Chain<T>::Chain(int64_t channels, int64_t rows, int64_t columns, bool constant_input, int64_t weights)
    : constant_input_(constant_input), channels_(channels), rows_(rows), columns_(columns), weights_(weights) {
  expect(channels > 0 && rows > 0 && columns > 0 && weights >= 0, "chain: expected an image and weights");
  ones_.assign(channels, T(1));
  zeros_.assign(channels, T(0));
}

template <typename T>
void Chain<T>::add_conv(const ConvSpec& spec) {
  expect(!finished_, "convolution: expected a chain that is not finished");
  const ConvBlock* before = blocks_.empty() ? nullptr : &blocks_.back();
  expect(before == nullptr || !before->norms.empty(), "convolution: expected a norm before it");
  const int64_t inputs = before == nullptr ? channels_ : before->spec.outputs;
  const int64_t rows = before == nullptr ? rows_ : before->conv->out_rows();
  const int64_t columns = before == nullptr ? columns_ : before->conv->out_columns();
  const size_t constants = before == nullptr ? 0 : before->norms.back().constants().size();
  check_conv(spec, inputs, rows, columns, static_cast<int64_t>(constants), weights_);
  ConvBlock block;
  block.spec = spec;
  block.conv = make_chain_conv<T>(spec, inputs, rows, columns, constant_input_ && before == nullptr);
  expect(
      spec.kind != ConvKind::kHead || (before != nullptr && before->norms.size() == 1),
      "head: expected a single norm before it");
  block.ones.assign(spec.outputs, T(1));
  block.zeros.assign(spec.outputs, T(0));
  block.shift.resize(spec.bias.size());
  block.y.reserve(spec.outputs * block.pixels());
  blocks_.push_back(std::move(block));
}

template <typename T>
void Chain<T>::add_norm(const NormSpec& spec) {
  expect(!blocks_.empty() && blocks_.back().norms.size() < 2, "norm: expected one or two behind a convolution");
  ConvBlock& block = blocks_.back();
  expect(block.spec.kind != ConvKind::kHead, "norm: expected none behind the head");
  expect(!finished_, "norm: expected a chain that is not finished");
  // A constant channel has what the convolution adds to it, or the constant of the norm before.
  const size_t constants =
      block.norms.empty() ? block.shift.size() - block.spec.outputs : block.norms[0].constants().size();
  check_norm(spec, block.spec.outputs, static_cast<int64_t>(constants), weights_);
  block.norms.emplace_back(spec, block.spec.outputs);
}

template <typename T>
void Chain<T>::finish(OutputAct act, double slope) {
  expect(!blocks_.empty() && !finished_, "chain: expected a convolution, and to be finished once");
  finished_ = true;
  act_ = act;
  slope_ = static_cast<T>(slope);
  ends_in_norm_ = !blocks_.back().norms.empty();
  int64_t grads = channels_ * rows_ * columns_;
  for (const ConvBlock& block : blocks_) {
    grads = std::max(grads, block.spec.outputs * block.pixels());
    buffers_.moments.reserve(2 * block.spec.outputs * norm::chunks_of(block.pixels()));
    block.conv->reserve(buffers_);
  }
  for (Aligned<T>& buffer : grads_) {
    buffer.reserve(grads);
  }
}

template <typename T>
std::vector<int64_t> Chain<T>::shape() const {
  const ConvBlock& last = blocks_.back();
  return {last.spec.outputs, last.conv->out_rows(), last.conv->out_columns()};
}

template <typename T>
bool Chain<T>::source_row_major() const {
  return constant_input_ && !blocks_.empty() && blocks_.front().conv->constant_source_row_major();
}

template <typename T>
int64_t Chain<T>::source_size() const {
  return constant_input_ ? blocks_.front().conv->constant_source_size() : channels_ * rows_ * columns_;
}

template <typename T>
int64_t Chain<T>::output_size() const {
  return blocks_.back().spec.outputs * blocks_.back().pixels();
}

template <typename T>
Indices Chain<T>::statistics_sizes() const {
  Indices sizes;
  for (const ConvBlock& block : blocks_) {
    for (const ChainNorm<T>& norm : block.norms) {
      int64_t most = -1;
      for (const Indices* indices : {&norm.spec().stats_index, &norm.spec().tracked_stats_index}) {
        for (const int64_t index : *indices) {
          most = norm.spec().tracks ? std::max(most, index) : most;
        }
      }
      sizes.push_back(most + 1);
    }
  }
  return sizes;
}

// The source as it is.
template <typename T>
norm::Prologue<T> Chain<T>::source_prologue() const {
  const T *ones = ones_.data(), *zeros = zeros_.data();
  return {zeros, ones, zeros, zeros, ones, zeros, T(1), Act::kLeaky};
}

// What is done to the block's result by whoever reads it.
template <typename T>
norm::Prologue<T> Chain<T>::prologue_of(const ConvBlock& block) const {
  const ChainNorm<T>& one = block.norms[0];
  const ChainNorm<T>* two = block.norms.size() > 1 ? &block.norms[1] : nullptr;
  const T *zeros = block.zeros.data(), *ones = block.ones.data();
  return {
      one.mean.data(),
      one.scale.data(),
      one.shift.data(),
      two == nullptr ? zeros : two->mean.data(),
      two == nullptr ? ones : two->scale.data(),
      two == nullptr ? zeros : two->shift.data(),
      static_cast<T>(one.spec().slope),
      one.spec().act};
}

// Gradient of the block's result from that of the normalised one, or from its own where no norm is behind it.
template <typename T>
norm::PrologueGrad<T> Chain<T>::grad_of(const ConvBlock& block, const T* grad) const {
  const T* zeros = block.zeros.data();
  if (block.norms.empty()) {
    return {grad, block.y.data(), zeros, block.ones.data(), zeros, zeros};
  }
  const ChainNorm<T>& norm = block.norms[0];
  return {grad, block.y.data(), norm.mean.data(), norm.a.data(), norm.b.data(), norm.c.data()};
}

template <typename T>
double Chain<T>::forward(
    const T* weights, const T* source, T* out, const std::vector<T*>& running, const T* target, const T* weight) {
  size_t statistics = 0;
  has_loss_ = target != nullptr && !ends_in_norm_;
  for (size_t l = 0; l < blocks_.size(); ++l) {
    ConvBlock& block = blocks_[l];
    const ConvBlock* before = l == 0 ? nullptr : &blocks_[l - 1];
    block.conv->set_weights(weights);
    set_shift(block, before == nullptr ? nullptr : &before->norms.back(), weights);
    const ForwardArguments<T> a{
        before == nullptr ? source : before->y.data(), before == nullptr ? source_prologue() : prologue_of(*before),
        block.y.data(), !block.norms.empty()};
    if (block.norms.empty()) { // the last
      return block.conv->forward_image(a, {act_, slope_, block.shift.data(), target, weight, out}, buffers_);
    }
    block.conv->forward(a, buffers_);
    for (size_t which = 0; which < block.norms.size(); ++which, statistics += 2) {
      const RunningStats<T> stats = running.empty() ? RunningStats<T>{nullptr, nullptr}
                                                    : RunningStats<T>{running[statistics], running[statistics + 1]};
      normalise(block, which, weights, stats);
    }
  }
  const ConvBlock& last = blocks_.back();
  norm::map_image(last.y.data(), prologue_of(last), last.spec.outputs, last.pixels(), out);
  return 0;
}

template <typename T>
void Chain<T>::set_shift(ConvBlock& block, const ChainNorm<T>* before, const T* weights) {
  for (size_t o = 0; o < block.shift.size(); ++o) {
    const int64_t index = block.spec.bias[o];
    block.shift[o] = index < 0 ? T(0) : weights[index];
  }
  const T factor = static_cast<T>(block.spec.scale * (block.spec.box ? 4 : 1));
  for (size_t i = 0; i < block.spec.constant_taps.size(); i += 3) {
    const int64_t* tap = &block.spec.constant_taps[i];
    block.shift[tap[0]] += weights[tap[1]] * factor * before->constants()[tap[2]];
  }
}

// The first or the second norm of the block.
template <typename T>
void Chain<T>::normalise(ConvBlock& block, size_t which, const T* weights, const RunningStats<T>& running) {
  const int64_t channels = block.spec.outputs, pixels = block.pixels();
  double* moments = buffers_.moments.data();
  const bool second = which == 1;
  const NormInput<T> input = second ? NormInput<T>{nullptr, block.norms[0].constants().data()}
                                    : NormInput<T>{block.shift.data(), block.shift.data() + channels};
  const int64_t of_conv = block.conv->moments_pixels();
  if (!second && of_conv > 0) {
    const ChannelSums sums{moments, ceil_div(pixels, of_conv), channels, 1, of_conv};
    block.norms[which].forward(sums, pixels, weights, input, running);
    return;
  }
  norm::Statistics<T> a{channels, pixels, block.y.data(), {}, second, moments};
  if (second) {
    a.prologue = prologue_of(block);
  }
  norm::statistics(a);
  const int64_t chunks = norm::chunks_of(pixels);
  block.norms[which].forward(ChannelSums{moments, chunks, 1, chunks, norm::kChunk}, pixels, weights, input, running);
}

template <typename T>
void Chain<T>::backward(const T* weights, const T* source, const T* grad, T* grad_weights, T* grad_source) {
  ConvBlock& end = blocks_.back();
  T* of_y = grad == nullptr ? end.y.data() : grads_[0].data(); // the forward has left it there
  T* of_source = grads_[1].data();
  T* spare = grads_[0].data();
  if (ends_in_norm_) {
    std::copy_n(grad, end.spec.outputs * end.pixels(), of_y);
    norms_backward(end, nullptr, of_y, grad_weights);
  } else {
    if (grad != nullptr) {
      norm::output(
          norm::Output<T>{end.spec.outputs, end.pixels(), act_, slope_, end.y.data(), end.shift.data(), grad, of_y});
    }
    const ChainNorm<T>* before = blocks_.size() == 1 ? nullptr : &blocks_[blocks_.size() - 2].norms.back();
    shift_backward(end, before, of_y, weights, grad_weights);
  }
  for (size_t l = blocks_.size(); l-- > 0;) {
    ConvBlock& block = blocks_[l];
    norm::PrologueGrad<T> of_result = grad_of(block, of_y);
    if (l + 1 < blocks_.size() && !blocks_[l + 1].conv->writes_grad_source()) {
      blocks_[l + 1].conv->grad_when_read(of_result, prologue_of(block));
    }
    if (l == 0) {
      block.conv->backward(
          {source, source_prologue(), of_result, grad_source, conv::GradEpilogue::kNone, grad_weights}, buffers_);
      return;
    }
    ConvBlock& before = blocks_[l - 1];
    const auto epilogue =
        before.norms.size() > 1 ? conv::GradEpilogue::kSecondNormSums : conv::GradEpilogue::kActivation;
    block.conv->backward(
        {before.y.data(), prologue_of(before), of_result, of_source, epilogue, grad_weights}, buffers_);
    norms_backward(before, block.conv.get(), of_source, grad_weights);
    if (block.conv->writes_grad_source()) {
      of_y = of_source;
      std::swap(of_source, spare);
    }
  }
}

// In place: gradient of the block's normalised result to what grad_of takes. `reader` has read the result, and its
// epilogue has done what it could of this; nullptr: nobody has.
template <typename T>
void Chain<T>::norms_backward(ConvBlock& block, const ChainConv<T>* reader, T* grad, T* grad_weights) {
  const int64_t channels = block.spec.outputs, pixels = block.pixels(), chunks = norm::chunks_of(pixels);
  double* moments = buffers_.moments.data();
  const ChannelSums sums{moments, chunks, 1, chunks, norm::kChunk};
  const int64_t begun = reader == nullptr ? 0 : reader->epilogue_chunks();
  if (begun > 0) {
    block.norms.back().backward(ChannelSums{moments, begun, channels, 1, 0}, pixels, grad_weights);
    if (block.norms.size() == 1) {
      return;
    }
  }
  norm::ActivationGrad<T> a{channels, pixels, block.y.data(), prologue_of(block)};
  if (block.norms.size() > 1) {
    ChainNorm<T>& two = block.norms[1];
    if (begun == 0) {
      norm::second_sums(norm::SecondNormSums<T>{channels, pixels, block.y.data(), prologue_of(block), grad, moments});
      two.backward(sums, pixels, grad_weights);
    }
    a.second = true;
    a.a = two.a.data();
    a.b = two.b.data();
    a.c = two.c.data();
  }
  a.grad = grad;
  a.sums = moments;
  norm::activation_grad(a);
  block.norms[0].backward(sums, pixels, grad_weights);
}

// Of a last convolution with no norm behind it: gradient of its bias and of what constant channels add.
template <typename T>
void Chain<T>::shift_backward(
    ConvBlock& block, const ChainNorm<T>* before, const T* grad, const T* weights, T* grad_weights) {
  const int64_t pixels = block.pixels();
  const Indices& bias = block.spec.bias;
  const bool any = std::any_of(bias.begin(), bias.end(), [](int64_t i) { return i >= 0; });
  if (!any && block.spec.constant_taps.empty()) {
    return;
  }
  const double* moments = buffers_.moments.data();
  norm::statistics(norm::Statistics<T>{block.spec.outputs, pixels, grad, {}, false, buffers_.moments.data()});
  const int64_t chunks = norm::chunks_of(pixels);
  std::vector<double> sums(block.spec.outputs);
  for (int64_t o = 0; o < block.spec.outputs; ++o) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t size = std::min(norm::kChunk, pixels - chunk * norm::kChunk);
      sums[o] += moments[2 * (o * chunks + chunk)] * static_cast<double>(size);
    }
    if (bias[o] >= 0) {
      grad_weights[bias[o]] += static_cast<T>(sums[o]);
    }
  }
  const double factor = block.spec.scale * (block.spec.box ? 4 : 1);
  for (size_t i = 0; i < block.spec.constant_taps.size(); i += 3) {
    const int64_t* tap = &block.spec.constant_taps[i];
    const NormSpec& of_constants = before->spec();
    const int64_t beta = of_constants.constants[tap[2]];
    const auto slope = static_cast<double>(norm::with_act(of_constants.act, [&](auto act) {
      return norm::activate_grad<act.value>(weights[beta], static_cast<T>(of_constants.slope));
    }));
    const double of_constant = sums[tap[0]] * factor * static_cast<double>(weights[tap[1]]);
    grad_weights[tap[1]] += static_cast<T>(sums[tap[0]] * factor * static_cast<double>(before->constants()[tap[2]]));
    grad_weights[beta] += static_cast<T>(of_constant * slope);
  }
}

template class Chain<float>;
template class Chain<double>;

} // namespace oes::chain

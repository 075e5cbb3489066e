#include "cpu/chain/chain_block.h"

#include <algorithm>

#include "common/chain_checks.h"
#include "cpu/norm/batch_norm_act.h"

namespace oes::chain {

template <typename T>
Block<T>::Block(int64_t channels, int64_t rows, int64_t columns, bool laid_out)
    : outputs(channels), rows(rows), columns(columns), laid_out(laid_out), ones_(channels, T(1)), zeros_(channels) {}

template <typename T>
Block<T>::Block(const ConvSpec& spec, int64_t number, const Block& source)
    : conv_spec(spec),
      conv(make_chain_conv<T>(spec, source.channels(), source.rows, source.columns, source.laid_out)),
      inputs{number},
      outputs(spec.outputs),
      rows(conv->out_rows()),
      columns(conv->out_columns()),
      shift(spec.bias.size()),
      ones_(spec.outputs, T(1)),
      zeros_(spec.outputs) {}

template <typename T>
Block<T>::Block(const JoinSpec& spec, const std::vector<const Block*>& sources)
    : join_spec(spec),
      inputs(spec.inputs),
      outputs(spec.outputs),
      rows(spec.rows),
      columns(spec.columns),
      shift(spec.bias.size()),
      joins_(true),
      ones_(spec.outputs, T(1)),
      zeros_(spec.outputs) {
  if (outputs > 0) {
    std::vector<ImageShape> shapes;
    for (const Block* source : sources) {
      shapes.push_back(source->shape());
    }
    join = std::make_unique<ChainJoin<T>>(spec, shapes);
  }
}

template <typename T>
int64_t Block<T>::constants() const {
  return norms.empty() ? static_cast<int64_t>(shift.size()) - (is_source() ? 0 : outputs)
                       : static_cast<int64_t>(norms.back().constants().size());
}

template <typename T>
void Block<T>::add_norm(const NormSpec& spec, int64_t groups, int64_t weights) {
  expect(!is_source() && norms.size() < 2, "norm: expected one or two behind a convolution or a join");
  expect(!is_head(), "norm: expected none behind the head");
  expect(planes_ == 0, "norm: expected it before the planes of its constants");
  // A constant channel has what the convolution adds to it, or the constant of the norm before.
  check_norm(spec, outputs, constants(), weights);
  expect(
      groups == 0 || (groups > 0 && outputs % groups == 0 && spec.constants.empty() && !spec.tracks),
      "norm: expected groups of as many channels each, all of which vary, and no running statistics");
  norms.emplace_back(spec, outputs, groups);
}

template <typename T>
void Block<T>::add_act(Act act, double slope) {
  expect(!is_source() && !is_head() && norms.empty(), "activation: expected it right behind a convolution or a join");
  norms.emplace_back(act, slope, outputs, constants());
}

template <typename T>
void Block<T>::add_planes() {
  expect(!norms.empty() && planes_ == 0, "planes: expected a norm or an activation before, and to be added once");
  planes_ = constants();
  for (size_t which = 0; which < norms.size(); ++which) {
    norms[which].add_planes(planes_, which + 1 < norms.size());
  }
  ones_.resize(outputs + planes_, T(1));
  zeros_.resize(outputs + planes_);
}

template <typename T>
void Block<T>::reserve() {
  constant_grads_.resize(constants());
  if (is_source()) {
    return;
  }
  T* y = value.reserve(numel());
  std::fill(y + outputs * pixels(), y + numel(), T(0));
}

template <typename T>
void Block<T>::reserve(SharedBuffers<T>& buffers) const {
  if (!has_image() && planes_ == 0) {
    return;
  }
  buffers.moments.reserve(2 * channels() * norm::chunks_of(pixels()));
  if (conv != nullptr) {
    conv->reserve(buffers);
  }
}

template <typename T>
norm::Prologue<T> Block<T>::prologue() const {
  const T *zeros = zeros_.data(), *ones = ones_.data();
  if (norms.empty()) { // a source, as it is
    return {zeros, ones, zeros, zeros, ones, zeros, T(1), Act::kLeaky};
  }
  const ChainNorm<T>& one = norms[0];
  const ChainNorm<T>* two = norms.size() > 1 ? &norms[1] : nullptr;
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

template <typename T>
norm::PrologueGrad<T> Block<T>::value_grad(const T* grad) const {
  const T* zeros = zeros_.data();
  if (norms.empty()) {
    return {grad, y(), zeros, ones_.data(), zeros, zeros};
  }
  const ChainNorm<T>& norm = norms[0];
  return {grad, y(), norm.mean.data(), norm.a.data(), norm.b.data(), norm.c.data()};
}

// By which a constant goes into an output.
template <typename T>
T Block<T>::constant_factor(const int64_t* term, T constant, const T* weights) const {
  if (join_spec.kind == JoinKind::kPrelu) {
    const int64_t slope = join_spec.slopes[term[0]];
    return constant > T(0) ? T(1) : slope < 0 ? T(0) : weights[slope];
  }
  return term[3] < 0 ? T(1) : weights[term[3]] * static_cast<T>(join_spec.scale);
}

template <typename T>
void Block<T>::set_shift(const std::vector<const Block*>& blocks, const T* weights) {
  const Indices& bias = conv == nullptr ? join_spec.bias : conv_spec.bias;
  for (size_t o = 0; o < shift.size(); ++o) {
    shift[o] = bias[o] < 0 ? T(0) : weights[bias[o]];
  }
  const auto factor = static_cast<T>(conv_spec.scale * (conv_spec.box ? 4 : 1));
  for (size_t i = 0; i < conv_spec.constant_taps.size(); i += 3) {
    const int64_t* tap = &conv_spec.constant_taps[i];
    shift[tap[0]] += weights[tap[1]] * factor * blocks[inputs[0]]->constant(tap[2]);
  }
  for (size_t i = 0; i < join_spec.constant_terms.size(); i += 4) {
    const int64_t* term = &join_spec.constant_terms[i];
    const T constant = blocks[inputs[term[1]]]->constant(term[2]);
    shift[term[0]] += constant_factor(term, constant, weights) * constant;
  }
  std::fill(constant_grads_.begin(), constant_grads_.end(), 0);
}

template <typename T>
void Block<T>::normalise(size_t which, const T* weights, const RunningStats<T>& running, SharedBuffers<T>& buffers) {
  double* moments = buffers.moments.data();
  const bool second = which == 1;
  const NormInput<T> input =
      second ? NormInput<T>{nullptr, norms[0].constants().data()} : NormInput<T>{shift.data(), shift.data() + outputs};
  const int64_t of_conv = conv == nullptr ? 0 : conv->moments_pixels();
  if (!has_image() || !norms[which].normalises()) {
    norms[which].forward(ChannelSums{}, pixels(), weights, input, running);
    return;
  }
  if (!second && of_conv > 0) {
    const ChannelSums sums{moments, ceil_div(pixels(), of_conv), outputs, 1, of_conv};
    norms[which].forward(sums, pixels(), weights, input, running);
    return;
  }
  norm::Statistics<T> a{outputs, pixels(), y(), {}, second, moments};
  if (second) {
    a.prologue = prologue();
  }
  norm::statistics(a);
  const int64_t chunks = norm::chunks_of(pixels());
  norms[which].forward(ChannelSums{moments, chunks, 1, chunks, norm::kChunk}, pixels(), weights, input, running);
}

template <typename T>
void Block<T>::norms_backward(const ChainConv<T>* reader, T* grad, T* grad_weights, SharedBuffers<T>& buffers) {
  const int64_t chunks = norm::chunks_of(pixels());
  double* moments = buffers.moments.data();
  const ChannelSums sums{moments, chunks, 1, chunks, norm::kChunk};
  const int64_t begun = reader == nullptr ? 0 : reader->epilogue_chunks();
  if (begun > 0) {
    norms.back().backward(ChannelSums{moments, begun, channels(), 1, 0}, pixels(), grad_weights);
    if (norms.size() == 1) {
      return;
    }
  }
  norm::ActivationGrad<T> a{channels(), pixels(), y(), prologue()};
  if (norms.size() > 1) {
    ChainNorm<T>& two = norms[1];
    if (begun == 0) {
      norm::second_sums(norm::SecondNormSums<T>{channels(), pixels(), y(), prologue(), grad, moments});
      two.backward(sums, pixels(), grad_weights);
    }
    a.second = true;
    a.a = two.a.data();
    a.b = two.b.data();
    a.c = two.c.data();
  }
  a.grad = grad;
  a.sums = moments;
  norm::activation_grad(a);
  norms[0].backward(sums, pixels(), grad_weights);
}

template <typename T>
bool Block<T>::has_shift() const {
  const Indices& bias = conv == nullptr ? join_spec.bias : conv_spec.bias;
  return !conv_spec.constant_taps.empty() || !join_spec.constant_terms.empty() ||
      std::any_of(bias.begin(), bias.end(), [](int64_t i) { return i >= 0; });
}

template <typename T>
std::vector<double> Block<T>::grad_sums(const T* grad, SharedBuffers<T>& buffers) const {
  double* moments = buffers.moments.data();
  norm::statistics(norm::Statistics<T>{outputs, pixels(), grad, {}, false, moments});
  const int64_t chunks = norm::chunks_of(pixels());
  std::vector<double> sums(outputs);
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t size = std::min(norm::kChunk, pixels() - chunk * norm::kChunk);
      sums[o] += moments[2 * (o * chunks + chunk)] * static_cast<double>(size);
    }
  }
  return sums;
}

template <typename T>
void Block<T>::shift_backward(
    const std::vector<double>& sums, const std::vector<Block*>& blocks, const T* weights, T* grad_weights) {
  const Indices& bias = conv == nullptr ? join_spec.bias : conv_spec.bias;
  for (size_t o = 0; o < sums.size(); ++o) {
    if (bias[o] >= 0) {
      grad_weights[bias[o]] += static_cast<T>(sums[o]);
    }
  }
  const double factor = conv_spec.scale * (conv_spec.box ? 4 : 1);
  const auto constants = static_cast<int64_t>(sums.size());
  for (size_t i = 0; i < conv_spec.constant_taps.size(); i += 3) {
    const int64_t* tap = &conv_spec.constant_taps[i];
    if (tap[0] < constants) {
      Block& source = *blocks[inputs[0]];
      const double of_constant = sums[tap[0]] * factor * static_cast<double>(weights[tap[1]]);
      grad_weights[tap[1]] += static_cast<T>(sums[tap[0]] * factor * static_cast<double>(source.constant(tap[2])));
      source.add_constant_grad(tap[2], of_constant, weights, grad_weights);
    }
  }
  for (size_t i = 0; i < join_spec.constant_terms.size(); i += 4) {
    const int64_t* term = &join_spec.constant_terms[i];
    if (term[0] < constants) {
      Block& source = *blocks[inputs[term[1]]];
      const T constant = source.constant(term[2]);
      const double of_output = sums[term[0]];
      int64_t weight = term[3];
      if (join_spec.kind == JoinKind::kPrelu) {
        weight = constant > T(0) ? -1 : join_spec.slopes[term[0]];
      }
      if (weight >= 0) {
        grad_weights[weight] += static_cast<T>(of_output * join_spec.scale * static_cast<double>(constant));
      }
      const double of_constant = of_output * static_cast<double>(constant_factor(term, constant, weights));
      source.add_constant_grad(term[2], of_constant, weights, grad_weights);
    }
  }
}

template <typename T>
void Block<T>::shift_backward(const std::vector<Block*>& blocks, const T* weights, T* grad_weights) {
  const ChainNorm<T>& one = norms[0];
  if (!one.passes_shift() || !has_shift()) {
    return;
  }
  std::vector<double> sums(one.passes_constants() ? shift.size() : outputs);
  if (has_image() || planes_ > 0) {
    std::copy_n(one.shift_grads.begin(), std::min<size_t>(sums.size(), channels()), sums.begin());
  }
  if (norms.size() == 1 && one.passes_constants()) {
    for (int64_t i = 0; i < constants(); ++i) {
      const auto slope = static_cast<double>(norm::with_act(one.spec().act, [&](auto act) {
        return norm::activate_grad<act.value>(shift[outputs + i], static_cast<T>(one.spec().slope));
      }));
      sums[outputs + i] += constant_grads_[i] * slope;
    }
  }
  shift_backward(sums, blocks, weights, grad_weights);
}

template <typename T>
void Block<T>::add_constant_grad(int64_t number, double grad, const T* weights, T* grad_weights) {
  const ChainNorm<T>& last = norms.back();
  if (last.passes_constants()) {
    constant_grads_[number] += grad;
    return;
  }
  const int64_t beta = last.spec().constants[number];
  const auto slope = static_cast<double>(norm::with_act(last.spec().act, [&](auto act) {
    return norm::activate_grad<act.value>(weights[beta], static_cast<T>(last.spec().slope));
  }));
  grad_weights[beta] += static_cast<T>(grad * slope);
}

template class Block<float>;
template class Block<double>;

} // namespace oes::chain

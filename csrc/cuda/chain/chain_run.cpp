// The passes of a chain.
#include "cuda/chain/chain.h"

namespace oes::cuda::chain {

using norm::FinaliseKind;
using norm::NormPassKind;

// What is done to the block's result by whoever reads it; without the second norm where `second` is false.
template <typename T>
norm::Prologue<T> Chain<T>::prologue_of(const Block& block, bool second) const {
  const NormSpec& one = block.norms[0].spec;
  return {block.prologue.data(), static_cast<T>(one.slope), one.act, second && block.norms.size() > 1};
}

template <typename T>
conv::Image<T> Chain<T>::image_before(size_t l, const T* source, bool shared) const {
  if (l == 0) {
    return {source, nullptr, {}, nullptr, shared};
  }
  return {blocks_[l - 1].y.data(), nullptr, prologue_of(blocks_[l - 1], true), nullptr, false};
}

template <typename T>
norm::Shift<T> Chain<T>::shift_of(size_t l) const {
  const Block& block = blocks_[l];
  norm::Shift<T> shift{};
  shift.bias = block.bias.data();
  shift.first = block.constant_first.data();
  shift.taps = block.constant_taps.data();
  shift.factor = static_cast<T>(block.spec.scale * (block.spec.box ? 4 : 1));
  if (l > 0) {
    const Norm& before = blocks_[l - 1].norms.back();
    shift.constants = before.constants.data();
    shift.count = static_cast<int>(before.spec.constants.size());
    shift.betas = before.betas.data();
    shift.slope = static_cast<T>(before.spec.slope);
    shift.act = before.spec.act;
  }
  return shift;
}

template <typename T>
norm::Finalise<T> Chain<T>::finalise_of(const Block& block, const T* weights, T* grad_weights) {
  norm::Finalise<T> f;
  f.channels = static_cast<int>(block.spec.outputs);
  f.chunks = norm::pass_chunks(block.pixels());
  f.pixels = block.pixels();
  f.partials = partials_.data();
  f.tickets = tickets_.data();
  f.tickets_stride = most_outputs_;
  f.weights = weights;
  f.grad_weights = grad_weights;
  f.weights_stride = weights_;
  return f;
}

template <typename T>
norm::Finalise<T> Chain<T>::norm_forward(size_t l, size_t which, const ForwardArguments<T>& a, size_t statistics) {
  Block& block = blocks_[l];
  Norm& norm = block.norms[which];
  norm::Finalise<T> f = finalise_of(block, a.weights, nullptr);
  f.kind = FinaliseKind::kNormForward;
  f.gamma = norm.gamma.data();
  f.beta = norm.beta.data();
  f.prologue = block.prologue.data();
  f.rstd = norm.rstd.data();
  f.second = which == 1;
  f.eps = norm.spec.eps;
  f.momentum = norm.spec.momentum;
  f.copies = static_cast<double>(norm.spec.copies);
  if (!a.running.empty() && norm.spec.tracks) {
    const RunningStats<T>& running = a.running[statistics];
    f.running_mean = running.mean;
    f.running_var = running.var;
    f.running_stride = running.stride;
  }
  f.stats_index = norm.stats_index.data();
  f.tracked = norm.tracked.data();
  f.tracked_stats_index = norm.tracked_stats_index.data();
  f.tracked_count = static_cast<int>(norm.spec.tracked.size());
  f.betas = norm.betas.data();
  f.constants = norm.constants.data();
  f.constants_count = static_cast<int>(norm.spec.constants.size());
  f.slope = static_cast<T>(norm.spec.slope);
  f.act = norm.spec.act;
  if (which == 1) {
    f.constants_before = block.norms[0].constants.data();
    f.constants_before_count = static_cast<int>(block.norms[0].spec.constants.size());
  }
  f.shift = shift_of(l);
  return f;
}

template <typename T>
norm::Finalise<T> Chain<T>::norm_backward(Block& block, size_t which, const T* weights, T* grad_weights) {
  Norm& norm = block.norms[which];
  norm::Finalise<T> f = finalise_of(block, weights, grad_weights);
  f.kind = FinaliseKind::kNormBackward;
  f.gamma = norm.gamma.data();
  f.beta = norm.beta.data();
  f.prologue = block.prologue.data();
  f.grads = norm.grads.data();
  f.rstd = norm.rstd.data();
  f.second = which == 1;
  return f;
}

template <typename T>
norm::NormPassArgs<T> Chain<T>::pass_over(const Block& block, NormPassKind kind) const {
  norm::NormPassArgs<T> pass{};
  pass.kind = kind;
  pass.channels = static_cast<int>(block.spec.outputs);
  pass.pixels = block.pixels();
  pass.y = block.y.data();
  if (!block.norms.empty()) {
    pass.prologue = prologue_of(block, true);
  }
  return pass;
}

template <typename T>
void Chain<T>::forward(const ForwardArguments<T>& a) {
  const DeviceGuard guard(device_);
  target_ = ends_in_norm() ? nullptr : a.target;
  weight_ = target_ == nullptr ? nullptr : a.weight;
  const conv::FlatWeightsArgs<T> pack{
      packed_index_.data(),
      packed_segments_.data(),
      0,
      static_cast<int>(packed_segments_.size()),
      0,
      packed_size_,
      const_cast<T*>(a.weights), // NOLINT: read
      weights_,
      packed_.data(),
      packed_size_};
  conv::pack_weights(pack, networks_, a.stream);
  size_t statistics = 0;
  for (size_t l = 0; l < blocks_.size(); ++l) {
    Block& block = blocks_[l];
    conv::Epilogue<T> epilogue;
    epilogue.out = block.y.data();
    if (block.norms.empty()) {
      epilogue.kind = conv::EpilogueKind::kImage;
      epilogue.act = act_;
      epilogue.slope = slope_;
      epilogue.image = a.out;
      epilogue.target = a.target;
      epilogue.weight = a.weight;
      epilogue.finalise = finalise_of(block, a.weights, nullptr);
      epilogue.finalise.kind = a.target != nullptr && a.loss != nullptr ? FinaliseKind::kLoss : FinaliseKind::kNone;
      epilogue.finalise.shift = shift_of(l);
      epilogue.finalise.loss = a.loss;
    } else {
      epilogue.kind = conv::EpilogueKind::kMoments;
      epilogue.finalise = norm_forward(l, 0, a, statistics++);
    }
    block.forward->run(
        image_before(l, a.source, a.source_shared), epilogue, packed_.data(), packed_size_, networks_, a.stream);
    if (block.norms.size() > 1) {
      norm::NormPassArgs<T> pass = pass_over(block, NormPassKind::kSecondMoments);
      pass.finalise = norm_forward(l, 1, a, statistics++);
      norm::norm_pass(pass, networks_, a.stream);
    }
  }
  if (ends_in_norm()) {
    norm::NormPassArgs<T> pass = pass_over(blocks_.back(), NormPassKind::kImage);
    pass.out = a.out;
    norm::norm_pass(pass, networks_, a.stream);
  }
}

// Gradient of the block's result in what its first norm takes, from that of what the block gives, or, of two norms,
// from what the second one's sums make of it.
template <typename T>
void Chain<T>::activation_grad(Block& block, const T* grad, T* out, const BackwardArguments<T>& a) {
  norm::NormPassArgs<T> pass = pass_over(block, NormPassKind::kActivationGrad);
  pass.grad_numbers = block.norms.size() > 1 ? block.norms[1].grads.data() : nullptr;
  pass.grad = grad;
  pass.out = out;
  pass.finalise = norm_backward(block, 0, a.weights, a.grad_weights);
  norm::norm_pass(pass, networks_, a.stream);
}

// From the gradient of the image, or the error to the target, that of the last block's result.
template <typename T>
const T* Chain<T>::begin_backward(const BackwardArguments<T>& a) {
  Block& last = blocks_.back();
  T* of_y = grads_[0].data();
  if (ends_in_norm()) {
    if (last.norms.size() > 1) {
      norm::NormPassArgs<T> pass = pass_over(last, NormPassKind::kSecondSums);
      pass.grad = a.grad;
      pass.finalise = norm_backward(last, 1, a.weights, a.grad_weights);
      norm::norm_pass(pass, networks_, a.stream);
    }
    activation_grad(last, a.grad, of_y, a);
    return of_y;
  }
  norm::NormPassArgs<T> pass = pass_over(last, NormPassKind::kImageGrad);
  pass.grad = a.grad;
  pass.target = target_;
  pass.weight = a.grad == nullptr ? weight_ : nullptr;
  pass.act = act_;
  pass.slope = slope_;
  pass.out = of_y;
  pass.finalise = finalise_of(last, a.weights, a.grad_weights);
  bool any = last.constant_taps.size() > 0;
  for (const int64_t index : last.spec.bias) {
    any = any || index >= 0;
  }
  pass.finalise.kind = any ? FinaliseKind::kShiftBackward : FinaliseKind::kNone;
  pass.finalise.shift = shift_of(blocks_.size() - 1);
  norm::norm_pass(pass, networks_, a.stream);
  return of_y;
}

template <typename T>
void Chain<T>::backward(const BackwardArguments<T>& a) {
  const DeviceGuard guard(device_);
  set_zero(a.grad_weights, sizeof(T) * networks_ * weights_, a.stream);
  const T* of_y = begin_backward(a);
  for (size_t l = blocks_.size(); l-- > 0;) {
    Block& block = blocks_[l];
    const conv::Image<T> image = image_before(l, a.source, a.source_shared);
    const conv::Image<T> grad{
        block.y.data(), of_y, {}, block.norms.empty() ? nullptr : block.norms[0].grads.data(), false};
    // Nothing waits for the gradient of the weights but what takes the place of its input: the next but one.
    if (l + 1 < blocks_.size()) {
      side_->join(a.stream);
    }
    block.weight_grad->run(image, grad, networks_, side_->follow(a.stream));
    side_->mark();
    if (l == 0 && a.grad_source == nullptr) {
      break;
    }
    T* of_image = l == 0 ? a.grad_source : of_y == grads_[0].data() ? grads_[1].data() : grads_[0].data();
    conv::Epilogue<T> epilogue;
    epilogue.out = of_image;
    if (l > 0) {
      Block& before = blocks_[l - 1];
      const bool two = before.norms.size() > 1;
      epilogue.kind = two ? conv::EpilogueKind::kSecondNormSums : conv::EpilogueKind::kActivationGrad;
      epilogue.y = before.y.data();
      epilogue.prologue = prologue_of(before, true);
      epilogue.finalise = norm_backward(before, two ? 1 : 0, a.weights, a.grad_weights);
    }
    block.input_grad->run(grad, epilogue, packed_.data(), packed_size_, networks_, a.stream);
    if (l > 0 && blocks_[l - 1].norms.size() > 1) {
      activation_grad(blocks_[l - 1], of_image, of_image, a);
    }
    of_y = of_image;
  }
  side_->join(a.stream);
  conv::FlatWeightsArgs<T> unpack{
      grad_index_.data(),
      grad_segments_.data(),
      0,
      static_cast<int>(grad_segments_.size()),
      0,
      grad_size_,
      a.grad_weights,
      weights_,
      nullptr,
      0};
  if (!shared_weights_) {
    conv::unpack_weight_grads(unpack, networks_, a.stream);
    return;
  }
  unpack.segment_count = 1;
  for (size_t s = 0; s + 1 < grad_begins_.size(); ++s) {
    unpack.first_segment = static_cast<int>(s);
    unpack.begin = grad_begins_[s];
    unpack.end = grad_begins_[s + 1];
    conv::unpack_weight_grads(unpack, networks_, a.stream);
  }
}

template class Chain<float>;
template class Chain<double>;

} // namespace oes::cuda::chain

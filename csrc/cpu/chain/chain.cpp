#include "cpu/chain/chain.h"

#include <algorithm>

#include "common/chain_checks.h"
#include "cpu/join/join_images.h"
#include "cpu/norm/batch_norm_act.h"

namespace oes::chain {

template <typename T>
Chain<T>::Chain(int64_t channels, int64_t rows, int64_t columns, bool constant_input, int64_t weights)
    : weights_(weights) {
  expect(weights >= 0, "chain: expected an image and weights");
  add_source(channels, rows, columns, constant_input);
}

template <typename T>
int64_t Chain<T>::add_source(int64_t channels, int64_t rows, int64_t columns, bool constant) {
  expect(channels > 0 && rows > 0 && columns > 0, "chain: expected an image and weights");
  expect(
      !finished_ && sources_ == static_cast<int64_t>(blocks_.size()),
      "source: expected it before convolutions and joins");
  blocks_.emplace_back(channels, rows, columns, constant);
  return sources_++;
}

// A block whose result may be read.
template <typename T>
const Block<T>& Chain<T>::readable(int64_t number) const {
  expect(number >= 0 && number < static_cast<int64_t>(blocks_.size()), "source: expected the number of a result");
  const Block<T>& block = blocks_[number];
  expect(block.is_source() || !block.norms.empty(), "source: expected a norm or an activation behind it");
  return block;
}

template <typename T>
int64_t Chain<T>::add_conv(const ConvSpec& spec, int64_t source) {
  expect(!finished_, "convolution: expected a chain that is not finished");
  const auto number = static_cast<int64_t>(blocks_.size());
  const int64_t from = source == kLast ? number - 1 : source;
  expect(
      from < 0 || from >= number || blocks_[from].is_source() || !blocks_[from].norms.empty(),
      "convolution: expected a norm before it");
  const Block<T>& before = readable(from);
  expect(before.channels() > 0, "convolution: expected an image before it");
  check_conv(spec, before.channels(), before.rows, before.columns, before.constants(), weights_);
  Block<T> block(spec, from, before);
  expect(
      spec.kind != ConvKind::kHead || (!before.is_source() && before.norms.size() == 1),
      "head: expected a single norm before it");
  blocks_.push_back(std::move(block));
  return number;
}

template <typename T>
int64_t Chain<T>::add_join(const JoinSpec& spec) {
  expect(!finished_, "join: expected a chain that is not finished");
  std::vector<const Block<T>*> sources;
  std::vector<ImageShape> shapes;
  for (const int64_t input : spec.inputs) {
    sources.push_back(&readable(input));
    shapes.push_back(sources.back()->shape());
    expect(!sources.back()->laid_out, "join: expected a source that is not laid out for a convolution");
  }
  check_join(spec, shapes, weights_);
  blocks_.emplace_back(spec, sources);
  return static_cast<int64_t>(blocks_.size()) - 1;
}

template <typename T>
void Chain<T>::add_norm(const NormSpec& spec, int64_t groups) {
  expect(!finished_, "norm: expected a chain that is not finished");
  blocks_.back().add_norm(spec, groups, weights_);
}

template <typename T>
void Chain<T>::add_act(Act act, double slope) {
  expect(!finished_, "activation: expected a chain that is not finished");
  blocks_.back().add_act(act, slope);
}

template <typename T>
void Chain<T>::add_planes() {
  expect(!finished_, "planes: expected a chain that is not finished");
  blocks_.back().add_planes();
}

template <typename T>
void Chain<T>::finish(OutputAct act, double slope) {
  expect(!blocks_.back().is_source() && !finished_, "chain: expected a convolution, and to be finished once");
  const Block<T>& end = blocks_.back();
  ends_in_norm_ = !end.norms.empty();
  expect(end.channels() > 0 && (ends_in_norm_ || end.conv != nullptr), "chain: expected an image that varies");
  expect(!ends_in_norm_ || (act == OutputAct::kLeaky && slope == 1), "chain: expected no activation behind a norm");
  count_readers();
  plan_gradients();
  finished_ = true;
  act_ = act;
  slope_ = static_cast<T>(slope);
  for (Block<T>& block : blocks_) {
    block.reserve();
    block.reserve(buffers_);
    pointers_.push_back(&block);
    constant_pointers_.push_back(&block);
  }
  for (const Slot& slot : slots_) {
    grads_.emplace_back();
    grads_.back().reserve(slot.size);
  }
  grad_of_.resize(blocks_.size());
}

template <typename T>
void Chain<T>::count_readers() {
  for (size_t number = 0; number < blocks_.size(); ++number) {
    const Block<T>& block = blocks_[number];
    for (size_t input = 0; input < block.inputs.size(); ++input) {
      Block<T>& source = blocks_[block.inputs[input]];
      if (block.reads(input)) {
        ++source.readers;
        source.last_reader = static_cast<int64_t>(number);
      }
    }
  }
  for (const Block<T>& block : blocks_) {
    const bool ends = &block == &blocks_.back();
    const bool unread = block.readers == 0 && block.channels() > 0 && !block.is_source();
    expect(ends || !unread, "chain: expected each result to be read, but the last");
    expect(!block.laid_out || block.readers <= 1, "source: expected a constant one to be read once");
    const bool before_head = !ends && block.readers > 0 && blocks_[block.last_reader].is_head();
    expect(!before_head || block.readers == 1, "head: expected to be the only one that reads its source");
    expect(!block.is_head() || ends, "head: expected to be the last convolution");
  }
}

// Which buffer each gradient has: as backward() goes through the blocks, a buffer is free again once its block has
// passed its gradient on.
template <typename T>
void Chain<T>::plan_gradients() {
  blocks_.back().grad_slot = take_slot(blocks_.back().numel());
  int64_t most_added = 0;
  for (size_t number = blocks_.size(); number-- > static_cast<size_t>(sources_);) {
    const Block<T>& block = blocks_[number];
    bool handed_on = false;
    for (size_t input = 0; input < block.inputs.size(); ++input) {
      Block<T>& source = blocks_[block.inputs[input]];
      if (!block.reads(input)) {
        continue;
      }
      const bool first = source.last_reader == static_cast<int64_t>(number) && source.grad_slot == Block<T>::kNone;
      if (block.is_head() && source.conv != nullptr) { // which computes its gradient from that of the image
        source.grad_slot = block.grad_slot;
        handed_on = true;
      } else if (first && !source.is_source()) {
        source.grad_slot = take_slot(source.numel());
      } else if (block.conv != nullptr && (source.is_source() ? source.readers > 1 : !first)) {
        most_added = std::max(most_added, source.numel());
      }
    }
    if (block.grad_slot != Block<T>::kNone && !handed_on) {
      slots_[block.grad_slot].taken = false;
    }
  }
  if (most_added > 0) {
    for (Slot& slot : slots_) {
      slot.taken = true;
    }
    scratch_ = take_slot(most_added);
  }
}

// The free buffer that fits best, or a new one.
template <typename T>
int Chain<T>::take_slot(int64_t size) {
  int best = Block<T>::kNone;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].taken) {
      continue;
    }
    const int64_t here = slots_[i].size, there = best < 0 ? 0 : slots_[best].size;
    if (best < 0 || (there < size ? here > there : here >= size && here < there)) {
      best = static_cast<int>(i);
    }
  }
  if (best < 0) {
    best = static_cast<int>(slots_.size());
    slots_.push_back({0, false});
  }
  slots_[best].taken = true;
  slots_[best].size = std::max(slots_[best].size, size);
  return best;
}

template <typename T>
std::vector<int64_t> Chain<T>::shape() const {
  const Block<T>& last = blocks_.back();
  return {last.channels(), last.rows, last.columns};
}

template <typename T>
bool Chain<T>::source_row_major(int64_t source) const {
  const Block<T>& block = blocks_[source];
  return block.laid_out && block.last_reader >= 0 && blocks_[block.last_reader].conv->constant_source_row_major();
}

template <typename T>
int64_t Chain<T>::source_size(int64_t source) const {
  const Block<T>& block = blocks_[source];
  return block.laid_out && block.last_reader >= 0 ? blocks_[block.last_reader].conv->constant_source_size()
                                                  : block.numel();
}

template <typename T>
Indices Chain<T>::statistics_sizes() const {
  Indices sizes;
  for (const Block<T>& block : blocks_) {
    for (const ChainNorm<T>& norm : block.norms) {
      if (!norm.normalises()) {
        continue;
      }
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

template <typename T>
int64_t Chain<T>::memory() const {
  int64_t elements = 0;
  for (const Block<T>& block : blocks_) {
    elements += block.is_source() ? 0 : block.numel();
    elements += block.conv == nullptr ? 0 : block.conv->planes_size();
  }
  for (const Slot& slot : slots_) {
    elements += slot.size;
  }
  return elements * static_cast<int64_t>(sizeof(T));
}

template <typename T>
double Chain<T>::forward(
    const T* weights, const std::vector<const T*>& sources, T* out, const std::vector<T*>& running, const T* target,
    const T* weight) {
  size_t statistics = 0;
  has_loss_ = target != nullptr && !ends_in_norm_;
  for (int64_t source = 0; source < sources_; ++source) {
    blocks_[source].image = sources[source];
  }
  for (size_t number = sources_; number < blocks_.size(); ++number) {
    Block<T>& block = blocks_[number];
    block.set_shift(constant_pointers_, weights);
    if (block.conv != nullptr) {
      const Block<T>& before = blocks_[block.inputs[0]];
      block.conv->set_weights(weights);
      const bool moments = !block.norms.empty() && block.norms[0].normalises();
      const ForwardArguments<T> a{before.y(), before.prologue(), block.value.data(), moments};
      if (block.norms.empty()) { // the last
        return block.conv->forward_image(a, {act_, slope_, block.shift.data(), target, weight, out}, buffers_);
      }
      block.conv->forward(a, buffers_);
    } else if (block.join != nullptr) {
      std::vector<join::MappedImage<T>> images;
      for (const int64_t input : block.inputs) {
        images.push_back(blocks_[input].mapped());
      }
      block.join->forward(weights, images, block.value.data());
    }
    for (size_t which = 0; which < block.norms.size(); ++which) {
      RunningStats<T> stats{nullptr, nullptr};
      if (block.norms[which].normalises()) {
        if (!running.empty()) {
          stats = {running[statistics], running[statistics + 1]};
        }
        statistics += 2;
      }
      block.normalise(which, weights, stats, buffers_);
    }
  }
  const Block<T>& last = blocks_.back();
  norm::map_image(last.y(), last.prologue(), last.channels(), last.pixels(), out);
  return 0;
}

template <typename T>
void Chain<T>::backward(
    const T* weights, const std::vector<const T*>& sources, const T* grad, T* grad_weights,
    const std::vector<T*>& grad_sources) {
  Block<T>& end = blocks_.back();
  std::fill(grad_of_.begin(), grad_of_.end(), nullptr);
  pending_.clear();
  for (const Block<T>& block : blocks_) {
    pending_.push_back(block.readers);
  }
  for (int64_t source = 0; source < sources_; ++source) {
    blocks_[source].image = sources[source];
    grad_of_[source] = grad_sources[source];
    if (blocks_[source].readers == 0 && grad_sources[source] != nullptr) {
      std::fill_n(grad_sources[source], source_size(source), T(0));
    }
  }
  T* of_image = grad == nullptr ? end.value.data() : grads_[end.grad_slot].data(); // the forward has left it there
  grad_of_.back() = of_image;
  if (ends_in_norm_) {
    std::copy_n(grad, end.numel(), of_image);
    end.norms_backward(nullptr, of_image, grad_weights, buffers_);
  } else {
    if (grad != nullptr) {
      norm::output(norm::Output<T>{end.outputs, end.pixels(), act_, slope_, end.y(), end.shift.data(), grad, of_image});
    }
    if (end.has_shift()) {
      end.shift_backward(end.grad_sums(of_image, buffers_), pointers_, weights, grad_weights);
    }
  }
  for (size_t number = blocks_.size(); number-- > static_cast<size_t>(sources_);) {
    backward(number, weights, grad_weights);
  }
}

// Of a block whose readers have all passed the gradient of its result on.
template <typename T>
void Chain<T>::backward(size_t number, const T* weights, T* grad_weights) {
  Block<T>& block = blocks_[number];
  if (!block.norms.empty()) {
    block.shift_backward(pointers_, weights, grad_weights);
  }
  if (!block.has_image()) {
    return;
  }
  T* grad = grad_of_[number];
  if (block.conv != nullptr) {
    pass_on(number, 0, grad_weights, grad);
    return;
  }
  const norm::PrologueGrad<T> of_value = value_grad(block, grad);
  if (of_value.outputs > 0) { // the gradient is that of the head's result
    T* own = grads_[block.grad_slot].data();
    norm::grad_image(of_value, block.outputs, block.pixels(), own);
    grad = own;
  } else if (block.norms[0].normalises()) {
    join::norm_grad(of_value, block.outputs, block.pixels(), grad);
  }
  for (size_t input = 0; input < block.inputs.size(); ++input) {
    if (block.reads(input)) {
      pass_on(number, input, grad_weights, grad);
    }
  }
}

template <typename T>
norm::PrologueGrad<T> Chain<T>::value_grad(const Block<T>& block, const T* grad) const {
  norm::PrologueGrad<T> of_value = block.value_grad(grad);
  if (block.readers > 0 && blocks_[block.last_reader].is_head()) {
    blocks_[block.last_reader].conv->grad_when_read(of_value, block.prologue());
  }
  return of_value;
}

// Writes or adds the gradient of what the block reads as one of its inputs; `grad` is that of its result, of a join of
// its value. The last reader of a result takes it through the norms of that.
template <typename T>
void Chain<T>::pass_on(size_t number, size_t input, T* grad_weights, const T* grad) {
  Block<T>& block = blocks_[number];
  const int64_t from = block.inputs[input];
  Block<T>& source = blocks_[from];
  const bool first = pending_[from] == source.readers, given = source.is_source();
  if (!given && grad_of_[from] == nullptr) {
    grad_of_[from] = grads_[source.grad_slot].data();
  }
  T* to = grad_of_[from];
  const bool sole = source.readers == 1;
  if (block.join != nullptr) {
    block.join->backward(input, source.mapped(), grad, {to, !first}, grad_weights);
  } else {
    auto epilogue = conv::GradEpilogue::kNone;
    if (sole && !given) {
      epilogue = source.norms.size() > 1 ? conv::GradEpilogue::kSecondNormSums : conv::GradEpilogue::kActivation;
    }
    T* written = first || to == nullptr ? to : grads_[scratch_].data();
    block.conv->backward(
        {source.y(), source.prologue(), value_grad(block, grad), written, epilogue, grad_weights}, buffers_);
    if (written != to) {
      join::add_to(written, source.numel(), to);
    }
    if (!block.conv->writes_grad_source()) {
      grad_of_[from] = grad_of_[number];
    }
  }
  if (--pending_[from] == 0 && !given) {
    const bool fused = sole && block.conv != nullptr;
    source.norms_backward(fused ? block.conv.get() : nullptr, to, grad_weights, buffers_);
  }
}

template class Chain<float>;
template class Chain<double>;

} // namespace oes::chain

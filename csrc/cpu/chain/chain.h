// Convolutions, joins of their results and batch norms, run as one: what oes_fast/rewrite/run/chain_program.py binds a
// generator to.
//
// A block is a convolution or a join (see join_spec.h) with the batch norm, the activation and possibly a second batch
// norm behind it; blocks form a directed graph, in whose order they are added. Of a block only its own value is kept,
// [channels, rows, columns]: whoever reads it normalises and activates it on the way, forward and backward. A result
// may be read several times: gradients are summed in one buffer. All buffers are made once. Channels are those that are
// alive.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "common/chain_specs.h"
#include "cpu/chain/chain_block.h"

namespace oes::chain {

template <typename T>
class Chain {
 public:
  // With one source, result number 0; see add_source. `weights`: length of the flat vector.
  Chain(int64_t channels, int64_t rows, int64_t columns, bool constant_input, int64_t weights);

  // These refuse by std::invalid_argument what would read or write outside its memory. They return the number of the
  // result.

  // Before the first block. `constant`: the source is the same in every call, given as the convolution that alone reads
  // it does, and has no gradient: see ChainConv::constant_source_size.
  int64_t add_source(int64_t channels, int64_t rows, int64_t columns, bool constant);
  // Reads result number `source`, kLast for the last one.
  int64_t add_conv(const ConvSpec& spec, int64_t source = kLast);
  int64_t add_join(const JoinSpec& spec);
  // Of the last block: a norm, whose channels share their statistics in so many groups (0: none do); an activation of a
  // value without norm; the constant channels of its result as planes behind the others.
  void add_norm(const NormSpec& spec, int64_t groups = 0);
  void add_act(Act act, double slope);
  void add_planes();
  // The image leaves through an activation, or from a norm as it is.
  void finish(OutputAct act, double slope);

  // Returns the mean squared error of the image to the target, each times its `weight` unless that is nullptr; zero
  // where there is no target. An image that does not come from a convolution's own activation has none.
  double forward(
      const T* weights, const std::vector<const T*>& sources, T* out, const std::vector<T*>& running, const T* target,
      const T* weight);
  // After a forward with the same weights and sources: adds to grad_weights. `grad` is of the image; nullptr: the
  // forward had a target, and the gradient is that of the error. Each of grad_sources is written, or nullptr.
  void backward(
      const T* weights, const std::vector<const T*>& sources, const T* grad, T* grad_weights,
      const std::vector<T*>& grad_sources);

  // Whether a constant source has the rows of all planes side by side.
  bool source_row_major(int64_t source) const;

  // Of the result: channels, rows, columns.
  std::vector<int64_t> shape() const;

  // Elements of what forward and backward are given.
  int64_t weights_size() const {
    return weights_;
  }
  int64_t sources() const {
    return sources_;
  }
  int64_t source_size(int64_t source) const;
  int64_t output_size() const {
    return blocks_.back().numel();
  }
  // For every norm the least elements of its running statistics, 0 where it has none.
  Indices statistics_sizes() const;
  bool finished() const {
    return finished_;
  }
  bool ends_in_norm() const {
    return ends_in_norm_;
  }
  // Whether the last forward had a target.
  bool has_loss() const {
    return has_loss_;
  }
  // Bytes of the buffers that hold images.
  int64_t memory() const;

  static constexpr int64_t kLast = -1;

 private:
  // A buffer for gradients, which one block after the other has.
  struct Slot {
    int64_t size;
    bool taken;
  };

  const Block<T>& readable(int64_t number) const;
  void count_readers();
  void plan_gradients();
  int take_slot(int64_t size);
  void backward(size_t number, const T* weights, T* grad_weights);
  void pass_on(size_t number, size_t input, T* grad_weights, const T* grad);
  norm::PrologueGrad<T> value_grad(const Block<T>& block, const T* grad) const;

  int64_t weights_, sources_ = 0;
  bool finished_ = false;
  OutputAct act_ = OutputAct::kLeaky;
  T slope_ = 1;
  bool ends_in_norm_ = false, has_loss_ = false;
  std::deque<Block<T>> blocks_; // whose elements stay where they are
  std::vector<Block<T>*> pointers_; // to them
  std::vector<const Block<T>*> constant_pointers_;
  std::vector<Slot> slots_;
  std::vector<Aligned<T>> grads_; // of the slots
  int scratch_ = Block<T>::kNone; // slot for what is to be added to a gradient
  // Of a backward pass: where the gradient of each result is, and how many of its readers are still to come.
  std::vector<T*> grad_of_;
  Indices pending_;
  SharedBuffers<T> buffers_;
};

extern template class Chain<float>;
extern template class Chain<double>;

} // namespace oes::chain

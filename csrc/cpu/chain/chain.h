// Convolutions with batch norms between them, run as one: what oes_fast/rewrite/run/chain_program.py binds a generator
// to.
//
// A block is a convolution with the batch norm, the activation and possibly a second batch norm behind it. Between two
// blocks only the convolution's own result is kept, [channels, rows, columns]: the next block normalises and activates
// it as it reads it, forward and backward. All buffers are made once. Channels are those that are alive.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "common/chain_specs.h"
#include "cpu/chain/chain_conv.h"
#include "cpu/chain/chain_norm.h"

namespace oes::chain {

template <typename T>
class Chain {
 public:
  // `constant_input`: the source is the same in every call, given as the first convolution reads it, and has no
  // gradient: see ChainConv::constant_source_size. `weights`: length of the flat vector.
  Chain(int64_t channels, int64_t rows, int64_t columns, bool constant_input, int64_t weights);

  // These refuse by std::invalid_argument what would read or write outside its memory.
  void add_conv(const ConvSpec& spec);
  void add_norm(const NormSpec& spec);
  // The image leaves through an activation.
  void finish(OutputAct act, double slope);

  // Returns the mean squared error of the image to the target, each times its `weight` unless that is nullptr; zero
  // where there is no target. An image that comes from a norm has none.
  double forward(
      const T* weights, const T* source, T* out, const std::vector<T*>& running, const T* target, const T* weight);
  // After a forward with the same weights and source: adds to grad_weights. `grad` is of the image; nullptr: the
  // forward had a target, and the gradient is that of the error. grad_source is written, or nullptr.
  void backward(const T* weights, const T* source, const T* grad, T* grad_weights, T* grad_source);

  // Whether a constant source has the rows of all planes side by side.
  bool source_row_major() const;

  // Of the result: channels, rows, columns.
  std::vector<int64_t> shape() const;

  // Elements of what forward and backward are given.
  int64_t weights_size() const {
    return weights_;
  }
  int64_t source_size() const;
  int64_t output_size() const;
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

 private:
  struct ConvBlock {
    ConvSpec spec;
    std::unique_ptr<ChainConv<T>> conv;
    std::vector<ChainNorm<T>> norms; // at most two; the first has the activation
    Aligned<T> y; // the convolution's result
    std::vector<T> ones, zeros; // [outputs]
    std::vector<T> shift; // bias and what constant channels add, [outputs + constant outputs]

    int64_t pixels() const {
      return conv->out_pixels();
    }
  };

  norm::Prologue<T> source_prologue() const;
  norm::Prologue<T> prologue_of(const ConvBlock& block) const;
  norm::PrologueGrad<T> grad_of(const ConvBlock& block, const T* grad) const;
  void set_shift(ConvBlock& block, const ChainNorm<T>* before, const T* weights);
  void shift_backward(ConvBlock& block, const ChainNorm<T>* before, const T* grad, const T* weights, T* grad_weights);
  void normalise(ConvBlock& block, size_t which, const T* weights, const RunningStats<T>& running);
  void norms_backward(ConvBlock& block, const ChainConv<T>* reader, T* grad, T* grad_weights);

  bool constant_input_;
  int64_t channels_, rows_, columns_, weights_;
  bool finished_ = false;
  OutputAct act_ = OutputAct::kLeaky;
  T slope_ = 1;
  bool ends_in_norm_ = false, has_loss_ = false;
  std::deque<ConvBlock> blocks_; // whose elements stay where they are
  std::vector<T> ones_, zeros_; // of the source's channels
  Aligned<T> grads_[2];
  SharedBuffers<T> buffers_;
};

extern template class Chain<float>;
extern template class Chain<double>;

} // namespace oes::chain

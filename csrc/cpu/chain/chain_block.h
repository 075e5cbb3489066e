// A block of a chain: a value, which is a convolution or a join of results before it, with the norms and the activation
// that whoever reads the result does to it. A source is a block whose value is given.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/chain/chain_conv.h"
#include "cpu/chain/chain_join.h"
#include "cpu/chain/chain_norm.h"
#include "cpu/chain/join_spec.h"

namespace oes::chain {

template <typename T>
class Block {
 public:
  static constexpr int kNone = -1;

  // A source. `laid_out`: it is constant, and given as its only reader, a direct convolution, takes it.
  Block(int64_t channels, int64_t rows, int64_t columns, bool laid_out);
  // A convolution of the result of `source`, which is number `number`.
  Block(const ConvSpec& spec, int64_t number, const Block& source);
  // A join of the results of the sources that the spec names.
  Block(const JoinSpec& spec, const std::vector<const Block*>& sources);

  // These refuse by std::invalid_argument.
  void add_norm(const NormSpec& spec, int64_t groups, int64_t weights);
  void add_act(Act act, double slope);
  void add_planes();

  bool is_source() const {
    return conv == nullptr && !joins_;
  }
  bool is_head() const {
    return conv != nullptr && conv_spec.kind == ConvKind::kHead;
  }
  // Whether its value is an image at all: else it has constants alone.
  bool has_image() const {
    return outputs > 0;
  }
  // Whether the gradient of its number `input` is that of an image.
  bool reads(size_t input) const {
    return conv != nullptr || (join != nullptr && join->reads(input));
  }

  // Of the result: varying channels, and constants that are planes behind them.
  int64_t channels() const {
    return outputs + planes_;
  }
  int64_t pixels() const {
    return rows * columns;
  }
  int64_t numel() const {
    return channels() * pixels();
  }
  // Constant channels of the result, of the value where it has no norm.
  int64_t constants() const;
  ImageShape shape() const {
    return {channels(), rows, columns, constants()};
  }

  // Allocates the value.
  void reserve();
  void reserve(SharedBuffers<T>& buffers) const;

  const T* y() const {
    return image == nullptr ? value.data() : image;
  }
  // What is done to the value by whoever reads it.
  norm::Prologue<T> prologue() const;
  // Gradient of the value from that of the result behind its prologue, or from its own where nothing is behind it.
  norm::PrologueGrad<T> value_grad(const T* grad) const;
  join::MappedImage<T> mapped() const {
    return {y(), prologue()};
  }

  // From the weights what is the same for all pixels; `blocks` are those of the chain.
  void set_shift(const std::vector<const Block*>& blocks, const T* weights);
  // The first or the second norm, of the value.
  void normalise(size_t which, const T* weights, const RunningStats<T>& running, SharedBuffers<T>& buffers);
  // In place: gradient of the result to what value_grad takes. `reader` has read the result, and its epilogue has done
  // what it could of this; nullptr: nobody has.
  void norms_backward(const ChainConv<T>* reader, T* grad, T* grad_weights, SharedBuffers<T>& buffers);
  // From the gradients of the shift, of each varying output, those of the bias and of what constant channels add.
  void shift_backward(
      const std::vector<double>& sums, const std::vector<Block*>& blocks, const T* weights, T* grad_weights);
  // The same with the gradients that norms_backward has found, and those of the constants.
  void shift_backward(const std::vector<Block*>& blocks, const T* weights, T* grad_weights);
  // Sums over the pixels of a gradient of the value.
  std::vector<double> grad_sums(const T* grad, SharedBuffers<T>& buffers) const;
  bool has_shift() const;

  T constant(int64_t number) const {
    return norms.back().constants()[number];
  }

  ConvSpec conv_spec;
  JoinSpec join_spec;
  std::unique_ptr<ChainConv<T>> conv;
  std::unique_ptr<ChainJoin<T>> join;
  Indices inputs; // numbers of the blocks that it reads
  int64_t outputs, rows, columns; // of the value
  bool laid_out = false;
  std::vector<ChainNorm<T>> norms; // at most two; the first has the activation
  Aligned<T> value;
  const T* image = nullptr; // of a source
  std::vector<T> shift; // bias and what constant channels add, [outputs + constant outputs]

  // Of the backward pass, set when the chain is finished.
  int64_t readers = 0; // that have a gradient for the image, of every input each
  int64_t last_reader = kNone; // the only one, if it is one
  int grad_slot = kNone; // of the gradient of the result

 private:
  T constant_factor(const int64_t* term, T constant, const T* weights) const;
  void add_constant_grad(int64_t number, double grad, const T* weights, T* grad_weights);

  bool joins_ = false;
  int64_t planes_ = 0;
  std::vector<T> ones_, zeros_; // [channels]
  std::vector<double> constant_grads_; // of constants that are passed on
};

} // namespace oes::chain

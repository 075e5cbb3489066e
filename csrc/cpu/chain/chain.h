// A row of convolutions with batch norms between them, run as one: what oes_fast/rewrite/chain_program.py binds a generator to.
//
// A block is a convolution with the batch norm, the activation and possibly a second batch norm behind it. Between two
// links only the convolution's own result is kept, [channels, rows, columns]: the next block normalises and activates it
// as it reads it, forward and backward. All buffers are made once. Channels are those that are alive.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "common/chain_specs.h"
#include "cpu/conv/conv_input.h"
#include "cpu/conv/dense_conv2d.h"
#include "cpu/conv/output_head.h"
#include "cpu/conv/sparse_conv2d.h"
#include "cpu/conv/sparse_up_conv2d.h"
#include "cpu/core/workspace.h"
#include "cpu/norm/batch_norm_act.h"

namespace oes::chain {

template <typename T>
class Chain {
 public:
  // `fixed`: the source is given as the first convolution reads it, the same in every call, and has no gradient: its
  // borders, sums of 2 x 2 pixels and phases made, laid out as by_rows says. `weights`: length of the flat vector.
  Chain(int64_t channels, int64_t rows, int64_t columns, bool fixed, int64_t weights);

  // These refuse by std::invalid_argument what would read or write outside its memory.
  void add_conv(const ConvSpec& spec);
  void add_norm(const NormSpec& spec);
  // The image leaves through an activation.
  void finish(OutputAct act, double slope);

  // Returns the mean squared error of the image to the target; zero where that is nullptr. An image that comes from a
  // norm has none.
  double forward(const T* weights, const T* source, T* out, const std::vector<T*>& running, const T* target);
  // After a forward with the same weights and source: adds to grad_weights. `grad` is of the image; nullptr: the forward
  // had a target, and the gradient is that of the error. grad_source is written, or nullptr.
  void backward(const T* weights, const T* source, const T* grad, T* grad_weights, T* grad_source);

  // Whether a fixed source has the rows of all planes side by side, [rows, planes, columns], or is [planes, rows, columns]
  // with conv::winograd::kSlack elements behind them that may be read.
  bool by_rows() const {
    return !blocks_.empty() && by_rows(blocks_.front());
  }

  // Of the result: channels, rows, columns.
  std::vector<int64_t> shape() const;

  // Elements of what forward and backward are given.
  int64_t weights_size() const {
    return weights_;
  }
  int64_t source_size() const;
  int64_t output_size() const {
    return blocks_.back().spec.outputs * blocks_.back().pixels();
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

 private:
  struct Norm {
    NormSpec spec;
    std::vector<T> scale, shift, a, b, c, mean;
    std::vector<double> rstd;
    std::vector<T> constants; // values
  };

  struct ConvBlock {
    ConvSpec spec;
    int64_t inputs, rows, columns; // of the input
    int64_t out_rows, out_columns;
    std::vector<Norm> norms; // at most two; the first has the activation
    Aligned<T> y;
    std::vector<T> ones, zeros; // [outputs]
    std::vector<T> offset; // bias and constants
    bool dense = false;
    std::vector<T> all_weights, all_grads; // [outputs, inputs, kernel rows, kernel columns], unless they are all kept
    Indices positions; // of the kept ones in there
    conv::UpsampleConvWeights<T> upsample; // pointwise, up
    // direct
    conv::DenseConv2d<T> dense_conv;
    std::vector<T> weights, back_weights;
    Indices back_order, first, back_first;
    Border border;
    conv::ConvInput<T> input;
    conv::PaddedGrad<T> padded_grad;
    Aligned<T> planes;
    conv::SparseTapSum<T> gather, gather_back;
    conv::SparseWeightGrad<T> dot;
    Indices offsets, back_offsets;
    bool flat = true; // the planes are images of their own; else see by_rows

    int64_t pixels() const {
      return out_rows * out_columns;
    }
    bool direct() const {
      return spec.kind == ConvKind::kDirect;
    }
    bool head() const {
      return spec.kind == ConvKind::kHead;
    }
    int64_t weight_numel() const { // of weights
      return spec.outputs * inputs * spec.kernel_rows * spec.kernel_columns;
    }
  };

  void check_conv(const ConvBlock& block, const ConvBlock* before) const;
  void check_norm(const ConvBlock& block, const NormSpec& spec) const;
  void bind_form(ConvBlock& block);
  void bind_direct(ConvBlock& block);
  void bind_taps(ConvBlock& block, int64_t padded_plane);
  void bind_upsample(ConvBlock& block);
  void bind_head(ConvBlock& block, const ConvBlock* before);
  bool fixed(const ConvBlock& block) const {
    return fixed_ && &block == &blocks_[0];
  }
  bool by_rows(const ConvBlock& block) const {
    return fixed(block) && !block.flat;
  }
  void set_weights(ConvBlock& block, const T* weights);
  norm::Prologue<T> map_of(const ConvBlock& block) const;
  norm::Prologue<T> source_map() const;
  template <typename F>
  void each_head_weight(const F& f) const;
  conv::OutputHead<T> head() const;
  void convolve(ConvBlock& block, const T* planes_or_source, const norm::Prologue<T>& map);
  void offsets(ConvBlock& block, const Norm* before, const T* weights);
  void normalise(
      ConvBlock& block, size_t which, const double* moments, int64_t parts, bool chunks, const T* weights, T* mean, T* var);
  // `reader` read the block's result, and has done what it could of this; nullptr: nobody has.
  void norm_back(ConvBlock& block, const ConvBlock* reader, T* grad, T* grad_weights);
  norm::PrologueGrad<T> grad_of(const ConvBlock& block, const T* grad) const;
  // Of the block that the head reads: computed from that of the image wherever it is read.
  norm::PrologueGrad<T> grad_behind(const ConvBlock& block, const T* grad) const;
  void head_back(const T* grad, T* grad_weights);
  void conv_back(
      ConvBlock& block, const ConvBlock* before, const T* source, const norm::Prologue<T>& map, norm::PrologueGrad<T> grad, T* grad_source,
      T* grad_weights);
  void add_grads(ConvBlock& block, const T* sums, T* grad_weights);
  void offset_back(ConvBlock& block, const Norm* before, const T* grad, const T* weights, T* grad_weights);

  bool fixed_;
  int64_t channels_, rows_, columns_, weights_;
  bool finished_ = false;
  OutputAct act_ = OutputAct::kLeaky;
  bool ends_in_norm_ = false, has_loss_ = false;
  T slope_ = 1;
  std::deque<ConvBlock> blocks_; // whose elements stay where they are
  std::vector<T> identity_, none_; // of the source: scale 1, shift 0
  std::vector<T> head_weights_; // as conv::OutputHead takes them
  Aligned<T> grads_[2], grad_planes_, padded_grad_, partial_;
  Aligned<double> moments_, head_sums_;
};

extern template class Chain<float>;
extern template class Chain<double>;

} // namespace oes::chain

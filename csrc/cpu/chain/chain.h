// A row of convolutions with batch norms between them, run as one: what oes_fast/rewrite/chain_program.py binds a generator to.
//
// A link is a convolution with the batch norm, the activation and possibly a second batch norm behind it. Between two
// links only the convolution's own result is kept, [channels, rows, columns]: the next link normalises and activates it
// as it reads it, forward and backward. All buffers are made once. Channels are those that are alive.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "cpu/norm/batch_norm_act.h"
#include "cpu/conv/dense_conv2d.h"
#include "cpu/conv/conv_input.h"
#include "cpu/conv/output_head.h"
#include "cpu/core/workspace.h"
#include "cpu/conv/sparse_conv2d.h"
#include "cpu/conv/sparse_up_conv2d.h"

namespace oes::chain {

using Indices = std::vector<int64_t>;

enum class ConvKind {
  kDirect,
  kPointwise, // 1 x 1
  kUp, // 3 x 3 over the image up-sampled by 2
  kHead, // a last pointwise one of few outputs behind a single norm
};

// Places in the flat vector of weights are called indices; -1 stands for a weight that is not there.
struct ConvSpec {
  ConvKind kind = ConvKind::kDirect;
  Padding padding = Padding::kZeros;
  Indices border = {0, 0, 0, 0}; // left, right, top, bottom; of a direct convolution
  bool box = false; // sum of 2 x 2 pixels first
  int64_t stride = 1, kernel_rows = 1, kernel_columns = 1;
  int64_t outputs = 0;
  Indices taps; // (o, c, u, v) of every kept weight, in that order
  Indices weights; // their indices
  int64_t first_weight = -1; // or: all weights are kept, and lie from this index on; taps and weights are empty
  bool dense = false; // compute with all weights, those that the mask drops being zero, where the image is wide enough
  double scale = 1; // of the weights
  // What is the same for all pixels: a bias, and what constant input channels add. Outputs that vary come first, then
  // the constant ones whose running statistics are kept.
  Indices bias; // [outputs + constant outputs]
  Indices constant_taps; // (output, index of the weight, number of the constant) of every kept weight
};

struct NormSpec {
  Indices gamma, beta; // [channels]
  double eps = 1e-5, momentum = 0.1;
  int64_t copies = 1; // pixels that stand for each
  bool tracks = false;
  Indices places; // of the channels in the running statistics
  Indices tracked, tracked_places; // constants, as the convolution or norm before counts them, -1 for zero
  Act act = Act::kLeaky; // none is leaky with a slope of 1
  double slope = 1;
  Indices constants; // indices of the beta of every constant channel
};

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
  void finish(Last act, double slope);

  // Returns the mean squared error of the image to the target; zero where that is nullptr. An image that comes from a
  // norm has none.
  double forward(const T* weights, const T* source, T* out, const std::vector<T*>& running, const T* target);
  // After a forward with the same weights and source: adds to grad_weights. `grad` is of the image; nullptr: the forward
  // had a target, and the gradient is that of the error. grad_source is written, or nullptr.
  void backward(const T* weights, const T* source, const T* grad, T* grad_weights, T* grad_source);

  // Whether a fixed source has the rows of all planes side by side, [rows, planes, columns], or is [planes, rows, columns]
  // with winograd::kSlack elements behind them that may be read.
  bool by_rows() const {
    return !links_.empty() && by_rows(links_.front());
  }

  // Of the result: channels, rows, columns.
  std::vector<int64_t> shape() const;

  // Elements of what forward and backward are given.
  int64_t weights_size() const {
    return weights_;
  }
  int64_t source_size() const;
  int64_t output_size() const {
    return links_.back().spec.outputs * links_.back().pixels();
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

  struct Link {
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
    mixing::Weights<T> mixing; // pointwise, up
    // direct
    dense_conv2d::Conv<T> dense_conv;
    std::vector<T> weights, back_weights;
    Indices back_order, first, back_first;
    frame::Border border;
    frame::Frame<T> frame;
    frame::Bordered<T> bordered;
    Aligned<T> planes;
    sparse_conv2d::Gather<T> gather, gather_back;
    sparse_conv2d::Dot<T> dot;
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
    int64_t places() const { // of weights
      return spec.outputs * inputs * spec.kernel_rows * spec.kernel_columns;
    }
  };

  void check_conv(const Link& link, const Link* before) const;
  void check_norm(const Link& link, const NormSpec& spec) const;
  void bind_form(Link& link);
  void bind_direct(Link& link);
  void bind_taps(Link& link, int64_t bordered_plane);
  void bind_mixing(Link& link);
  void bind_head(Link& link, const Link* before);
  bool fixed(const Link& link) const {
    return fixed_ && &link == &links_[0];
  }
  bool by_rows(const Link& link) const {
    return fixed(link) && !link.flat;
  }
  void set_weights(Link& link, const T* weights);
  PixelMap<T> map_of(const Link& link) const;
  PixelMap<T> source_map() const;
  template <typename F>
  void each_head_weight(const F& f) const;
  output_head::Head<T> head() const;
  void convolve(Link& link, const T* planes_or_source, const PixelMap<T>& map);
  void offsets(Link& link, const Norm* before, const T* weights);
  void normalise(
      Link& link, size_t which, const double* moments, int64_t parts, bool chunks, const T* weights, T* mean, T* var);
  // `reader` read the link's result, and has done what it could of this; nullptr: nobody has.
  void norm_back(Link& link, const Link* reader, T* grad, T* grad_weights);
  PixelGrad<T> grad_of(const Link& link, const T* grad) const;
  // Of the link that the head reads: computed from that of the image wherever it is read.
  PixelGrad<T> grad_behind(const Link& link, const T* grad) const;
  void head_back(const T* grad, T* grad_weights);
  void conv_back(
      Link& link, const Link* before, const T* source, const PixelMap<T>& map, PixelGrad<T> grad, T* grad_source,
      T* grad_weights);
  void add_grads(Link& link, const T* sums, T* grad_weights);
  void offset_back(Link& link, const Norm* before, const T* grad, const T* weights, T* grad_weights);

  bool fixed_;
  int64_t channels_, rows_, columns_, weights_;
  bool finished_ = false;
  Last act_ = Last::kLeaky;
  bool ends_in_norm_ = false, has_loss_ = false;
  T slope_ = 1;
  std::deque<Link> links_; // whose elements stay where they are
  std::vector<T> identity_, none_; // of the source: scale 1, shift 0
  std::vector<T> head_weights_; // as output_head::Head takes them
  Aligned<T> grads_[2], grad_planes_, bordered_, partial_;
  Aligned<double> moments_, head_sums_;
};

extern template class Chain<float>;
extern template class Chain<double>;

} // namespace oes::chain

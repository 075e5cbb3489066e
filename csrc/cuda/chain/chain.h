// Convolutions with batch norms between them, run as one on a GPU: the program of csrc/common/chain_specs.h.
//
// A block is a convolution with the batch norm, the activation and possibly a second batch norm behind it. Between two
// blocks only the convolution's own result is kept, [networks, channels, rows, columns]: the next block normalises and
// activates it as it reads it, forward and backward. All buffers are made once, and nothing waits for the device.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "common/chain_specs.h"
#include "cuda/conv/conv_plan.h"
#include "cuda/norm/norm_pass.h"

namespace oes::cuda::chain {

// Where running statistics lie, [networks, stride]; nullptr: they are left alone.
template <typename T>
struct RunningStats {
  T *mean = nullptr, *var = nullptr;
  int64_t stride = 0;
};

template <typename T>
struct ForwardArguments {
  const T* weights; // [networks, weights]
  const T* source; // [networks, channels, rows, columns], or of one image
  bool source_shared;
  T* out; // [networks, channels, rows, columns]
  std::vector<RunningStats<T>> running; // of every norm, or none
  const T* target; // as out, or nullptr
  const T* weight; // of each squared error, as out; or nullptr
  T* loss; // [networks], written where there is a target
  cudaStream_t stream;
};

template <typename T>
struct BackwardArguments {
  const T* weights;
  const T* source;
  bool source_shared;
  const T* grad; // of the image; nullptr: of the loss of the forward
  T* grad_weights; // [networks, weights], written
  T* grad_source; // as an unshared source, or nullptr
  cudaStream_t stream;
};

template <typename T>
class Chain {
 public:
  // `networks` of the same program at once. `weights`: length of a network's flat vector.
  Chain(
      int64_t networks, int64_t channels, int64_t rows, int64_t columns, bool constant_input, int64_t weights,
      conv::Products products, int device, const std::vector<int>& groups = {});

  // These refuse by std::invalid_argument what would read or write outside its memory.
  void add_conv(const ConvSpec& spec);
  void add_norm(const NormSpec& spec);
  // The image leaves through an activation.
  void finish(OutputAct act, double slope);

  void forward(const ForwardArguments<T>& a);
  // After a forward with the same weights and source.
  void backward(const BackwardArguments<T>& a);

  // Of the result of one network: channels, rows, columns.
  std::vector<int64_t> shape() const;
  int64_t source_size() const {
    return channels_ * rows_ * columns_;
  }
  size_t norms() const;
  bool finished() const {
    return finished_;
  }
  bool ends_in_norm() const {
    return finished_ && !blocks_.back().norms.empty();
  }
  bool has_loss() const {
    return target_ != nullptr;
  }
  // How each convolution is computed.
  std::vector<std::string> explain() const;
  // What a forward and a backward launch, in order, for the model of a step; also before it is finished, which is when
  // it takes its memory.
  std::vector<conv::LaunchWork> launches() const;

 private:
  // A norm with what it has on the device.
  struct Norm {
    NormSpec spec;
    DeviceArray<int> gamma, beta, stats_index, tracked, tracked_stats_index, betas;
    DeviceArray<double> rstd; // [networks, channels]
    DeviceArray<T> grads; // [networks, channels, norm::kGradNumbers]
    DeviceArray<T> constants; // [networks, constants]
  };
  struct Block {
    ConvSpec spec;
    int rows, columns; // of the result
    std::unique_ptr<conv::TapSumPlan<T>> forward, input_grad;
    std::unique_ptr<conv::WeightGradPlan<T>> weight_grad;
    DeviceArray<int> bias, constant_first, constant_taps; // see norm::Shift
    DeviceArray<T> y; // [networks, outputs, rows, columns]
    DeviceArray<T> prologue; // [networks, outputs, norm::kPrologueNumbers]
    std::deque<Norm> norms; // at most two; the first has the activation

    int64_t pixels() const {
      return static_cast<int64_t>(rows) * columns;
    }
  };

  norm::Prologue<T> prologue_of(const Block& block, bool second) const;
  conv::Image<T> image_before(size_t block, const T* source, bool shared) const;
  norm::Shift<T> shift_of(size_t block) const;
  norm::Finalise<T> finalise_of(const Block& block, const T* weights, T* grad_weights);
  norm::Finalise<T> norm_forward(size_t block, size_t which, const ForwardArguments<T>& a, size_t statistics);
  norm::Finalise<T> norm_backward(Block& block, size_t which, const T* weights, T* grad_weights);
  norm::NormPassArgs<T> pass_over(const Block& block, norm::NormPassKind kind) const;
  void activation_grad(Block& block, const T* grad, T* out, const BackwardArguments<T>& a);
  const T* begin_backward(const BackwardArguments<T>& a);
  void finish_weights();

  int networks_;
  int64_t channels_, rows_, columns_, weights_;
  bool constant_input_;
  int device_;
  conv::Machine machine_;
  std::deque<Block> blocks_;
  OutputAct act_ = OutputAct::kLeaky;
  T slope_ = 1;
  bool finished_ = false, shared_weights_ = false;
  const T* target_ = nullptr;
  const T* weight_ = nullptr; // of the squared errors to it

  // While the program is made; then on the device.
  conv::WeightTable<T> packed_table_, grad_table_;
  DeviceArray<int> packed_index_, grad_index_;
  DeviceArray<conv::WeightSegment<T>> packed_segments_, grad_segments_;
  int64_t packed_size_ = 0, grad_size_ = 0;
  std::vector<int64_t> grad_begins_; // of the segments, and the end
  DeviceArray<T> packed_; // [networks, packed_size_]
  DeviceArray<T> grads_[2];
  DeviceArray<double> partials_;
  std::unique_ptr<SideStream> side_; // of the gradients of weights
  int64_t most_outputs_ = 1; // of a block
  DeviceArray<unsigned> tickets_; // [networks, most_outputs_]
};

} // namespace oes::cuda::chain

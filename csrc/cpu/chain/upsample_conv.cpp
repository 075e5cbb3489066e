#include "cpu/chain/upsample_conv.h"

#include <algorithm>

#include "common/chain_checks.h"

namespace oes::chain {

template <typename T>
UpsampleConv<T>::UpsampleConv(const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns)
    : ChainConv<T>(spec, inputs, rows, columns) {
  const bool upsample = spec.kind == ConvKind::kUpsample;
  const int64_t kernel = upsample ? conv::kUpsampleKernel : 1;
  expect(spec.kernel_rows * spec.kernel_columns == kernel, "convolution: expected a 3 x 3 or 1 x 1 kernel");
  expect(
      upsample ? spec.padding == Padding::kZeros || spec.padding == Padding::kReplicate
               : std::all_of(spec.border.begin(), spec.border.end(), [](int64_t width) { return width == 0; }),
      "convolution: expected a border of zeros or replicated pixels, none of a pointwise one");
  expect(spec.stride == 1 && !spec.box, "convolution: expected a direct one to have a stride or sums of pixels");
  this->out_rows_ = rows * (upsample ? 2 : 1);
  this->out_columns_ = columns * (upsample ? 2 : 1);
  if (spec.dense) {
    all_.emplace(spec, inputs);
  } else {
    kept_ = kept_weights(spec, inputs);
  }
  weights_.bind(
      inputs, spec.outputs, rows, columns, kernel, spec.padding == Padding::kZeros, spec.dense ? nullptr : &kept_.taps);
}

template <typename T>
void UpsampleConv<T>::reserve(SharedBuffers<T>& buffers) const {
  buffers.moments.reserve(2 * weights_.forward.strips * this->spec_.outputs);
  buffers.moments.reserve(2 * weights_.backward.strips * this->inputs_);
  buffers.weight_sums.reserve(weights_.sums());
}

template <typename T>
int64_t UpsampleConv<T>::moments_pixels() const {
  return weights_.forward.strip_rows * (this->out_pixels() / this->rows_);
}

template <typename T>
int64_t UpsampleConv<T>::epilogue_chunks() const {
  return weights_.backward.strips;
}

template <typename T>
void UpsampleConv<T>::set_weights(const T* weights) {
  const auto scale = static_cast<T>(this->spec_.scale);
  if (all_.has_value()) {
    weights_.set_dense(all_->read(weights), scale);
  } else {
    weights_.set(weights, kept_.indices.data(), scale);
  }
}

template <typename T>
void UpsampleConv<T>::forward(const ForwardArguments<T>& arguments, SharedBuffers<T>& buffers) {
  conv::UpsampleConv<T> a = weights_.forward;
  a.prologue = arguments.prologue;
  a.source = arguments.source;
  a.out = arguments.out;
  a.moments = arguments.moments ? buffers.moments.data() : nullptr;
  conv::upsample_conv(a);
}

template <typename T>
void UpsampleConv<T>::backward(const BackwardArguments<T>& arguments, SharedBuffers<T>& buffers) {
  conv::UpsampleConvGrad<T> a = weights_.backward;
  a.prologue = arguments.prologue;
  a.source = arguments.source;
  a.grad = arguments.grad;
  a.grad_source = arguments.grad_source;
  a.epilogue = arguments.epilogue;
  a.epilogue_sums = buffers.moments.data();
  a.sums = buffers.weight_sums.data();
  conv::upsample_conv_grad(a);
  const auto scale = static_cast<T>(this->spec_.scale);
  if (all_.has_value()) {
    all_->add_grads(arguments.grad_weights, [&](T* all) { weights_.add_dense_grads(a.sums, scale, all); });
  } else {
    weights_.add_grads(a.sums, kept_.indices.data(), scale, arguments.grad_weights);
  }
}

template class UpsampleConv<float>;
template class UpsampleConv<double>;

} // namespace oes::chain

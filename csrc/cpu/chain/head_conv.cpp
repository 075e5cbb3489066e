#include "cpu/chain/head_conv.h"

#include <stdexcept>

#include "common/chain_checks.h"

namespace oes::chain {

template <typename T>
HeadConv<T>::HeadConv(const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns)
    : ChainConv<T>(spec, inputs, rows, columns), kept_(kept_weights(spec, inputs)) {
  expect(
      spec.kernel_rows * spec.kernel_columns == 1 && spec.outputs <= norm::kMostHeadOutputs,
      "head: expected 1 x 1 and four outputs at most");
  weights_.resize(inputs * norm::kMostHeadOutputs);
  for (int64_t t = 0; t < kept_.count(); ++t) {
    positions_.push_back(kept_.taps[4 * t + 1] * norm::kMostHeadOutputs + kept_.taps[4 * t]);
  }
}

template <typename T>
void HeadConv<T>::reserve(SharedBuffers<T>& buffers) const {
  buffers.moments.reserve(2 * epilogue_chunks() * this->inputs_);
  buffers.head_weight_sums.reserve(norm::kMostHeadOutputs * epilogue_chunks() * this->inputs_);
}

template <typename T>
int64_t HeadConv<T>::epilogue_chunks() const {
  return conv::head_chunks(this->out_pixels());
}

template <typename T>
void HeadConv<T>::set_weights(const T* weights) {
  const auto scale = static_cast<T>(this->spec_.scale);
  for (size_t t = 0; t < positions_.size(); ++t) {
    weights_[positions_[t]] = weights[kept_.indices[t]] * scale;
  }
}

template <typename T>
conv::OutputHead<T> HeadConv<T>::head(const norm::Prologue<T>& prologue, const T* source) const {
  return {this->inputs_, this->spec_.outputs, this->out_pixels(), prologue, source, weights_.data()};
}

template <typename T>
void HeadConv<T>::forward(const ForwardArguments<T>&, SharedBuffers<T>&) {
  throw std::logic_error("head: expected to be the last convolution");
}

template <typename T>
double HeadConv<T>::forward_image(
    const ForwardArguments<T>& a, const ImageArguments<T>& image, SharedBuffers<T>& buffers) {
  return conv::output_head(
      conv::OutputHeadForward<T>{
          head(a.prologue, a.source), image.act, image.slope, image.shift, image.target, image.weight, image.image,
          a.out, buffers.moments.data()});
}

template <typename T>
void HeadConv<T>::backward(const BackwardArguments<T>& a, SharedBuffers<T>& buffers) {
  const double* sums = buffers.head_weight_sums.data();
  conv::output_head_backward(
      conv::OutputHeadBackward<T>{
          head(a.prologue, a.source), a.grad.grad, buffers.moments.data(), buffers.head_weight_sums.data()});
  const auto scale = static_cast<T>(this->spec_.scale);
  for (size_t t = 0; t < positions_.size(); ++t) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < epilogue_chunks(); ++chunk) {
      sum += sums[chunk * this->inputs_ * norm::kMostHeadOutputs + positions_[t]];
    }
    a.grad_weights[kept_.indices[t]] += static_cast<T>(sum) * scale;
  }
}

template <typename T>
void HeadConv<T>::grad_when_read(norm::PrologueGrad<T>& grad, const norm::Prologue<T>& prologue) const {
  grad.outputs = this->spec_.outputs;
  grad.pixels = this->out_pixels();
  grad.weights = weights_.data();
  grad.prologue = prologue;
}

template class HeadConv<float>;
template class HeadConv<double>;

} // namespace oes::chain

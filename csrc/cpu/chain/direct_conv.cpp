#include "cpu/chain/direct_conv.h"

#include <algorithm>
#include <numeric>

#include "common/chain_checks.h"

namespace oes::chain {

template <typename T>
template <typename F>
DirectConv<T>::DirectConv(
    const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns, bool constant_input, const F& wants_flat)
    : ChainConv<T>(spec, inputs, rows, columns), constant_input_(constant_input) {
  const int64_t* b = spec.border.data();
  border_ = make_border(spec.padding, rows, columns, b[0], b[1], b[2], b[3]);
  input_.channels = inputs;
  input_.rows = rows;
  input_.columns = columns;
  input_.border = &border_;
  input_.box = spec.box;
  input_.unshuffle = spec.stride == 2;
  const int64_t high = input_.high(), wide = input_.wide();
  expect(high >= spec.kernel_rows && wide >= spec.kernel_columns, "image: expected the size of the kernel");
  this->out_rows_ = (high - spec.kernel_rows) / spec.stride + 1;
  this->out_columns_ = (wide - spec.kernel_columns) / spec.stride + 1;
  shape_ = {inputs,          spec.outputs,       spec.kernel_rows,    spec.kernel_columns,    spec.stride,
            this->out_rows_, this->out_columns_, input_.plane_rows(), input_.plane_columns(), false};
  // Rows of all planes side by side are contiguous; Winograd's sums take squares of pixels instead.
  shape_.row_major = constant_input && !wants_flat(shape_);
  if (!constant_input) {
    input_.planes = planes_.reserve(inputs * input_.plane_size() + conv::winograd::kSlack);
  }
}

template <typename T>
void DirectConv<T>::reserve(SharedBuffers<T>& buffers) const {
  buffers.grad_planes.reserve(this->inputs_ * input_.plane_size());
  buffers.padded_grad.reserve(
      this->spec_.outputs * shape_.padded_grad_plane() + shape_.padded_grad().left + conv::winograd::kSlack);
  buffers.weight_sums.reserve(weight_sums());
}

template <typename T>
int64_t DirectConv<T>::constant_source_size() const {
  return this->inputs_ * input_.plane_size() + (shape_.row_major ? 0 : conv::winograd::kSlack);
}

template <typename T>
bool DirectConv<T>::constant_source_row_major() const {
  return shape_.row_major;
}

template <typename T>
void DirectConv<T>::forward(const ForwardArguments<T>& a, SharedBuffers<T>&) {
  if (!constant_input_) {
    conv::ConvInput<T> input = input_;
    input.prologue = a.prologue;
    input.image = a.source;
    conv::conv_input(input);
  }
  sum(constant_input_ ? a.source : planes_.data(), a.out);
}

template <typename T>
void DirectConv<T>::backward(const BackwardArguments<T>& a, SharedBuffers<T>& buffers) {
  const PaddedGradPlanes padded = shape_.padded_grad();
  T* grad = buffers.padded_grad.data();
  conv::padded_grad(
      conv::PaddedGrad<T>{
          shape_.outputs, shape_.rows, shape_.columns, padded.top, padded.left, padded.rows, padded.pitch, padded.left,
          a.grad, grad});
  T* weight_sums = buffers.weight_sums.data();
  const T* planes = constant_input_ ? a.source : planes_.data();
  sum_weight_grads(planes, grad + padded.top * padded.pitch + padded.left, weight_sums);
  add_weight_grads(weight_sums, a.grad_weights);
  if (a.grad_source == nullptr) {
    return;
  }
  T* grad_planes = buffers.grad_planes.data();
  sum_back(grad, grad_planes);
  conv::ConvInput<T> input = input_;
  input.grad_planes = grad_planes;
  input.grad_image = a.grad_source;
  conv::conv_input_backward(input);
}

template <typename T>
SparseConv<T>::SparseConv(const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns, bool constant_input)
    : DirectConv<T>(spec, inputs, rows, columns, constant_input, [](const conv::ConvShape&) { return false; }),
      kept_(kept_weights(spec, inputs)) {
  const conv::ConvShape& shape = this->shape_;
  const TapPlanes planes = shape.planes();
  const PaddedGradPlanes padded = shape.padded_grad();
  const int64_t taps = kept_.count();
  weights_.resize(taps);
  back_weights_.resize(taps);
  first_.assign(spec.outputs + 1, 0);
  back_first_.assign(planes.planes() + 1, 0);
  Indices plane(taps);
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t* tap = &kept_.taps[4 * t];
    plane[t] = planes.plane_of(tap[1], tap[2], tap[3]);
    offsets_.push_back(planes.offset_of(tap[1], tap[2], tap[3]));
    ++first_[tap[0] + 1];
    ++back_first_[plane[t] + 1];
    back_order_.push_back(t);
  }
  std::partial_sum(first_.begin(), first_.end(), first_.begin());
  std::partial_sum(back_first_.begin(), back_first_.end(), back_first_.begin());
  std::stable_sort(back_order_.begin(), back_order_.end(), [&](int64_t x, int64_t y) { return plane[x] < plane[y]; });
  for (const int64_t t : back_order_) {
    const int64_t* tap = &kept_.taps[4 * t];
    back_offsets_.push_back(padded.offset_of(tap[0], tap[2], tap[3]));
  }
  sum_ = conv::forward_sum<T>(shape);
  sum_.weights = weights_.data();
  sum_.offsets = offsets_.data();
  sum_.first = first_.data();
  back_sum_ = conv::backward_sum<T>(shape);
  back_sum_.weights = back_weights_.data();
  back_sum_.offsets = back_offsets_.data();
  back_sum_.first = back_first_.data();
  weight_grad_ = conv::weight_grad_sum<T>(shape);
  weight_grad_.offsets = offsets_.data();
  weight_grad_.first = first_.data();
  weight_grad_.taps = taps;
}

template <typename T>
int64_t SparseConv<T>::macs() const {
  return kept_.count() * this->out_pixels();
}

template <typename T>
int64_t SparseConv<T>::weight_sums() const {
  return weight_grad_.strips * weight_grad_.taps;
}

template <typename T>
void SparseConv<T>::set_weights(const T* weights) {
  const auto scale = static_cast<T>(this->spec_.scale);
  for (size_t t = 0; t < weights_.size(); ++t) {
    weights_[t] = weights[kept_.indices[t]] * scale;
  }
}

template <typename T>
void SparseConv<T>::sum(const T* planes, T* out) {
  conv::SparseTapSum<T> a = sum_;
  a.source = planes;
  a.out = out;
  conv::run(a, 1, macs());
}

template <typename T>
void SparseConv<T>::sum_weight_grads(const T* planes, const T* centre, T* weight_sums) {
  conv::SparseWeightGrad<T> a = weight_grad_;
  a.source = planes;
  a.grad = centre;
  a.partial = weight_sums;
  conv::run(a, 1, macs());
}

template <typename T>
void SparseConv<T>::add_weight_grads(const T* weight_sums, T* grad_weights) {
  conv::add_grads(weight_grad_, weight_sums, kept_.indices.data(), static_cast<T>(this->spec_.scale), grad_weights);
}

template <typename T>
void SparseConv<T>::sum_back(const T* grad, T* grad_planes) {
  for (size_t t = 0; t < weights_.size(); ++t) {
    back_weights_[t] = weights_[back_order_[t]];
  }
  conv::SparseTapSum<T> a = back_sum_;
  a.source = grad;
  a.out = grad_planes;
  conv::run(a, 1, macs());
}

template <typename T>
DenseConv<T>::DenseConv(const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns, bool constant_input)
    : DirectConv<T>(spec, inputs, rows, columns, constant_input, conv::DenseConv2d<T>::wants_flat),
      weights_(spec, inputs) {
  conv_.bind(this->shape_);
}

template <typename T>
int64_t DenseConv<T>::weight_sums() const {
  return conv_.sums();
}

template <typename T>
void DenseConv<T>::set_weights(const T* weights) {
  conv_.set(weights_.read(weights), static_cast<T>(this->spec_.scale), !this->constant_input_);
}

template <typename T>
void DenseConv<T>::sum(const T* planes, T* out) {
  conv_.run_forward(planes, out);
}

template <typename T>
void DenseConv<T>::sum_weight_grads(const T* planes, const T* centre, T* weight_sums) {
  conv_.run_weight_grad(planes, centre, weight_sums);
}

template <typename T>
void DenseConv<T>::add_weight_grads(const T* weight_sums, T* grad_weights) {
  const auto scale = static_cast<T>(this->spec_.scale);
  weights_.add_grads(grad_weights, [&](T* all) { conv_.add_grads(weight_sums, scale, all); });
}

template <typename T>
void DenseConv<T>::sum_back(const T* grad, T* grad_planes) {
  conv_.run_backward(grad, grad_planes);
}

template class SparseConv<float>;
template class SparseConv<double>;
template class DenseConv<float>;
template class DenseConv<double>;

} // namespace oes::chain

#include "cpu/chain/chain_conv.h"

#include <algorithm>

#include "common/chain_checks.h"
#include "cpu/chain/direct_conv.h"
#include "cpu/chain/head_conv.h"
#include "cpu/chain/upsample_conv.h"
#include "cpu/norm/batch_norm_act.h"

namespace oes::chain {
namespace {

// Whether a direct convolution computes with all weights: where it is asked to, and its result is wide enough.
template <typename T>
bool is_dense(const ConvSpec& spec, int64_t rows, int64_t columns, bool constant_input) {
  const int64_t* b = spec.border.data();
  const int64_t out_rows = (rows + b[2] + b[3] - (spec.box ? 1 : 0) - spec.kernel_rows) / spec.stride + 1;
  const int64_t out_columns = (columns + b[0] + b[1] - (spec.box ? 1 : 0) - spec.kernel_columns) / spec.stride + 1;
  return spec.dense && out_rows > 0 && conv::DenseConv2d<T>::fits(!constant_input, out_rows, out_columns, out_columns);
}

} // namespace

template <typename T>
double ChainConv<T>::forward_image(
    const ForwardArguments<T>& a, const ImageArguments<T>& image, SharedBuffers<T>& buffers) {
  forward(a, buffers);
  if (image.target != nullptr) {
    return norm::output_loss(
        norm::OutputLoss<T>{
            spec_.outputs, out_pixels(), image.act, image.slope, a.out, image.shift, image.target, image.weight,
            image.image, buffers.moments.data()});
  }
  norm::output(
      norm::Output<T>{spec_.outputs, out_pixels(), image.act, image.slope, a.out, image.shift, nullptr, image.image});
  return 0;
}

template <typename T>
std::unique_ptr<ChainConv<T>> make_chain_conv(
    const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns, bool constant_input) {
  switch (spec.kind) {
    case ConvKind::kHead:
      return std::make_unique<HeadConv<T>>(spec, inputs, rows, columns);
    case ConvKind::kPointwise:
    case ConvKind::kUpsample:
      expect(!constant_input, "convolution: expected a direct one to read a constant source");
      return std::make_unique<UpsampleConv<T>>(spec, inputs, rows, columns);
    case ConvKind::kDirect:
      break;
  }
  if (is_dense<T>(spec, rows, columns, constant_input)) {
    return std::make_unique<DenseConv<T>>(spec, inputs, rows, columns, constant_input);
  }
  return std::make_unique<SparseConv<T>>(spec, inputs, rows, columns, constant_input);
}

#define OES_INSTANTIATE(T)     \
  template class ChainConv<T>; \
  template std::unique_ptr<ChainConv<T>> make_chain_conv(const ConvSpec&, int64_t, int64_t, int64_t, bool);
OES_INSTANTIATE(float)
OES_INSTANTIATE(double)

} // namespace oes::chain

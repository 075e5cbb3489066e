// The operators of oes_fast/ops/sparse_conv2d.py: see oes_fast/reference/sparse_conv2d.py.
#include <tuple>
#include <vector>

#include "common/tap_offsets.h"
#include "cpu/conv/conv_input.h"
#include "cpu/conv/sparse_conv2d.h"
#include "cpu/core/tensor_checks.h"

namespace oes::conv {
namespace {

// Sizes of one convolution, checked.
struct Shape {
  int64_t images, inputs, phases, source_rows, source_columns; // of the planes [N, C, P, H', W']
  int64_t outputs, kernel_rows, kernel_columns, rows, columns;
  int64_t stride, taps;
  int64_t margin_rows, margin_columns; // see tap_margin

  TapPlanes tap_planes() const {
    return {inputs, stride, source_rows, source_columns};
  }
  int64_t planes() const {
    return inputs * phases;
  }
  int64_t source_plane() const {
    return source_rows * source_columns;
  }
  int64_t macs() const {
    return images * taps * rows * columns;
  }
};

Shape check(
    const Tensor& planes, const Tensor& values, const Tensor& taps, const Tensor& by_input, int64_t outputs,
    int64_t kernel_rows, int64_t kernel_columns, int64_t rows, int64_t columns) {
  check_vector("values", values, values);
  STD_TORCH_CHECK(planes.is_cpu() && planes.dim() == 5, "planes: expected a CPU tensor of 5 dimensions");
  STD_TORCH_CHECK(planes.scalar_type() == values.scalar_type(), "planes: expected the dtype of values");
  STD_TORCH_CHECK(planes.is_contiguous(), "planes: expected a contiguous tensor");
  STD_TORCH_CHECK(planes.size(2) == 1 || planes.size(2) == 4, "planes: expected 1 or 4 phases");
  for (const Tensor* index : {&taps, &by_input}) {
    STD_TORCH_CHECK(
        index->is_cpu() && index->scalar_type() == ScalarType::Int && index->is_contiguous(),
        "pattern: expected contiguous int32 CPU tensors");
  }
  const int64_t count = values.numel();
  STD_TORCH_CHECK(
      taps.dim() == 2 && taps.size(0) == count && taps.size(1) == 4, "taps: expected shape [", count, ", 4]");
  STD_TORCH_CHECK(by_input.dim() == 1 && by_input.numel() == count, "by_input: expected ", count, " elements");
  const int64_t stride = planes.size(2) == 1 ? 1 : 2;
  const Shape s{
      planes.size(0),
      planes.size(1),
      planes.size(2),
      planes.size(3),
      planes.size(4),
      outputs,
      kernel_rows,
      kernel_columns,
      rows,
      columns,
      stride,
      count,
      tap_margin(kernel_rows, stride),
      tap_margin(kernel_columns, stride)};
  STD_TORCH_CHECK(outputs >= 0 && kernel_rows > 0 && kernel_columns > 0, "kernel: expected positive sizes");
  STD_TORCH_CHECK(
      rows > 0 && columns > 0 && s.margin_rows + rows <= s.source_rows &&
          s.margin_columns + columns <= s.source_columns,
      "planes: too small for an output of ", rows, " x ", columns);
  const auto* tap = pointer<int32_t>(taps);
  const auto* order = pointer<int32_t>(by_input);
  int32_t output = 0;
  for (int64_t t = 0; t < count; ++t, tap += 4) {
    const bool inside = tap[0] >= output && tap[0] < outputs && tap[1] >= 0 && tap[1] < s.inputs && tap[2] >= 0 &&
        tap[2] < kernel_rows && tap[3] >= 0 && tap[3] < kernel_columns && order[t] >= 0 && order[t] < count;
    STD_TORCH_CHECK(inside, "taps: expected ascending outputs and indices inside the weight");
    output = tap[0];
  }
  return s;
}

// Where each tap reads the input, taps in order of the outputs; first[o] is the first tap of output o.
void read_forward(const Shape& s, const int32_t* taps, std::vector<int64_t>& offsets, std::vector<int64_t>& first) {
  const TapPlanes planes = s.tap_planes();
  offsets.resize(s.taps);
  first.assign(s.outputs + 1, 0);
  for (int64_t t = 0; t < s.taps; ++t, taps += 4) {
    offsets[t] = planes.offset_of(taps[1], taps[2], taps[3]);
    ++first[taps[0] + 1];
  }
  for (int64_t o = 0; o < s.outputs; ++o) {
    first[o + 1] += first[o];
  }
}

template <typename T>
void input_gradient(
    const Shape& s, const Tensor& like, const T* grad, const T* values, const int32_t* taps, const int32_t* order,
    T* out) {
  const int64_t rows = s.source_rows + s.margin_rows, columns = s.source_columns + s.margin_columns;
  const Tensor padded = torch::stable::new_empty(like, {s.images, s.outputs, rows, columns});
  padded_grad(
      PaddedGrad<T>{
          s.images * s.outputs,
          s.rows,
          s.columns,
          s.margin_rows,
          s.margin_columns,
          rows,
          columns,
          0,
          {grad},
          pointer<T>(padded)});
  const TapPlanes planes = s.tap_planes();
  const PaddedGradPlanes grad_planes{s.stride, rows, columns, s.margin_rows, s.margin_columns};
  std::vector<int64_t> offsets(s.taps), first(s.planes() + 1, 0);
  std::vector<T> weights(s.taps);
  int64_t last = 0;
  for (int64_t t = 0; t < s.taps; ++t) {
    const int32_t* tap = taps + 4 * order[t];
    const int64_t plane = planes.plane_of(tap[1], tap[2], tap[3]);
    STD_TORCH_CHECK(plane >= last, "by_input: expected the taps in order of the planes they read");
    last = plane;
    ++first[plane + 1];
    weights[t] = values[order[t]];
    offsets[t] = grad_planes.offset_of(tap[0], tap[2], tap[3]);
  }
  for (int64_t plane = 0; plane < s.planes(); ++plane) {
    first[plane + 1] += first[plane];
  }
  run(
      SparseTapSum<T>{
          pointer<T>(padded), out, weights.data(), offsets.data(), first.data(), s.planes(), s.source_rows,
          s.source_columns, columns, s.outputs * rows * columns},
      s.images, s.macs());
}

template <typename T>
void value_gradient(const Shape& s, const Tensor& planes, const T* grad, const int32_t* taps, T* out) {
  std::vector<int64_t> offsets, first;
  read_forward(s, taps, offsets, first);
  const int64_t lanes = vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
  const bool flat = s.columns < kRowVectors * lanes;
  Tensor wide = planes;
  if (flat) { // the gradient at the input's pitch, so that an image is one row of both
    wide = torch::stable::new_empty(planes, {s.images, s.outputs, s.rows, s.source_columns});
    padded_grad(
        PaddedGrad<T>{
            s.images * s.outputs, s.rows, s.columns, 0, 0, s.rows, s.source_columns, 0, {grad}, pointer<T>(wide)});
  }
  SparseWeightGrad<T> a{
      pointer<T>(planes), flat ? pointer<T>(wide) : grad, nullptr, offsets.data(), first.data(), s.outputs, s.taps};
  a.rows = s.rows;
  a.columns = s.columns;
  a.pitch = s.source_columns;
  a.grad_pitch = s.columns;
  a.source_image = s.planes() * s.source_plane();
  a.grad_plane = flat ? s.rows * s.source_columns : s.rows * s.columns;
  plan_tasks(a, flat, s.images);
  const int64_t sums = s.images * a.strips;
  const Tensor partial = torch::stable::new_empty(planes, {sums, s.taps});
  a.partial = pointer<T>(partial);
  run(a, s.images, s.macs());
  const T* each = a.partial;
  for (int64_t t = 0; t < s.taps; ++t) {
    double sum = 0;
    for (int64_t i = 0; i < sums; ++i) {
      sum += static_cast<double>(each[i * s.taps + t]);
    }
    out[t] = static_cast<T>(sum);
  }
}

Tensor sparse_conv2d(
    Tensor planes, Tensor values, Tensor taps, Tensor by_input, int64_t outputs, int64_t kernel_rows,
    int64_t kernel_columns, int64_t rows, int64_t columns) {
  const Shape s = check(planes, values, taps, by_input, outputs, kernel_rows, kernel_columns, rows, columns);
  Tensor result = torch::stable::new_empty(planes, {s.images, outputs, rows, columns});
  std::vector<int64_t> offsets, first;
  read_forward(s, pointer<int32_t>(taps), offsets, first);
  with_type(values, [&](auto zero) {
    using T = decltype(zero);
    run(
        SparseTapSum<T>{
            pointer<T>(planes), pointer<T>(result), pointer<T>(values), offsets.data(), first.data(), s.outputs, s.rows,
            s.columns, s.source_columns, s.planes() * s.source_plane()},
        s.images, s.macs());
  });
  return result;
}

std::tuple<Tensor, Tensor> sparse_conv2d_backward(
    Tensor grad, Tensor planes, Tensor values, Tensor taps, Tensor by_input, int64_t kernel_rows,
    int64_t kernel_columns, bool needs_planes, bool needs_values) {
  STD_TORCH_CHECK(
      grad.is_cpu() && grad.dim() == 4 && grad.is_contiguous() && grad.scalar_type() == values.scalar_type(),
      "grad: expected a contiguous CPU tensor of 4 dimensions and the dtype of values");
  const Shape s =
      check(planes, values, taps, by_input, grad.size(1), kernel_rows, kernel_columns, grad.size(2), grad.size(3));
  STD_TORCH_CHECK(grad.size(0) == s.images, "grad: expected ", s.images, " images, got ", grad.size(0));
  Tensor grad_planes = needs_planes ? torch::stable::empty_like(planes) : torch::stable::new_empty(planes, {0});
  Tensor grad_values = torch::stable::new_empty(values, {needs_values ? s.taps : 0});
  with_type(values, [&](auto zero) {
    using T = decltype(zero);
    const auto* tap = pointer<int32_t>(taps);
    if (needs_planes) {
      input_gradient<T>(
          s, planes, pointer<T>(grad), pointer<T>(values), tap, pointer<int32_t>(by_input), pointer<T>(grad_planes));
    }
    if (needs_values) {
      value_gradient<T>(s, planes, pointer<T>(grad), tap, pointer<T>(grad_values));
    }
  });
  return {grad_planes, grad_values};
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("sparse_conv2d_cpu", TORCH_BOX(&sparse_conv2d));
  m.impl("sparse_conv2d_backward_cpu", TORCH_BOX(&sparse_conv2d_backward));
}

} // namespace oes::conv

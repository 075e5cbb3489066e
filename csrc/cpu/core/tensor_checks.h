// Checks and pointers of tensors that reach the CPU kernels through torch's stable ABI: for the files named _op.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cpu/core/parallel.h"

namespace oes {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_vector(const char* name, const Tensor& tensor, const Tensor& like) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a CPU tensor");
  STD_TORCH_CHECK(
      tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == ScalarType::Double, name,
      ": expected dtype float32 or float64");
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), name, ": expected the dtype of the other arguments");
  STD_TORCH_CHECK(tensor.dim() == 1, name, ": expected 1 dimension, got ", tensor.dim());
  STD_TORCH_CHECK(tensor.numel() == like.numel(), name, ": expected ", like.numel(), " elements, got ", tensor.numel());
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
}

template <typename T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Calls f(T()) with the C++ type of the tensor's elements.
template <typename F>
auto with_type(const Tensor& tensor, const F& f) {
  return tensor.scalar_type() == ScalarType::Float ? f(float()) : f(double());
}

} // namespace oes

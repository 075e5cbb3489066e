// A convolution of sparse_up_conv2d.h on images as they are, several of them: what the operators of torch run.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/conv/sparse_up_conv2d.h"
#include "cpu/core/workspace.h"

namespace oes::conv {

// A prologue of `channels` that leaves pixels as they are, and its derivative.
template <typename T>
struct Identity {
  std::vector<T> ones, zeros;
  explicit Identity(int64_t channels) : ones(channels, T(1)), zeros(channels) {}
  norm::Prologue<T> prologue() const {
    return {zeros.data(), ones.data(), zeros.data(), zeros.data(), ones.data(), zeros.data(), T(1), Act::kLeaky};
  }
  norm::PrologueGrad<T> grad(const T* of) const {
    return {of, of, zeros.data(), ones.data(), zeros.data(), zeros.data()};
  }
};

// One convolution of several images; weight t is the t-th of the values.
template <typename T>
struct PlainConv {
  int64_t inputs, outputs, pixels, high_pixels;
  UpsampleConvWeights<T> weights;
  std::vector<int64_t> indices;
  Identity<T> identity;

  PlainConv(
      int64_t inputs_, int64_t outputs_, int64_t rows, int64_t columns, int64_t kernel,
      const std::vector<int64_t>& taps)
      : inputs(inputs_),
        outputs(outputs_),
        pixels(rows * columns),
        high_pixels(kernel == kUpsampleKernel ? 4 * pixels : pixels),
        indices(taps.size() / 4),
        identity(std::max(inputs, outputs)) {
    weights.bind(inputs, outputs, rows, columns, kernel, false, &taps);
    std::iota(indices.begin(), indices.end(), int64_t(0));
  }

  void forward(int64_t images, const T* x, const T* values, T* y) {
    weights.set(values, indices.data(), T(1));
    for (int64_t n = 0; n < images; ++n) {
      UpsampleConv<T> a = weights.forward;
      a.prologue = identity.prologue();
      a.source = x + n * inputs * pixels;
      a.out = y + n * outputs * high_pixels;
      a.moments = nullptr;
      upsample_conv(a);
    }
  }

  // grad_x and grad_values may be nullptr; grad_values is written.
  void backward(int64_t images, const T* grad, const T* x, const T* values, T* grad_x, T* grad_values) {
    weights.set(values, indices.data(), T(1));
    Aligned<T> sums;
    if (grad_values != nullptr) {
      std::fill_n(grad_values, weights.count(), T(0));
    }
    for (int64_t n = 0; n < images; ++n) {
      UpsampleConvGrad<T> a = weights.backward;
      a.prologue = identity.prologue();
      a.source = x + n * inputs * pixels;
      a.grad = identity.grad(grad + n * outputs * high_pixels);
      a.grad_source = grad_x == nullptr ? nullptr : grad_x + n * inputs * pixels;
      a.epilogue = GradEpilogue::kNone;
      a.sums = grad_values == nullptr ? nullptr : sums.reserve(std::max<int64_t>(1, weights.sums()));
      upsample_conv_grad(a);
      if (grad_values != nullptr) {
        weights.add_grads(a.sums, indices.data(), T(1), grad_values);
      }
    }
  }
};

} // namespace oes::conv

// What of a norm needs a pass over the image of its own: all else is done by the convolutions beside it.
#pragma once

#include "cuda/norm/finalise.h"

namespace oes::cuda::norm {

enum class NormPassKind {
  kSecondMoments, // moments of the activated image, for the second norm
  kSecondSums, // sums for the gradient of the second norm
  kActivationGrad, // gradient through the second norm, if there is one, and the activation; sums for the first
  kImage, // the image that leaves the network, from a norm
  kImageGrad, // gradient of a last convolution's result, from that of the image or the error to a target
};

template <typename T>
struct NormPassArgs {
  NormPassKind kind;
  int channels;
  int64_t pixels;
  const T* y; // [networks, channels, pixels]
  Prologue<T> prologue;
  const T* grad_numbers; // kActivationGrad: [networks, channels, kGradNumbers] of the second norm, or nullptr
  const T* grad; // may be `out`
  T* out;
  // kImageGrad
  OutputAct act;
  T slope;
  const T* target; // where grad is nullptr
  const T* weight; // of each squared error to it, or nullptr
  Finalise<T> finalise; // whose chunks are pass_chunks(pixels)
};

constexpr int kPassThreads = 256;
constexpr int kPassPixels = 8 * kPassThreads; // of a chunk

inline int pass_chunks(int64_t pixels) {
  return static_cast<int>((pixels + kPassPixels - 1) / kPassPixels);
}

template <typename T>
void norm_pass(const NormPassArgs<T>& a, int networks, cudaStream_t stream);

} // namespace oes::cuda::norm

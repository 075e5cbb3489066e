#include "cuda/norm/norm_pass.h"

namespace oes::cuda::norm {
namespace {

template <typename T, NormPassKind kKind>
__global__ void __launch_bounds__(kPassThreads, 4) norm_pass_kernel(const NormPassArgs<T> a) {
  OES_SHARED(shared);
  T* scratch = reinterpret_cast<T*>(shared);
  const int chunk = blockIdx.x, channel = blockIdx.y;
  const int64_t network = blockIdx.z, of = network * a.channels + channel;
  const int64_t begin = static_cast<int64_t>(chunk) * kPassPixels, end = min(begin + kPassPixels, a.pixels);
  const PrologueNumbers<T> numbers(a.prologue, of);
  const GradNumbers<T> second(a.grad_numbers, of);
  const T* y = a.y + of * a.pixels;
  const T pivot = kKind == NormPassKind::kSecondMoments ? numbers.activated(a.prologue, y[begin]) : T(0);
  const T factor = T(2) / (static_cast<T>(a.channels) * static_cast<T>(a.pixels));
  T sums[2] = {};
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x; i < end; i += kPassThreads) {
    if constexpr (kKind == NormPassKind::kSecondMoments) {
      const T d = numbers.activated(a.prologue, y[i]) - pivot;
      sums[0] += d;
      sums[1] += d * d;
    } else if constexpr (kKind == NormPassKind::kSecondSums) {
      const T grad = a.grad[of * a.pixels + i];
      sums[0] += grad;
      sums[1] += grad * (numbers.activated(a.prologue, y[i]) - numbers.mean2);
    } else if constexpr (kKind == NormPassKind::kActivationGrad) {
      T grad = a.grad[of * a.pixels + i];
      if (a.grad_numbers != nullptr) {
        grad = second.value(grad, numbers.activated(a.prologue, y[i]));
      }
      grad *= activate_grad(a.prologue.act, a.prologue.slope, numbers.normalised(y[i]));
      a.out[of * a.pixels + i] = grad;
      sums[0] += grad;
      sums[1] += grad * (y[i] - numbers.mean);
    } else if constexpr (kKind == NormPassKind::kImage) {
      a.out[of * a.pixels + i] = numbers.value(a.prologue, y[i]);
    } else {
      const int64_t at = of * a.pixels + i;
      T grad = a.grad != nullptr ? a.grad[at] : factor * (output_activate(a.act, a.slope, y[i]) - a.target[at]);
      grad *= output_activate_grad(a.act, a.slope, y[i]);
      if (a.weight != nullptr) {
        grad *= a.weight[at];
      }
      a.out[at] = grad;
      sums[0] += grad;
    }
  }
  if (a.finalise.kind == FinaliseKind::kNone) {
    return;
  }
  block_sums(sums, scratch);
  if (threadIdx.x == 0) {
    double* to = a.finalise.partials + (of * a.finalise.chunks + chunk) * kPartialNumbers;
    const double first = static_cast<double>(sums[0]), second_sum = static_cast<double>(sums[1]);
    if (kKind == NormPassKind::kSecondMoments) {
      const auto n = static_cast<double>(end - begin);
      to[0] = n;
      to[1] = static_cast<double>(pivot) + first / n;
      to[2] = second_sum - first * first / n;
    } else {
      to[0] = first;
      to[1] = second_sum;
    }
  }
  finalise(
      a.finalise, network, Channels(channel, a.channels, 1, a.channels), gridDim.x,
      reinterpret_cast<unsigned*>(scratch));
}

template <typename T>
void launch_pass(void (*kernel)(NormPassArgs<T>), const NormPassArgs<T>& a, int networks, cudaStream_t stream) {
  const Launch where{
      dim3(pass_chunks(a.pixels), a.channels, networks), dim3(kPassThreads), sizeof(T) * 2 * (kPassThreads / 32),
      stream};
  launch(kernel, "norm_pass", where, a);
}

} // namespace

template <typename T>
void norm_pass(const NormPassArgs<T>& a, int networks, cudaStream_t stream) {
  switch (a.kind) {
    case NormPassKind::kSecondMoments:
      return launch_pass(norm_pass_kernel<T, NormPassKind::kSecondMoments>, a, networks, stream);
    case NormPassKind::kSecondSums:
      return launch_pass(norm_pass_kernel<T, NormPassKind::kSecondSums>, a, networks, stream);
    case NormPassKind::kActivationGrad:
      return launch_pass(norm_pass_kernel<T, NormPassKind::kActivationGrad>, a, networks, stream);
    case NormPassKind::kImage:
      return launch_pass(norm_pass_kernel<T, NormPassKind::kImage>, a, networks, stream);
    default:
      return launch_pass(norm_pass_kernel<T, NormPassKind::kImageGrad>, a, networks, stream);
  }
}

template void norm_pass(const NormPassArgs<float>&, int, cudaStream_t);
template void norm_pass(const NormPassArgs<double>&, int, cudaStream_t);

} // namespace oes::cuda::norm

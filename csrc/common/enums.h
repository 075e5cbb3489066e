// Choices that Python, CPU and CUDA share by number: oes_fast/_C.pyi has them as Python sees them.
#pragma once

namespace oes {

// What an image is continued with.
enum class Padding { kZeros, kReflect, kReplicate, kCircular };

// The activations of oes_fast/reference/batch_norm_act.py. None is leaky with a slope of 1.
enum class Act { kLeaky, kElu, kSilu };

// The activation of the image that leaves the network.
enum class OutputAct { kLeaky, kSigmoid };

enum class ConvKind {
  kDirect,
  kPointwise, // 1 x 1
  kUpsample, // 3 x 3 over the image up-sampled by 2
  kHead, // a last pointwise one of few outputs behind a single norm
};

} // namespace oes

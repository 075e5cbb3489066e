#include "cpu/conv/output_head.h"

#include <cstring>
#include <type_traits>

#include "cpu/core/tensor_checks.h"

namespace oes::output_head {
namespace {

#define OES_KERNELS "cpu/conv/output_head_isa.h"
#include "cpu/core/isa_variants.h"

constexpr int64_t kGrain = 8; // chunks that one thread takes at least

} // namespace

template <typename T>
double forward(const Forward<T>& a) {
  const int64_t chunks = chunks_of(a.head.pixels);
  torch::stable::parallel_for(0, chunks, kGrain, [&](int64_t begin, int64_t end) {
    OES_AT_LEVEL(forward, a, begin, end);
  });
  double sum = 0;
  for (int64_t chunk = 0; a.target != nullptr && chunk < chunks; ++chunk) {
    sum += a.errors[chunk];
  }
  return sum / static_cast<double>(a.head.outputs * a.head.pixels);
}

template <typename T>
void backward(const Backward<T>& a) {
  torch::stable::parallel_for(0, chunks_of(a.head.pixels), kGrain, [&](int64_t begin, int64_t end) {
    OES_AT_LEVEL(backward, a, begin, end);
  });
}

template double forward(const Forward<float>&);
template double forward(const Forward<double>&);
template void backward(const Backward<float>&);
template void backward(const Backward<double>&);

} // namespace oes::output_head

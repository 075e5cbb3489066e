#include "cpu/conv/output_head.h"

#include <cstring>
#include <type_traits>

#include "cpu/core/parallel.h"

namespace oes::conv {
namespace {

#define OES_ISA_FILE "cpu/conv/output_head_isa.h"
#include "cpu/core/isa_variants.h"

constexpr int64_t kGrain = 8; // chunks that one thread takes at least

} // namespace

template <typename T>
double output_head(const OutputHeadForward<T>& a) {
  const int64_t chunks = head_chunks(a.head.pixels);
  parallel_for(0, chunks, kGrain, [&](int64_t begin, int64_t end) { OES_DISPATCH(output_head, a, begin, end); });
  double sum = 0;
  for (int64_t chunk = 0; a.target != nullptr && chunk < chunks; ++chunk) {
    sum += a.errors[chunk];
  }
  return sum / static_cast<double>(a.head.outputs * a.head.pixels);
}

template <typename T>
void output_head_backward(const OutputHeadBackward<T>& a) {
  parallel_for(0, head_chunks(a.head.pixels), kGrain, [&](int64_t begin, int64_t end) {
    OES_DISPATCH(output_head_backward, a, begin, end);
  });
}

template double output_head(const OutputHeadForward<float>&);
template double output_head(const OutputHeadForward<double>&);
template void output_head_backward(const OutputHeadBackward<float>&);
template void output_head_backward(const OutputHeadBackward<double>&);

} // namespace oes::conv

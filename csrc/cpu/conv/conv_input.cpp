#include "cpu/conv/conv_input.h"

#include <algorithm>
#include <cstring>

#include "cpu/core/parallel.h"
#include "cpu/core/plane_rows.h"
#include "cpu/core/workspace.h"

namespace oes::conv {
namespace {

constexpr int64_t kStripRows = 32; // rows of a strip, which one task makes
constexpr int64_t kGrainPixels = 1 << 15; // that one thread takes at least

template <typename T>
struct ConvInputStrips : ConvInput<T> {
  int64_t strips; // of a channel
};

#define OES_ISA_FILE "cpu/conv/conv_input_isa.h"
#include "cpu/core/isa_variants.h"

int64_t grain_of(int64_t pixels) { // of a task
  return std::max<int64_t>(1, kGrainPixels / pixels);
}

} // namespace

template <typename T>
void conv_input(const ConvInput<T>& input) {
  const int64_t rows = input.unshuffle ? 2 * input.plane_rows() : input.high();
  const ConvInputStrips<T> a{input, ceil_div(rows, kStripRows)};
  parallel_for(0, a.channels * a.strips, grain_of(kStripRows * a.wide()), [&](int64_t begin, int64_t end) {
    OES_DISPATCH(conv_input, a, begin, end);
  });
}

template <typename T>
void conv_input_backward(const ConvInput<T>& input) {
  const ConvInputStrips<T> a{input, ceil_div(input.rows, kStripRows)};
  parallel_for(0, a.channels * a.strips, grain_of(kStripRows * a.wide()), [&](int64_t begin, int64_t end) {
    OES_DISPATCH(conv_input_backward, a, begin, end);
  });
}

template <typename T>
void padded_grad(const PaddedGrad<T>& a) {
  parallel_for(0, a.planes, grain_of(a.rows * a.columns), [&](int64_t begin, int64_t end) {
    OES_DISPATCH(padded_grad, a, begin, end);
  });
}

#define OES_INSTANTIATE(T)                                \
  template void conv_input(const ConvInput<T>&);          \
  template void conv_input_backward(const ConvInput<T>&); \
  template void padded_grad(const PaddedGrad<T>&);
OES_INSTANTIATE(float)
OES_INSTANTIATE(double)

} // namespace oes::conv

#include "cpu/norm/batch_norm_act.h"

#include <algorithm>

#include "cpu/core/parallel.h"
#include "cpu/core/workspace.h"

namespace oes::norm {
namespace {

template <typename T>
struct MapImage {
  int64_t pixels;
  const T* y;
  Prologue<T> prologue;
  T* out;
};

template <typename T>
struct GradImage {
  int64_t pixels;
  PrologueGrad<T> grad;
  T* out;
};

// A task is a row: of the bordered image forward, of the image backward.
template <typename T>
struct PaddedRows {
  int64_t rows, columns;
  const Border* border;
  Prologue<T> prologue;
  const T* from;
  T* to;
};

#define OES_ISA_FILE "cpu/norm/batch_norm_act_isa.h"
#include "cpu/core/isa_variants.h"

constexpr int64_t kGrainPixels = 1 << 15; // that one thread takes at least

// Calls f(begin, end) for the chunks of all channels, on several threads.
template <typename F>
void each_chunks(int64_t channels, int64_t pixels, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kGrainPixels / std::min(pixels, kChunk));
  parallel_for(0, channels * chunks_of(pixels), grain, f);
}

} // namespace

template <typename T>
void statistics(const Statistics<T>& a) {
  each_chunks(a.channels, a.pixels, [&](int64_t begin, int64_t end) { OES_DISPATCH(statistics, a, begin, end); });
}

template <typename T>
void activation_grad(const ActivationGrad<T>& a) {
  each_chunks(a.channels, a.pixels, [&](int64_t begin, int64_t end) { OES_DISPATCH(activation_grad, a, begin, end); });
}

template <typename T>
void second_sums(const SecondNormSums<T>& a) {
  each_chunks(a.channels, a.pixels, [&](int64_t begin, int64_t end) { OES_DISPATCH(second_sums, a, begin, end); });
}

template <typename T>
void output(const Output<T>& a) {
  each_chunks(a.channels, a.pixels, [&](int64_t begin, int64_t end) { OES_DISPATCH(output, a, begin, end); });
}

template <typename T>
double output_loss(const OutputLoss<T>& a) {
  each_chunks(a.channels, a.pixels, [&](int64_t begin, int64_t end) { OES_DISPATCH(output_loss, a, begin, end); });
  double sum = 0;
  for (int64_t chunk = 0; chunk < a.channels * chunks_of(a.pixels); ++chunk) {
    sum += a.sums[chunk];
  }
  return sum / static_cast<double>(a.channels * a.pixels);
}

template <typename T>
void map_image(const T* y, const Prologue<T>& prologue, int64_t channels, int64_t pixels, T* out) {
  const MapImage<T> a{pixels, y, prologue, out};
  each_chunks(channels, pixels, [&](int64_t begin, int64_t end) { OES_DISPATCH(map_image, a, begin, end); });
}

template <typename T>
void grad_image(const PrologueGrad<T>& grad, int64_t channels, int64_t pixels, T* out) {
  const GradImage<T> a{pixels, grad, out};
  each_chunks(channels, pixels, [&](int64_t begin, int64_t end) { OES_DISPATCH(grad_image, a, begin, end); });
}

template <typename T>
void map_padded(
    const T* y, const Prologue<T>& prologue, int64_t channels, int64_t rows, int64_t columns, const Border& border,
    T* out) {
  const PaddedRows<T> a{rows, columns, &border, prologue, y, out};
  const int64_t grain = std::max<int64_t>(1, kGrainPixels / border.wide());
  parallel_for(
      0, channels * border.high(), grain, [&](int64_t begin, int64_t end) { OES_DISPATCH(map_padded, a, begin, end); });
}

template <typename T>
void fold_padded(const T* grad_padded, int64_t channels, int64_t rows, int64_t columns, const Border& border, T* grad) {
  const PaddedRows<T> a{rows, columns, &border, {}, grad_padded, grad};
  const int64_t grain = std::max<int64_t>(1, kGrainPixels / border.wide());
  parallel_for(
      0, channels * rows, grain, [&](int64_t begin, int64_t end) { OES_DISPATCH(fold_padded, a, begin, end); });
}

#define OES_INSTANTIATE(T)                                                                              \
  template void statistics(const Statistics<T>&);                                                       \
  template void activation_grad(const ActivationGrad<T>&);                                              \
  template void second_sums(const SecondNormSums<T>&);                                                  \
  template void output(const Output<T>&);                                                               \
  template double output_loss(const OutputLoss<T>&);                                                    \
  template void map_image(const T*, const Prologue<T>&, int64_t, int64_t, T*);                          \
  template void grad_image(const PrologueGrad<T>&, int64_t, int64_t, T*);                               \
  template void map_padded(const T*, const Prologue<T>&, int64_t, int64_t, int64_t, const Border&, T*); \
  template void fold_padded(const T*, int64_t, int64_t, int64_t, const Border&, T*);
OES_INSTANTIATE(float)
OES_INSTANTIATE(double)

} // namespace oes::norm

#include "cpu/conv/sparse_conv2d.h"

#include <algorithm>
#include <cstring>

#include "cpu/core/parallel.h"

namespace oes::conv {
namespace {

#define OES_ISA_FILE "cpu/conv/sparse_conv2d_isa.h"
#include "cpu/core/isa_variants.h"

constexpr int64_t kTasks = 32; // at least, where the outputs can be cut into groups for it
constexpr int64_t kGrainMacs = 1 << 18; // that one thread takes at least: below, waking another costs more
constexpr int64_t kRowsOfStrip = 16; // whose rows lie side by side
constexpr int64_t kStripPixels = 4096; // whose products are summed in the element type
constexpr int64_t kRowsPixels =
    512; // the same of rows that lie side by side: few, so that all planes stay in the cache

int64_t groups_of(int64_t strips, int64_t planes) {
  return std::max<int64_t>(1, std::min(planes, ceil_div(kTasks, std::max<int64_t>(1, strips))));
}

int64_t grain_of(int64_t tasks, int64_t macs) {
  return std::max<int64_t>(1, kGrainMacs / std::max<int64_t>(1, macs / std::max<int64_t>(1, tasks)));
}

} // namespace

template <typename T>
SparseTapSum<T> forward_sum(const ConvShape& shape) {
  const TapPlanes planes = shape.planes();
  SparseTapSum<T> a{};
  a.planes = shape.outputs;
  a.rows = shape.rows;
  a.columns = shape.columns;
  a.pitch = planes.pitch();
  a.source_image = planes.planes() * planes.rows * planes.columns;
  a.ahead = shape.padded_grad().top + 1;
  a.planes_of_row = shape.row_major ? planes.planes() : 0;
  return a;
}

template <typename T>
SparseTapSum<T> backward_sum(const ConvShape& shape) {
  SparseTapSum<T> a{};
  a.planes = shape.planes().planes();
  a.rows = shape.plane_rows;
  a.columns = shape.plane_columns;
  a.pitch = shape.padded_grad().pitch;
  a.source_image = shape.outputs * shape.padded_grad_plane();
  return a;
}

template <typename T>
SparseWeightGrad<T> weight_grad_sum(const ConvShape& shape) {
  const TapPlanes planes = shape.planes();
  SparseWeightGrad<T> a{};
  a.outputs = shape.outputs;
  a.rows = shape.rows;
  a.columns = shape.columns;
  a.pitch = planes.pitch();
  a.grad_pitch = shape.padded_grad().pitch;
  a.source_image = planes.planes() * planes.rows * planes.columns;
  a.grad_plane = shape.padded_grad_plane();
  a.ahead = shape.row_major ? shape.padded_grad().top : 0;
  plan_tasks(a, !shape.row_major, 1);
  return a;
}

template <typename T>
void run(SparseTapSum<T> a, int64_t images, int64_t macs) {
  const int64_t lanes = vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
  a.flat = a.planes_of_row == 0;
  a.strips =
      a.flat ? ceil_div((a.rows - 1) * a.pitch + a.columns, kFlatVectors * lanes) : ceil_div(a.rows, kRowsOfStrip);
  a.strip_rows = kRowsOfStrip;
  a.groups = a.flat ? groups_of(images * a.strips, a.planes) : 1;
  const int64_t tasks = images * a.strips * a.groups;
  parallel_for(
      0, tasks, grain_of(tasks, macs), [&](int64_t begin, int64_t end) { OES_DISPATCH(tap_sum, a, begin, end); });
}

template <typename T>
void plan_tasks(SparseWeightGrad<T>& a, bool flat, int64_t images) {
  a.flat = flat;
  if (flat) {
    a.columns = (a.rows - 1) * a.pitch + a.columns;
    a.rows = 1;
  }
  a.strip_rows = flat ? kStripPixels : std::max<int64_t>(1, kRowsPixels / a.columns);
  a.strips = ceil_div(flat ? a.columns : a.rows, a.strip_rows);
  a.groups = groups_of(images * a.strips, a.outputs);
}

template <typename T>
void run(const SparseWeightGrad<T>& a, int64_t images, int64_t macs) {
  const int64_t tasks = images * a.strips * a.groups;
  parallel_for(
      0, tasks, grain_of(tasks, macs), [&](int64_t begin, int64_t end) { OES_DISPATCH(weight_grad, a, begin, end); });
}

template <typename T>
void add_grads(const SparseWeightGrad<T>& a, const T* partial, const int64_t* indices, T scale, T* to) {
  constexpr int64_t kSums = 1024; // weights that one thread adds up at least
  parallel_for(0, a.taps, kSums, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      double sum = 0;
      for (int64_t strip = 0; strip < a.strips; ++strip) {
        sum += static_cast<double>(partial[strip * a.taps + t]);
      }
      to[indices[t]] += static_cast<T>(sum) * scale;
    }
  });
}

#define OES_INSTANTIATE(T)                                         \
  template SparseTapSum<T> forward_sum(const ConvShape&);          \
  template SparseTapSum<T> backward_sum(const ConvShape&);         \
  template SparseWeightGrad<T> weight_grad_sum(const ConvShape&);  \
  template void run(SparseTapSum<T>, int64_t, int64_t);            \
  template void plan_tasks(SparseWeightGrad<T>&, bool, int64_t);   \
  template void run(const SparseWeightGrad<T>&, int64_t, int64_t); \
  template void add_grads(const SparseWeightGrad<T>&, const T*, const int64_t*, T, T*);
OES_INSTANTIATE(float)
OES_INSTANTIATE(double)

} // namespace oes::conv

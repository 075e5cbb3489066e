// The gradient of the weights of a dense convolution with fewer products (Winograd's, see conv2d.h).
//
// It is the forward sum read backwards. The gradient of a tile of the result goes to the transforms' frequencies, by
// the transpose of what makes outputs of them; there, for every output and input, its products with the transformed
// pixels are summed over the tiles; the transpose of the weights' transform makes gradients of these sums.
#pragma once

#include <cstdint>

#include "cpu/conv/winograd/tiles.h"

namespace oes::conv::winograd {

// A task is one chunk of the strips of tiles, summed apart, for one group of inputs: source_planes of them.
template <typename T>
struct FrequencyGrad : Tiles<T> {
  const T* grad; // [planes]: of the result, grad_plane elements each, rows of grad_pitch
  T* partial; // [chunks, vectors of outputs, inputs, kernel_size, lanes]
  int64_t grad_plane, grad_pitch;
  const int64_t* kernel_taps; // see Transforms
  const T* to_points;
  int64_t inputs, kernel_size, strips, chunks, groups;
};

template <typename T>
class WeightGrad {
 public:
  // The shape is that of the forward sum. Whether this is faster than the direct sum.
  static bool fits(const Shape& shape);

  void bind(const Shape& shape, int64_t grad_plane, int64_t grad_pitch);

  bool bound() const {
    return grad_.strips > 0;
  }
  int64_t sums() const { // elements that run leaves
    return grad_.chunks * chunk_sums();
  }

  void run(const T* source, const T* grad, T* sums) const;

  // Adds scale * gradient to grad [outputs, inputs, kernel, kernel].
  void add(const T* sums, T scale, T* grad) const;

 private:
  int64_t chunk_sums() const;

  Transforms<T> transforms_;
  FrequencyGrad<T> grad_{};
};

} // namespace oes::conv::winograd

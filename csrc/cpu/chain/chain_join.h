// A block of a chain that is no convolution, bound to its spec and sizes once: see join_spec.h.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/chain/join_spec.h"
#include "cpu/core/workspace.h"
#include "cpu/join/join_images.h"

namespace oes::chain {

// Where the gradient of an input goes: added to what is there, or written. nullptr: nowhere.
template <typename T>
struct InputGrad {
  T* to;
  bool add;
};

template <typename T>
class ChainJoin {
 public:
  // The spec has been checked against the shapes of the inputs, of which there is one at least, and has outputs.
  ChainJoin(const JoinSpec& spec, const std::vector<ImageShape>& inputs);

  // Whether a term names a channel of this input.
  bool reads(size_t input) const {
    return read_[input];
  }

  void forward(const T* weights, const std::vector<join::MappedImage<T>>& images, T* out);
  // After a forward with the same weights and images: of one input after the other, so that the same result may stand
  // in several places. `grad` is of the value.
  void backward(
      size_t input, const join::MappedImage<T>& image, const T* grad, const InputGrad<T>& to, T* grad_weights);

 private:
  template <typename Map>
  Map map(const join::MappedImage<T>& image) const;
  template <typename F>
  void with_map(const join::MappedImage<T>& image, const F& f);
  void bind_sum();
  void bind_map();

  JoinSpec spec_;
  std::vector<ImageShape> inputs_;
  std::vector<bool> read_;
  Indices first_, input_, channel_; // of the terms of a sum; of a map, see join::Map
  std::vector<Indices> back_first_, back_; // of each input
  join::Axis<T> row_axis_, column_axis_;
  std::vector<uint8_t> place_; // of maxima
  std::vector<T> slopes_;
  std::vector<double> slope_sums_;
};

} // namespace oes::chain

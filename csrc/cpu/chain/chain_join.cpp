#include "cpu/chain/chain_join.h"

#include <algorithm>

namespace oes::chain {

template <typename T>
ChainJoin<T>::ChainJoin(const JoinSpec& spec, const std::vector<ImageShape>& inputs)
    : spec_(spec), inputs_(inputs), read_(inputs.size()) {
  for (size_t t = 0; t < spec.terms.size(); t += 3) {
    read_[spec.kind == JoinKind::kSum ? spec.terms[t + 1] : 0] = true;
  }
  if (spec.kind == JoinKind::kSum) {
    bind_sum();
  } else {
    bind_map();
  }
}

template <typename T>
void ChainJoin<T>::bind_sum() {
  first_.assign(spec_.outputs + 1, 0);
  for (size_t t = 0; t < spec_.terms.size(); t += 3) {
    ++first_[spec_.terms[t] + 1];
    input_.push_back(spec_.terms[t + 1]);
    channel_.push_back(spec_.terms[t + 2]);
  }
  for (int64_t o = 0; o < spec_.outputs; ++o) {
    first_[o + 1] += first_[o];
  }
  for (size_t input = 0; input < inputs_.size(); ++input) {
    Indices first{0}, list;
    for (int64_t c = 0; c < inputs_[input].channels; ++c) {
      for (size_t t = 0; t < channel_.size(); ++t) {
        if (input_[t] == static_cast<int64_t>(input) && channel_[t] == c) {
          list.push_back(spec_.terms[3 * t]);
        }
      }
      first.push_back(static_cast<int64_t>(list.size()));
    }
    back_first_.push_back(std::move(first));
    back_.push_back(std::move(list));
  }
}

template <typename T>
void ChainJoin<T>::bind_map() {
  const int64_t phases = spec_.kind == JoinKind::kPixelShuffle ? spec_.factor * spec_.factor : 1;
  channel_.assign(spec_.outputs * phases, -1);
  back_.emplace_back(inputs_[0].channels, -1);
  for (size_t t = 0; t < spec_.terms.size(); t += 3) {
    const int64_t place = spec_.terms[t] * phases + (phases > 1 ? spec_.terms[t + 1] : 0);
    channel_[place] = spec_.terms[t + 2];
    back_[0][spec_.terms[t + 2]] = place;
  }
  const int64_t numel = spec_.outputs * spec_.rows * spec_.columns;
  switch (spec_.kind) {
    case JoinKind::kResample:
      row_axis_.bind(spec_.row_index, spec_.row_weights, inputs_[0].rows);
      column_axis_.bind(spec_.column_index, spec_.column_weights, inputs_[0].columns);
      return;
    case JoinKind::kMaxPool:
      place_.resize(numel);
      return;
    case JoinKind::kPrelu:
      slopes_.resize(spec_.outputs);
      slope_sums_.resize(spec_.outputs * join::prelu_chunks(spec_.rows * spec_.columns));
      return;
    default:
      return;
  }
}

template <typename T>
template <typename Map>
Map ChainJoin<T>::map(const join::MappedImage<T>& image) const {
  Map a{};
  a.outputs = spec_.outputs;
  a.channels = inputs_[0].channels;
  a.rows = inputs_[0].rows;
  a.columns = inputs_[0].columns;
  a.out_rows = spec_.rows;
  a.out_columns = spec_.columns;
  a.channel = channel_.data();
  a.output = back_[0].data();
  a.image = image;
  return a;
}

// Calls f(arguments, forward loop, backward loop) for the map that the spec names.
template <typename T>
template <typename F>
void ChainJoin<T>::with_map(const join::MappedImage<T>& image, const F& f) {
  switch (spec_.kind) {
    case JoinKind::kSum:
      return;
    case JoinKind::kResample: {
      auto a = map<join::Resample<T>>(image);
      a.row_axis = &row_axis_;
      a.column_axis = &column_axis_;
      f(a, join::resample<T>, join::resample_grad<T>);
      return;
    }
    case JoinKind::kAveragePool:
    case JoinKind::kMaxPool: {
      auto a = map<join::Pool<T>>(image);
      a.window_rows = spec_.window_rows;
      a.window_columns = spec_.window_columns;
      a.stride_rows = spec_.stride_rows;
      a.stride_columns = spec_.stride_columns;
      a.place = spec_.kind == JoinKind::kMaxPool ? place_.data() : nullptr;
      f(a, join::pool<T>, join::pool_grad<T>);
      return;
    }
    case JoinKind::kCrop: {
      auto a = map<join::Crop<T>>(image);
      a.top = spec_.top;
      a.left = spec_.left;
      f(a, join::crop<T>, join::crop_grad<T>);
      return;
    }
    case JoinKind::kPixelShuffle: {
      auto a = map<join::PixelShuffle<T>>(image);
      a.factor = spec_.factor;
      f(a, join::pixel_shuffle<T>, join::pixel_shuffle_grad<T>);
      return;
    }
    case JoinKind::kPrelu: {
      auto a = map<join::Prelu<T>>(image);
      a.slopes = slopes_.data();
      a.sums = slope_sums_.data();
      f(a, join::prelu<T>, join::prelu_grad<T>);
      return;
    }
  }
}

template <typename T>
void ChainJoin<T>::forward(const T* weights, const std::vector<join::MappedImage<T>>& images, T* out) {
  if (spec_.kind == JoinKind::kSum) {
    join::sum_images(
        join::SumImages<T>{
            spec_.outputs, spec_.rows * spec_.columns, images.data(), first_.data(), input_.data(), channel_.data(),
            out});
    return;
  }
  for (size_t o = 0; o < slopes_.size(); ++o) { // of those that vary
    slopes_[o] = spec_.slopes[o] < 0 ? T(0) : weights[spec_.slopes[o]];
  }
  with_map(images[0], [&](auto& a, const auto& there, const auto&) {
    a.out = out;
    there(a);
  });
}

template <typename T>
void ChainJoin<T>::backward(
    size_t input, const join::MappedImage<T>& image, const T* grad, const InputGrad<T>& to, T* grad_weights) {
  if (to.to == nullptr && spec_.kind != JoinKind::kPrelu) {
    return;
  }
  if (spec_.kind == JoinKind::kSum) {
    join::sum_grad(
        join::SumGrad<T>{
            inputs_[input].channels, spec_.rows * spec_.columns, back_first_[input].data(), back_[input].data(), grad,
            to.add, to.to});
    return;
  }
  with_map(image, [&](auto& a, const auto&, const auto& back) {
    a.grad = grad;
    a.add = to.add;
    a.grad_image = to.to;
    back(a);
  });
  const int64_t chunks = join::prelu_chunks(spec_.rows * spec_.columns);
  for (size_t o = 0; o < slopes_.size(); ++o) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      sum += slope_sums_[o * chunks + chunk];
    }
    if (spec_.slopes[o] >= 0) {
      grad_weights[spec_.slopes[o]] += static_cast<T>(sum);
    }
  }
}

template class ChainJoin<float>;
template class ChainJoin<double>;

} // namespace oes::chain

#include "chain.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "tensors.h"

namespace oes::chain {
namespace {

int mode_of(const std::string& pad) {
  return pad == "reflect" ? 1 : pad == "replicate" ? 2 : pad == "circular" ? 3 : 0;
}

Act act_of(const std::string& name) {
  return name == "elu" ? Act::kElu : name == "silu" ? Act::kSilu : Act::kLeaky;
}

// An activation and its derivative at one number: for channels that are constant.
template <typename T>
T activate_one(const NormSpec& spec, T x) {
  T result;
  with_act(act_of(spec.act), [&](auto act) { result = activate<act.value>(x, static_cast<T>(spec.slope)); });
  return result;
}

template <typename T>
T activate_grad_one(const NormSpec& spec, T x) {
  T result;
  with_act(act_of(spec.act), [&](auto act) { result = activate_grad<act.value>(x, static_cast<T>(spec.slope)); });
  return result;
}

void expect(bool holds, const char* what) {
  if (!holds) {
    throw std::invalid_argument(what);
  }
}

} // namespace

template <typename T>
Chain<T>::Chain(int64_t channels, int64_t rows, int64_t columns, bool fixed)
    : fixed_(fixed), channels_(channels), rows_(rows), columns_(columns), identity_(channels, T(1)), none_(channels) {}

template <typename T>
void Chain<T>::add_conv(const ConvSpec& spec) {
  links_.emplace_back();
  Link& link = links_.back();
  const bool first = links_.size() == 1;
  const Link* before = first ? nullptr : &links_[links_.size() - 2];
  link.spec = spec;
  link.inputs = first ? channels_ : before->spec.outputs;
  link.rows = first ? rows_ : before->out_rows;
  link.columns = first ? columns_ : before->out_columns;
  expect(spec.taps.size() == 4 * spec.weights.size(), "taps: expected four numbers for each weight");
  expect(before == nullptr || !before->norms.empty(), "convolution: expected a norm before it");
  for (size_t t = 0; t < spec.weights.size(); ++t) {
    const int64_t* tap = &spec.taps[4 * t];
    expect(
        tap[0] >= 0 && tap[0] < spec.outputs && tap[1] >= 0 && tap[1] < link.inputs && tap[2] >= 0 &&
            tap[2] < spec.kernel_rows && tap[3] >= 0 && tap[3] < spec.kernel_columns &&
            (t == 0 || std::lexicographical_compare(tap - 4, tap, tap, tap + 4)),
        "taps: expected ascending indices inside the weight");
  }
  if (!link.head()) {
    bind_form(link);
  }
  link.ones.assign(spec.outputs, T(1));
  link.zeros.assign(spec.outputs, T(0));
  link.offset.resize(spec.bias.size());
  if (link.direct()) {
    bind_direct(link);
  } else if (link.head()) {
    bind_head(link, before);
  } else {
    bind_mixing(link);
  }
  link.y.reserve(spec.outputs * link.pixels());
}

// The weights as the sparse or the dense form of a convolution takes them.
template <typename T>
void Chain<T>::bind_form(Link& link) {
  ConvSpec& spec = link.spec;
  const bool all = spec.first_weight >= 0;
  link.dense = spec.dense;
  if (link.direct()) {
    const int64_t* b = spec.border.data();
    const int64_t rows = (link.rows + b[2] + b[3] - (spec.box ? 1 : 0) - spec.kernel_rows) / spec.stride + 1;
    const int64_t columns = (link.columns + b[0] + b[1] - (spec.box ? 1 : 0) - spec.kernel_columns) / spec.stride + 1;
    link.dense = link.dense && rows > 0 && dense_conv2d::Conv<T>::fits(!fixed(link), rows, columns, columns);
  }
  if (all && !link.dense) {
    for (int64_t t = 0; t < link.places(); ++t) {
      const int64_t uv = t % (spec.kernel_rows * spec.kernel_columns), oc = t / (spec.kernel_rows * spec.kernel_columns);
      spec.taps.insert(
          spec.taps.end(),
          {oc / link.inputs, oc % link.inputs, uv / spec.kernel_columns, uv % spec.kernel_columns});
      spec.weights.push_back(spec.first_weight + t);
    }
  }
  if (link.dense && !all) {
    link.all_weights.assign(link.places(), T(0));
    link.all_grads.resize(link.places());
    for (size_t t = 0; t < spec.weights.size(); ++t) {
      const int64_t* tap = &spec.taps[4 * t];
      link.positions.push_back(
          ((tap[0] * link.inputs + tap[1]) * spec.kernel_rows + tap[2]) * spec.kernel_columns + tap[3]);
    }
  }
}

template <typename T>
void Chain<T>::add_norm(const NormSpec& spec) {
  expect(!links_.empty() && links_.back().norms.size() < 2, "norm: expected one or two behind a convolution");
  Link& link = links_.back();
  expect(!link.head(), "norm: expected none behind the head");
  const auto channels = static_cast<size_t>(link.spec.outputs);
  expect(spec.gamma.size() == channels && spec.beta.size() == channels, "norm: expected a weight for each channel");
  Norm norm;
  norm.spec = spec;
  for (std::vector<T>* each : {&norm.scale, &norm.shift, &norm.a, &norm.b, &norm.c, &norm.mean}) {
    each->resize(channels);
  }
  norm.rstd.resize(channels);
  norm.constants.resize(spec.constants.size());
  link.norms.push_back(std::move(norm));
}

template <typename T>
void Chain<T>::finish(const std::string& act, double slope) {
  expect(!links_.empty(), "chain: expected a convolution");
  act_ = act == "sigmoid" ? Last::kSigmoid : Last::kLeaky;
  slope_ = static_cast<T>(slope);
  ends_in_norm_ = !links_.back().norms.empty();
  int64_t grads = channels_ * rows_ * columns_, planes = 1, bordered = 1, partial = 1, moments = 1;
  for (Link& link : links_) {
    grads = std::max(grads, link.spec.outputs * link.pixels());
    moments = std::max(moments, 2 * link.spec.outputs * batch_norm_act::chunks_of(link.pixels()));
    if (link.direct()) {
      planes = std::max(planes, link.inputs * link.frame.plane_size());
      bordered = std::max(bordered, link.gather_back.source_image + link.bordered.left);
      const auto taps = static_cast<int64_t>(link.spec.weights.size());
      partial = std::max(partial, link.dense ? link.dense_conv.sums() : link.dot.strips * taps);
    } else if (link.head()) {
      const int64_t parts = output_head::chunks_of(link.pixels()) * link.inputs;
      moments = std::max(moments, 2 * parts);
      head_sums_.reserve(kMostBehind * parts);
    } else {
      moments = std::max(moments, 2 * link.mixing.mix.strips * link.spec.outputs);
      moments = std::max(moments, 2 * link.mixing.back.strips * link.inputs);
      partial = std::max(partial, link.mixing.sums());
    }
  }
  for (Aligned<T>& buffer : grads_) {
    buffer.reserve(grads);
  }
  grad_planes_.reserve(planes);
  bordered_.reserve(bordered + winograd::kSlack);
  partial_.reserve(partial);
  moments_.reserve(moments);
}

template <typename T>
std::vector<int64_t> Chain<T>::shape() const {
  const Link& last = links_.back();
  return {last.spec.outputs, last.out_rows, last.out_columns};
}

template <typename T>
void Chain<T>::bind_direct(Link& link) {
  const ConvSpec& spec = link.spec;
  const bool split = spec.stride == 2;
  const int64_t* b = spec.border.data();
  link.border = frame::border(mode_of(spec.pad), link.rows, link.columns, b[0], b[1], b[2], b[3]);
  frame::Frame<T>& f = link.frame;
  f = {};
  f.channels = link.inputs;
  f.rows = link.rows;
  f.columns = link.columns;
  f.border = &link.border;
  f.box = spec.box;
  f.split = split;
  link.out_rows = (f.high() - spec.kernel_rows) / spec.stride + 1;
  link.out_columns = (f.wide() - spec.kernel_columns) / spec.stride + 1;
  expect(f.high() >= spec.kernel_rows && f.wide() >= spec.kernel_columns, "image: expected the size of the kernel");
  if (!fixed(link)) {
    f.planes = link.planes.reserve(link.inputs * f.plane_size() + winograd::kSlack);
  }
  const int64_t source_rows = f.plane_rows(), source_columns = f.plane_columns(), s = spec.stride;
  const int64_t phases = split ? 4 : 1, top = (spec.kernel_rows - 1) / s, left = (spec.kernel_columns - 1) / s;
  link.bordered = {spec.outputs, link.out_rows, link.out_columns, top, left, source_rows + top, source_columns};
  const int64_t bordered_plane = (source_rows + top) * source_columns;
  link.gather = {nullptr, nullptr, nullptr, nullptr, nullptr, spec.outputs, link.out_rows, link.out_columns,
                 source_columns, link.inputs * f.plane_size()};
  link.gather_back = {nullptr, nullptr, nullptr, nullptr, nullptr, link.inputs * phases, source_rows, source_columns,
                      source_columns, spec.outputs * bordered_plane};
  // Rows of all planes side by side are one piece of memory; Winograd's sums take squares of pixels instead.
  link.flat = !fixed(link) ||
      (link.dense && dense_conv2d::Conv<T>::wants_flat(
                         link.inputs, spec.kernel_rows, spec.kernel_columns, s, link.gather, link.gather_back));
  if (!link.flat) {
    link.gather.pitch *= link.inputs * phases;
    link.gather.planes_of_row = link.inputs * phases;
  }
  link.gather.ahead = top + 1;
  sparse_conv2d::Dot<T>& d = link.dot;
  d = {nullptr, nullptr, nullptr, nullptr, nullptr, spec.outputs};
  d.rows = link.out_rows;
  d.columns = link.out_columns;
  d.pitch = link.gather.pitch;
  d.grad_pitch = source_columns;
  d.source_image = link.gather.source_image;
  d.grad_plane = bordered_plane;
  d.ahead = link.flat ? 0 : top;
  sparse_conv2d::cut(d, link.flat, 1);
  bind_taps(link, bordered_plane);
}

// Where the taps of a direct convolution read, forward and backward.
template <typename T>
void Chain<T>::bind_taps(Link& link, int64_t bordered_plane) {
  const ConvSpec& spec = link.spec;
  const int64_t s = spec.stride, phases = s * s, top = link.bordered.top, left = link.bordered.left;
  const int64_t source_rows = link.frame.plane_rows(), source_columns = link.frame.plane_columns();
  const auto plane_of = [&](int64_t c, int64_t u, int64_t v) { return c * phases + u % s * s + v % s; };
  const auto offset_of = [&](int64_t c, int64_t u, int64_t v) {
    const int64_t plane = plane_of(c, u, v);
    return link.flat ? (plane * source_rows + u / s) * source_columns + v / s
                     : (u / s * link.inputs * phases + plane) * source_columns + v / s;
  };
  if (link.dense) {
    for (int64_t c = 0; c < link.inputs; ++c) {
      for (int64_t u = 0; u < spec.kernel_rows; ++u) {
        for (int64_t v = 0; v < spec.kernel_columns; ++v) {
          link.offsets.push_back(offset_of(c, u, v));
        }
      }
    }
    link.dense_conv.bind(
        link.inputs, spec.kernel_rows, spec.kernel_columns, s, link.flat, link.gather, link.gather_back, link.dot,
        link.offsets, top, left, bordered_plane);
    return;
  }
  const auto taps = static_cast<int64_t>(spec.weights.size());
  link.weights.resize(taps);
  link.back_weights.resize(taps);
  link.offsets.resize(taps);
  link.first.assign(spec.outputs + 1, 0);
  link.back_first.assign(link.inputs * phases + 1, 0);
  std::vector<int64_t> plane(taps);
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t* tap = &spec.taps[4 * t];
    plane[t] = plane_of(tap[1], tap[2], tap[3]);
    link.offsets[t] = offset_of(tap[1], tap[2], tap[3]);
    ++link.first[tap[0] + 1];
    ++link.back_first[plane[t] + 1];
    link.back_order.push_back(t);
  }
  std::partial_sum(link.first.begin(), link.first.end(), link.first.begin());
  std::partial_sum(link.back_first.begin(), link.back_first.end(), link.back_first.begin());
  std::stable_sort(
      link.back_order.begin(), link.back_order.end(), [&](int64_t a, int64_t b) { return plane[a] < plane[b]; });
  for (const int64_t t : link.back_order) {
    const int64_t* tap = &spec.taps[4 * t];
    link.back_offsets.push_back(
        tap[0] * bordered_plane + (top - tap[2] / s) * source_columns + left - tap[3] / s);
  }
  const auto set = [](sparse_conv2d::Gather<T>& g, const std::vector<T>& weights, const Indices& offsets, const Indices& first) {
    g.weights = weights.data();
    g.offsets = offsets.data();
    g.first = first.data();
  };
  set(link.gather, link.weights, link.offsets, link.first);
  set(link.gather_back, link.back_weights, link.back_offsets, link.back_first);
  link.dot.offsets = link.offsets.data();
  link.dot.first = link.first.data();
  link.dot.taps = taps;
}

template <typename T>
void Chain<T>::bind_mixing(Link& link) {
  const ConvSpec& spec = link.spec;
  const bool up = spec.kind == "up";
  const int64_t kernel = up ? 9 : 1;
  expect(spec.kernel_rows * spec.kernel_columns == kernel, "convolution: expected a 3 x 3 or 1 x 1 kernel");
  expect(!fixed(link), "convolution: expected a direct one to read a fixed source");
  link.out_rows = link.rows * (up ? 2 : 1);
  link.out_columns = link.columns * (up ? 2 : 1);
  link.mixing.bind(
      link.inputs, spec.outputs, link.rows, link.columns, kernel, spec.pad == "zeros",
      link.dense ? nullptr : &spec.taps);
}

template <typename T>
void Chain<T>::bind_head(Link& link, const Link* before) {
  const ConvSpec& spec = link.spec;
  expect(spec.kernel_rows * spec.kernel_columns == 1 && spec.outputs <= kMostBehind, "head: expected 1 x 1 and four outputs at most");
  expect(before != nullptr && before->norms.size() == 1, "head: expected a single norm before it");
  link.out_rows = link.rows;
  link.out_columns = link.columns;
  head_weights_.resize(link.inputs * kMostBehind);
}

template <typename T>
PixelMap<T> Chain<T>::map_of(const Link& link) const {
  const Norm& one = link.norms[0];
  const Norm* two = link.norms.size() > 1 ? &link.norms[1] : nullptr;
  const T *zeros = link.zeros.data(), *ones = link.ones.data();
  return {one.mean.data(), one.scale.data(), one.shift.data(),
          two == nullptr ? zeros : two->mean.data(), two == nullptr ? ones : two->scale.data(),
          two == nullptr ? zeros : two->shift.data(), static_cast<T>(one.spec.slope), act_of(one.spec.act)};
}

// The source as it is.
template <typename T>
PixelMap<T> Chain<T>::source_map() const {
  return {none_.data(), identity_.data(), none_.data(), none_.data(), identity_.data(), none_.data(), T(1), Act::kLeaky};
}

template <typename T>
double Chain<T>::forward(
    const T* weights, const T* source, T* out, const std::vector<T*>& running, const T* target) {
  size_t statistics = 0;
  for (size_t l = 0; l < links_.size(); ++l) {
    Link& link = links_[l];
    const Link* before = l == 0 ? nullptr : &links_[l - 1];
    if (link.head()) {
      set_head_weights(weights);
      offsets(link, &before->norms.back(), weights);
      return output_head::forward(output_head::Forward<T>{
          head(), act_, slope_, link.offset.data(), target, out, link.y.data(), moments_.data()});
    }
    set_weights(link, weights);
    const PixelMap<T> map = before == nullptr ? source_map() : map_of(*before);
    convolve(link, before == nullptr ? source : before->y.data(), map);
    offsets(link, before == nullptr ? nullptr : &before->norms.back(), weights);
    for (size_t which = 0; which < link.norms.size(); ++which) {
      const int64_t chunks = batch_norm_act::chunks_of(link.pixels());
      const bool strips = which == 0 && !link.direct(); // they come from the convolution
      if (!strips) {
        batch_norm_act::Statistics<T> s{link.spec.outputs, link.pixels(), link.y.data(), {}, which == 1,
                                        moments_.data()};
        s.map = which == 1 ? map_of(link) : s.map;
        batch_norm_act::statistics(s);
      }
      T* mean = running.empty() ? nullptr : running[statistics];
      T* var = running.empty() ? nullptr : running[statistics + 1];
      statistics += 2;
      normalise(link, which, moments_.data(), strips ? link.mixing.mix.strips : chunks, !strips, weights, mean, var);
    }
  }
  Link& last = links_.back();
  if (ends_in_norm_) {
    batch_norm_act::map_image(last.y.data(), map_of(last), last.spec.outputs, last.pixels(), out);
    return 0;
  }
  if (target != nullptr) {
    return batch_norm_act::output_loss(batch_norm_act::OutputLoss<T>{
        last.spec.outputs, last.pixels(), act_, slope_, last.y.data(), last.offset.data(), target, out,
        moments_.data()});
  }
  batch_norm_act::output(batch_norm_act::Output<T>{
      last.spec.outputs, last.pixels(), act_, slope_, last.y.data(), last.offset.data(), nullptr, out});
  return 0;
}

template <typename T>
void Chain<T>::set_weights(Link& link, const T* weights) {
  const auto scale = static_cast<T>(link.spec.scale);
  const int64_t* indices = link.spec.weights.data();
  if (link.dense) {
    const T* all = weights + link.spec.first_weight;
    if (link.spec.first_weight < 0) {
      for (size_t t = 0; t < link.positions.size(); ++t) {
        link.all_weights[link.positions[t]] = weights[indices[t]];
      }
      all = link.all_weights.data();
    }
    if (link.direct()) {
      link.dense_conv.set(all, scale, !fixed(link));
    } else {
      link.mixing.set_dense(all, scale);
    }
  } else if (link.direct()) {
    for (size_t t = 0; t < link.weights.size(); ++t) {
      link.weights[t] = weights[indices[t]] * scale;
    }
  } else {
    link.mixing.set(weights, indices, scale);
  }
}

template <typename T>
void Chain<T>::convolve(Link& link, const T* source, const PixelMap<T>& map) {
  if (!link.direct()) {
    mixing::Mix<T> a = link.mixing.mix;
    a.map = map;
    a.source = source;
    a.out = link.y.data();
    a.moments = link.norms.empty() ? nullptr : moments_.data();
    mixing::mix(a);
    return;
  }
  if (!fixed(link)) {
    frame::Frame<T> f = link.frame;
    f.border = &link.border;
    f.map = map;
    f.image = source;
    frame::make(f);
  }
  const T* planes = fixed(link) ? source : link.planes.data();
  if (link.dense) {
    link.dense_conv.run_forward(planes, link.y.data());
    return;
  }
  sparse_conv2d::Gather<T> g = link.gather;
  g.source = planes;
  g.out = link.y.data();
  sparse_conv2d::run(g, 1, static_cast<int64_t>(link.weights.size()) * link.pixels());
}

template <typename T>
void Chain<T>::offsets(Link& link, const Norm* before, const T* weights) {
  for (size_t o = 0; o < link.offset.size(); ++o) {
    const int64_t index = link.spec.bias[o];
    link.offset[o] = index < 0 ? T(0) : weights[index];
  }
  const T factor = static_cast<T>(link.spec.scale * (link.spec.box ? 4 : 1));
  for (size_t i = 0; i < link.spec.constant_taps.size(); i += 3) {
    const int64_t* tap = &link.spec.constant_taps[i];
    link.offset[tap[0]] += weights[tap[1]] * factor * before->constants[tap[2]];
  }
}

template <typename T>
void Chain<T>::normalise(
    Link& link, size_t which, const double* moments, int64_t parts, bool chunks, const T* weights, T* mean, T* var) {
  Norm& norm = link.norms[which];
  const NormSpec& spec = norm.spec;
  const int64_t channels = link.spec.outputs, pixels = link.pixels();
  const double momentum = spec.momentum;
  for (int64_t c = 0; c < channels; ++c) {
    Merged all;
    for (int64_t part = 0; part < parts; ++part) {
      const double* of_part = moments + 2 * (chunks ? c * parts + part : part * channels + c);
      const int64_t size = chunks ? batch_norm_act::kChunk : link.mixing.mix.strip_rows * (pixels / link.rows);
      all.add(static_cast<double>(std::min(size, pixels - part * size)), of_part[0], of_part[1]);
    }
    const double variance = all.squares / all.count;
    const double rstd = 1 / std::sqrt(variance + spec.eps);
    const double gamma = spec.gamma[c] < 0 ? 1 : static_cast<double>(weights[spec.gamma[c]]);
    const double beta = spec.beta[c] < 0 ? 0 : static_cast<double>(weights[spec.beta[c]]);
    norm.rstd[c] = rstd;
    norm.mean[c] = static_cast<T>(all.mean);
    norm.scale[c] = static_cast<T>(gamma * rstd);
    norm.shift[c] = static_cast<T>(beta);
    if (mean != nullptr && spec.tracks) {
      const double count = all.count * static_cast<double>(spec.copies);
      const double offset = which == 0 ? static_cast<double>(link.offset[c]) : 0;
      T& m = mean[spec.places[c]];
      T& v = var[spec.places[c]];
      m = static_cast<T>((1 - momentum) * m + momentum * (all.mean + offset));
      v = static_cast<T>((1 - momentum) * v + momentum * variance * count / (count - 1));
    }
  }
  for (size_t i = 0; mean != nullptr && spec.tracks && i < spec.tracked.size(); ++i) {
    const int64_t from = spec.tracked[i];
    const T k = from < 0 ? T(0) : which == 0 ? link.offset[channels + from] : link.norms[0].constants[from];
    T& m = mean[spec.tracked_places[i]];
    T& v = var[spec.tracked_places[i]];
    m = static_cast<T>((1 - momentum) * m + momentum * k);
    v = static_cast<T>((1 - momentum) * v);
  }
  for (size_t i = 0; i < spec.constants.size(); ++i) {
    norm.constants[i] = activate_one(spec, weights[spec.constants[i]]);
  }
}

template <typename T>
void Chain<T>::backward(const T* weights, const T* source, const T* grad, T* grad_weights, T* grad_source) {
  Link& end = links_.back();
  T* of_y = grad == nullptr ? end.y.data() : grads_[0].data(); // output_loss has left it there
  T* of_source = grads_[1].data();
  T* spare = grads_[0].data();
  if (ends_in_norm_) {
    std::copy_n(grad, end.spec.outputs * end.pixels(), of_y);
    norm_back(end, nullptr, of_y, grad_weights);
  } else {
    if (grad != nullptr) {
      batch_norm_act::output(batch_norm_act::Output<T>{
          end.spec.outputs, end.pixels(), act_, slope_, end.y.data(), end.offset.data(), grad, of_y});
    }
    offset_back(end, links_.size() == 1 ? nullptr : &links_[links_.size() - 2].norms.back(), of_y, weights, grad_weights);
  }
  size_t l = links_.size() - 1;
  if (end.head()) {
    head_back(of_y, grad_weights);
    norm_back(links_[--l], &end, nullptr, grad_weights);
  }
  for (bool behind = end.head();; behind = false, --l) {
    Link& link = links_[l];
    const PixelGrad<T> of_result = behind ? grad_behind(link, of_y) : grad_of(link, of_y);
    if (l == 0) {
      conv_back(link, nullptr, source, source_map(), of_result, grad_source, grad_weights);
      break;
    }
    Link& before = links_[l - 1];
    conv_back(link, &before, before.y.data(), map_of(before), of_result, of_source, grad_weights);
    norm_back(before, &link, of_source, grad_weights);
    of_y = of_source;
    std::swap(of_source, spare);
  }
}

template <typename T>
PixelGrad<T> Chain<T>::grad_of(const Link& link, const T* grad) const {
  const T* zeros = link.zeros.data();
  if (link.norms.empty()) {
    return {grad, link.y.data(), zeros, link.ones.data(), zeros, zeros};
  }
  const Norm& norm = link.norms[0];
  return {grad, link.y.data(), norm.mean.data(), norm.a.data(), norm.b.data(), norm.c.data()};
}

template <typename T>
PixelGrad<T> Chain<T>::grad_behind(const Link& link, const T* grad) const {
  PixelGrad<T> result = grad_of(link, grad);
  result.outputs = links_.back().spec.outputs;
  result.pixels = link.pixels();
  result.weights = head_weights_.data();
  result.map = map_of(link);
  return result;
}

template <typename T>
void Chain<T>::set_head_weights(const T* weights) {
  const ConvSpec& spec = links_.back().spec;
  const auto scale = static_cast<T>(spec.scale);
  each_head_weight([&](int64_t place, int64_t index) { head_weights_[place] = weights[index] * scale; });
}

template <typename T>
output_head::Head<T> Chain<T>::head() const {
  const Link &last = links_.back(), &before = links_[links_.size() - 2];
  return {last.inputs, last.spec.outputs, last.pixels(), map_of(before), before.y.data(), head_weights_.data()};
}

// Calls f(place in head_weights_, index) for every weight of the head.
template <typename T>
template <typename F>
void Chain<T>::each_head_weight(const F& f) const {
  const Link& last = links_.back();
  for (int64_t t = 0; last.spec.first_weight >= 0 && t < last.places(); ++t) {
    f(t % last.inputs * kMostBehind + t / last.inputs, last.spec.first_weight + t);
  }
  for (size_t t = 0; t < last.spec.weights.size(); ++t) {
    f(last.spec.taps[4 * t + 1] * kMostBehind + last.spec.taps[4 * t], last.spec.weights[t]);
  }
}

template <typename T>
void Chain<T>::head_back(const T* grad, T* grad_weights) {
  const output_head::Head<T> h = head();
  output_head::backward(output_head::Backward<T>{h, grad, moments_.data(), head_sums_.data()});
  each_head_weight([&](int64_t place, int64_t index) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < output_head::chunks_of(h.pixels); ++chunk) {
      sum += head_sums_.data()[chunk * h.channels * kMostBehind + place];
    }
    grad_weights[index] += static_cast<T>(sum) * static_cast<T>(links_.back().spec.scale);
  });
}

template <typename T>
void Chain<T>::norm_back(Link& link, const Link* reader, T* grad, T* grad_weights) {
  const int64_t channels = link.spec.outputs, pixels = link.pixels(), chunks = batch_norm_act::chunks_of(pixels);
  Norm& one = link.norms[0];
  // Sums of a channel: of the gradient, and of it times the centred pixels; and what follows for the weights and for
  // the gradient of the norm's input, a * grad + b * (input - mean) + c.
  const auto derive = [&](Norm& norm, int64_t parts, int64_t next_part, int64_t next_channel) {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, product = 0;
      for (int64_t part = 0; part < parts; ++part) {
        const double* sums = moments_.data() + 2 * (c * next_channel + part * next_part);
        sum += sums[0];
        product += sums[1];
      }
      const double rstd = norm.rstd[c], scale = static_cast<double>(norm.scale[c]);
      const auto n = static_cast<double>(pixels);
      const double slope = -scale * rstd * rstd * product / n;
      norm.a[c] = norm.scale[c];
      norm.b[c] = static_cast<T>(slope);
      norm.c[c] = static_cast<T>(-scale * sum / n);
      if (norm.spec.gamma[c] >= 0) {
        grad_weights[norm.spec.gamma[c]] += static_cast<T>(product * rstd);
      }
      if (norm.spec.beta[c] >= 0) {
        grad_weights[norm.spec.beta[c]] += static_cast<T>(sum);
      }
    }
  };
  const bool begun = reader != nullptr && !reader->direct();
  if (begun) {
    const int64_t parts = reader->head() ? output_head::chunks_of(pixels) : reader->mixing.back.strips;
    derive(link.norms.back(), parts, channels, 1);
    if (link.norms.size() == 1) {
      return;
    }
  }
  batch_norm_act::ActivationGrad<T> a{channels, pixels, link.y.data(), map_of(link)};
  if (link.norms.size() > 1) {
    Norm& two = link.norms[1];
    if (!begun) {
      batch_norm_act::second_sums(batch_norm_act::SecondSums<T>{
          channels, pixels, link.y.data(), map_of(link), grad, moments_.data()});
      derive(two, chunks, 1, chunks);
    }
    a.second = true;
    a.a = two.a.data();
    a.b = two.b.data();
    a.c = two.c.data();
  }
  a.grad = grad;
  a.sums = moments_.data();
  batch_norm_act::activation_grad(a);
  derive(one, chunks, 1, chunks);
}

template <typename T>
void Chain<T>::conv_back(
    Link& link,
    const Link* before,
    const T* source,
    const PixelMap<T>& map,
    PixelGrad<T> grad,
    T* grad_source,
    T* grad_weights) {
  if (!link.direct()) {
    mixing::MixBack<T> a = link.mixing.back;
    a.map = map;
    a.source = source;
    a.grad = grad;
    a.grad_source = grad_source;
    if (before != nullptr) {
      a.leave = before->norms.size() > 1 ? mixing::Leave::kSecondSums : mixing::Leave::kActivation;
      a.leave_sums = moments_.data();
    }
    a.sums = partial_.data();
    mixing::mix_back(a);
    add_grads(link, a.sums, grad_weights);
    return;
  }
  frame::Bordered<T> b = link.bordered;
  b.grad = grad;
  b.out = bordered_.data();
  frame::bordered(b);
  const T* planes = fixed(link) ? source : link.planes.data();
  const T* centre = bordered_.data() + b.top * b.pitch + b.left;
  const auto taps = static_cast<int64_t>(link.weights.size());
  const int64_t macs = taps * link.pixels();
  if (link.dense) {
    link.dense_conv.run_dot(planes, centre, partial_.data());
  } else {
    sparse_conv2d::Dot<T> d = link.dot;
    d.source = planes;
    d.grad = centre;
    d.partial = partial_.data();
    sparse_conv2d::run(d, 1, macs);
  }
  add_grads(link, partial_.data(), grad_weights);
  if (grad_source == nullptr) {
    return;
  }
  if (link.dense) {
    link.dense_conv.run_backward(bordered_.data(), grad_planes_.data());
  } else {
    for (int64_t t = 0; t < taps; ++t) {
      link.back_weights[t] = link.weights[link.back_order[t]];
    }
    sparse_conv2d::Gather<T> g = link.gather_back;
    g.source = bordered_.data();
    g.out = grad_planes_.data();
    sparse_conv2d::run(g, 1, macs);
  }
  frame::Frame<T> f = link.frame;
  f.grad_planes = grad_planes_.data();
  f.grad_image = grad_source;
  frame::make_back(f);
}

// Adds up the parts of the gradient of every weight.
template <typename T>
void Chain<T>::add_grads(Link& link, const T* sums, T* grad_weights) {
  const auto scale = static_cast<T>(link.spec.scale);
  const int64_t* indices = link.spec.weights.data();
  if (link.dense) {
    T* all = grad_weights + link.spec.first_weight;
    if (link.spec.first_weight < 0) {
      std::fill(link.all_grads.begin(), link.all_grads.end(), T(0));
      all = link.all_grads.data();
    }
    if (link.direct()) {
      link.dense_conv.add_grads(sums, scale, all);
    } else {
      link.mixing.add_dense_grads(sums, scale, all);
    }
    for (size_t t = 0; t < link.positions.size(); ++t) {
      grad_weights[indices[t]] += all[link.positions[t]];
    }
  } else if (link.direct()) {
    sparse_conv2d::add_grads(link.dot, sums, indices, scale, grad_weights);
  } else {
    link.mixing.add_grads(sums, indices, scale, grad_weights);
  }
}

// Of a last convolution with no norm behind it: gradient of its bias and of what constant channels add.
template <typename T>
void Chain<T>::offset_back(Link& link, const Norm* before, const T* grad, const T* weights, T* grad_weights) {
  const int64_t pixels = link.pixels();
  std::vector<double> sums(link.spec.outputs);
  const bool any = std::any_of(link.spec.bias.begin(), link.spec.bias.end(), [](int64_t i) { return i >= 0; });
  if (!any && link.spec.constant_taps.empty()) {
    return;
  }
  batch_norm_act::statistics(batch_norm_act::Statistics<T>{
      link.spec.outputs, pixels, grad, {}, false, moments_.data()});
  const int64_t chunks = batch_norm_act::chunks_of(pixels);
  for (int64_t o = 0; o < link.spec.outputs; ++o) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t size = std::min(batch_norm_act::kChunk, pixels - chunk * batch_norm_act::kChunk);
      sums[o] += moments_.data()[2 * (o * chunks + chunk)] * static_cast<double>(size);
    }
    if (link.spec.bias[o] >= 0) {
      grad_weights[link.spec.bias[o]] += static_cast<T>(sums[o]);
    }
  }
  const double factor = link.spec.scale * (link.spec.box ? 4 : 1);
  for (size_t i = 0; i < link.spec.constant_taps.size(); i += 3) {
    const int64_t* tap = &link.spec.constant_taps[i];
    const int64_t beta = before->spec.constants[tap[2]];
    const auto slope = static_cast<double>(activate_grad_one(before->spec, weights[beta]));
    const double of_constant = sums[tap[0]] * factor * static_cast<double>(weights[tap[1]]);
    grad_weights[tap[1]] += static_cast<T>(sums[tap[0]] * factor * static_cast<double>(before->constants[tap[2]]));
    grad_weights[beta] += static_cast<T>(of_constant * slope);
  }
}

template class Chain<float>;
template class Chain<double>;

} // namespace oes::chain

#include "cpu/chain/chain_norm.h"

#include <algorithm>
#include <cmath>

#include "cpu/norm/moments.h"

namespace oes::chain {
namespace {

// Mean and sum of squares about it of a channel.
norm::Merged merged(const ChannelSums& moments, int64_t channel, int64_t pixels) {
  norm::Merged all;
  for (int64_t chunk = 0; chunk < moments.chunks; ++chunk) {
    const double* of_chunk = moments.at(channel, chunk);
    const int64_t count = std::min(moments.chunk_pixels, pixels - chunk * moments.chunk_pixels);
    all.add(static_cast<double>(count), of_chunk[0], of_chunk[1]);
  }
  return all;
}

struct GradSums {
  double sum, product; // of the gradient, and of that times the centred input
};

GradSums added(const ChannelSums& sums, int64_t channel) {
  GradSums all{0, 0};
  for (int64_t chunk = 0; chunk < sums.chunks; ++chunk) {
    const double* of_chunk = sums.at(channel, chunk);
    all.sum += of_chunk[0];
    all.product += of_chunk[1];
  }
  return all;
}

} // namespace

template <typename T>
ChainNorm<T>::ChainNorm(const NormSpec& spec, int64_t channels, int64_t groups)
    : scale(channels),
      shift(channels),
      mean(channels),
      a(channels),
      b(channels),
      c(channels),
      shift_grads(groups > 0 ? channels : 0),
      spec_(spec),
      channels_(channels),
      groups_(groups),
      rstd_(channels),
      channel_mean_(groups > 0 ? channels : 0),
      constants_(spec.constants.size()) {}

template <typename T>
ChainNorm<T>::ChainNorm(Act act, double slope, int64_t channels, int64_t constants)
    : scale(channels, T(1)),
      shift(channels),
      mean(channels, T(0)),
      a(channels, T(1)),
      b(channels, T(0)),
      c(channels, T(0)),
      shift_grads(channels),
      normalises_(false),
      channels_(channels),
      constants_(constants) {
  spec_.act = act;
  spec_.slope = slope;
}

template <typename T>
void ChainNorm<T>::add_planes(int64_t planes, bool before_second) {
  planes_ = planes;
  before_second_ = before_second;
  for (std::vector<T>* each : {&scale, &shift, &mean, &a, &b, &c}) {
    each->resize(channels_ + planes, T(0));
  }
  if (!normalises_) {
    shift_grads.resize(channels_ + planes);
  }
}

template <typename T>
void ChainNorm<T>::forward(
    const ChannelSums& moments, int64_t pixels, const T* weights, const NormInput<T>& input,
    const RunningStats<T>& running) {
  if (!normalises_) {
    std::copy_n(input.shift, channels_, shift.begin());
    for (size_t i = 0; i < constants_.size(); ++i) {
      constants_[i] = norm::with_act(spec_.act, [&](auto act) {
        return norm::activate<act.value>(input.constants[i], static_cast<T>(spec_.slope));
      });
    }
    for (int64_t i = 0; i < planes_; ++i) {
      shift[channels_ + i] = before_second_ ? T(0) : input.constants[i];
    }
    return;
  }
  if (groups_ > 0) {
    forward_groups(moments, pixels, weights, input);
    return;
  }
  const bool updates = running.mean != nullptr && spec_.tracks;
  const double momentum = spec_.momentum;
  for (int64_t channel = 0; channel < channels_; ++channel) {
    const norm::Merged all = merged(moments, channel, pixels);
    const double variance = all.squares / all.count;
    const double rstd = 1 / std::sqrt(variance + spec_.eps);
    const double gamma = spec_.gamma[channel] < 0 ? 1 : static_cast<double>(weights[spec_.gamma[channel]]);
    const double beta = spec_.beta[channel] < 0 ? 0 : static_cast<double>(weights[spec_.beta[channel]]);
    rstd_[channel] = rstd;
    mean[channel] = static_cast<T>(all.mean);
    scale[channel] = static_cast<T>(gamma * rstd);
    shift[channel] = static_cast<T>(beta);
    if (updates) {
      const double count = all.count * static_cast<double>(spec_.copies);
      const double added = input.shift == nullptr ? 0 : static_cast<double>(input.shift[channel]);
      T& m = running.mean[spec_.stats_index[channel]];
      T& v = running.var[spec_.stats_index[channel]];
      m = static_cast<T>((1 - momentum) * m + momentum * (all.mean + added));
      v = static_cast<T>((1 - momentum) * v + momentum * variance * count / (count - 1));
    }
  }
  for (size_t i = 0; updates && i < spec_.tracked.size(); ++i) {
    const int64_t constant = spec_.tracked[i];
    const T value = constant < 0 ? T(0) : input.constants[constant];
    T& m = running.mean[spec_.tracked_stats_index[i]];
    T& v = running.var[spec_.tracked_stats_index[i]];
    m = static_cast<T>((1 - momentum) * m + momentum * value);
    v = static_cast<T>((1 - momentum) * v);
  }
  for (size_t i = 0; i < spec_.constants.size(); ++i) {
    constants_[i] = norm::with_act(spec_.act, [&](auto act) {
      return norm::activate<act.value>(weights[spec_.constants[i]], static_cast<T>(spec_.slope));
    });
  }
  for (int64_t i = 0; i < planes_; ++i) {
    shift[channels_ + i] = before_second_ ? T(0) : weights[spec_.constants[i]];
  }
}

// The channels of a group share mean and variance, so that what is added to one of them counts.
template <typename T>
void ChainNorm<T>::forward_groups(
    const ChannelSums& moments, int64_t pixels, const T* weights, const NormInput<T>& input) {
  const int64_t each = channels_ / groups_;
  const auto added = [&](int64_t channel) {
    return input.shift == nullptr ? 0 : static_cast<double>(input.shift[channel]);
  };
  for (int64_t group = 0; group < groups_; ++group) {
    norm::Merged all;
    for (int64_t channel = group * each; channel < (group + 1) * each; ++channel) {
      const norm::Merged one = merged(moments, channel, pixels);
      channel_mean_[channel] = one.mean;
      all.add(one.count, one.mean + added(channel), one.squares);
    }
    const double rstd = 1 / std::sqrt(all.squares / all.count + spec_.eps);
    for (int64_t channel = group * each; channel < (group + 1) * each; ++channel) {
      const double gamma = spec_.gamma[channel] < 0 ? 1 : static_cast<double>(weights[spec_.gamma[channel]]);
      rstd_[channel] = rstd;
      mean[channel] = static_cast<T>(all.mean - added(channel));
      scale[channel] = static_cast<T>(gamma * rstd);
      shift[channel] = spec_.beta[channel] < 0 ? T(0) : weights[spec_.beta[channel]];
    }
  }
}

template <typename T>
void ChainNorm<T>::backward_groups(const ChannelSums& sums, int64_t pixels, T* grad_weights) {
  const int64_t each = channels_ / groups_;
  const auto n = static_cast<double>(pixels);
  for (int64_t group = 0; group < groups_; ++group) {
    double all = 0, products = 0; // of the gradient of the centred and scaled input
    for (int64_t channel = group * each; channel < (group + 1) * each; ++channel) {
      const auto [sum, product] = added(sums, channel);
      const double gamma = static_cast<double>(scale[channel]) / rstd_[channel];
      all += gamma * sum;
      products += gamma * product;
      if (spec_.gamma[channel] >= 0) {
        grad_weights[spec_.gamma[channel]] += static_cast<T>(product * rstd_[channel]);
      }
      if (spec_.beta[channel] >= 0) {
        grad_weights[spec_.beta[channel]] += static_cast<T>(sum);
      }
      shift_grads[channel] = static_cast<double>(scale[channel]) * sum;
    }
    const double count = n * static_cast<double>(each);
    for (int64_t channel = group * each; channel < (group + 1) * each; ++channel) {
      const double rstd = rstd_[channel], of_input = -rstd * rstd * rstd * products / count, plus = -rstd * all / count;
      a[channel] = scale[channel];
      b[channel] = static_cast<T>(of_input);
      c[channel] = static_cast<T>(plus);
      const double centred = channel_mean_[channel] - static_cast<double>(mean[channel]);
      shift_grads[channel] += n * (of_input * centred + plus);
    }
  }
}

template <typename T>
void ChainNorm<T>::backward(const ChannelSums& sums, int64_t pixels, T* grad_weights) {
  if (!normalises_) {
    for (int64_t channel = 0; channel < channels_ + planes_; ++channel) {
      shift_grads[channel] = added(sums, channel).sum;
    }
    return;
  }
  for (int64_t i = 0; i < planes_ && !before_second_; ++i) {
    grad_weights[spec_.constants[i]] += static_cast<T>(added(sums, channels_ + i).sum);
  }
  if (groups_ > 0) {
    backward_groups(sums, pixels, grad_weights);
    return;
  }
  for (int64_t channel = 0; channel < channels_; ++channel) {
    const auto [sum, product] = added(sums, channel);
    const double rstd = rstd_[channel], factor = static_cast<double>(scale[channel]);
    const auto n = static_cast<double>(pixels);
    const double slope = -factor * rstd * rstd * product / n;
    a[channel] = scale[channel];
    b[channel] = static_cast<T>(slope);
    c[channel] = static_cast<T>(-factor * sum / n);
    if (spec_.gamma[channel] >= 0) {
      grad_weights[spec_.gamma[channel]] += static_cast<T>(product * rstd);
    }
    if (spec_.beta[channel] >= 0) {
      grad_weights[spec_.beta[channel]] += static_cast<T>(sum);
    }
  }
}

template class ChainNorm<float>;
template class ChainNorm<double>;

} // namespace oes::chain

// The loops of output_head over a chunk of pixels, included once for each instruction set: see fma_tiles_isa.h.

#include "cpu/core/fma_tiles_isa.h"

constexpr int64_t kStrip = 256; // pixels between two loops over them
constexpr int64_t kChannelsAtOnce = 4; // channels

// Calls f with the number of outputs as a constant.
template <typename F>
OES_ISA_INLINE void with_outputs(int64_t outputs, const F& f) {
  static_assert(norm::kMostHeadOutputs == 4);
  switch (outputs) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    default:
      return f(std::integral_constant<int, 4>());
  }
}

// sums[o][j] += weights of the channels times their activated pixels, [kChannelsAtOnce][kStrip].
template <int kOutputs, int kChannels, typename T>
OES_ISA_INLINE void add_channels(const T* active, const T* weights, int64_t count, T* sums) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t j = 0; j < count; j += lanes) {
    typename V::Type sum[kOutputs];
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o) {
      sum[o] = V::load(sums + o * kHeadChunk + j);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c) {
      const typename V::Type x = V::load(active + c * kStrip + j);
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        sum[o] = V::fma(V::all(weights[c * norm::kMostHeadOutputs + o]), x, sum[o]);
      }
    }
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o) {
      V::store(sums + o * kHeadChunk + j, sum[o]);
    }
  }
}

template <typename T>
OES_TARGET void output_head(const OutputHeadForward<T>& a, int64_t begin, int64_t end) {
  const OutputHead<T>& h = a.head;
  alignas(64) T sums[norm::kMostHeadOutputs * kHeadChunk], active[kChannelsAtOnce * kStrip] = {}, errors[kHeadChunk],
                                                                                    weighted[kHeadChunk];
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kHeadChunk, count = h.pixels - first < kHeadChunk ? h.pixels - first : kHeadChunk;
    std::memset(sums, 0, sizeof(sums));
    for (int64_t c = 0; c < h.channels; c += kChannelsAtOnce) {
      const int64_t channels = h.channels - c < kChannelsAtOnce ? h.channels - c : kChannelsAtOnce;
      for (int64_t at = 0; at < count; at += kStrip) {
        const int64_t size = count - at < kStrip ? count - at : kStrip;
        for (int64_t k = c; k < c + channels; ++k) {
          const T* __restrict y = h.y + k * h.pixels + first + at;
          T* __restrict to = active + (k - c) * kStrip;
          const T mean = h.prologue.mean[k], scale = h.prologue.scale[k], shift = h.prologue.shift[k],
                  slope = h.prologue.slope;
          norm::with_act(h.prologue.act, [&](auto act) OES_LAMBDA {
            for (int64_t j = 0; j < size; ++j) {
              to[j] = norm::activate<act.value>(scale * (y[j] - mean) + shift, slope);
            }
          });
        }
        with_outputs(h.outputs, [&](auto outputs) OES_TARGET OES_LAMBDA {
          const T* weights = h.weights + c * norm::kMostHeadOutputs;
          if (channels == kChannelsAtOnce) {
            add_channels<outputs.value, kChannelsAtOnce>(active, weights, size, sums + at);
          } else {
            for (int64_t k = 0; k < channels; ++k) {
              add_channels<outputs.value, 1>(
                  active + k * kStrip, weights + k * norm::kMostHeadOutputs, size, sums + at);
            }
          }
        });
      }
    }
    double error = 0;
    for (int64_t o = 0; o < h.outputs; ++o) {
      T* of_output = sums + o * kHeadChunk;
      const int64_t from = o * h.pixels + first;
      if (a.target == nullptr) {
        std::memcpy(a.sums + from, of_output, count * sizeof(T));
        norm::output_pixels(a.act, a.shift[o], a.slope, of_output, count, a.out + from);
        continue;
      }
      const T factor = static_cast<T>(2 / static_cast<double>(h.outputs * h.pixels));
      norm::output_loss_pixels(
          a.act, a.shift[o], a.slope, factor, a.target + from, count, of_output, a.out + from, errors);
      if (a.weight != nullptr) {
        norm::weigh_loss_pixels(a.weight + from, count, errors, of_output, weighted);
      }
      std::memcpy(a.sums + from, of_output, count * sizeof(T));
      norm::Sums<T> all;
      all.add(errors, a.weight == nullptr ? errors : weighted, count);
      double both[2];
      all.finish(both);
      error += both[1];
    }
    if (a.target != nullptr) {
      a.errors[chunk] = error;
    }
  }
}

template <typename T>
OES_ISA_INLINE double sum_in_double(typename Vector<T>::Type x) {
  alignas(64) T lanes[kLanes<T>];
  Vector<T>::store(lanes, x);
  double sum = 0;
  for (int k = 0; k < kLanes<T>; ++k) {
    sum += static_cast<double>(lanes[k]);
  }
  return sum;
}

// Channel c of a chunk, whose gradients lie in `grads`, [norm::kMostHeadOutputs][kHeadChunk], zeros behind them.
template <int kOutputs, typename T>
OES_ISA_INLINE void channel_back(
    const OutputHead<T>& h, int64_t c, int64_t first, int64_t count, const T* grads, double* sums,
    double* weight_sums) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  alignas(64) T centred[kStrip], active[kStrip], slopes[kStrip];
  const T mean = h.prologue.mean[c], scale = h.prologue.scale[c], shift = h.prologue.shift[c], slope = h.prologue.slope;
  typename V::Type sum = V::all(T(0)), product = V::all(T(0)), weight[kOutputs], of_weight[kOutputs];
#pragma GCC unroll 4
  for (int o = 0; o < kOutputs; ++o) {
    weight[o] = V::all(h.weights[c * norm::kMostHeadOutputs + o]);
    of_weight[o] = V::all(T(0));
  }
  for (int64_t at = 0; at < count; at += kStrip) {
    const int64_t size = count - at < kStrip ? count - at : kStrip;
    const T* __restrict y = h.y + c * h.pixels + first + at;
    norm::with_act(h.prologue.act, [&](auto act) OES_LAMBDA {
      for (int64_t j = 0; j < size; ++j) {
        centred[j] = y[j] - mean;
        const T normalised = scale * centred[j] + shift;
        active[j] = norm::activate<act.value>(normalised, slope);
        slopes[j] = norm::activate_grad<act.value>(normalised, slope);
      }
    });
    for (int64_t j = size; j % lanes != 0; ++j) {
      centred[j] = active[j] = slopes[j] = T(0);
    }
    for (int64_t j = 0; j < size; j += lanes) {
      typename V::Type grad[kOutputs], all = V::all(T(0));
      const typename V::Type x = V::load(active + j);
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        grad[o] = V::load(grads + o * kHeadChunk + at + j);
        all = V::fma(weight[o], grad[o], all);
        of_weight[o] = V::fma(grad[o], x, of_weight[o]);
      }
      all = all * V::load(slopes + j);
      sum = sum + all;
      product = V::fma(all, V::load(centred + j), product);
    }
  }
  sums[0] = sum_in_double<T>(sum);
  sums[1] = sum_in_double<T>(product);
  for (int o = 0; o < kOutputs; ++o) {
    weight_sums[o] = sum_in_double<T>(of_weight[o]);
  }
}

template <typename T>
OES_TARGET void output_head_backward(const OutputHeadBackward<T>& a, int64_t begin, int64_t end) {
  const OutputHead<T>& h = a.head;
  alignas(64) T grads[norm::kMostHeadOutputs * kHeadChunk];
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kHeadChunk, count = h.pixels - first < kHeadChunk ? h.pixels - first : kHeadChunk;
    for (int64_t o = 0; o < h.outputs; ++o) {
      std::memcpy(grads + o * kHeadChunk, a.grad + o * h.pixels + first, count * sizeof(T));
      std::memset(grads + o * kHeadChunk + count, 0, (kHeadChunk - count) * sizeof(T));
    }
    with_outputs(h.outputs, [&](auto outputs) OES_TARGET OES_LAMBDA {
      for (int64_t c = 0; c < h.channels; ++c) {
        const int64_t at = chunk * h.channels + c;
        channel_back<outputs.value>(
            h, c, first, count, grads, a.sums + 2 * at, a.weight_sums + norm::kMostHeadOutputs * at);
      }
    });
  }
}

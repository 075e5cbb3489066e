// The loops of output_head over a chunk of pixels, included once per capability: see fma_tiles_isa.h.

#include "cpu/core/fma_tiles_isa.h"

constexpr int64_t kPiece = 256; // pixels between two loops over them
constexpr int64_t kTogether = 4; // channels

// Calls f with the number of outputs as a constant.
template <typename F>
OES_HERE void with_outputs(int64_t outputs, const F& f) {
  static_assert(kMostBehind == 4);
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

// sums[o][j] += weights of the channels times their activated pixels, [kTogether][kPiece].
template <int kOutputs, int kChannels, typename T>
OES_HERE void add_channels(const T* active, const T* weights, int64_t count, T* sums) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t j = 0; j < count; j += lanes) {
    typename V::Type sum[kOutputs];
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o) {
      sum[o] = V::load(sums + o * kChunk + j);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c) {
      const typename V::Type x = V::load(active + c * kPiece + j);
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        sum[o] = V::fma(V::all(weights[c * kMostBehind + o]), x, sum[o]);
      }
    }
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o) {
      V::store(sums + o * kChunk + j, sum[o]);
    }
  }
}

template <typename T>
OES_TARGET void forward(const Forward<T>& a, int64_t begin, int64_t end) {
  const Head<T>& h = a.head;
  alignas(64) T sums[kMostBehind * kChunk], active[kTogether * kPiece] = {}, errors[kChunk];
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kChunk, count = h.pixels - first < kChunk ? h.pixels - first : kChunk;
    std::memset(sums, 0, sizeof(sums));
    for (int64_t c = 0; c < h.channels; c += kTogether) {
      const int64_t channels = h.channels - c < kTogether ? h.channels - c : kTogether;
      for (int64_t at = 0; at < count; at += kPiece) {
        const int64_t size = count - at < kPiece ? count - at : kPiece;
        for (int64_t k = c; k < c + channels; ++k) {
          const T* __restrict y = h.y + k * h.pixels + first + at;
          T* __restrict to = active + (k - c) * kPiece;
          const T mean = h.map.mean[k], scale = h.map.scale[k], shift = h.map.shift[k], slope = h.map.slope;
          with_act(h.map.act, [&](auto act) OES_LAMBDA {
            for (int64_t j = 0; j < size; ++j) {
              to[j] = activate<act.value>(scale * (y[j] - mean) + shift, slope);
            }
          });
        }
        with_outputs(h.outputs, [&](auto outputs) OES_TARGET OES_LAMBDA {
          const T* weights = h.weights + c * kMostBehind;
          if (channels == kTogether) {
            add_channels<outputs.value, kTogether>(active, weights, size, sums + at);
          } else {
            for (int64_t k = 0; k < channels; ++k) {
              add_channels<outputs.value, 1>(active + k * kPiece, weights + k * kMostBehind, size, sums + at);
            }
          }
        });
      }
    }
    double error = 0;
    for (int64_t o = 0; o < h.outputs; ++o) {
      T* of_output = sums + o * kChunk;
      const int64_t from = o * h.pixels + first;
      if (a.target == nullptr) {
        std::memcpy(a.sums + from, of_output, count * sizeof(T));
        output_pixels(a.act, a.shift[o], a.slope, of_output, count, a.out + from);
        continue;
      }
      const T factor = static_cast<T>(2 / static_cast<double>(h.outputs * h.pixels));
      output_loss_pixels(
          a.act, a.shift[o], a.slope, factor, a.target + from, count, of_output, a.out + from, errors);
      std::memcpy(a.sums + from, of_output, count * sizeof(T));
      Sums<T> all;
      all.add(errors, errors, count);
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
OES_HERE double sum_in_double(typename Vector<T>::Type x) {
  alignas(64) T lanes[kLanes<T>];
  Vector<T>::store(lanes, x);
  double sum = 0;
  for (int k = 0; k < kLanes<T>; ++k) {
    sum += static_cast<double>(lanes[k]);
  }
  return sum;
}

// Channel c of a chunk, whose gradients lie in `grads`, [kMostBehind][kChunk], zeros behind them.
template <int kOutputs, typename T>
OES_HERE void channel_back(
    const Head<T>& h, int64_t c, int64_t first, int64_t count, const T* grads, double* sums, double* weight_sums) {
  using V = Vector<T>;
  constexpr int64_t lanes = kLanes<T>;
  alignas(64) T centred[kPiece], active[kPiece], slopes[kPiece];
  const T mean = h.map.mean[c], scale = h.map.scale[c], shift = h.map.shift[c], slope = h.map.slope;
  typename V::Type sum = V::all(T(0)), product = V::all(T(0)), weight[kOutputs], of_weight[kOutputs];
#pragma GCC unroll 4
  for (int o = 0; o < kOutputs; ++o) {
    weight[o] = V::all(h.weights[c * kMostBehind + o]);
    of_weight[o] = V::all(T(0));
  }
  for (int64_t at = 0; at < count; at += kPiece) {
    const int64_t size = count - at < kPiece ? count - at : kPiece;
    const T* __restrict y = h.y + c * h.pixels + first + at;
    with_act(h.map.act, [&](auto act) OES_LAMBDA {
      for (int64_t j = 0; j < size; ++j) {
        centred[j] = y[j] - mean;
        const T normalised = scale * centred[j] + shift;
        active[j] = activate<act.value>(normalised, slope);
        slopes[j] = activate_grad<act.value>(normalised, slope);
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
        grad[o] = V::load(grads + o * kChunk + at + j);
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
OES_TARGET void backward(const Backward<T>& a, int64_t begin, int64_t end) {
  const Head<T>& h = a.head;
  alignas(64) T grads[kMostBehind * kChunk];
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kChunk, count = h.pixels - first < kChunk ? h.pixels - first : kChunk;
    for (int64_t o = 0; o < h.outputs; ++o) {
      std::memcpy(grads + o * kChunk, a.grad + o * h.pixels + first, count * sizeof(T));
      std::memset(grads + o * kChunk + count, 0, (kChunk - count) * sizeof(T));
    }
    with_outputs(h.outputs, [&](auto outputs) OES_TARGET OES_LAMBDA {
      for (int64_t c = 0; c < h.channels; ++c) {
        const int64_t at = chunk * h.channels + c;
        channel_back<outputs.value>(h, c, first, count, grads, a.sums + 2 * at, a.weight_sums + kMostBehind * at);
      }
    });
  }
}

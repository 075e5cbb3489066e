#include "cpu/norm/batch_norm_act.h"

#include <algorithm>

#include "cpu/core/tensor_checks.h"

namespace oes::batch_norm_act {
namespace {

constexpr int64_t kPiece = 512; // pixels between two loops over them: they stay in the first-level cache

// Calls f(channel, first pixel, pixels, chunk) for chunks begin .. end of all channels.
template <typename F>
OES_INLINE void each_chunk(int64_t pixels, int64_t begin, int64_t end, const F& f) {
  const int64_t chunks = chunks_of(pixels);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit % chunks * kChunk;
    f(unit / chunks, first, pixels - first < kChunk ? pixels - first : kChunk, unit);
  }
}

template <Capability, typename Arguments>
OES_INLINE void statistics_body(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_const_t<std::remove_reference_t<decltype(*a.y)>>;
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t chunk) OES_LAMBDA {
    const T* y = a.y + c * a.pixels + first;
    if (!a.mapped) {
      Moments<T> moments(y[0]);
      moments.add(y, count);
      moments.finish(count, a.moments + 2 * chunk);
      return;
    }
    const T mean = a.map.mean[c], scale = a.map.scale[c], shift = a.map.shift[c], slope = a.map.slope;
    with_act(a.map.act, [&](auto act) OES_LAMBDA {
      Moments<T> moments(activate<act.value>(scale * (y[0] - mean) + shift, slope));
      alignas(64) T piece[kPiece];
      for (int64_t at = 0; at < count; at += kPiece) {
        const int64_t size = count - at < kPiece ? count - at : kPiece;
        for (int64_t j = 0; j < size; ++j) {
          piece[j] = activate<act.value>(scale * (y[at + j] - mean) + shift, slope);
        }
        moments.add(piece, size);
      }
      moments.finish(count, a.moments + 2 * chunk);
    });
  });
}

template <Capability, typename Arguments>
OES_INLINE void activation_grad_body(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_const_t<std::remove_reference_t<decltype(*a.grad)>>;
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t chunk) OES_LAMBDA {
    const T mean = a.map.mean[c], scale = a.map.scale[c], shift = a.map.shift[c], slope = a.map.slope;
    const T mean2 = a.map.mean2[c];
    const T factor = a.second ? a.a[c] : T(1), of_value = a.second ? a.b[c] : T(0), plus = a.second ? a.c[c] : T(0);
    Sums<T> sums;
    alignas(64) T centred[kPiece];
    for (int64_t at = 0; at < count; at += kPiece) {
      const int64_t size = count - at < kPiece ? count - at : kPiece;
      const T* __restrict y = a.y + c * a.pixels + first + at;
      T* __restrict grad = a.grad + c * a.pixels + first + at;
      with_act(a.map.act, [&](auto act) OES_LAMBDA {
        for (int64_t j = 0; a.second && j < size; ++j) {
          const T n = scale * (y[j] - mean) + shift;
          grad[j] = factor * grad[j] + (of_value * (activate<act.value>(n, slope) - mean2) + plus);
        }
        for (int64_t j = 0; j < size; ++j) {
          centred[j] = y[j] - mean;
          grad[j] = grad[j] * activate_grad<act.value>(scale * centred[j] + shift, slope);
        }
      });
      sums.add(grad, centred, size);
    }
    sums.finish(a.sums + 2 * chunk);
  });
}

template <Capability, typename Arguments>
OES_INLINE void second_sums_body(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_const_t<std::remove_reference_t<decltype(*a.grad)>>;
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t chunk) OES_LAMBDA {
    const T mean = a.map.mean[c], scale = a.map.scale[c], shift = a.map.shift[c], slope = a.map.slope;
    const T mean2 = a.map.mean2[c];
    Sums<T> sums;
    alignas(64) T centred[kPiece];
    for (int64_t at = 0; at < count; at += kPiece) {
      const int64_t size = count - at < kPiece ? count - at : kPiece;
      const T* __restrict y = a.y + c * a.pixels + first + at;
      with_act(a.map.act, [&](auto act) OES_LAMBDA {
        for (int64_t j = 0; j < size; ++j) {
          centred[j] = activate<act.value>(scale * (y[j] - mean) + shift, slope) - mean2;
        }
      });
      sums.add(a.grad + c * a.pixels + first + at, centred, size);
    }
    sums.finish(a.sums + 2 * chunk);
  });
}

template <Capability, typename Arguments>
OES_INLINE void output_body(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.out)>;
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t) OES_LAMBDA {
    const T* __restrict y = a.y + c * a.pixels + first;
    T* __restrict out = a.out + c * a.pixels + first;
    const T shift = a.shift[c], slope = a.slope;
    if (a.grad == nullptr) {
      output_pixels(a.act, shift, slope, y, count, out);
      return;
    }
    const T* __restrict grad = a.grad + c * a.pixels + first;
    if (a.act == Last::kSigmoid) {
      for (int64_t j = 0; j < count; ++j) {
        const auto pair = sigmoid_pair(y[j] + shift);
        out[j] = grad[j] * (pair.large * pair.small);
      }
    } else {
      for (int64_t j = 0; j < count; ++j) {
        out[j] = grad[j] * activate_grad<Act::kLeaky>(y[j] + shift, slope);
      }
    }
  });
}

template <Capability, typename Arguments>
OES_INLINE void output_loss_body(const Arguments& a, int64_t begin, int64_t end) {
  using T = std::remove_reference_t<decltype(*a.out)>;
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t chunk) OES_LAMBDA {
    const T factor = static_cast<T>(2 / static_cast<double>(a.channels * a.pixels));
    Sums<T> sums;
    alignas(64) T error[kPiece];
    for (int64_t at = 0; at < count; at += kPiece) {
      const int64_t size = count - at < kPiece ? count - at : kPiece, from = c * a.pixels + first + at;
      output_loss_pixels(
          a.act, a.shift[c], a.slope, factor, a.target + from, size, a.y + from, a.out + from, error);
      sums.add(error, error, size);
    }
    double both[2];
    sums.finish(both);
    a.sums[chunk] = both[1];
  });
}

template <typename T>
struct MapImage {
  int64_t pixels;
  const T* y;
  PixelMap<T> map;
  T* out;
};

template <Capability, typename Arguments>
OES_INLINE void map_image_body(const Arguments& a, int64_t begin, int64_t end) {
  each_chunk(a.pixels, begin, end, [&](int64_t c, int64_t first, int64_t count, int64_t) OES_LAMBDA {
    map_row(a.y + c * a.pixels + first, a.map, c, count, a.out + c * a.pixels + first);
  });
}

OES_CAPABILITIES(statistics)
OES_CAPABILITIES(activation_grad)
OES_CAPABILITIES(second_sums)
OES_CAPABILITIES(output)
OES_CAPABILITIES(output_loss)
OES_CAPABILITIES(map_image)

// Chunks one thread takes at least.
int64_t grain(int64_t pixels) {
  return std::max<int64_t>(1, (1 << 15) / std::min(pixels, kChunk));
}

} // namespace

template <typename T>
void statistics(const Statistics<T>& a) {
  torch::stable::parallel_for(
      0, a.channels * chunks_of(a.pixels), grain(a.pixels), [&](int64_t begin, int64_t end) { statistics(a, begin, end); });
}

template <typename T>
void activation_grad(const ActivationGrad<T>& a) {
  torch::stable::parallel_for(0, a.channels * chunks_of(a.pixels), grain(a.pixels), [&](int64_t begin, int64_t end) {
    activation_grad(a, begin, end);
  });
}

template <typename T>
void second_sums(const SecondSums<T>& a) {
  torch::stable::parallel_for(
      0, a.channels * chunks_of(a.pixels), grain(a.pixels), [&](int64_t begin, int64_t end) { second_sums(a, begin, end); });
}

template <typename T>
void output(const Output<T>& a) {
  torch::stable::parallel_for(
      0, a.channels * chunks_of(a.pixels), grain(a.pixels), [&](int64_t begin, int64_t end) { output(a, begin, end); });
}

template <typename T>
double output_loss(const OutputLoss<T>& a) {
  const int64_t chunks = a.channels * chunks_of(a.pixels);
  torch::stable::parallel_for(
      0, chunks, grain(a.pixels), [&](int64_t begin, int64_t end) { output_loss(a, begin, end); });
  double sum = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    sum += a.sums[chunk];
  }
  return sum / static_cast<double>(a.channels * a.pixels);
}

template <typename T>
void map_image(const T* y, const PixelMap<T>& map, int64_t channels, int64_t pixels, T* out) {
  const MapImage<T> a{pixels, y, map, out};
  torch::stable::parallel_for(
      0, channels * chunks_of(pixels), grain(pixels), [&](int64_t begin, int64_t end) { map_image(a, begin, end); });
}

#define OES_INSTANTIATE(T)                            \
  template void statistics(const Statistics<T>&);     \
  template void activation_grad(const ActivationGrad<T>&); \
  template void second_sums(const SecondSums<T>&);    \
  template void output(const Output<T>&);             \
  template double output_loss(const OutputLoss<T>&);  \
  template void map_image(const T*, const PixelMap<T>&, int64_t, int64_t, T*);
OES_INSTANTIATE(float)
OES_INSTANTIATE(double)

} // namespace oes::batch_norm_act

// The noise alone, for callers that need it stored and for tests, and normal noise added to a tensor: see
// oes_fast/reference/philox.py.
#include <cmath>
#include <optional>

#include "common/vector_math.h"
#include "cpu/core/philox.h"
#include "cpu/core/tensor_checks.h"

namespace oes {
namespace {

struct Words {
  PhiloxKey key;
  int64_t numel;
  int64_t* words;
};

template <typename T>
struct FromWords {
  using Scalar = T;
  int64_t numel;
  const int64_t* words;
  T* noise;
};

struct NormalNoise {
  PhiloxKey key;
  int64_t numel;
  const float* base; // may be `out`
  const float* stds; // of each element; nullptr: `std` for all
  float std;
  float* out;
};

// sqrt(2) erfinv(x) / x as a function of w = -log(1 - x^2), in which it is smooth (Giles, "Approximating the erfinv
// function", 2012): one polynomial up to kNormalTail, and beyond it one in the root of w. Their errors are below a unit
// in the last place of float.
constexpr float kNormalTail = 5.0f;

OES_INLINE float normal_centre(float w) {
  return polynomial(
      w - 2.5f, 2.1233134269714355f, 0.34880203008651733f, -0.005907630082219839f, -0.0017715400317683816f,
      0.0003087306977249682f, -7.086380719556473e-06f, -4.8861256800591946e-06f, 6.73460135658388e-07f,
      3.218179855934977e-08f, -1.3398992138036192e-08f);
}

OES_INLINE float normal_tail(float w) {
  return polynomial(
      std::sqrt(w) - 3.0f, 4.006434440612793f, 1.416581630706787f, 0.013355456292629242f, -0.010784628801047802f,
      0.008067739196121693f, -0.005187403876334429f, 0.002020459622144699f, 0.00014284311328083277f,
      -0.00036323501262813807f);
}

// Standard normal noise of a 32-bit word.
OES_INLINE float normal(uint32_t word) {
  const auto [u, v] = logistic_odds<float>(word); // u / 2^23 is uniform: x = (u - v) / 2^23, 1 - x^2 = 4 u v / 2^46
  const float w = log_ratio(0x1p44f, u * v);
  const float centre = normal_centre(w), tail = normal_tail(w); // both, so that loops vectorise
  return (u - v) * 0x1p-23f * (w < kNormalTail ? centre : tail);
}

#define OES_ISA_FILE "cpu/core/philox_isa.h"
#include "cpu/core/isa_variants.h"

void fill_random_bits(Tensor words, int64_t seed, int64_t step, int64_t stream) {
  STD_TORCH_CHECK(
      words.is_cpu() && words.scalar_type() == ScalarType::Long && words.is_contiguous(),
      "words: expected a contiguous int64 CPU tensor");
  const Words a{PhiloxKey(seed, step, static_cast<uint32_t>(stream)), words.numel(), pointer<int64_t>(words)};
  parallel_for(0, philox_tiles(a.numel), kPhiloxGrain, [&](int64_t begin, int64_t end) {
    OES_DISPATCH(random_bits, a, begin, end);
  });
}

void fill_logistic(Tensor noise, Tensor words) {
  check_vector("noise", noise, noise);
  STD_TORCH_CHECK(
      words.is_cpu() && words.scalar_type() == ScalarType::Long && words.is_contiguous(),
      "words: expected a contiguous int64 CPU tensor");
  STD_TORCH_CHECK(words.numel() == noise.numel(), "words: expected ", noise.numel(), " elements, got ", words.numel());
  with_type(noise, [&](auto zero) {
    using T = decltype(zero);
    const FromWords<T> a{noise.numel(), pointer<int64_t>(words), pointer<T>(noise)};
    parallel_for(0, philox_tiles(a.numel), kPhiloxGrain, [&](int64_t begin, int64_t end) {
      OES_DISPATCH(from_words, a, begin, end);
    });
  });
}

void add_normal_noise(
    Tensor out, Tensor base, std::optional<Tensor> stds, double std, int64_t seed, int64_t step, int64_t stream) {
  check_vector("out", out, out);
  check_vector("base", base, out);
  STD_TORCH_CHECK(out.scalar_type() == ScalarType::Float, "out: expected float32");
  if (stds.has_value()) {
    check_vector("std", *stds, out);
  }
  const NormalNoise a{
      PhiloxKey(seed, step, static_cast<uint32_t>(stream)),
      out.numel(),
      pointer<const float>(base),
      stds.has_value() ? pointer<const float>(*stds) : nullptr,
      static_cast<float>(std),
      pointer<float>(out)};
  parallel_for(0, philox_tiles(a.numel), kPhiloxGrain, [&](int64_t begin, int64_t end) {
    OES_DISPATCH(normal_noise, a, begin, end);
  });
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("random_bits_cpu", TORCH_BOX(&fill_random_bits));
  m.impl("logistic_from_bits_cpu", TORCH_BOX(&fill_logistic));
  m.impl("add_normal_noise_cpu", TORCH_BOX(&add_normal_noise));
}

} // namespace oes

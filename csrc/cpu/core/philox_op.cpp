// The noise alone, for callers that need it stored and for tests, and normal noise added to a tensor: see
// oes_fast/reference/philox.py.
#include <optional>

#include "common/vector_math.h"
#include "cpu/core/normal_noise.h"
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
      pointer<float>(out),
      0};
  parallel_for(
      0, philox_tiles(a.numel), kPhiloxGrain, [&](int64_t begin, int64_t end) { normal_noise(a, begin, end); });
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("random_bits_cpu", TORCH_BOX(&fill_random_bits));
  m.impl("logistic_from_bits_cpu", TORCH_BOX(&fill_logistic));
  m.impl("add_normal_noise_cpu", TORCH_BOX(&add_normal_noise));
}

} // namespace oes

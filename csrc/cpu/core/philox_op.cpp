// The noise alone, for callers that need it stored and for tests: see oes_fast/reference/philox.py.
#include "cpu/core/vector_math.h"
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

template <Capability kCapability, typename Arguments>
OES_INLINE void random_bits_body(const Arguments& a, int64_t begin, int64_t end) {
  alignas(64) uint32_t words[kTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    philox_tile<kCapability>(a.key, tile, words);
    const int64_t start = tile * kTile;
    const int64_t count = a.numel - start < kTile ? a.numel - start : kTile;
    int64_t* __restrict out = a.words + start;
    for (int64_t i = 0; i < count; ++i) {
      out[i] = static_cast<int64_t>(words[i]);
    }
  }
}

template <Capability kCapability, typename Arguments>
OES_INLINE void from_words_body(const Arguments& a, int64_t begin, int64_t end) {
  using T = typename Arguments::Scalar;
  const int64_t stop = end * kTile < a.numel ? end * kTile : a.numel;
  const int64_t* __restrict words = a.words;
  T* __restrict noise = a.noise;
  for (int64_t i = begin * kTile; i < stop; ++i) {
    noise[i] = logistic<T>(static_cast<uint32_t>(words[i]));
  }
}

OES_CAPABILITIES(random_bits)
OES_CAPABILITIES(from_words)

void fill_random_bits(Tensor words, int64_t seed, int64_t step, int64_t stream) {
  STD_TORCH_CHECK(
      words.is_cpu() && words.scalar_type() == ScalarType::Long && words.is_contiguous(),
      "words: expected a contiguous int64 CPU tensor");
  const Words a{PhiloxKey(seed, step, static_cast<uint32_t>(stream)), words.numel(), pointer<int64_t>(words)};
  torch::stable::parallel_for(
      0, tiles_of(a.numel), kGrain, [&](int64_t begin, int64_t end) { random_bits(a, begin, end); });
}

void fill_logistic(Tensor noise, Tensor words) {
  check_vector("noise", noise, noise);
  STD_TORCH_CHECK(
      words.is_cpu() && words.scalar_type() == ScalarType::Long && words.is_contiguous(),
      "words: expected a contiguous int64 CPU tensor");
  STD_TORCH_CHECK(
      words.numel() == noise.numel(), "words: expected ", noise.numel(), " elements, got ", words.numel());
  with_type(noise, [&](auto zero) {
    using T = decltype(zero);
    const FromWords<T> a{noise.numel(), pointer<int64_t>(words), pointer<T>(noise)};
    torch::stable::parallel_for(
        0, tiles_of(a.numel), kGrain, [&](int64_t begin, int64_t end) { from_words(a, begin, end); });
  });
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(oes_fast, CPU, m) {
  m.impl("random_bits_cpu", TORCH_BOX(&fill_random_bits));
  m.impl("logistic_from_bits_cpu", TORCH_BOX(&fill_logistic));
}

} // namespace oes

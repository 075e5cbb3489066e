#include "cpu/core/normal_noise.h"

#include <cmath>

#include "common/vector_math.h"

namespace oes {
namespace {

// sqrt(2) erfinv(x) / x as a function of w = -log(1 - x^2), in which it is smooth (Giles, "Approximating the erfinv
// function", 2012): one polynomial up to kNormalTail, and beyond it one in the root of w. Their errors are below a unit
// in the last place of float.
constexpr float kNormalTail = 5.0f;
constexpr int kTailBlock = 64; // elements that are looked through together for those of the tail, one in 300

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

#define OES_ISA_FILE "cpu/core/normal_noise_isa.h"
#include "cpu/core/isa_variants.h"

} // namespace

void normal_noise(const NormalNoise& a, int64_t begin, int64_t end) {
  OES_DISPATCH(normal_noise, a, begin, end);
}

} // namespace oes

// The Python module oes_fast._C: importing it registers the CPU kernels with torch.
#include <pybind11/pybind11.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "common/tap_offsets.h"
#include "cpu/chain/bindings.h"
#include "cpu/core/simd.h"

namespace oes {

extern const char build[]; // written by setup.py

namespace {

Capability best_supported() {
#if OES_HAS_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
      __builtin_cpu_supports("bmi2");
#if defined(OES_EMULATE_AVX512)
  const bool avx512 = avx2;
#else
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
#endif
  return avx512 ? Capability::kAvx512 : avx2 ? Capability::kAvx2 : Capability::kDefault;
#else
  return Capability::kDefault;
#endif
}

Capability current = Capability::kDefault;

std::string compiler() {
#if defined(__clang__)
  return "clang " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__);
#else
  return "gcc " + std::to_string(__GNUC__) + "." + std::to_string(__GNUC_MINOR__);
#endif
}

} // namespace

Capability capability() {
  return current;
}

const char* name_of(Capability capability) {
  switch (capability) {
    case Capability::kAvx512:
      return "avx512";
    case Capability::kAvx2:
      return "avx2";
    default:
      return "default";
  }
}

const char* initialise_capability() {
  const Capability best = best_supported();
  current = best;
  const char* wanted = std::getenv("OES_FAST_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') {
    return nullptr;
  }
  static char message[256];
  for (int i = 0; i <= static_cast<int>(Capability::kAvx512); ++i) {
    const auto each = static_cast<Capability>(i);
    if (std::strcmp(wanted, name_of(each)) == 0) {
      if (each > best) {
        std::snprintf(
            message, sizeof message, "OES_FAST_CPU_CAPABILITY: this processor supports no more than %s, got '%s'",
            name_of(best), name_of(each));
        return message;
      }
      current = each;
      return nullptr;
    }
  }
  std::snprintf(
      message, sizeof message, "OES_FAST_CPU_CAPABILITY: expected default, avx2 or avx512, got '%.64s'", wanted);
  return message;
}

namespace {

// So that tests hold the offsets of every engine together.
void bind_tap_offsets(pybind11::module_& module) {
  using pybind11::arg;
  pybind11::class_<TapPlanes>(module, "TapPlanes", "Where the taps of a convolution read, see common/tap_offsets.h.")
      .def(
          pybind11::init<int64_t, int64_t, int64_t, int64_t, bool>(), arg("inputs"), arg("stride"), arg("rows"),
          arg("columns"), arg("row_major") = false)
      .def_readonly("inputs", &TapPlanes::inputs)
      .def_readonly("stride", &TapPlanes::stride)
      .def_readonly("rows", &TapPlanes::rows)
      .def_readonly("columns", &TapPlanes::columns)
      .def_readonly("row_major", &TapPlanes::row_major)
      .def("plane_of", &TapPlanes::plane_of, arg("c"), arg("u"), arg("v"))
      .def("offset_of", &TapPlanes::offset_of, arg("c"), arg("u"), arg("v"));
  pybind11::class_<PaddedGradPlanes>(
      module, "PaddedGradPlanes", "Where the taps read the gradient of a result in its border of zeros.")
      .def(
          pybind11::init<int64_t, int64_t, int64_t, int64_t, int64_t>(), arg("stride"), arg("rows"), arg("pitch"),
          arg("top"), arg("left"))
      .def_readonly("stride", &PaddedGradPlanes::stride)
      .def_readonly("rows", &PaddedGradPlanes::rows)
      .def_readonly("pitch", &PaddedGradPlanes::pitch)
      .def_readonly("top", &PaddedGradPlanes::top)
      .def_readonly("left", &PaddedGradPlanes::left)
      .def("offset_of", &PaddedGradPlanes::offset_of, arg("o"), arg("u"), arg("v"));
  module.def(
      "tap_margin", &tap_margin, arg("kernel_side"), arg("stride"),
      "How far a tap of a kernel of that side reaches in its plane.");
}

} // namespace
} // namespace oes

PYBIND11_MODULE(_C, module) {
  module.doc() = "C++ kernels of oes_fast.";
  if (const char* error = oes::initialise_capability()) {
    throw std::runtime_error(error); // an ImportError that says so
  }
  module.def(
      "capability", [] { return std::string(oes::name_of(oes::capability())); },
      "Instruction set the CPU kernels use: default, avx2 or avx512.");
  module.def("compiler", &oes::compiler, "Compiler that built the CPU kernels.");
  module.attr("BUILD") = pybind11::str(static_cast<const char*>(oes::build)); // which oes_fast/_extension.py reads
  oes::bind_tap_offsets(module);
  oes::chain::bind_python(module);
}

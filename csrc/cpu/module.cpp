// The Python module oes_fast._C: importing it registers the CPU kernels with torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "chain.h"
#include "simd.h"

namespace py = pybind11;

namespace oes {

extern const char build[]; // written by setup.py

namespace {

Capability best_supported() {
#if OES_HAS_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
#if defined(OES_EMULATE_AVX512)
  const bool avx512 = avx2;
#else
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512cd");
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

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address); // NOLINT: a tensor's data_ptr()
}

template <typename T>
void bind_chain(py::module_& module, const char* name) {
  using Chain = chain::Chain<T>;
  py::class_<Chain>(module, name, "Convolutions and batch norms run as one, for one thread at a time; see oes_fast/rewrite/chain_program.py.")
      .def(py::init<int64_t, int64_t, int64_t, bool>(), py::arg("channels"), py::arg("rows"), py::arg("columns"), py::arg("fixed"))
      .def("add_conv", &Chain::add_conv)
      .def("add_norm", &Chain::add_norm)
      .def("finish", &Chain::finish, py::arg("act"), py::arg("slope"))
      .def_property_readonly("shape", &Chain::shape)
      .def_property_readonly(
          "by_rows", py::overload_cast<>(&Chain::by_rows, py::const_),
          "Whether a fixed source is taken as [rows, planes, columns], not [planes, rows, columns] with SLACK behind.")
      .def(
          "forward",
          [](Chain& self, uintptr_t weights, uintptr_t source, uintptr_t out, const std::vector<uintptr_t>& running,
             uintptr_t target) {
            const py::gil_scoped_release release;
            std::vector<T*> pointers;
            for (const uintptr_t address : running) {
              pointers.push_back(pointer<T>(address));
            }
            return self.forward(
                pointer<const T>(weights), pointer<const T>(source), pointer<T>(out), pointers,
                pointer<const T>(target));
          },
          "From addresses of weights, source, output, [mean, variance] of every norm and target, 0 for none; returns "
          "the mean squared error.")
      .def(
          "backward",
          [](Chain& self, uintptr_t weights, uintptr_t source, uintptr_t grad, uintptr_t grad_weights,
             uintptr_t grad_source) {
            const py::gil_scoped_release release;
            self.backward(
                pointer<const T>(weights), pointer<const T>(source), pointer<const T>(grad),
                pointer<T>(grad_weights), pointer<T>(grad_source));
          },
          "Adds to grad_weights, writes grad_source unless it is 0. grad 0: of the error to the target.");
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
            message,
            sizeof message,
            "OES_FAST_CPU_CAPABILITY: this processor supports no more than %s, got '%s'",
            name_of(best),
            name_of(each));
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
  module.attr("BUILD") = py::str(static_cast<const char*>(oes::build)); // which oes_fast/_extension.py reads
  using oes::chain::ConvSpec;
  using oes::chain::NormSpec;
  py::class_<ConvSpec>(module, "ConvSpec")
      .def(py::init<>())
      .def_readwrite("kind", &ConvSpec::kind)
      .def_readwrite("pad", &ConvSpec::pad)
      .def_readwrite("border", &ConvSpec::border)
      .def_readwrite("box", &ConvSpec::box)
      .def_readwrite("stride", &ConvSpec::stride)
      .def_readwrite("kernel_rows", &ConvSpec::kernel_rows)
      .def_readwrite("kernel_columns", &ConvSpec::kernel_columns)
      .def_readwrite("outputs", &ConvSpec::outputs)
      .def_readwrite("taps", &ConvSpec::taps)
      .def_readwrite("weights", &ConvSpec::weights)
      .def_readwrite("first_weight", &ConvSpec::first_weight)
      .def_readwrite("dense", &ConvSpec::dense)
      .def_readwrite("scale", &ConvSpec::scale)
      .def_readwrite("bias", &ConvSpec::bias)
      .def_readwrite("constant_taps", &ConvSpec::constant_taps);
  py::class_<NormSpec>(module, "NormSpec")
      .def(py::init<>())
      .def_readwrite("gamma", &NormSpec::gamma)
      .def_readwrite("beta", &NormSpec::beta)
      .def_readwrite("eps", &NormSpec::eps)
      .def_readwrite("momentum", &NormSpec::momentum)
      .def_readwrite("copies", &NormSpec::copies)
      .def_readwrite("tracks", &NormSpec::tracks)
      .def_readwrite("places", &NormSpec::places)
      .def_readwrite("tracked", &NormSpec::tracked)
      .def_readwrite("tracked_places", &NormSpec::tracked_places)
      .def_readwrite("act", &NormSpec::act)
      .def_readwrite("slope", &NormSpec::slope)
      .def_readwrite("constants", &NormSpec::constants);
  module.attr("SLACK") = oes::winograd::kSlack;
  module.attr("MOST_OF_HEAD") = oes::kMostBehind; // outputs
  oes::bind_chain<float>(module, "ChainFloat");
  oes::bind_chain<double>(module, "ChainDouble");
}

// The Python module oes_fast._C: importing it registers the CPU kernels with torch.
#include <Python.h>

#include <cstdio>
#include <cstdlib>

#include "simd.h"

namespace oes {
namespace {

Capability best_supported() {
#if OES_HAS_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512cd");
  return avx512 ? Capability::kAvx512 : avx2 ? Capability::kAvx2 : Capability::kDefault;
#else
  return Capability::kDefault;
#endif
}

Capability current = Capability::kDefault;

PyObject* capability_name(PyObject*, PyObject*) {
  return PyUnicode_FromString(name_of(current));
}

PyObject* compiler(PyObject*, PyObject*) {
#if defined(__clang__)
  return PyUnicode_FromFormat("clang %d.%d", __clang_major__, __clang_minor__);
#else
  return PyUnicode_FromFormat("gcc %d.%d", __GNUC__, __GNUC_MINOR__);
#endif
}

PyMethodDef methods[] = {
    {"capability", capability_name, METH_NOARGS, "Instruction set the CPU kernels use: default, avx2 or avx512."},
    {"compiler", compiler, METH_NOARGS, "Compiler that built the CPU kernels."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", "C++ kernels of oes_fast.", -1, methods, nullptr, nullptr, nullptr, nullptr};

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

PyMODINIT_FUNC PyInit__C() {
  if (const char* error = oes::initialise_capability()) {
    PyErr_SetString(PyExc_ValueError, error);
    return nullptr;
  }
  return PyModule_Create(&oes::module);
}

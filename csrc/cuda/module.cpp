// The Python module of the CUDA engine: oes_fast._C_cuda, or oes_fast._C_cuda_emulated.
#include <pybind11/pybind11.h>

#include "cuda/chain/bindings.h"
#include "cuda/core/platform.h"
#include "cuda/mask/bindings.h"

PYBIND11_MODULE(OES_MODULE, module) {
  module.doc() = "CUDA kernels of oes_fast.";
  module.def(
      "processors", &oes::cuda::processors_of, pybind11::arg("device"),
      "Streaming multiprocessors of a device. Raises RuntimeError where CUDA's runtime does not work here.");
  oes::cuda::chain::bind_python(module);
  oes::cuda::mask::bind_python(module);
}

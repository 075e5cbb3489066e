// The Python module of the CUDA engine: oes_fast._C_cuda, or oes_fast._C_cuda_emulated.
#include <pybind11/pybind11.h>

#include "cuda/chain/bindings.h"
#include "cuda/mask/bindings.h"

namespace oes {

extern const char build[]; // written by setup.py

} // namespace oes

PYBIND11_MODULE(OES_MODULE, module) {
  module.doc() = "CUDA kernels of oes_fast.";
  module.attr("BUILD") = pybind11::str(static_cast<const char*>(oes::build)); // which oes_fast/_extension.py reads
  oes::cuda::chain::bind_python(module);
  oes::cuda::mask::bind_python(module);
}

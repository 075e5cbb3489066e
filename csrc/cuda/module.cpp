// The Python module of the CUDA engine: oes_fast._C_cuda, or oes_fast._C_cuda_emulated.
#include <pybind11/pybind11.h>

#include "cuda/chain/bindings.h"

namespace oes::cuda {

extern const char build[];

} // namespace oes::cuda

#ifndef OES_CUDA_MODULE
#define OES_CUDA_MODULE _C_cuda
#endif

PYBIND11_MODULE(OES_CUDA_MODULE, module) {
  module.doc() = "CUDA kernels of oes_fast";
  oes::cuda::chain::bind_python(module);
}

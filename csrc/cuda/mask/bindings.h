// The operations on masks in the Python module of the CUDA kernels.
#pragma once

#include <pybind11/pybind11.h>

namespace oes::cuda::mask {

void bind_python(pybind11::module_& module);

} // namespace oes::cuda::mask

// The chain in the Python module of the CUDA engine.
#pragma once

#include <pybind11/pybind11.h>

namespace oes::cuda::chain {

void bind_python(pybind11::module_& module);

} // namespace oes::cuda::chain

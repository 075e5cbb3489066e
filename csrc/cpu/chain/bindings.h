// The chain in the Python module oes_fast._C.
#pragma once

#include <pybind11/pybind11.h>

namespace oes::chain {

void bind_python(pybind11::module_& module);

} // namespace oes::chain

// The chain in the Python module oes_fast._C.
#pragma once

#include <pybind11/pybind11.h>

namespace oes::chain {

void bind_python(pybind11::module_& module);
void bind_source_layout(pybind11::module_& module); // which bind_python calls

} // namespace oes::chain

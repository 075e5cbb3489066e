// Loops on several threads: torch's own, so that its settings hold.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace oes {

using torch::stable::parallel_for;

} // namespace oes

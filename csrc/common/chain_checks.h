// Whether the specs of a chain fit each other: all that would read or write outside its memory raises
// std::invalid_argument.
#pragma once

#include <cstdint>

#include "common/chain_specs.h"

namespace oes {

// Raises std::invalid_argument unless it holds.
void expect(bool holds, const char* what);

// `constants`: constant channels of the image that it reads. `weights`: length of the flat vector.
void check_conv(
    const ConvSpec& spec, int64_t inputs, int64_t rows, int64_t columns, int64_t constants, int64_t weights);

// `channels` of the norm's input vary, `constants` are constant.
void check_norm(const NormSpec& spec, int64_t channels, int64_t constants, int64_t weights);

} // namespace oes

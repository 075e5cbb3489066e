#include "chain_backward.h"
#include "chain_binding.h"
#include "chain_forward.h"

namespace oes::chain {

template class Chain<float>;
template class Chain<double>;

} // namespace oes::chain

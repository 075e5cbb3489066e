#include "cpu/chain/backward.h"
#include "cpu/chain/bind.h"
#include "cpu/chain/forward.h"

namespace oes::chain {

template class Chain<float>;
template class Chain<double>;

} // namespace oes::chain

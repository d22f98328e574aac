#include "ops/register.h"

#include "core/op.h"

namespace hedgehog {

#define HH_OP(record) extern const Op record;
#include "ops/list.def"
#undef HH_OP
namespace detail {
extern const Op kCopy;
}

void register_ops() {
  static const bool done = [] {
    register_op(detail::kCopy);
#define HH_OP(record) register_op(record);
#include "ops/list.def"
#undef HH_OP
    return true;
  }();
  (void)done;
}

}  // namespace hedgehog

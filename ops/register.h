#pragma once

namespace hedgehog {

/// Adds every op of ops/list.def to the registry; calling it again does nothing. Needed only to enumerate ops.
void register_ops();

}  // namespace hedgehog

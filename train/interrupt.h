#pragma once

namespace hedgehog {

/// While it lives, Ctrl-C (SIGINT) and SIGTERM raise a flag instead of ending the process; the second signal ends it at
/// once with exit code 130. The former handlers come back with the destructor. One at a time.
///
///   InterruptGuard guard;
///   while (step < steps && !guard.interrupted()) ...
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  /// Whether a signal came.
  bool interrupted() const;
};

/// Thrown by work that was told to stop before its end: it leaves nothing behind.
struct Stopped {};

}  // namespace hedgehog

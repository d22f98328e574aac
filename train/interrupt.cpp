#include "train/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <csignal>

namespace hedgehog {

namespace {

volatile std::sig_atomic_t signals_received = 0;
struct sigaction former_interrupt;
struct sigaction former_terminate;

void on_signal(int) {
  if (signals_received != 0) ::_exit(130);
  signals_received = 1;
}

}  // namespace

InterruptGuard::InterruptGuard() {
  signals_received = 0;
  struct sigaction action{};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, &former_interrupt);
  ::sigaction(SIGTERM, &action, &former_terminate);
}

InterruptGuard::~InterruptGuard() {
  ::sigaction(SIGINT, &former_interrupt, nullptr);
  ::sigaction(SIGTERM, &former_terminate, nullptr);
}

bool InterruptGuard::interrupted() const { return signals_received != 0; }

}  // namespace hedgehog

#include "core/local_call.h"

#include <cstring>

#include "core/device.h"

namespace hedgehog {

LocalCall::LocalCall(const Trace& trace, std::size_t entry) : trace_(trace), index_(entry), entry_(trace.entries().at(entry)), memory_(&trace.leaves()) {
  for (const Tensors* read : {&entry_.inputs, &entry_.outputs, &entry_.saved}) prepare(*read);
}

void LocalCall::prepare(const Tensors& tensors) {
  for (const Tensor& x : tensors)
    if (x && trace_.known(x, index_)) {
      const std::vector<std::byte> bytes = trace_.bytes(x, index_);
      std::memcpy(memory_.address(x), bytes.data(), bytes.size());
    }
}

void LocalCall::run(const Entry& call, TraceMemory& fresh) {
  run_entry(call, [&](const Tensor& x) { return fresh.find(TraceMemory::place(x).block) ? fresh.address(x) : memory_.address(x); });
}

std::vector<double> LocalCall::argument(std::size_t i) const { return trace_.value(entry_.inputs.at(i), index_); }

std::vector<double> LocalCall::backward(std::size_t argument, const std::vector<std::vector<double>>& upstream) {
  TraceMemory fresh;
  Entry call = entry_;
  const Tensor& x = entry_.inputs.at(argument);
  const Tensor dx = declare(x.shape(), entry_.dx.at(argument).dtype());
  call.dx.assign(call.dx.size(), {});
  call.dx[argument] = dx;
  fresh.block_of(dx);
  call.modes.assign(call.modes.size(), Mode::write);
  for (std::size_t j = 0; j < call.dy.size(); ++j) {
    if (!call.dy[j]) continue;
    if (upstream.at(j).empty()) {
      call.dy[j] = {};
      continue;
    }
    call.dy[j] = declare(call.dy[j].shape(), call.dy[j].dtype());
    fresh.write(call.dy[j], upstream[j]);
  }
  run(call, fresh);
  return fresh.read(dx);
}

std::vector<std::vector<double>> LocalCall::forward(std::size_t argument, const std::vector<double>& values) {
  TraceMemory fresh;
  if (entry_.op->updates) prepare(entry_.inputs);  // the run before may have overwritten them
  Entry call;
  call.op = entry_.op;
  call.attributes = entry_.attributes;
  call.inputs = entry_.inputs;
  // a tensor of its own: the same one may be another argument, too
  const Tensor x = declare(entry_.inputs.at(argument).shape(), entry_.inputs[argument].dtype());
  call.inputs[argument] = x;
  fresh.write(x, values);
  for (const Tensor& y : entry_.outputs) {
    call.outputs.push_back(y ? declare(y.shape(), y.dtype()) : Tensor{});
    if (y) fresh.block_of(call.outputs.back());
  }
  const OnDevice guard(cpu_device());
  const std::vector<Meta> metas = detail::metas_of(call.inputs);
  call.workspace = current_device().workspace(*call.op, call.attributes, metas, call.op->infer(call.attributes, metas), false);
  run(call, fresh);
  std::vector<std::vector<double>> results;
  for (const Tensor& y : call.outputs) results.push_back(y ? fresh.read(y) : std::vector<double>{});
  return results;
}

}  // namespace hedgehog

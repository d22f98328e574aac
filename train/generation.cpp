#include "train/generation.h"

#include <fmt/format.h>

#include "core/error.h"

namespace hedgehog {

Generator::Generator(const Gpt& model, std::int64_t capacity)
    : capacity_(capacity), state_(model.decoding_state(1, capacity)), token_(input({1, 1}, "token", Dtype::i32)) {
  for (const Tensor& t : state_.memory()) empty_.push_back(t.to_vector());
  const no_grad guard;
  executor_ = std::make_unique<Executor>(record([&] { return Tensors{model.decode(token_, state_)}; }));
}

void Generator::reset() {
  const Tensors memory = state_.memory();
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i].copy_from(empty_[i]);
  position_ = 0;
  logits_.clear();
}

void Generator::push(std::int32_t id) {
  if (position_ >= capacity_)
    throw UsageError(fmt::format("the model's {} positions are used up; ask for fewer --tokens or give a shorter --prompt", capacity_));
  const auto position = std::int32_t(position_);
  token_.write(&id, 0, 1);
  state_.position.write(&position, 0, 1);
  executor_->run();
  ++position_;
}

void Generator::read(std::span<const std::int32_t> ids) {
  for (std::int32_t id : ids) push(id);
  if (ids.empty()) return;
  const std::vector<double> v = executor_->output(0).to_vector();
  logits_.assign(v.begin(), v.end());
}

std::int32_t Generator::next(const Sampling& sampling, double uniform) {
  if (logits_.empty()) throw Error("[generator] nothing was read yet; read a prompt of at least one token first");
  const std::int32_t id = sample_token(logits_, sampling, uniform);
  read(std::span(&id, 1));
  return id;
}

}  // namespace hedgehog

#include "train/generation.h"

#include <fmt/format.h>

#include <cstring>
#include <limits>

#include "core/error.h"

namespace hedgehog {

namespace {

/// Tokens `first` to `first` + `count` of a text (N, 1).
Tensor part_of(const Tensor& text, std::int64_t first, std::int64_t count) {
  Tensor part = declare({count, 1}, Dtype::i32, Role::state);
  part->base = text;
  part->offset = first;
  return part;
}

}  // namespace

Generator::Generator(const Gpt& model, std::int64_t capacity)
    : model_(model), device_(current_device()), capacity_(capacity), state_(model.decoding_state(1, capacity)),
      text_(state({kTogether, 1}, Dtype::i32, "text")), token_(part_of(text_, kTogether - 1, 1)), draws_(draws_state()),
      feed_(device_.feed({token_, state_.position})) {
  const no_grad guard;
  Feed* const feed = feed_.get();
  reader_ = std::make_unique<Executor>(record([&] { return Tensors{model_.decode(token_, state_)}; }),
                                       ExecutorOptions{.graph = !device_.host(), .first = [feed] { feed->take(); }});
}

void Generator::reset() {
  for (Writer* w : {&one_, &several_})
    for (; w->ahead > 0; --w->ahead) w->results->fetch();
  for (const Tensor& t : state_.memory()) t.fill(0);
  position_ = 0;
  unread_.reset();
  known_ = cut_ = false;
}

void Generator::set_position(std::int64_t position) {
  if (position < 0 || position > std::numeric_limits<std::int32_t>::max())
    throw UsageError(fmt::format("a position must be at least 0 and below 2^31, but is {}", position));
  check_exact();
  position_ = position;
  unread_.reset();
  known_ = false;
}

void Generator::check_free(std::int64_t tokens) const {
  if (position_ + tokens > capacity_)
    throw UsageError(fmt::format("the model's {} positions are used up; ask for fewer --tokens or give a shorter --prompt", capacity_));
}

void Generator::check_exact() const {
  if (cut_) throw Error("[generator] the last text was cut short and its state lies beyond the end; call reset() and read the text again");
}

void Generator::push(std::int32_t id) {
  check_free(1);
  const auto position = std::int32_t(position_);
  std::memcpy(feed_->stage(0), &id, sizeof id);
  std::memcpy(feed_->stage(1), &position, sizeof position);
  feed_->commit();
  feed_->run([&] { reader_->run(); });
  ++position_;
  unread_.reset();
  known_ = true;
}

void Generator::read(std::span<const std::int32_t> ids) {
  check_exact();
  if (ids.empty()) return;
  if (unread_) push(*unread_);
  for (std::int32_t id : ids) push(id);
}

std::vector<double> Generator::logits() {
  check_exact();
  if (unread_) push(*unread_);
  if (!known_) throw Error("[generator] nothing was read yet; read a prompt of at least one token first");
  return reader_->output(0).to_vector();
}

void Generator::record_choices(Writer& writer) {
  if (writer.run) return;
  const no_grad guard;
  writer.run = std::make_unique<Executor>(record([&] {
                                            Tensor last = token_;
                                            for (std::int64_t i = kTogether - writer.tokens; i < kTogether; ++i) {
                                              const Tensor next = part_of(text_, i, 1);
                                              sample_token(model_.decode(last, state_), next, state_.position, draws_, sampling_);
                                              last = next;
                                            }
                                            return Tensors{};
                                          }),
                                          ExecutorOptions{.graph = !device_.host()});
  if (!writer.results) writer.results = device_.readback();
}

void Generator::generate(std::int64_t count, const Sampling& sampling, const Draws& draws, const std::function<bool(std::int32_t)>& take) {
  check_exact();
  if (count <= 0) return;
  check_free(unread_ ? count : count - 1);
  std::uint64_t used = 0;
  if (!unread_) {
    const std::vector<double> all = logits();
    std::vector<Candidate> space(all.size());
    const std::int32_t id = choose_token<double>(all, sampling, draws.uniform(used++), space);
    cut_ = true;
    if (!take(id)) return;
    cut_ = false;
    unread_ = id;
    if (--count == 0) return;
  }
  if (!(sampling_ == sampling))
    for (Writer* w : {&one_, &several_}) w->run = nullptr;
  sampling_ = sampling;
  const std::int64_t together = device_.host() ? 0 : count / kTogether * kTogether;
  if (together > 0) record_choices(several_);
  if (together < count) record_choices(one_);
  const auto position = std::int32_t(position_);
  token_.write(&*unread_, 0, 1);
  state_.position.write(&position, 0, 1);
  set_draws(draws_, {draws.seed, draws.first + used});
  choose(count, together, take);
}

void Generator::choose(std::int64_t count, std::int64_t together, const std::function<bool(std::int32_t)>& take) {
  // two runs of several tokens keep the device busy, and more would only delay a reset
  const std::int64_t most = device_.host() ? 1 : 2 * kTogether;
  auto writer_of = [&](std::int64_t token) -> Writer& { return token < together ? several_ : one_; };
  auto begins = [&](std::int64_t token, std::int64_t handed) {
    const Writer& writer = writer_of(token);
    return token + writer.tokens - handed <= most && writer.ahead < Readback::kDepth;
  };
  cut_ = true;  // until the last is out
  known_ = false;
  for (std::int64_t begun = 0, handed = 0; handed < count;) {
    while (begun < count && begins(begun, handed)) {
      Writer& writer = writer_of(begun);
      writer.run->run();
      writer.results->take({part_of(text_, kTogether - writer.tokens, writer.tokens)});
      ++writer.ahead;
      begun += writer.tokens, position_ += writer.tokens;
    }
    Writer& writer = writer_of(handed);
    const std::vector<double> ids = writer.results->fetch();
    --writer.ahead;
    for (const double number : ids) {
      const auto id = std::int32_t(number);
      if (id < 0) throw Error("[sample] a logit is NaN or +inf, or none is finite; the model's weights are damaged or diverged");
      unread_ = id;
      ++handed;
      if (!take(id)) return;
    }
  }
  cut_ = false;
}

}  // namespace hedgehog

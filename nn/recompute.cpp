#include "nn/recompute.h"

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <unordered_set>

#include "core/account.h"

namespace hedgehog {
namespace {

/// FLOPs of a call, and a hundred for each byte that it moves: between a CPU's 10 and an H100's 260 that take as long.
double price_of(const Entry& e) {
  const Work w = work_of(e);
  return w.flops + 100 * w.bytes;
}

/// A list as numbers, and which results of its forward part are dropped, to be made again just before backward needs them.
class Recompute {
 public:
  explicit Recompute(const Program& program) : program_(program), calls_(program.entries.size()) {
    const auto& list = program.entries;
    auto backward = [](const Entry& e) { return e.backward; };
    turn_ = std::size_t(std::find_if(list.begin(), list.end(), backward) - list.begin());
    const auto end = std::find_if(list.rbegin(), list.rend(), backward).base();
    for (auto e = list.begin(); e != end; ++e)
      for (std::size_t j = 0; j < e->inputs.size() && !e->backward; ++j)
        if (e->inputs[j] && (e->op->updates >> j & 1u)) changed_.insert(e->inputs[j].root().get());
    for (std::size_t i = 0; i < list.size(); ++i) number(i);
    for (const Tensor& y : program.outputs)
      if (auto found = number_.find(y.root().get()); found != number_.end()) results_[found->second].kept = true;
    for (std::size_t i = 0; i < turn_; ++i) group(i);
    now_ = measure();
  }

  Bytes peak() const { return now_.peak; }

  /// Drops what costs least for each byte that it frees at the peak, until at most `target` bytes are alive at once. Then
  /// keeps again what turns out not to matter, last dropped (and so dearest) first. False if no more can be dropped.
  bool shrink(Bytes target) {
    // costs mostly rise as results go, so the least known is worked out again before it is trusted, and the others are not
    std::vector<double> known(groups_.size());
    auto forget = [&](const auto& which) {
      for (std::size_t g = 0; g < groups_.size(); ++g)
        if (which(groups_[g])) known[g] = results_[groups_[g][0]].dropped ? kUseless : 0;
    };
    auto all = [](const Group&) { return true; };
    forget(all);
    State trial;
    const Group* fresh = nullptr;
    bool changed = false;
    while (now_.peak > target && !groups_.empty()) {
      const std::size_t g = std::size_t(std::min_element(known.begin(), known.end()) - known.begin());
      if (known[g] == kUseless) {
        if (!changed) break;
        changed = false;
        forget(all);  // the peak may have moved
      } else if (&groups_[g] != fresh) {
        trial = with(groups_[g], true);
        drop(groups_[g], false);
        const double freed = double(now_.peak - trial.alive[now_.at]);
        known[g] = trial.peak > now_.peak || freed <= 0 ? kUseless : (trial.price - now_.price) / freed;
        fresh = &groups_[g];
      } else {
        drop(groups_[g], true);
        order_.push_back(fresh);
        now_ = std::move(trial);
        changed = true;
        // what the same call makes costs no more work
        forget([&](const Group& other) { return results_[other[0]].maker == results_[(*fresh)[0]].maker; });
        fresh = nullptr;
      }
    }
    const Bytes room = std::max(target, now_.peak);
    for (auto g = order_.rbegin(); g != order_.rend(); ++g) {
      if (!results_[(**g)[0]].dropped) continue;
      State trial = with(**g, false);
      if (trial.peak <= room && trial.price < now_.price) now_ = std::move(trial);
      else drop(**g, true);
    }
    return now_.peak <= target;
  }

  /// The list with the repeats in it.
  Program program() const {
    Program out{{}, program_.inputs, program_.outputs};
    std::unordered_map<const Value*, Tensor> again;
    walk([&](std::size_t i, bool repeat) {
      Entry e = program_.entries[i];
      if (repeat || i >= turn_)
        for (Tensors* used : {&e.inputs, &e.outputs, &e.saved})
          for (Tensor& x : *used) rename(x, again);
      e.repeated = repeat;
      for (Tensors* made : {&e.outputs, &e.saved})
        for (Tensor& y : *made) {
          if (!repeat) continue;
          const bool used = results_[number_.at(y.get())].dropped;
          const Tensor fresh = used || made == &e.saved || !saved_alone(i) ? declare(y.shape(), y.dtype(), y.role(), y.name()) : Tensor{};
          if (used) again[y.get()] = fresh;
          y = fresh;
        }
      out.entries.push_back(std::move(e));
    });
    return out;
  }

 private:
  using Group = std::vector<std::size_t>;
  static constexpr double kUseless = std::numeric_limits<double>::infinity();
  struct Call {
    std::vector<std::size_t> reads, writes;  // numbers of results
    double price = 0, price_saved = 0;       // of a repeat: whole, and for the saved tensors alone
  };
  struct Result {
    Bytes bytes = 0;
    std::size_t maker = 0;
    bool kept = false, wanted = false, dropped = false;  // kept: cannot be made again; wanted: backward reads it
  };
  struct State {
    Bytes peak = 0;
    std::size_t at = 0;        // the turn of the peak: twice the entry, one more for its repeat
    double price = 0;          // of all repeats
    std::vector<Bytes> alive;  // at each turn
  };

  void number(std::size_t i) {
    const Entry& e = program_.entries[i];
    const bool again = i < turn_ && !e.op->updates &&
                       std::none_of(e.inputs.begin(), e.inputs.end(), [&](const Tensor& x) { return x && changed_.count(x.root().get()); });
    for_each_touched(e, [&](const Tensor& x, bool writes) {
      const Tensor root = x.root();
      if (root.role() != Role::activation || root->storage) return;
      const auto [found, fresh] = number_.try_emplace(root.get(), results_.size());
      if (fresh) results_.push_back({root.size() * size_of(root.dtype()), i, !again});
      Result& r = results_[found->second];
      (writes ? calls_[i].writes : calls_[i].reads).push_back(found->second);
      r.kept |= writes && (x->base || i != r.maker);
      r.wanted |= i >= turn_;
    });
    if (!again || e.op->views) return;
    calls_[i].price = calls_[i].price_saved = price_of(e);
    if (!e.op->saved_alone) return;
    Entry lean = e;
    lean.outputs.assign(e.outputs.size(), {});
    calls_[i].price_saved = price_of(lean);
  }

  /// Outputs and saved tensors of a call are dropped or kept together; what only other forward calls read costs nothing to drop.
  void group(std::size_t i) {
    for (const Tensors* made : {&program_.entries[i].outputs, &program_.entries[i].saved}) {
      Group g;
      for (const Tensor& y : *made) {
        const auto found = number_.find(y.get());
        if (found == number_.end() || results_[found->second].kept) continue;
        if (results_[found->second].wanted) g.push_back(found->second);
        else results_[found->second].dropped = true;
      }
      if (!g.empty()) groups_.push_back(std::move(g));
    }
  }

  void drop(const Group& g, bool dropped) {
    for (std::size_t r : g) results_[r].dropped = dropped;
  }
  State with(const Group& g, bool dropped) {
    drop(g, dropped);
    return measure();
  }

  bool saved_alone(std::size_t i) const {
    const auto& outputs = program_.entries[i].outputs;
    return program_.entries[i].op->saved_alone &&
           std::none_of(outputs.begin(), outputs.end(), [&](const Tensor& y) { return results_[number_.at(y.get())].dropped; });
  }

  /// Calls visit(entry, whether it is a repeat) in the order of the list with repeats.
  template <class Visit>
  void walk(const Visit& visit) const {
    std::vector<bool> made(results_.size());
    auto make = [&](auto& self, std::size_t result) -> void {
      if (!results_[result].dropped || made[result]) return;
      const std::size_t i = results_[result].maker;
      for (std::size_t r : calls_[i].writes) made[r] = true;
      for (std::size_t r : calls_[i].reads) self(self, r);
      visit(i, true);
    };
    for (std::size_t i = 0; i < calls_.size(); ++i) {
      for (std::size_t r : calls_[i].reads)
        if (i >= turn_) make(make, r);
      visit(i, false);
    }
  }

  State measure() const {
    // of results and of their repeats: the first turn, and past the last
    std::vector<std::pair<std::size_t, std::size_t>> lives(2 * results_.size());
    std::vector<std::size_t> turns;
    std::vector<Bytes> own;
    State s;
    walk([&](std::size_t i, bool repeat) {
      const std::size_t now = turns.size();
      const bool alone = repeat && saved_alone(i);
      auto touch = [&](std::size_t life) {
        if (lives[life].second == 0) lives[life].first = now;
        lives[life].second = now + 1;
      };
      turns.push_back(2 * i + repeat);
      own.push_back(program_.entries[i].workspace);
      for (std::size_t r : calls_[i].reads) touch(2 * r + ((repeat || i >= turn_) && results_[r].dropped));
      for (std::size_t r : calls_[i].writes) {
        if (!repeat || results_[r].dropped) touch(2 * r + repeat);
        else if (!alone) own.back() += results_[r].bytes;
      }
      if (repeat) s.price += alone ? calls_[i].price_saved : calls_[i].price;
    });
    std::vector<Bytes> change(turns.size() + 1);
    for (std::size_t l = 0; l < lives.size(); ++l) {
      change[lives[l].first] += results_[l / 2].bytes;
      change[lives[l].second] -= results_[l / 2].bytes;
    }
    s.alive.resize(2 * calls_.size());
    Bytes held = 0;
    for (std::size_t t = 0; t < turns.size(); ++t) {
      held += change[t];
      s.alive[turns[t]] = held + own[t];
      if (held + own[t] > s.peak) s.peak = held + own[t], s.at = turns[t];
    }
    return s;
  }

  static void rename(Tensor& x, const std::unordered_map<const Value*, Tensor>& renamed) {
    if (!x) return;
    const auto found = renamed.find(x.root().get());
    if (found == renamed.end()) return;
    if (!x->base) {
      x = found->second;
      return;
    }
    auto view = std::make_shared<Value>(*x.get());
    view->base = found->second;
    x = Tensor(std::move(view));
  }

  const Program& program_;
  std::size_t turn_ = 0;  // the first entry of backward
  std::vector<Call> calls_;
  std::vector<Result> results_;
  std::unordered_map<const Value*, std::size_t> number_;
  std::unordered_set<const Value*> changed_;  // in place, before a repeat might read it
  std::vector<Group> groups_;
  std::vector<const Group*> order_;  // groups as they were dropped
  State now_;
};

}  // namespace

Program recompute(Program program, Bytes budget) {
  Bytes least = plan(program).arena;
  if (least <= budget) return program;
  Recompute search(program);
  Program best = program;
  // the search counts what is alive; a plan lets some of it share memory and wastes some
  Bytes target = budget + std::max<Bytes>(0, search.peak() - least);
  for (bool more = true; more && least > budget;) {
    more = search.shrink(target);
    Program leaner = search.program();
    const Bytes arena = plan(leaner).arena;
    target = search.peak() - std::max<Bytes>(arena - budget, 1);
    if (arena >= least) continue;
    least = arena;
    best = std::move(leaner);
  }
  return best;
}

}  // namespace hedgehog

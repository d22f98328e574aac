#pragma once
#include <nlohmann/json.hpp>

#include "core/tape.h"
#include "train/config.h"

namespace hedgehog {

/// The attention op alone, on a batch of rows.
struct AttentionCase {
  std::string attention = "hedgehog";  // as --attention
  std::int64_t rows = 1, time = 1, heads = 1, head_size = 1;
  bool causal = true;
  bool documents = false;  // several documents of random lengths a row
  bool turned = false;     // by rotary positions
  std::int64_t window = 0; // tokens seen by softmax, with a factor that learns; linear attention before them
  bool states = false;     // an initial and a final state, both with gradients
};

/// On a GPU: 32,768 tokens at four lengths, head sizes with B T H D fixed, and the variants. On the CPU the same, small.
/// Only those of --attention if that was set.
std::vector<AttentionCase> attention_cases(const Config& config);

/// The op as the model calls it: q, k and v are windows of one packed (B, T, 3 H D) tensor, as are their gradients. Nothing but
/// the op: upstream gradients are inputs. Without `gradients` forward alone, which then saves nothing.
Program attention_program(const AttentionCase& c, Dtype dtype, bool gradients);

/// Bytes that the op takes beyond its arguments, results and their gradients: what it saves, and the larger workspace.
std::int64_t extra_memory(const Program& attention);

/// Time of forward, and of forward with backward, and extra memory.
nlohmann::ordered_json bench_attention(const AttentionCase& c, Dtype dtype);
void print_attention(const nlohmann::ordered_json& rows);

}  // namespace hedgehog

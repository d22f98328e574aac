#pragma once
#include <string>
#include <utility>
#include <vector>

#include "tests/attention_cases.h"

/// Cases of linear attention by feature map.
namespace hedgehog::test {

using Cases = std::vector<ParityCase>;

/// The case for the gradients of activations, which have another dtype than those of parameters in bf16 alone.
inline ParityCase of_activations(ParityCase c) {
  c.activations = true;
  c.dtypes = {Dtype::bf16};
  return c;
}

inline Cases other_map_cases() {
  Cases out;
  for (const char* map : {"hedgehog-softmax", "hedgehog-joint", "elu", "relu", "exp"})
    for (const std::int64_t T : {65, 200}) out.push_back(linear_case({.T = T}, true, map));
  return out;
}

/// Long cases for the dtype of the tensor cores alone, and of one draw: the others have short ones.
inline Cases shortened(Cases cases) {
  for (ParityCase& c : cases) {
    if (c.sample.inputs[kPacked].shape[1] < 257) continue;
    c.dtypes = {Dtype::bf16};
    c.draws = 1;
  }
  return cases;
}

/// The maps whose features a softmax normalises, on the shapes that tensor cores take: around the chunks, several segments, documents,
/// key heads that are shared, large numbers.
inline Cases normalised_map_cases() {
  Cases out;
  // exponents of "hedgehog-joint" are 2 u, and the plain form has to stand them
  for (const auto& [map, large] : {std::pair{"hedgehog-softmax", 8.0}, std::pair{"hedgehog-joint", 4.0}})
    for (const std::int64_t D : {32, 64}) {
      for (const std::int64_t T : {1, 63, 64, 65, 200}) {
        out.push_back(linear_case({.T = T, .D = D}, false, map));
        out.push_back(of_activations(out.back()));
      }
      for (const std::int64_t T : {65, 200}) {
        out.push_back(linear_case({.T = T, .D = D, .documents = true}, false, map));
        out.push_back(linear_case({.T = T, .Hq = 4, .Hkv = 2, .D = D}, false, map));
        out.push_back(linear_case({.T = T, .D = D, .causal = false}, false, map));
      }
      out.push_back(linear_case({.T = 65, .D = D, .weights = false}, false, map));
      for (const bool documents : {false, true}) {
        out.push_back(linear_case({.B = 1, .T = 1100, .D = D, .documents = documents}, false, map));
        out.push_back(of_activations(out.back()));
      }
      for (const std::int64_t T : {65, 257, 1100}) {
        out.push_back(linear_case({.B = 1, .T = T, .D = D, .scale = large}, false, map));
        out.push_back(one_large_key({.B = 1, .T = T, .D = D}, map));
        out.push_back(late_key({.B = 1, .T = T, .D = D}, map));
      }
    }
  return shortened(out);
}

/// Biases of the Hedgehog maps, on the shapes that tensor cores take.
inline Cases bias_cases() {
  Cases out;
  for (const char* map : {"hedgehog", "hedgehog-softmax", "hedgehog-joint"})
    for (const std::int64_t D : {32, 64}) {
      for (const std::int64_t T : {1, 64, 65, 200}) out.push_back(linear_case({.T = T, .D = D}, true, map));
      out.push_back(of_activations(out.back()));
      out.push_back(linear_case({.T = 65, .D = D, .causal = false}, true, map));
      out.push_back(linear_case({.T = 65, .Hq = 4, .Hkv = 2, .D = D}, true, map));
      out.push_back(linear_case({.B = 1, .T = 1100, .D = D, .documents = true}, true, map));
    }
  return shortened(out);
}

/// The maps of one feature a column, on the shapes that tensor cores take: with and without weights and biases, around the chunks,
/// several segments, documents, key heads that are shared, large numbers, rows for log space or without a denominator.
inline Cases one_sided_map_cases() {
  Cases out;
  for (const char* map : {"elu", "relu", "identity", "exp"})
    for (const std::int64_t D : {32, 64}) {
      const bool exp = std::string(map) == "exp", identity = std::string(map) == "identity";
      // sums of positive features hardly feel a shift of all: the gradient of such a bias is what roundings leave of 0
      const bool bias = !identity;
      for (const std::int64_t T : {1, 64, 65, 200}) {
        out.push_back(linear_case({.T = T, .D = D}, bias, map));
        out.push_back(of_activations(linear_case({.T = T == 64 ? 63 : T, .D = D, .weights = false, .temperature = exp ? 0.75 : 1}, false, map)));
      }
      out.push_back(linear_case({.T = 200, .D = D, .documents = true, .temperature = exp ? -0.5 : 1}, false, map));
      out.push_back(of_activations(linear_case({.T = 200, .Hq = 4, .Hkv = 2, .D = D}, bias, map)));
      out.push_back(linear_case({.T = 200, .D = D, .scale = identity ? 2.0 : 8.0}, false, map));
      out.push_back(linear_case({.B = 1, .T = 1300, .D = D}, false, map));
      // features above 0 make errors of a head's bias gradients go one way: they count as one, so there are many heads
      out.push_back(linear_case({.B = 2, .T = 1300, .Hq = 4, .Hkv = 4, .D = D, .documents = true}, bias, map));
      for (const bool documents : {false, true})
        out.push_back(of_activations(
            linear_case({.B = 1, .T = 1237, .Hq = 2, .Hkv = 1, .D = D, .documents = documents, .weights = false}, false, map)));
      // and so it is with the weights of "identity" where every key has the same sums to read
      out.push_back(linear_case({.T = 65, .D = D, .causal = false, .weights = !identity}, bias, map));
      out.push_back(of_activations(linear_case({.T = 200, .Hq = 4, .Hkv = 2, .D = D, .causal = false, .weights = false}, false, map)));
      out.push_back(linear_case({.B = 1, .T = 1100, .D = D, .causal = false, .weights = !identity}, false, map));
      for (const std::int64_t T : {65, 1100}) {
        if (exp) {
          out.push_back(one_large_key({.B = 1, .T = T, .D = D}, map));
          out.push_back(late_key({.B = 1, .T = T, .D = D}, map));
        }
        if (identity)
          for (const bool documents : {false, true})
            out.push_back(empty_rows({.B = 1, .T = T, .D = D, .documents = documents, .weights = false}));
      }
    }
  for (const std::int64_t D : {32, 64}) out.push_back(linear_case({.D = D, .documents = true, .weights = false}));
  for (ParityCase& c : out) c.dtypes = {Dtype::bf16};  // others take no tensor cores
  return shortened(out);
}

/// States before the first token and after the last, on the shapes that tensor cores take: around the chunks and over several segments.
inline Cases state_cases() {
  Cases out;
  for (const std::int64_t D : {32, 64}) {
    for (const std::int64_t T : {std::int64_t(1), D - 1, D, D + 1, 3 * D + 8}) {
      out.push_back(linear_case({.T = T, .D = D, .initial = true, .final = true}));
      out.push_back(of_activations(out.back()));
    }
    out.push_back(linear_case({.T = 65, .D = D, .initial = true}));
    out.push_back(linear_case({.T = 65, .D = D, .final = true}));
    out.push_back(linear_case({.T = 65, .Hq = 4, .Hkv = 2, .D = D, .initial = true, .final = true}));
    for (const std::int64_t T : {D + 9, 22 * D - 3}) {
      out.push_back(linear_case({.B = 1, .T = T, .D = D, .initial = true, .final = true, .uneven = true}));
      out.push_back(of_activations(out.back()));
    }
    out.push_back(linear_case({.B = 1, .T = 22 * D, .D = D, .initial = true}));
    out.push_back(linear_case({.B = 1, .T = 22 * D, .D = D, .final = true}));
    out.push_back(one_large_key({.B = 1, .T = D + 60, .D = D, .initial = true, .final = true}));
    for (const std::int64_t T : {D + 1, 22 * D}) out.push_back(linear_case({.B = 1, .T = T, .D = D, .initial = true, .final = true, .state_alone = true}));
    // the gradient of the initial state alone, and all but that
    ParityCase alone = linear_case({.T = 65, .D = D, .initial = true, .final = true}), others = alone;
    for (const int i : {kPacked, kWeightQ, kWeightK}) alone.sample.inputs[std::size_t(i)] = constant_input(alone.sample.inputs[std::size_t(i)]);
    others.sample.inputs[kInitial] = constant_input(others.sample.inputs[kInitial]);
    alone.sample.label += ", gradient of the initial state alone", others.sample.label += ", none of the initial state";
    out.insert(out.end(), {alone, others});
  }
  return shortened(out);
}

/// Rotary positions: where kernels turn queries and keys as they load them, and where they are turned beforehand.
inline Cases turned_cases() {
  Cases out;
  for (const std::int64_t D : {32, 64}) {
    for (const std::int64_t T : {1, 63, 64, 65, 200}) {
      out.push_back(linear_case({.T = T, .D = D, .turned = true}));
      out.push_back(of_activations(out.back()));
    }
    for (const bool documents : {false, true}) out.push_back(linear_case({.B = 1, .T = 1100, .D = D, .documents = documents, .turned = true}));
    out.push_back(linear_case({.T = 65, .Hq = 4, .Hkv = 2, .D = D, .turned = true}));
    out.push_back(linear_case({.T = 200, .D = D, .initial = true, .turned = true}));
    out.push_back(linear_case({.T = 200, .D = D, .turned = true}, true, "hedgehog-softmax"));
    out.push_back(linear_case({.T = 65, .D = D, .weights = false, .turned = true}));
    // a large number turned and rounded is another one
    for (const std::int64_t T : {65, 257}) out.push_back(one_large_key({.B = 1, .T = T, .D = D, .quarter_turns = true}));
    // turned beforehand
    out.push_back(linear_case({.T = 65, .D = D, .initial = true, .final = true, .turned = true}));
    out.push_back(linear_case({.T = 65, .Hq = 4, .Hkv = 2, .D = D, .causal = false, .turned = true}));
    out.push_back(linear_case({.T = 65, .D = D, .turned = true}, true, "elu"));
  }
  out.push_back(linear_case({.T = 65, .final = true, .turned = true}));
  out.push_back(linear_case({.T = 65, .turned = true}, false, "exp"));
  for (const std::int64_t D : {40, 96, 128}) out.push_back(linear_case({.T = 130, .D = D, .turned = true}));
  return shortened(out);
}

}  // namespace hedgehog::test

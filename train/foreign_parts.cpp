#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "core/device.h"
#include "core/error.h"
#include "core/parallel.h"
#include "train/foreign_model.h"
#include "train/foreign_parts.h"

namespace hedgehog {
namespace {

using Piece = ForeignPiece;
using Parts = ForeignParts;

Parts gpt2_parts(const GptOptions& o, const ForeignWeights& weights) {
  // a file of the bare model has no such prefix
  const std::string prefix = weights.find("wte.weight") ? "" : "transformer.";
  Parts parts{{"wte.weight", {{prefix + "wte.weight", false, 0, true}}}, {"wpe.weight", {{prefix + "wpe.weight"}}}};
  const auto add = [&](const std::string& name) {
    for (const char* kind : {".weight", ".bias"}) parts[name + kind] = {{prefix + name + kind}};
  };
  for (std::int64_t i = 0; i < o.layers; ++i)
    for (const char* part : {"ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"}) add(fmt::format("h.{}.{}", i, part));
  add("ln_f");
  if (!o.tied_head) parts["lm_head.weight"] = {{"lm_head.weight", false, 0, true}};
  return parts;
}

Parts llama_parts(const GptOptions& o, const ForeignWeights& weights, bool paired) {
  const std::string prefix = weights.find("embed_tokens.weight") ? "" : "model.";
  Parts parts{{"wte.weight", {{prefix + "embed_tokens.weight", false, 0, true}}}, {"ln_f.weight", {{prefix + "norm.weight"}}}};
  for (std::int64_t i = 0; i < o.layers; ++i) {
    const std::string ours = fmt::format("h.{}.", i), theirs = fmt::format("{}layers.{}.", prefix, i), attention = theirs + "self_attn.";
    const std::int64_t q = paired ? o.heads : 0, k = paired ? o.shared_heads() : 0;
    const std::int64_t Q = o.heads * o.query_width(), K = o.shared_heads() * o.query_width(), V = o.shared_heads() * (o.width / o.heads);
    parts[ours + "ln_1.weight"] = {{theirs + "input_layernorm.weight"}};
    parts[ours + "ln_2.weight"] = {{theirs + "post_attention_layernorm.weight"}};
    parts[ours + "attn.c_attn.weight"] = {{attention + "q_proj.weight", true, q, false, Q}, {attention + "k_proj.weight", true, k, false, K},
                                          {attention + "v_proj.weight", true, 0, false, V}};
    if (o.attention_bias)
      parts[ours + "attn.c_attn.bias"] = {{attention + "q_proj.bias", false, q, false, Q}, {attention + "k_proj.bias", false, k, false, K},
                                          {attention + "v_proj.bias", false, 0, false, V}};
    parts[ours + "attn.c_proj.weight"] = {{attention + "o_proj.weight", true}};
    parts[ours + "mlp.c_fc.weight"] = {{theirs + "mlp.gate_proj.weight", true}, {theirs + "mlp.up_proj.weight", true}};
    parts[ours + "mlp.c_proj.weight"] = {{theirs + "mlp.down_proj.weight", true}};
  }
  if (!o.tied_head) parts["lm_head.weight"] = {{"lm_head.weight", false, 0, true}};
  return parts;
}

/// What attention here has and that of other libraries has not: h.0.attn.map_q.weight is map_q.weight in the layer's attention.
void add_own_parts(Parts& parts, const Gpt& model, const std::string& family, const ForeignWeights& weights) {
  const bool gpt2 = family == "gpt2";
  const std::string prefix = weights.find(gpt2 ? "wte.weight" : "embed_tokens.weight") ? "" : gpt2 ? "transformer." : "model.";
  for (const Tensor& parameter : model.parameters().all()) {
    const std::string& name = parameter.name();
    const std::size_t attention = name.find(".attn.");
    if (parts.contains(name) || !name.starts_with("h.") || attention == std::string::npos) continue;
    const std::string layer = name.substr(2, attention - 2), rest = name.substr(attention + 6);
    Piece piece{fmt::format(fmt::runtime(gpt2 ? "{}h.{}.attn.{}" : "{}layers.{}.self_attn.{}"), prefix, layer, rest)};
    piece.whole = true;
    parts[name] = {piece};
  }
}

/// What the tensors of a file of BERT begin with: a file of the bare model has no prefix.
std::string bert_prefix(const ForeignWeights& weights) { return weights.find("bert.embeddings.word_embeddings.weight") ? "bert." : ""; }

Parts bert_parts(const GptOptions& o, const ForeignWeights& weights) {
  const std::string prefix = bert_prefix(weights), embeddings = prefix + "embeddings.";
  Parts parts{{"wte.weight", {{embeddings + "word_embeddings.weight", false, 0, true}}},
              {"wpe.weight", {{embeddings + "position_embeddings.weight"}}},
              {"wtt.weight", {{embeddings + "token_type_embeddings.weight"}}}};
  const auto norm = [&](const std::string& ours, const std::string& theirs) {
    // files of the first BERTs, converted from TensorFlow, keep its names
    const bool gamma = !weights.find(theirs + ".weight") && weights.find(theirs + ".gamma");
    parts[ours + ".weight"] = {{theirs + (gamma ? ".gamma" : ".weight")}};
    parts[ours + ".bias"] = {{theirs + (gamma ? ".beta" : ".bias")}};
  };
  const auto linear = [&](const std::string& ours, std::initializer_list<std::string> theirs) {
    for (const std::string& name : theirs) {
      parts[ours + ".weight"].push_back({name + ".weight", true});
      parts[ours + ".bias"].push_back({name + ".bias"});
    }
  };
  norm("ln_e", embeddings + "LayerNorm");
  for (std::int64_t i = 0; i < o.layers; ++i) {
    const std::string ours = fmt::format("h.{}.", i), theirs = fmt::format("{}encoder.layer.{}.", prefix, i);
    const std::string self = theirs + "attention.self.";
    linear(ours + "attn.c_attn", {self + "query", self + "key", self + "value"});
    linear(ours + "attn.c_proj", {theirs + "attention.output.dense"});
    norm(ours + "ln_1", theirs + "attention.output.LayerNorm");
    linear(ours + "mlp.c_fc", {theirs + "intermediate.dense"});
    linear(ours + "mlp.c_proj", {theirs + "output.dense"});
    norm(ours + "ln_2", theirs + "output.LayerNorm");
  }
  if (o.pooler) linear("pooler", {prefix + "pooler.dense"});
  if (o.classes > 0) linear("classifier", {"classifier"});
  return parts;
}

/// Whether a file of BERT has a pooler, and how many classes of texts: its config does not say.
void read_bert_heads(const ForeignWeights& weights, GptOptions& o) {
  o.pooler = weights.find(bert_prefix(weights) + "pooler.dense.weight").has_value();
  const auto classifier = weights.find("classifier.weight");
  if (!classifier) return;
  if (!o.pooler || classifier->shape.size() != 2 || classifier->shape[0] < 2 || classifier->shape[0] > 1 << 20 || classifier->shape[1] != o.width)
    throw FileError(fmt::format("[import] {} is {}, but only classifiers of texts are supported: (classes, {}), of at least 2 classes, with a pooler",
                                classifier->place, classifier->shape_text(), o.width));
  o.classes = classifier->shape[0];
}

Parts parts_of(const std::string& family, const GptOptions& o, const ForeignWeights& weights, bool paired) {
  if (family == "gpt2") return gpt2_parts(o, weights);
  return family == "bert" ? bert_parts(o, weights) : llama_parts(o, weights, paired);
}

/// Tensors that files hold though they are no weights: masks of GPT-2, frequencies of rotary positions, the tied classifier, numbers of
/// positions; and BERT's heads of pretraining, which predict left out words and whether sentences are neighbours.
bool is_left_out(const std::string& name, const GptOptions& o) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") || name.ends_with("rotary_emb.inv_freq") ||
         (o.tied_head && name == "lm_head.weight") ||
         (!o.causal && (name.ends_with("embeddings.position_ids") || name.starts_with("cls.")));
}

/// Where output r of so many paired heads goes among `outputs`.
std::int64_t unpaired(std::int64_t r, std::int64_t outputs, std::int64_t heads) {
  if (heads == 0) return r;
  const std::int64_t width = outputs / heads, within = r % width;
  return r - within + within / 2 + within % 2 * (width / 2);
}

/// The columns that a piece has. Throws FileError unless its shape is that of `rows` rows.
std::int64_t columns_of(const ForeignTensor& t, const Piece& piece, std::int64_t rows, bool vector) {
  const std::size_t axes = vector ? 1 : 2;
  const bool fits = t.shape.size() == axes &&
                    (vector || (piece.table ? t.shape[0] >= rows : t.shape[piece.transposed ? 1 : 0] == rows));
  if (!fits)
    throw FileError(fmt::format("[import] {} must have {}, but is {}", t.place,
                                vector             ? "one axis"
                                : piece.table      ? fmt::format("at least {} rows", rows)
                                : piece.transposed ? fmt::format("the shape (outputs, {})", rows)
                                                   : fmt::format("the shape ({}, outputs)", rows),
                                t.shape_text()));
  return vector ? t.shape[0] : t.shape[piece.transposed ? 0 : 1];
}

std::string names_of(const std::vector<Piece>& pieces) {
  std::string names;
  for (const Piece& piece : pieces) names += fmt::format("{}'{}'", names.empty() ? "" : ", ", piece.name);
  return names;
}

/// Writes a piece of `columns` into columns [first, first + columns) of `to`, rows of `stride`.
void write_piece(const ForeignTensor& t, const Piece& piece, std::int64_t rows, std::int64_t columns, float* to, std::int64_t stride) {
  if (!piece.transposed) {
    parallel_for(rows, 64, [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> row(static_cast<std::size_t>(columns));
      for (std::int64_t r = begin; r < end; ++r) {
        t.read(r * columns, columns, row.data());
        for (std::int64_t c = 0; c < columns; ++c) to[r * stride + unpaired(c, columns, piece.paired_heads)] = row[std::size_t(c)];
      }
    });
    return;
  }
  constexpr std::int64_t kBlock = 16;  // outputs: a cache line of a row of ours
  parallel_for((columns + kBlock - 1) / kBlock, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> block(static_cast<std::size_t>(kBlock * rows));
    for (std::int64_t b = begin; b < end; ++b) {
      const std::int64_t first = b * kBlock, count = std::min(kBlock, columns - first);
      t.read(first * rows, count * rows, block.data());
      std::int64_t place[kBlock];
      for (std::int64_t c = 0; c < count; ++c) place[c] = unpaired(first + c, columns, piece.paired_heads);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < count; ++c) to[r * stride + place[c]] = block[std::size_t(c * rows + r)];
    }
  });
}

/// Refuses a tensor that has not the parameter's shape.
void check_whole(const ForeignTensor& t, const Tensor& parameter) {
  std::vector<std::int64_t> shape;
  for (int axis = 0; axis < parameter.shape().rank(); ++axis) shape.push_back(parameter.shape()[axis]);
  if (t.shape != shape)
    throw FileError(fmt::format("[import] {} must be {}, as the config says, but is {}", t.place, parameter.shape().text(), t.shape_text()));
}

/// Columns [first, first + columns) of a parameter's rows, and the tensor that they are.
struct PlacedPiece {
  ForeignTensor tensor;
  Piece piece;
  std::int64_t rows, columns, first;
};
using PlacedPieces = std::map<std::string, std::vector<PlacedPiece>>;

/// The pieces of every parameter. All is checked here, before anything has memory: sizes in a config may be anything.
PlacedPieces place_pieces(const ForeignModel& foreign, const GptOptions& options) {
  const ForeignWeights& weights = *foreign.weights;
  const Gpt declared = Gpt::declared(options);
  const Parts parts = foreign_parts(declared, foreign.family, weights, foreign.paired);
  PlacedPieces placed;
  std::set<std::string> used;
  for (const Tensor& parameter : declared.parameters().masters()) {
    const bool vector = parameter.shape().rank() == 1;
    const std::int64_t width = parameter.shape().last();
    std::int64_t first = 0;
    for (const Piece& piece : parts.at(parameter.name())) {
      const auto found = weights.find(piece.name);
      if (!found) throw FileError(fmt::format("[import] {} lacks the tensor '{}'", weights.place(), piece.name));
      used.insert(piece.name);
      if (piece.whole) {
        check_whole(*found, parameter);
        placed[parameter.name()].push_back({*found, piece, 1, parameter.size(), 0});
        first = width;
        continue;
      }
      const std::int64_t rows = vector ? 1 : piece.table ? options.vocabulary : parameter.shape()[0];
      const std::int64_t columns = columns_of(*found, piece, rows, vector);
      if (first + columns > width || (piece.columns && columns != piece.columns) ||
          (piece.paired_heads && columns % (2 * piece.paired_heads)))
        throw FileError(fmt::format("[import] {} is {}, which does not fit the {} columns that the config gives '{}'", found->place,
                                    found->shape_text(), width, parameter.name()));
      placed[parameter.name()].push_back({*found, piece, rows, columns, first});
      first += columns;
    }
    if (first != width)
      throw FileError(fmt::format("[import] {}: {} must have {} columns, as the config says, but have {}", weights.place(),
                                  names_of(parts.at(parameter.name())), width, first));
  }
  for (const std::string& name : weights.names())
    if (!used.contains(name) && !is_left_out(name, options))
      throw FileError(fmt::format("[import] {} holds a tensor '{}' that a model of this config does not have; its architecture is another one",
                                  weights.place(), name));
  return placed;
}

}  // namespace

ForeignParts foreign_parts(const Gpt& model, const std::string& family, const ForeignWeights& weights, bool paired) {
  ForeignParts parts = parts_of(family, model.options(), weights, paired);
  add_own_parts(parts, model, family, weights);
  return parts;
}

Gpt load_foreign_model(const ForeignModel& foreign) {
  GptOptions options = foreign.options;
  if (foreign.family == "bert") read_bert_heads(*foreign.weights, options);
  const PlacedPieces placed = place_pieces(foreign, options);
  Gpt model = Gpt::blank(options);
  std::vector<float> buffer;
  for (const Tensor& parameter : model.parameters().masters()) {
    const bool host = parameter.root()->storage->device().host() && parameter.dtype() == Dtype::f32;
    const std::int64_t width = parameter.shape().last();
    if (!host) buffer.assign(std::size_t(parameter.size()), 0);
    float* const to = host ? parameter.as<float>() : buffer.data();
    for (const PlacedPiece& p : placed.at(parameter.name())) write_piece(p.tensor, p.piece, p.rows, p.columns, to + p.first, width);
    foreign.weights->forget();
    if (!host && parameter.dtype() == Dtype::f32) parameter.write(buffer.data(), 0, parameter.size());
    if (parameter.dtype() == Dtype::f64) parameter.copy_from({buffer.begin(), buffer.end()});
  }
  model.parameters().refresh_copies();
  return model;
}

}  // namespace hedgehog

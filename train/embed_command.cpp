#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/setup.h"
#include "train/text_vectors.h"
#include "train/utf8.h"

namespace hedgehog {
namespace {

std::vector<std::string> lines_of(std::istream& stream) {
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) {
    if (line.ends_with('\r')) line.pop_back();
    lines.push_back(line);
  }
  return lines;
}

/// --text, the lines of --data, or those of standard input.
std::vector<std::string> texts_of(const Config& config) {
  if (config.was_set("text")) return {config.text("text")};
  const std::string file = config.has("data") ? config.text("data") : "-";
  std::vector<std::string> texts;
  if (file == "-") {
    if (isatty(STDIN_FILENO)) fmt::print(stderr, "Type one text a line; Ctrl-D ends.\n");
    texts = lines_of(std::cin);
  } else {
    std::ifstream stream(file);
    if (!stream) throw FileError(fmt::format("--data={} cannot be read; give a file of texts, one a line, or - for standard input", file));
    texts = lines_of(stream);
  }
  if (texts.empty()) throw UsageError("there is no text; give --text=\"...\", --data=FILE with one a line, or lines on standard input");
  return texts;
}

std::vector<std::vector<double>> similarities(const std::vector<TextVector>& vectors) {
  std::vector<std::vector<double>> all(vectors.size());
  for (std::size_t i = 0; i < vectors.size(); ++i)
    for (const TextVector& other : vectors) all[i].push_back(cosine(vectors[i].numbers, other.numbers));
  return all;
}

/// Numbers of a vector as short as tells them apart in f32, which they were computed in.
std::string numbers_text(const std::vector<double>& numbers) {
  std::string text;
  for (const double x : numbers) text += fmt::format("{}{}", text.empty() ? "" : " ", float(x));
  return text;
}

void print_json(const std::string& checkpoint, const Config& config, const std::vector<std::string>& texts,
                const std::vector<TextVector>& vectors) {
  nlohmann::json json{{"checkpoint", checkpoint}, {"pooling", config.text("pooling")}, {"normalize", config.flag("normalize")},
                      {"texts", nlohmann::json::array()}};
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::vector<float> numbers(vectors[i].numbers.begin(), vectors[i].numbers.end());
    json["texts"].push_back({{"text", valid_utf8(texts[i])}, {"tokens", vectors[i].tokens}, {"cut", vectors[i].cut}, {"vector", numbers}});
  }
  if (config.flag("similarity")) json["similarity"] = similarities(vectors);
  fmt::print("{}\n", json.dump());
}

}  // namespace

int embed_command(Config& config) {
  const OnDevice guard(configure_machine(config));
  const std::filesystem::path found = find_checkpoint(config.text("checkpoint"));
  const Checkpoint checkpoint = load_checkpoint(found, false);
  const std::vector<std::string> texts = texts_of(config);
  const std::vector<TextVector> vectors =
      text_vectors(*checkpoint.model, *checkpoint.tokenizer, texts,
                   {.pooling = config.text("pooling"), .normalize = config.flag("normalize"),
                    .length = config.has("length") ? config.integer("length") : 0, .batch = config.integer("batch")});
  const auto cut = std::count_if(vectors.begin(), vectors.end(), [](const TextVector& v) { return v.cut; });
  if (cut > 0)
    fmt::print(stderr, "note: {} of {} texts have more tokens than are read; what lies behind them does not count\n", cut, texts.size());
  if (config.flag("json")) {
    print_json(found.string(), config, texts, vectors);
  } else if (config.flag("similarity")) {
    for (const std::vector<double>& row : similarities(vectors)) {
      for (std::size_t j = 0; j < row.size(); ++j) fmt::print("{}{:7.4f}", j ? " " : "", row[j]);
      fmt::print("\n");
    }
  } else {
    for (const TextVector& vector : vectors) fmt::print("{}\n", numbers_text(vector.numbers));
  }
  return kGood;
}

}  // namespace hedgehog

#include "train/foreign_weights.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <bit>
#include <cstring>
#include <map>

#include "core/error.h"
#include "train/files.h"
#include "train/json_fields.h"
#include "train/safetensors.h"
#include "train/strict_json.h"

namespace hedgehog {
namespace {

namespace fs = std::filesystem;

float of_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t(bits) << 16); }

/// IEEE 754 binary16: sign, 5 bits of exponent, 10 of mantissa.
float of_f16(std::uint16_t bits) {
  const std::uint32_t sign = std::uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(float(mantissa) * 0x1p-24f));
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

template <class Convert>
void read_halves(const std::byte* from, std::int64_t count, float* to, const Convert& convert) {
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, from + 2 * i, 2);
    to[i] = convert(bits);
  }
}

class SafetensorsFolder : public ForeignWeights {
 public:
  explicit SafetensorsFolder(const fs::path& folder) : folder_(folder) {
    const fs::path index = folder / "model.safetensors.index.json", single = folder / "model.safetensors";
    std::error_code ignored;
    if (fs::exists(index, ignored)) {
      open_parts(index);
      return;
    }
    if (!fs::exists(single, ignored))
      throw FileError(fmt::format("[import] {} has neither model.safetensors nor model.safetensors.index.json; other formats of weights, such as "
                                  "pytorch_model.bin, are not read: save the model as safetensors", folder.string()));
    SafetensorsFile* const file = open(single);
    for (const std::string& name : file->names()) owner_[name] = file;
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> all;
    for (const auto& [name, file] : owner_) all.push_back(name);
    return all;
  }

  std::optional<ForeignTensor> find(const std::string& name) const override {
    const auto found = owner_.find(name);
    if (found == owner_.end()) return std::nullopt;
    const TensorRecord& record = found->second->get(name);
    ForeignTensor t{record.shape, ElementFormat::f32, static_cast<const std::byte*>(record.data),
                    fmt::format("{}: tensor '{}'", found->second->path().string(), name)};
    if (record.dtype == "F16") t.format = ElementFormat::f16;
    else if (record.dtype == "BF16") t.format = ElementFormat::bf16;
    else if (record.dtype != "F32")
      throw FileError(fmt::format("[import] {} is {}, but weights must be F32, F16 or BF16", t.place, record.dtype));
    return t;
  }

  void forget() const override {
    for (const auto& [name, file] : files_) file->forget();
  }
  std::string place() const override { return folder_.string(); }

 private:
  SafetensorsFile* open(const fs::path& file) {
    auto& opened = files_[file.filename().string()];
    if (!opened) opened = std::make_unique<SafetensorsFile>(file);
    return opened.get();
  }

  void open_parts(const fs::path& index) {
    const nlohmann::json root = parse_strict_json(index, read_file(index, std::size_t(64) << 20), "index of weights", 8);
    const JsonFields fields(root, index, "import", "the index is damaged");
    for (const auto& [name, file] : fields.get<std::map<std::string, std::string>>("weight_map", "an object of file names")) {
      if (file.empty() || fs::path(file).filename() != file)
        throw FileError(fmt::format("[import] {}: 'weight_map.{}' must name a file beside it, but is '{}'", index.string(), name, file));
      SafetensorsFile* const part = open(folder_ / file);
      if (!part->contains(name))
        throw FileError(fmt::format("[import] {}: '{}' should be in {}, but is not; a file is damaged or of another model", index.string(), name, file));
      owner_[name] = part;
    }
  }

  fs::path folder_;
  std::map<std::string, std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, SafetensorsFile*> owner_;
};

}  // namespace

std::int64_t ForeignTensor::size() const {
  std::int64_t n = 1;
  for (const std::int64_t axis : shape) n *= axis;
  return n;
}

std::string ForeignTensor::shape_text() const { return fmt::format("({})", fmt::join(shape, ", ")); }

void ForeignTensor::read(std::int64_t first, std::int64_t count, float* to) const {
  switch (format) {
    case ElementFormat::f32: std::memcpy(to, data + 4 * first, std::size_t(4 * count)); return;
    case ElementFormat::f16: return read_halves(data + 2 * first, count, to, of_f16);
    case ElementFormat::bf16: return read_halves(data + 2 * first, count, to, of_bf16);
  }
}

std::unique_ptr<ForeignWeights> safetensors_folder(const fs::path& folder) { return std::make_unique<SafetensorsFolder>(folder); }

}  // namespace hedgehog

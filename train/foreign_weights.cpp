#include "train/foreign_weights.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "core/error.h"
#include "train/files.h"
#include "train/json_fields.h"
#include "train/safetensors.h"
#include "train/strict_json.h"

namespace hedgehog {
namespace {

namespace fs = std::filesystem;

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
  const BlockFormat& block = block_format(format);
  while (count > 0) {
    const std::byte* const from = data + first / block.elements * block.bytes;
    const std::int64_t begin = first % block.elements, whole = begin ? 0 : count / block.elements;
    std::int64_t taken = whole * block.elements;
    if (whole > 0) {
      block.read(from, whole, to);
    } else {  // a part of a block
      float elements[kMostBlockElements];
      block.read(from, 1, elements);
      taken = std::min(block.elements - begin, count);
      std::copy_n(elements + begin, taken, to);
    }
    first += taken, count -= taken, to += taken;
  }
}

std::unique_ptr<ForeignWeights> safetensors_folder(const fs::path& folder) { return std::make_unique<SafetensorsFolder>(folder); }

}  // namespace hedgehog

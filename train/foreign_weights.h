#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train/block_formats.h"

namespace hedgehog {

/// One tensor of a foreign file: its bytes are there, whatever the file said.
///
/// shape  axes, row-major
/// data   elements, little-endian; not owned
/// place  the file and the tensor's name there, for messages
struct ForeignTensor {
  std::vector<std::int64_t> shape;
  ElementFormat format = ElementFormat::f32;
  const std::byte* data = nullptr;
  std::string place;

  std::int64_t size() const;
  std::string shape_text() const;
  /// Elements [first, first + count) as f32.
  void read(std::int64_t first, std::int64_t count, float* to) const;
};

/// The tensors of a model of another library, by that library's names.
class ForeignWeights {
 public:
  virtual ~ForeignWeights() = default;
  virtual std::vector<std::string> names() const = 0;
  /// Throws FileError for a storage that is not one of ElementFormat.
  virtual std::optional<ForeignTensor> find(const std::string& name) const = 0;
  /// Gives back the memory of what was read so far.
  virtual void forget() const = 0;
  /// What the tensors are in, for messages.
  virtual std::string place() const = 0;
};

/// The model.safetensors of a Hugging Face folder, or the files that model.safetensors.index.json names.
/// Throws FileError if there are none, or the index names files or tensors that are not there.
std::unique_ptr<ForeignWeights> safetensors_folder(const std::filesystem::path& folder);

}  // namespace hedgehog

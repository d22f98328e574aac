#pragma once
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

namespace hedgehog {

/// What log.jsonl says about one step: one JSON object a line, in order of `step`.
///
/// | field                     | JSON name               | unit                                        |
/// | ------------------------- | ----------------------- | ------------------------------------------- |
/// | step                      | step                    | steps                                       |
/// | loss                      | loss                    | nats a token                                |
/// | learning_rate             | learning_rate           | –                                           |
/// | gradient_norm             | gradient_norm           | before clipping                             |
/// | layer_gradient_norms      | layer_gradient_norms    | one a layer, first the lowest; may be empty |
/// | tokens                    | tokens                  | seen so far                                 |
/// | tokens_per_second         | tokens_per_second       | tokens/s                                    |
/// | seconds                   | seconds                 | of training steps, all sittings together    |
/// | validation_loss           | validation_loss         | nats a token; absent if not measured        |
///
/// Numbers are written so that they read back to the same bits; NaN and infinities are null and read back as NaN.
struct StepRecord {
  int64_t step = 0;
  double loss = 0;
  double learning_rate = 0;
  double gradient_norm = 0;
  std::vector<double> layer_gradient_norms;
  int64_t tokens = 0;
  double tokens_per_second = 0;
  double seconds = 0;
  std::optional<double> validation_loss;
};

/// The record as one line of JSON without the line break, and back. from_json throws Error naming the field.
std::string to_json(const StepRecord& record);
StepRecord step_record_from_json(std::string_view line);

/// Appends to log.jsonl. Each line is flushed, so that a killed run loses at most the line it was writing.
class LogWriter {
 public:
  /// Opens for appending; a new file is made. Throws WriteError.
  explicit LogWriter(const std::filesystem::path& path);
  /// Throws WriteError (full disk).
  void append(const StepRecord& record);

 private:
  std::filesystem::path path_;
  std::ofstream file_;
};

/// All records. A last line without its line break (torn by a kill) is left out. A missing file gives no records.
/// Throws: FileError naming file, line and field.
std::vector<StepRecord> read_log(const std::filesystem::path& path);

/// Cuts the file after the last record with step <= `step`, and drops a torn last line. A missing file is left missing.
/// Throws: FileError for a damaged line before the cut, WriteError.
void truncate_log(const std::filesystem::path& path, int64_t step);

}  // namespace hedgehog

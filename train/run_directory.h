#pragma once
#include <filesystem>
#include <string>

namespace hedgehog {

/// A new directory for a run: runs/<name>-<n> with the next free n, or `out` if it is given and not used yet.
/// Throws UsageError if `out` holds a run already, WriteError if it cannot be made.
std::filesystem::path make_run_directory(const std::string& out, const std::string& name);

/// Refuses an --out that holds something: a command that writes a whole directory would take its place. Throws UsageError.
void check_new_directory(const std::string& out);

/// Points runs/latest to a run, if the run lies in runs/.
void mark_latest(const std::filesystem::path& run);

}  // namespace hedgehog

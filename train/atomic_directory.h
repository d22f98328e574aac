#pragma once
#include <filesystem>
#include <functional>

namespace hedgehog {

/// Saves a directory so that at any moment, kill -9 included, the old or the new one is whole and findable.
///
/// The files are made in NAME.tmp-<pid>, synced, and exchanged with NAME in one system call (renameat2 on Linux). Where
/// the file system cannot exchange, NAME moves to NAME.old, the new one takes its place, and NAME.old is removed;
/// `recover` finds NAME.old if the process died between the two. Leftovers of dead processes are removed by the next
/// save. One writer a name at a time.
///
///   save_directory("runs/x/last", [&](const std::filesystem::path& directory) {
///     write_safetensors(directory / "model.safetensors", records);
///     write_file(directory / "state.json", state);
///   });
///
/// target  the directory to make or replace; its parent is created
/// fill    writes the files into the temporary directory it is given
///
/// Throws: WriteError, or whatever `fill` throws; then NAME is unchanged and the temporary directory is removed.
void save_directory(const std::filesystem::path& target,
                    const std::function<void(const std::filesystem::path& temporary)>& fill);

/// Where to load `target` from: NAME, or NAME.old if a save died between its two renames, or NAME where neither exists
/// (the loader then reports that it is missing). Changes nothing on disk. Every loader calls it.
std::filesystem::path recover(const std::filesystem::path& target);

}  // namespace hedgehog

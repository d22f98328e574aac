#pragma once
#include <cstdio>
#include <string>
#include <vector>

#include "train/reproduce.h"

namespace hedgehog {

/// Parts that lie in the folder of an experiment.
///
/// results  those made with the present settings
/// others   a sentence for each made with other ones
struct FoundParts {
  PartResults results;
  std::vector<std::string> others;
};

/// Reads the files of `parts` that are there. Throws FileError naming a file that is broken, or of another experiment.
FoundParts read_parts(const Experiment& experiment, const ReproduceRequest& request, const std::vector<ExperimentPart>& parts);

/// FOLDER/parts/PART.json: experiment, part, settings, machine, seconds, result. Throws WriteError.
void write_part(const Experiment& experiment, const ReproduceRequest& request, const std::string& part, const PartResult& result);

/// Prints the table with notes, time and machines; writes FOLDER/NAME.html and FOLDER/NAME.json. Throws WriteError.
void write_findings(const Experiment& experiment, const ReproduceRequest& request, const PartResults& results, const Findings& findings,
                    std::FILE* out);

}  // namespace hedgehog

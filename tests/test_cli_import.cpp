#include <doctest/doctest.h>

#include "tests/bpe_cases.h"
#include "tests/cli_cases.h"
#include "tests/counters.h"
#include "train/files.h"
#include "train/tokenizer.h"

namespace hedgehog::test {
namespace {

namespace fs = std::filesystem;

const fs::path kModels = fs::path(HH_SOURCE_DIR) / "tests/data/models";

/// A fixture with a tokenizer of so many characters.
void copy_model(const fs::path& to, const char* name, int characters) {
  fs::copy(kModels / name, to, fs::copy_options::recursive);
  std::string text;
  for (int i = 0; i < characters; ++i) text += char('A' + i);
  save_tokenizer(*char_tokenizer(text), to / "tokenizer.json");
}

}  // namespace

TEST_CASE("cli: a model of another library is imported, writes, is measured and converted, from its folder or as a checkpoint") {
  const TemporaryDirectory d;
  const std::string at = d.path().string();
  copy_model(d / "llama", "llama-grouped", 50);
  std::string text;
  for (int i = 0; i < 4000; ++i) text += char('A' + i * i % 49);
  d.file("text.txt", text);
  const ProgramResult imported = run_program("import --from=llama --out=ours", at);
  CAPTURE(imported.output);
  REQUIRE(imported.code == 0);
  for (const char* part : {"2 layers, width 16, 4 heads with 2 of keys and values, 50 tokens, context 32", "--checkpoint=ours"})
    CHECK(contains(imported.output, part));
  CHECK_FALSE(fs::exists(d / "ours/optimizer.safetensors"));
  for (const char* command : {"sample --tokens=12 --prompt=HEDGEHOG --temperature=0 --checkpoint=", "eval --json --data=text.txt --checkpoint="}) {
    CAPTURE(command);
    const ProgramResult from = run_program(std::string(command) + "llama", at), ours = run_program(std::string(command) + "ours", at);
    CAPTURE(from.output);
    CHECK(from.code == 0);
    CHECK(ours.code == 0);
    CHECK(from.output == ours.output);
  }
  const ProgramResult converted = run_program(
      "convert --from=llama --data=text.txt --batch=2 --length=16 --distill_steps=2 --finetune_steps=2 --evaluate_batches=2 --quiet --out=student", at);
  CAPTURE(converted.output);
  CHECK(converted.code == 0);
  CHECK(run_program("sample --checkpoint=student --tokens=5 --prompt=HEDGEHOG", at).code == 0);
}

TEST_CASE("cli: a model is exported as a folder that is read like the checkpoint, students too") {
  const TemporaryDirectory d;
  const std::string at = d.path().string();
  d.file("text.txt", some_text());
  const std::string llama = " --norm=rms --gated_mlp --activation=silu --key_heads=1 --bias=false ";
  for (const std::string& options : {"--attention=hedgehog" + llama, "--attention=softmax --positions=learned --tokenizer=char --out=gpt2 " + std::string()}) {
    CAPTURE(options);
    fs::remove_all(d / "runs"), fs::remove_all(d / "folder");
    const bool student = options.find("hedgehog") != std::string::npos;
    const std::string run = student ? "latest" : "gpt2";
    REQUIRE(run_program("train --data=text.txt --report=false " + std::string(kSmall) + options, at).code == 0);
    const ProgramResult exported = run_program("export --out=folder --checkpoint=" + run, at);
    CAPTURE(exported.output);
    REQUIRE(exported.code == 0);
    CHECK(contains(exported.output, student ? "model    hedgehog on llama: attention hedgehog, which hedgehog alone reads again" : "model    GPT2LMHeadModel"));
    for (const char* file : {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}) CHECK(fs::exists(d / "folder" / file));
    for (const char* command : {"sample --tokens=12 --prompt=number --temperature=0 --checkpoint=", "eval --json --stride=5 --data=text.txt --checkpoint="}) {
      const ProgramResult before = run_program(command + run, at), after = run_program(std::string(command) + "folder", at);
      CHECK(after.code == 0);
      auto trained = before.output, read = after.output;
      if (contains(trained, "\"step\": 6")) trained.replace(trained.find("\"step\": 6"), 9, "\"step\": 0");  // what is read has not learned
      CHECK(trained == read);
    }
  }
  check_refused(run_program("export --checkpoint=gpt2 --out=folder", at), 3, {"folder is there and not an empty folder", "another --out"});
  check_refused(run_program("export --checkpoint=gpt2", at), 2, {"export needs --out"});
  check_refused(run_program("export --checkpoint=gpt2 --out=new --dtype=f64", at), 2, {"--dtype=f64 is not stored", "f16"});
  check_refused(run_program("train --dtype=f16", at), 2, {"--dtype=f16 is for the files of export"});
  REQUIRE(run_program("train --data=text.txt --report=false --out=plain " + std::string(kSmall), at).code == 0);
  check_refused(run_program("export --checkpoint=plain --out=new", at), 2, {"no architecture of other libraries fits", "norm is layer, not rms"});
  CHECK_FALSE(fs::exists(d / "new"));
}

TEST_CASE("cli: import refuses with a sentence what it cannot read") {
  const TemporaryDirectory d;
  const std::string at = d.path().string();
  check_refused(run_program("import --out=ours", at), 2, {"import needs --from"});
  check_refused(run_program("import --from=llama", at), 2, {"import needs --out"});
  check_refused(run_program("import --from=llama --out=ours", at), 3, {"--from=llama does not exist"});
  fs::create_directories(d / "llama");
  check_refused(run_program("import --from=llama --out=ours", at), 3, {"holds no config.json"});
  d.file("model.pt", "PK");
  check_refused(run_program("import --from=model.pt --out=ours", at), 3, {"model.pt", "no known kind"});
  fs::copy(kModels / "llama", d / "bare", fs::copy_options::recursive);
  check_refused(run_program("import --from=bare --out=ours", at), 3, {"has no tokenizer"});
  copy_model(d / "wide", "llama", 51);
  check_refused(run_program("import --from=wide --out=ours", at), 3, {"51 tokens, but the model 50", "do not belong together"});
  fs::copy(kModels / "llama2c.bin", d / "m.bin");
  check_refused(run_program("import --from=m.bin --out=ours", at), 3, {"neither tok50.bin nor tokenizer.bin"});
}

TEST_CASE("cli: the real stories260K writes the story of its README") {
  const fs::path folder = shared_data() / "stories260k";
  if (!fs::exists(folder)) return skip("../shared/data/stories260k is not here");
  const TemporaryDirectory d;
  const ProgramResult r = run_program("sample --temperature=0 --tokens=90 --checkpoint=" + (folder / "stories260K.bin").string(), d.path().string());
  CAPTURE(r.output);
  REQUIRE(r.code == 0);
  CHECK(contains(r.output, "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red "
                           "ball. She wanted to play with it, but it was too high."));
}

}  // namespace hedgehog::test

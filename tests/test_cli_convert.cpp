#include <doctest/doctest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/bpe_cases.h"
#include "tests/cli_cases.h"
#include "tests/counters.h"
#include "train/log.h"

namespace hedgehog {

using namespace test;

namespace {

using nlohmann::json;

/// A folder with a text and a softmax model that was trained on it.
struct Teacher {
  TemporaryDirectory d;
  std::string at;
  explicit Teacher(const std::string& options = "") : at(d.path().string()) {
    d.file("text.txt", some_text());
    const ProgramResult r = run_program("train --data=text.txt --attention=softmax --out=teacher " + std::string(kSmall) + options, at);
    CAPTURE(r.output);
    REQUIRE(r.code == 0);
  }
  ProgramResult convert(const std::string& options, const std::string& out) const {
    std::filesystem::remove_all(d / out);
    return run_program("convert --from=teacher --batch=2 --quiet --out=" + out + " " + options, at);
  }
  json figures(const std::string& run) const { return json::parse(bytes_of(d / (run + "/convert.json"))); }
  /// All that a conversion says and writes, without its times and what it was called with.
  std::string bits(const std::string& run) const {
    json f = figures(run);
    f.erase("seconds");
    for (const char* option : {"out", "resume", "stop_at", "device"}) f["options"].erase(option);
    std::string logs;
    for (const char* log : {"/distillation.jsonl", "/log.jsonl"})
      for (const StepRecord& r : read_log(d / (run + log))) logs += std::to_string(r.step) + ":" + std::to_string(r.loss) + " ";
    return f.dump() + logs + bytes_of(d / (run + "/last/model.safetensors"));
  }
};

}  // namespace

TEST_CASE("cli: a softmax model is converted; the student's checkpoint gives the loss that is reported, and writes") {
  const Teacher teacher;
  const std::string stages = "--distill_steps=30 --distill_learning_rate=0.05 --finetune_steps=5";
  const ProgramResult r = teacher.convert(stages + " --finetune_teacher", "student");
  CAPTURE(r.output);
  REQUIRE(r.code == 0);
  for (const char* part : {"teacher finetuned as long", "student after the swap", "student after distillation", "student after finetuning",
                           "won back", "checkpoint  student/last"})
    CHECK(contains(r.output, part));
  const json f = teacher.figures("student");
  CHECK(f["divergence"]["after"]["heads"].size() == 1);
  CHECK(f["divergence"]["after"]["heads"][0].size() == 2);
  CHECK(f["divergence"]["after"]["mean"].get<double>() < f["divergence"]["before"]["mean"].get<double>());
  CHECK(f["loss"]["finetuned"].get<double>() < f["loss"]["distilled"].get<double>());
  const double finetuned = f["loss"]["finetuned"], reference = f["loss"]["teacher_finetuned"];
  CHECK(f["times_reference"].get<double>() == doctest::Approx(finetuned / reference));
  const ProgramResult eval = run_program("eval --checkpoint=student --json --batch=2", teacher.at);
  REQUIRE(eval.code == 0);
  CHECK(json::parse(eval.output)["loss"].get<double>() == doctest::Approx(f["loss"]["finetuned"].get<double>()).epsilon(1e-6));
  CHECK(run_program("sample --checkpoint=student --tokens=10 --prompt=the", teacher.at).code == 0);
  CHECK(contains(run_program("info --checkpoint=student", teacher.at).output, "hedgehog"));
  const std::string page = bytes_of(teacher.d / "student/report.html");
  for (const char* part : {"KL divergence of every layer and head", "student after distillation", "Distillation: KL", "won back"})
    CHECK(contains(page, part));
  // the same seed, the same bits
  REQUIRE(teacher.convert(stages, "again").code == 0);
  CHECK(bytes_of(teacher.d / "again/last/model.safetensors") == bytes_of(teacher.d / "student/last/model.safetensors"));
}

TEST_CASE("cli: every student, loss and way of finetuning converts to a checkpoint that eval agrees with") {
  const Teacher teacher("--positions=learned --bias --dropout=0.1");
  const std::string distil = " --distill_steps=4", finetune = " --finetune_steps=3",
                    lora = " --finetune=lora --lora_rank=2 --lora_dropout=0.1 --lora_targets=attention,mlp,mlp_output";
  for (const std::string& text :
       {"--attention=t2r --distill=output" + distil + finetune, "--attention=hedgehog-softmax --finetune=none" + distil,
        "--attention=elu" + finetune, "--attention=exp" + finetune, "--distill=none" + finetune,
        "--attention=hedgehog-joint" + lora + distil + finetune, "--length=8 --gradient_accumulation=2" + distil + finetune}) {
    CAPTURE(text);
    const ProgramResult r = teacher.convert(text, "student");
    CAPTURE(r.output);
    REQUIRE(r.code == 0);
    const json loss = teacher.figures("student")["loss"];
    const double last = loss.contains("finetuned") ? loss["finetuned"] : loss["distilled"];
    const ProgramResult eval = run_program("eval --checkpoint=student --json --batch=2", teacher.at);
    CAPTURE(eval.output);
    REQUIRE(eval.code == 0);
    if (!contains(text, "--length"))  // eval reads rows of the model's context
      CHECK(json::parse(eval.output)["loss"].get<double>() == doctest::Approx(last).epsilon(1e-6));
    CHECK(loss.contains("distilled") == contains(text, distil.c_str()));
  }
}

TEST_CASE("cli: rows longer than the context convert where positions have no end, and the model then has that context") {
  const Teacher teacher("--positions=rotary");
  const ProgramResult r = teacher.convert("--length=24 --distill_steps=3 --finetune_steps=3", "student");
  CAPTURE(r.output);
  REQUIRE(r.code == 0);
  CHECK(contains(bytes_of(teacher.d / "student/last/state.json"), "\"context\": 24"));
  const ProgramResult eval = run_program("eval --checkpoint=student --json --batch=2", teacher.at);
  REQUIRE(eval.code == 0);
  CHECK(json::parse(eval.output)["loss"].get<double>() == doctest::Approx(teacher.figures("student")["loss"]["finetuned"].get<double>()).epsilon(1e-6));
}

TEST_CASE("cli: a model of the built-in stories converts, its short convolution and untied classifier with it") {
  const TemporaryDirectory d;
  const std::string at = d.path().string(), small = "--width=16 --batch=2 --steps=3 --warmup=1 --evaluate_every=0 --save_every=0 --quiet ";
  REQUIRE(run_program("train --attention=softmax --preset=story --report=false --out=teacher " + small, at).code == 0);
  const ProgramResult r = run_program("convert --from=teacher --batch=4 --distill_steps=3 --finetune_steps=3 --evaluate_batches=2 --quiet --out=student", at);
  CAPTURE(r.output);
  REQUIRE(r.code == 0);
  const ProgramResult eval = run_program("eval --checkpoint=student --evaluate_batches=2", at);
  CAPTURE(eval.output);
  CHECK(eval.code == 0);
  CHECK(contains(eval.output, "all questions"));
}

TEST_CASE("cli: a conversion to none is the teacher's weights with new maps") {
  const Teacher teacher;
  const ProgramResult r = teacher.convert("--distill=none --finetune=none --json", "student");
  CAPTURE(r.output);
  REQUIRE(r.code == 0);
  const json f = json::parse(r.output);
  CHECK(f["loss"].size() == 2);
  CHECK(f["recovered"].get<double>() == 0);
  CHECK(bytes_of(teacher.d / "student/convert.json") == r.output);
}

TEST_CASE("cli: Ctrl-C writes the student as it is then, leaves out the stages after it, and exits with 130") {
  const Teacher teacher;
  const ProgramResult r = run_shell("cd '" + teacher.at + "'; '" HH_BINARY_DIR "/bin/hedgehog' convert --from=teacher --batch=2 --quiet --out=run "
                                    "--distill_steps=1000000 & child=$!; while kill -0 $child && [ ! -s run/distillation.jsonl ]; "
                                    "do sleep 0.05; done; kill -INT $child; wait $child");
  CAPTURE(r.output);
  CHECK(r.code == 130);
  CHECK(contains(r.output, "checkpoint  run/last"));
  const json f = teacher.figures("run");
  CHECK(f["steps"]["distillation"].get<int>() > 0);
  CHECK(f["steps"]["distillation"].get<int>() < 1000000);
  CHECK_FALSE(f["loss"].contains("finetuned"));
  CHECK(run_program("eval --checkpoint=run", teacher.at).code == 0);
}

TEST_CASE("cli: a conversion that was stopped in any stage goes on to the same bits") {
  const Teacher teacher;
  // in distillation, at its end, with the student, with the teacher
  for (const auto& [options, stops] : {std::pair{"--window=4", std::vector{3, 6, 9, 14}}, {"--finetune=lora --lora_rank=2", {9, 14}}}) {
    CAPTURE(options);
    const std::string all = std::string(options) + " --distill_steps=6 --finetune_steps=5 --finetune_teacher --save_every=2";
    REQUIRE(teacher.convert(all, "whole").code == 0);
    for (const int stop : stops) {
      CAPTURE(stop);
      CHECK(teacher.convert(all + " --stop_at=" + std::to_string(stop), "parts").code == 130);
      for (const char* log : {"distillation.jsonl", "log.jsonl"})  // a killed run has written lines of steps that are lost
        if (std::filesystem::exists(teacher.d / (std::string("parts/") + log)))
          teacher.d.file(std::string("parts/") + log, bytes_of(teacher.d / (std::string("whole/") + log)));
      const ProgramResult resumed = run_program("convert --resume=parts --quiet", teacher.at);
      CAPTURE(resumed.output);
      CHECK(resumed.code == 0);
      CHECK(teacher.bits("parts") == teacher.bits("whole"));
      CHECK_FALSE(std::filesystem::exists(teacher.d / "parts/stage"));
    }
  }
  CHECK(teacher.convert("--distill_steps=6 --stop_at=2", "parts").code == 130);
  check_refused(run_program("convert --resume=parts --attention=t2r", teacher.at), 2, {"--attention", "cannot change"});
  check_refused(run_program("convert --resume=whole", teacher.at), 2, {"whole/stage", "interrupted"});
  {  // the latest run is the teacher, then the conversion itself
    REQUIRE(run_program("train --data=text.txt --attention=softmax " + std::string(kSmall), teacher.at).code == 0);
    REQUIRE(run_program("convert --batch=2 --quiet --distill_steps=6 --finetune_steps=2 --stop_at=2", teacher.at).code == 130);
    const ProgramResult latest = run_program("convert --resume --quiet", teacher.at);
    CAPTURE(latest.output);
    CHECK(latest.code == 0);
    CHECK(run_program("eval --checkpoint=latest --batch=2", teacher.at).code == 0);
  }
  {  // another teacher at the same place
    std::filesystem::rename(teacher.d / "teacher", teacher.d / "former");
    REQUIRE(run_program("train --data=text.txt --attention=softmax --seed=9 --out=teacher " + std::string(kSmall), teacher.at).code == 0);
    check_refused(run_program("convert --resume=parts --quiet", teacher.at), 2, {"--from is not the teacher", "loss"});
    std::filesystem::remove_all(teacher.d / "teacher");
    std::filesystem::rename(teacher.d / "former", teacher.d / "teacher");
  }
  teacher.d.file("text.txt", "another text, " + some_text());
  check_refused(run_program("convert --resume=parts --quiet", teacher.at), 2, {"the data has changed"});
  teacher.d.file("text.txt", some_text());
  std::string state = bytes_of(teacher.d / "parts/stage/state.json");
  const std::size_t at = state.find("\"distillation\"");
  REQUIRE(at != std::string::npos);
  teacher.d.file("parts/stage/state.json", state.replace(at, 14, "\"distillatiox\""));
  check_refused(run_program("convert --resume=parts --quiet", teacher.at), 3, {"state.json", "no stage 'distillatiox'"});
}

TEST_CASE("cli: a conversion that was killed in any stage goes on to the same bits") {
  const Teacher teacher;
  const std::string all = "--distill_steps=300 --finetune_steps=300 --finetune_teacher --save_every=10 --gradient_accumulation=2";
  REQUIRE(teacher.convert(all, "whole").code == 0);
  int killed = 0;
  for (const char* log : {"distillation.jsonl", "log.jsonl"}) {
    CAPTURE(std::string(log));
    std::filesystem::remove_all(teacher.d / "parts");
    const std::string shown = std::string("$(cat parts/") + log + " 2>/dev/null | wc -l)";
    const ProgramResult r = run_shell("cd '" + teacher.at + "'; '" HH_BINARY_DIR "/bin/hedgehog' convert --from=teacher --batch=2 --quiet "
                                      "--out=parts " + all + " & child=$!; while kill -0 $child 2>/dev/null && [ " + shown +
                                      " -lt 25 ]; do sleep 0.01; done; kill -9 $child; wait $child");
    if (r.code != 137) continue;  // it was done before
    ++killed;
    const ProgramResult resumed = run_program("convert --resume=parts --quiet", teacher.at);
    CAPTURE(resumed.output);
    CHECK(resumed.code == 0);
    CHECK(teacher.bits("parts") == teacher.bits("whole"));
  }
  CHECK(killed > 0);
}

TEST_CASE("cli: a student with a window is measured with it, and what lies before the window is worth something") {
  const Teacher teacher("--context=32");
  REQUIRE(teacher.convert("--window=4 --distill_steps=30 --distill_learning_rate=0.05 --finetune_steps=5", "student").code == 0);
  REQUIRE(teacher.convert("--distill_steps=30 --distill_learning_rate=0.05 --finetune_steps=5", "plain").code == 0);
  const json f = teacher.figures("student"), plain = teacher.figures("plain");
  CHECK(f["loss"]["swapped"].get<double>() != plain["loss"]["swapped"].get<double>());
  CHECK(f["divergence"] == plain["divergence"]);  // of the maps alone
  const auto loss = [&](const std::string& options) {
    const ProgramResult r = run_program("eval --checkpoint=student --json --batch=2 " + options, teacher.at);
    REQUIRE(r.code == 0);
    return json::parse(r.output)["loss"].get<double>();
  };
  CHECK(loss("") == doctest::Approx(f["loss"]["finetuned"].get<double>()).epsilon(1e-6));
  CHECK(loss("--linear_branch=false") != doctest::Approx(loss("")).epsilon(1e-6));
}

TEST_CASE("cli: the real stories260K is converted, its keys in groups" * doctest::test_suite("slow")) {
  const std::filesystem::path model = shared_data() / "stories260k/stories260K.bin", text = shared_data() / "wikitext-2/wiki.valid.tokens";
  if (!std::filesystem::exists(model) || !std::filesystem::exists(text)) return skip("../shared/data has no stories260k or no wikitext-2");
  const TemporaryDirectory d;
  // a text that the model was not trained on: its teacher has 5.5 nats a token
  const ProgramResult r = run_program("convert --from='" + model.string() + "' --data='" + text.string() +
                                          "' --length=64 --batch=8 --distill_steps=60 --distill_learning_rate=0.1 --finetune_steps=60 "
                                          "--finetune_learning_rate=2e-3 --evaluate_batches=10 --save_every=0 --quiet --json --out=student",
                                      d.path().string());
  CAPTURE(r.output);
  REQUIRE(r.code == 0);
  const json f = json::parse(bytes_of(d / "student/convert.json"));
  CHECK(f["divergence"]["after"]["mean"].get<double>() < 0.4 * f["divergence"]["before"]["mean"].get<double>());
  CHECK(f["loss"]["distilled"].get<double>() < f["loss"]["swapped"].get<double>());
  CHECK(f["loss"]["finetuned"].get<double>() < f["loss"]["teacher"].get<double>());
  CHECK(run_program("sample --checkpoint=student --tokens=20 --prompt=Once", d.path().string()).code == 0);
}

TEST_CASE("cli: conversions that cannot be are refused in one line") {
  const Teacher teacher("--positions=learned");
  auto refused = [&](const std::string& options, int code, std::initializer_list<const char*> parts) {
    CAPTURE(options);
    check_refused(teacher.convert(options, "student"), code, parts);
    CHECK_FALSE(std::filesystem::exists(teacher.d / "student"));
  };
  refused("--attention=softmax", 2, {"not to 'softmax'", "already"});
  refused("--attention=taylor", 2, {"hedgehog", "not to 'taylor'"});
  refused("--attention=elu --distill=weights", 2, {"--attention=elu", "nothing to distil"});
  refused("--length=17", 2, {"--length=17", "16 learned positions"});
  refused("--finetune=lora --lora_targets=attention,head", 2, {"'head'", "mlp_output"});
  refused("--finetune=lora --lora_targets=", 2, {"''", "mlp_output"});
  refused("--finetune=lora --lora_rank=0", 2, {"--lora_rank", "0"});
  refused("--finetune=lora --lora_rank=17", 2, {"17", "width of 16"});
  refused("--lora_rank=4", 2, {"--lora_rank", "--finetune=lora"});
  refused("--distill=none --distill_steps=4", 2, {"--distill_steps", "distillation"});
  refused("--finetune=none --finetune_teacher", 2, {"--finetune_teacher", "finetuning"});
  refused("--data=-", 2, {"--data=-", "file"});
  refused("--data=missing.txt", 3, {"missing.txt"});
  refused("--distill=logits", 2, {"--distill", "weights"});
  teacher.d.file("short.txt", "too short for this");
  refused("--data=short.txt", 2, {"16 tokens", "--length"});
  check_refused(run_program("convert --from=nowhere", teacher.at), 3, {"nowhere"});
  REQUIRE(teacher.convert("--distill=none --finetune=none", "converted").code == 0);
  check_refused(run_program("convert --from=converted", teacher.at), 2, {"softmax", "'hedgehog'"});
}

TEST_CASE("cli: weights of one feature map do not load as another's, though their shapes agree") {
  const Teacher teacher;
  REQUIRE(teacher.convert("--distill=none --finetune=none", "student").code == 0);
  std::string state = bytes_of(teacher.d / "student/last/state.json");
  const std::string name = "\"attention\": \"hedgehog\"";
  for (std::size_t at = state.find(name); at != std::string::npos; at = state.find(name, at + 1))
    state.replace(at, name.size(), "\"attention\": \"hedgehog-joint\"");
  teacher.d.file("student/last/state.json", state);
  check_refused(run_program("eval --checkpoint=student", teacher.at), 3, {"'hedgehog'", "'hedgehog-joint'", "state.json"});
}

}  // namespace hedgehog

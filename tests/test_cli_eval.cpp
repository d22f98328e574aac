#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/cli_cases.h"

namespace hedgehog::test {
namespace {

nlohmann::json parsed(const ProgramResult& r) {
  CAPTURE(r.output);
  REQUIRE(r.code == 0);
  return nlohmann::json::parse(r.output);
}

}  // namespace

TEST_CASE("cli: eval slides windows over a text, and counts its words") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string();
  REQUIRE(run_program(std::string("train --data=text.txt --out=run --report=false ") + kSmall, at).code == 0);
  d.file("other.txt", "the hedgehog number 5 walks home. the hedgehog number 7 walks\nhome . ");
  const std::string eval = "eval --checkpoint=run --json --data=other.txt ";
  const auto plain = parsed(run_program(eval, at)), whole = parsed(run_program(eval + "--stride=16", at)),
             slid = parsed(run_program(eval + "--stride=3 --batch=4 --words", at));
  for (const auto& out : {plain, whole, slid}) CHECK(out["tokens"] == 68);
  CHECK(plain["loss"].get<double>() == doctest::Approx(whole["loss"].get<double>()).epsilon(1e-6));
  CHECK(std::abs(slid["loss"].get<double>() - plain["loss"].get<double>()) > 1e-6);
  CHECK(slid["words"] == 13);
  CHECK(slid["word_perplexity"].get<double>() == doctest::Approx(std::exp(slid["loss"].get<double>() * 68 / 13)).epsilon(1e-12));
  CHECK_FALSE(plain.contains("word_perplexity"));
  const ProgramResult text = run_program("eval --checkpoint=run --data=other.txt --stride=3 --words", at);
  for (const char* part : {"69 tokens, 19 windows of 16 with stride 3", "words       13 for 68 tokens"}) CHECK(contains(text.output, part));
  CHECK(parsed(run_program("eval --checkpoint=run --json --stride=8 --evaluate_batches=2", at))["stride"] == 8);  // the run's own text
  // rows of another length than the model's context
  const auto longer = parsed(run_program(eval + "--length=32 --batch=1", at)), windows = parsed(run_program(eval + "--length=32 --stride=32", at));
  CHECK(longer["loss"].get<double>() == doctest::Approx(windows["loss"].get<double>()).epsilon(1e-6));
  CHECK(std::abs(longer["loss"].get<double>() - plain["loss"].get<double>()) > 1e-6);
  CHECK(parsed(run_program("eval --checkpoint=run --json --length=8", at))["tokens"].get<int>() > 0);
  REQUIRE(run_program(std::string("train --data=text.txt --out=learned --positions=learned --report=false ") + kSmall, at).code == 0);
  check_refused(run_program("eval --checkpoint=learned --length=17", at), 2, {"--length=17", "16 learned positions"});
  check_refused(run_program(eval + "--stride=17", at), 2, {"--stride=17", "from 1 to the 16 tokens of a window"});
  check_refused(run_program(eval + "--words --evaluate_batches=1", at), 2, {"--evaluate_batches counts a part"});
  check_refused(run_program("eval --checkpoint=run --words", at), 2, {"--words needs the text itself", "--data=FILE"});
  CHECK(contains(run_program("eval --help", at).output, "the text's first token is not counted"));
}

TEST_CASE("cli: eval --metric compares labels, numbers and texts of two files") {
  const TemporaryDirectory d;
  const std::string at = d.path().string();
  d.file("p.txt", "1\n0\n1\n1\n0\n");
  d.file("r.txt", "1\r\n0\r\n0\r\n1\r\n1\r\n");
  const ProgramResult table = run_program("eval --metric=accuracy,f1,mcc --predictions=p.txt --references=r.txt", at);
  CHECK(table.output == "items              5\naccuracy      0.6000\nf1            0.6667\nmcc           0.1667\n");
  d.file("both.tsv", "id\tguess\tscore\tgold\na\t1\t2.5\t+3\nb\t2\t 0 \t1e0\nc\t3\t-1\t2\n");
  const auto both = parsed(run_program("eval --json --metric=pearson,spearman,accuracy --predictions=both.tsv --references=both.tsv "
                                       "--prediction_column=score --reference_column=gold", at));
  CHECK(both["spearman"].get<double>() == doctest::Approx(0.5));
  CHECK(both["pearson"].get<double>() == doctest::Approx(0.6933752452815365));  // pearsonr([2.5,0,-1],[3,1,2])[0]
  CHECK(both["accuracy"] == 0);
  CHECK(parsed(run_program("eval --json --metric=f1 --positive=c --predictions=both.tsv --references=both.tsv "
                           "--prediction_column=1 --reference_column=1", at))["f1"] == 1);
  d.file("a.txt", "the cat sat\\non the mat\n\n"), d.file("b.txt", "on the mat\\nthe cat sat\nx\n"), d.file("c.txt", "a cat\nx\n");
  const auto texts = parsed(run_program("eval --json --metric=rouge --predictions=a.txt --references=b.txt,c.txt", at));
  CHECK(texts["items"] == 2);
  CHECK(texts["rouge"]["rougeLsum"]["f1"] == 0.5);  // of an equal text with lines exchanged, and an empty one
  CHECK(texts["rouge"]["rougeL"]["recall"] == 0.25);
  CHECK(contains(run_program("eval --metric=rouge --predictions=a.txt --references=b.txt", at).output, "rougeLsum     0.5000    0.5000    0.5000"));
  d.file("same.txt", "1\n1\n1\n1\n1\n");
  const ProgramResult constant = run_program("eval --metric=mcc --predictions=same.txt --references=r.txt", at);
  CHECK(constant.code == 0);
  CHECK(contains(constant.output, "note: mcc is undefined, as all predictions of same.txt are one label; by convention it is 0\n"));
}

TEST_CASE("cli: eval --metric refuses with a sentence what it cannot compare") {
  const TemporaryDirectory d;
  const std::string at = d.path().string();
  d.file("p.txt", "1\n2\n3\n"), d.file("r.txt", "1\n2\n4"), d.file("short.txt", "1\n2\n"), d.file("empty.txt", "");
  d.file("words.txt", "1\ntwo\n3\n");
  d.file("same.txt", "7\n7\n7\n"), d.file("gap.txt", "1\n\n3\n");
  d.file("t.tsv", "label\tother\n1\t2\n3\n"), d.file("head.tsv", "label\n");
  const auto refused = [&](const std::string& arguments, int code, std::initializer_list<const char*> parts) {
    CAPTURE(arguments);
    check_refused(run_program("eval --references=r.txt " + arguments, at), code, parts);
  };
  refused("--metric=pearsno --predictions=p.txt", 2, {"'pearsno' is not known", "did you mean 'pearson'?"});
  refused("--metric=,f1 --predictions=p.txt", 2, {"'' is not known", "accuracy, f1"});
  refused("--metric=f1", 2, {"--metric needs --predictions=FILE"});
  refused("--predictions=p.txt", 2, {"belongs to --metric"});
  refused("--metric=f1 --predictions=p.txt --checkpoint=run", 2, {"leave --checkpoint out"});
  refused("--metric=accuracy --predictions=short.txt", 3, {"short.txt has 2 items, but r.txt has 3"});
  refused("--metric=accuracy --predictions=none.txt", 3, {"none.txt"});
  refused("--metric=accuracy --predictions=empty.txt", 3, {"empty.txt is empty"});
  refused("--metric=accuracy --predictions=gap.txt", 3, {"gap.txt: item 2 is empty, but must be a label"});
  refused("--metric=pearson --predictions=words.txt", 3, {"words.txt: item 2 must be a finite number, but is 'two'"});
  refused("--metric=spearman --predictions=same.txt", 3, {"spearman is undefined", "all 3 items of same.txt are 7"});
  refused("--metric=pearson --references=same.txt --predictions=p.txt", 3, {"pearson is undefined", "same.txt"});
  refused("--metric=f1 --predictions=p.txt", 2, {"there are 4 labels ('1', '2', '3', '4')", "--positive=LABEL"});
  refused("--metric=f1 --predictions=p.txt --positive=yes", 3, {"no prediction and no reference is 'yes'"});
  refused("--metric=accuracy --references=r.txt,p.txt --predictions=p.txt", 2, {"only rouge takes the best of several"});
  refused("--metric=accuracy --predictions=t.tsv --prediction_column=lable", 3, {"no column", "'lable' (the nearest is 'label')"});
  refused("--metric=accuracy --predictions=t.tsv --prediction_column=2", 3, {"t.tsv: line 3 has 1 columns", "column 2"});
  refused("--metric=accuracy --predictions=t.tsv --prediction_column=0", 2, {"counted from 1"});
  refused("--metric=accuracy --predictions=head.tsv --prediction_column=label", 3, {"no line but that of the columns' names"});
}

}  // namespace hedgehog::test

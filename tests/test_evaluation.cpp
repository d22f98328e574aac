#include <doctest/doctest.h>

#include "train/evaluation.h"
#include "train/story.h"

namespace hedgehog {

TEST_CASE("recall of the stories is counted by kind of fact, by distance and for held-out pairs") {
  const StoryBatches stories(1, 160, 40);
  GptOptions o;
  o.layers = 2;
  o.heads = 2;
  o.width = 16;
  o.context = 160;
  o.vocabulary = std::int64_t(stories.corpus().vocabulary().size());
  // 16 rows a batch: the last batch is not full
  const std::vector<RecallRow> table = measure_recall(Gpt(o), stories, 16);
  REQUIRE(table.size() == 9);
  CHECK(table[1].name == "what does … eat");
  CHECK(table[2].name == "where does … live");
  CHECK(table[3].name == "how does … travel");
  CHECK(table[4].name == "who owns the …");
  std::int64_t all = 0, held_out = 0, recency = 0, far = 0;
  for (const Story& story : stories.validation_stories())
    for (const StoryQuestion& q : story.questions) {
      ++all;
      held_out += q.held_out;
      recency += q.recency_guess == story.tokens[std::size_t(q.position)];
      far += q.distance > 64;
    }
  CHECK(table[0].questions == all);
  CHECK(table[0].recency_right == recency);
  CHECK(table[1].questions + table[2].questions + table[3].questions + table[4].questions == all);
  CHECK(table[5].questions + table[6].questions + table[7].questions == all);
  CHECK(table[1].right + table[2].right + table[3].right + table[4].right == table[0].right);
  CHECK(table[7].questions == far);
  CHECK(table[8].questions == held_out);
  for (const RecallRow& row : table) {
    CAPTURE(row.name);
    CHECK(row.questions > 0);
    CHECK(row.guess > 1.0 / 6);
    CHECK(row.guess <= 1.0 / 3);
  }
}

}  // namespace hedgehog

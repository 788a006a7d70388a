// What a person sees of work in many steps.
#include "lab/steps.h"

#include <gtest/gtest.h>

#include <thread>

namespace heed::lab {
namespace steps_test {

struct Shown : Progress {
  void begin(std::string_view name, int64_t) override { stage = name; }
  void update(int64_t, std::string_view what) override { note = what; }
  std::string stage, note;
};

TEST(Steps, SaysWhichOneRunsAndWhatIsLeft) {
  Shown shown;
  Steps steps(shown, {{"heads", 1}, {"plan", 1000}});
  steps.begin("download", 1);
  EXPECT_EQ(shown.stage, "download");
  steps.next();
  steps.begin("text", 2);
  EXPECT_EQ(shown.stage, "1/2 heads: text");
  steps.update(1, "loss 3");
  EXPECT_EQ(shown.note, "loss 3");  // nothing is known yet
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  steps.next();
  steps.begin("text", 2);
  EXPECT_EQ(shown.stage, "2/2 plan: text");
  steps.update(1, "");
  EXPECT_TRUE(shown.note.ends_with(" in all left")) << shown.note;  // about 20 s
  steps.skip("done before");  // and then the time that it would have taken is not waited for
  EXPECT_EQ(shown.stage, "2/2 plan: done before");
  EXPECT_EQ(shown.note, "");
  steps.next();
  steps.begin("more", 1);
  EXPECT_EQ(shown.stage, "more");
}

}  // namespace steps_test
}  // namespace heed::lab

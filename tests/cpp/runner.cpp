// mt2o_tests [prefix]: runs the tests whose names begin with it.
#include <cstdio>

#include "check.h"

int main(int argc, char** argv) {
  const std::string prefix = argc > 1 ? argv[1] : "";
  int passed = 0, failed = 0;
  for (const check::Test& test : check::tests()) {
    if (test.name.compare(0, prefix.size(), prefix) != 0) continue;
    try {
      test.body();
      ++passed;
      std::printf("ok      %s\n", test.name.c_str());
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED  %s\n        %s\n", test.name.c_str(), error.what());
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return passed > 0 && failed == 0 ? 0 : 1;
}

// A test runner in one header.
//
//   TEST(some_property) { CHECK(a < b); CHECK_EQUAL(a, b); CHECK_NEAR(a, b, tolerance); }
//
// in test_gram.cpp is called gram/some_property.  A failed check ends its test; main() is in runner.cpp.
#pragma once
#include <cmath>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Test {
  std::string name;
  void (*body)();
};
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
inline int add(const std::string& file, const char* name, void (*body)()) {
  const size_t begin = file.rfind("test_") + 5;
  tests().push_back({file.substr(begin, file.rfind(".cpp") - begin) + "/" + name, body});
  return 0;
}

template <class... Parts>
[[noreturn]] void fail(const char* file, int line, const Parts&... parts) {
  std::ostringstream text;
  text.precision(17);
  text << file << ":" << line << ": ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// Vectors that differ are reported by their first difference.
template <class T>
void equal(const char* file, int line, const char* names, const T& a, const T& b) {
  if (a != b) fail(file, line, names, ": ", a, " != ", b);
}
template <class T>
void equal(const char* file, int line, const char* names, const std::vector<T>& a, const std::vector<T>& b) {
  if (a == b) return;
  if (a.size() != b.size()) fail(file, line, names, ": ", a.size(), " and ", b.size(), " elements");
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i] != b[i]) fail(file, line, names, ": element ", i, ": ", +a[i], " != ", +b[i]);
}
inline void near(const char* file, int line, const char* names, double a, double b, double tolerance) {
  if (!(std::fabs(a - b) <= tolerance))
    fail(file, line, names, ": ", a, " and ", b, " differ by ", std::fabs(a - b), ", more than ", tolerance);
}

}  // namespace check

#define TEST(name)                                                   \
  static void name();                                                \
  static const int name##_added = check::add(__FILE__, #name, name); \
  static void name()
#define CHECK(condition) \
  if (!(condition)) check::fail(__FILE__, __LINE__, #condition, " is false")
#define CHECK_EQUAL(a, b) check::equal(__FILE__, __LINE__, #a " == " #b, a, b)
#define CHECK_NEAR(a, b, tolerance) check::near(__FILE__, __LINE__, #a " ~ " #b, a, b, tolerance)

#include <cstring>
#include <iostream>

#include "cases.h"

namespace oes::self_test {
namespace {

Case* first_case = nullptr;

} // namespace

Case::Case(const char* name_, void (*run_)()) : name(name_), run(run_), next(first_case) {
  first_case = this;
}

} // namespace oes::self_test

// Runs one case and says how it went; without arguments it lists them.
int main(int count, char** arguments) {
  using namespace oes::self_test;
  for (const Case* c = first_case; c; c = c->next) {
    if (count < 2) {
      std::cout << c->name << "\n";
    } else if (std::strcmp(c->name, arguments[1]) == 0) {
      try {
        c->run();
        std::cout << "fine\n";
      } catch (const std::runtime_error& error) {
        std::cout << "raised: " << error.what() << "\n";
      }
      return 0;
    }
  }
  return count < 2 ? 0 : 2;
}

// What is compiled into the library, for what is no operator: the version and the instruction sets. The
// callers own none of the strings, which live as long as the library unless it is said; lists are separated
// by commas.
#include "common/exported.h"
#include "common/instruction_set.h"

#include <exception>
#include <string>
#include <vector>

namespace {

std::string joined(const std::vector<modfast::InstructionSet>& levels) {
  std::string names;
  for (const auto level : levels) names += (names.empty() ? "" : ",") + std::string(modfast::name_of(level));
  return names;
}

}  // namespace

MODFAST_EXPORTED const char* modfast_version() noexcept { return MODFAST_VERSION; }

// Instruction sets in this build, slowest first.
MODFAST_EXPORTED const char* modfast_compiled_instruction_sets() noexcept {
  static const std::string names = joined(modfast::compiled_instruction_sets());
  return names.c_str();
}

// Those that this processor can run.
MODFAST_EXPORTED const char* modfast_available_instruction_sets() noexcept {
  static const std::string names = joined(modfast::available_instruction_sets());
  return names.c_str();
}

// The fastest of them, or the one that MODFAST_CPU names; an empty string if that names none of them.
MODFAST_EXPORTED const char* modfast_instruction_set_in_use() noexcept {
  try {
    return modfast::name_of(modfast::instruction_set_in_use());
  } catch (const std::exception&) {
    return "";
  }
}

// Why no instruction set is in use; an empty string if one is. It lives until the thread's next call.
MODFAST_EXPORTED const char* modfast_instruction_set_error() noexcept {
  thread_local std::string told;
  told.clear();
  try {
    modfast::instruction_set_in_use();
  } catch (const std::exception& error) {
    told = error.what();
  }
  return told.c_str();
}

#include "common/instruction_set.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace modfast {

const char* name_of(InstructionSet level) {
  switch (level) {
    case InstructionSet::avx512: return "avx512";
    case InstructionSet::avx2: return "avx2";
    case InstructionSet::baseline: break;
  }
#if defined(__aarch64__)
  return "neon";
#else
  return "baseline";
#endif
}

std::vector<InstructionSet> compiled_instruction_sets() {
#if defined(__x86_64__)
  return {InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512};
#else
  return {InstructionSet::baseline};
#endif
}

std::vector<InstructionSet> available_instruction_sets() {
  std::vector<InstructionSet> levels{InstructionSet::baseline};
#if defined(__x86_64__)
  // __builtin_cpu_supports also checks that the operating system saves the wide registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    levels.push_back(InstructionSet::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      levels.push_back(InstructionSet::avx512);
    }
  }
#endif
  return levels;
}

namespace {

InstructionSet choose() {
  const auto levels = available_instruction_sets();
  const char* wanted = std::getenv("MODFAST_CPU");
  if (wanted == nullptr || *wanted == '\0') return levels.back();
  std::string names;
  for (const InstructionSet level : levels) {
    if (std::string(wanted) == name_of(level)) return level;
    names += (names.empty() ? "" : ", ") + std::string(name_of(level));
  }
  throw std::runtime_error("MODFAST_CPU is '" + std::string(wanted) + "'; this machine can run: " + names);
}

}  // namespace

InstructionSet instruction_set_in_use() {
  static const InstructionSet chosen = choose();
  return chosen;
}

}  // namespace modfast

#include "common/instruction_set.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

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

#if defined(__x86_64__)
namespace {

struct Features {
  bool avx2 = false, avx512 = false;
};

// Asks the processor itself. The compiler's __builtin_cpu_supports reads a table of its runtime library,
// which is not linked on Windows and which portable compilers leave empty, so that it says no to everything.
Features features() {
  unsigned a, b, c, d;
  const auto bit = [](unsigned word, int number) { return (word >> number & 1) != 0; };
  if (!__get_cpuid(1, &a, &b, &c, &d)) return {};
  const bool fma = bit(c, 12), asks_system = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
  if (!(fma && asks_system && avx && f16c)) return {};
  // The registers that the operating system saves: 1 and 2 are those of AVX, 5 to 7 those of AVX-512.
  unsigned saved, upper;
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return {};
  Features result;
  result.avx2 = (saved & 0x06) == 0x06 && bit(b, 5);
  const bool foundation = bit(b, 16), dq = bit(b, 17), bw = bit(b, 30), vl = bit(b, 31);
  result.avx512 = result.avx2 && (saved & 0xe6) == 0xe6 && foundation && dq && bw && vl;
  return result;
}

}  // namespace
#endif

std::vector<InstructionSet> available_instruction_sets() {
  std::vector<InstructionSet> levels{InstructionSet::baseline};
#if defined(__x86_64__)
  const Features found = features();
  if (found.avx2) levels.push_back(InstructionSet::avx2);
  if (found.avx512) levels.push_back(InstructionSet::avx512);
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

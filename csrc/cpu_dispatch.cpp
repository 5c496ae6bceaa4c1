#include "cpu_dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace modfast {

std::vector<const Lines*> available_lines() {
  std::vector<const Lines*> levels{&lines_baseline};
#if defined(__x86_64__)
  // These also ask whether the operating system saves the wide registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    levels.push_back(&lines_avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      levels.push_back(&lines_avx512);
    }
  }
#endif
  return levels;
}

namespace {

const Lines& choose() {
  const auto levels = available_lines();
  const char* wanted = std::getenv("MODFAST_CPU");
  if (wanted == nullptr || *wanted == '\0') return *levels.back();
  std::string names;
  for (const Lines* level : levels) {
    if (std::string(wanted) == level->name) return *level;
    names += (names.empty() ? "" : ", ") + std::string(level->name);
  }
  throw std::runtime_error("MODFAST_CPU is '" + std::string(wanted) + "'; this machine can run: " + names);
}

}  // namespace

const Lines& lines_in_use() {
  static const Lines& chosen = choose();
  return chosen;
}

const SpectralLines& spectral_lines_in_use() {
#if defined(__x86_64__)
  if (&lines_in_use() == &lines_avx512) return spectral_lines_avx512;
  if (&lines_in_use() == &lines_avx2) return spectral_lines_avx2;
#endif
  return spectral_lines_baseline;
}

const CircuitLines& circuit_lines_in_use() {
#if defined(__x86_64__)
  if (&lines_in_use() == &lines_avx512) return circuit_lines_avx512;
  if (&lines_in_use() == &lines_avx2) return circuit_lines_avx2;
#endif
  return circuit_lines_baseline;
}

}  // namespace modfast

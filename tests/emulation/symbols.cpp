#include "symbols.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>

namespace emulation {
namespace {

struct Symbol {
  uintptr_t begin, end;
  std::string name;  // as the compiler writes it
  bool is_function;
};

template <class T>
T read(const std::string& file, size_t offset) {
  if (offset + sizeof(T) > file.size()) throw std::runtime_error("the library's table of symbols is cut off");
  T value;
  std::copy_n(file.data() + offset, sizeof(T), reinterpret_cast<char*>(&value));
  return value;
}

std::vector<Symbol> read_symbols() {
  static const char inside = 0;
  Dl_info library;
  if (dladdr(&inside, &library) == 0) throw std::runtime_error("the library's own file is not found");
  std::ifstream stream(library.dli_fname, std::ios::binary);
  const std::string file{std::istreambuf_iterator<char>(stream), {}};
  const auto base = reinterpret_cast<uintptr_t>(library.dli_fbase);
  const auto header = read<Elf64_Ehdr>(file, 0);
  std::vector<Symbol> symbols;
  for (int s = 0; s < header.e_shnum; ++s) {
    const auto table = read<Elf64_Shdr>(file, header.e_shoff + s * sizeof(Elf64_Shdr));
    if (table.sh_type != SHT_SYMTAB) continue;
    const auto names = read<Elf64_Shdr>(file, header.e_shoff + table.sh_link * sizeof(Elf64_Shdr));
    for (size_t at = 0; at < table.sh_size; at += sizeof(Elf64_Sym)) {
      const auto symbol = read<Elf64_Sym>(file, table.sh_offset + at);
      const int type = ELF64_ST_TYPE(symbol.st_info);
      if (symbol.st_shndx == SHN_UNDEF || (type != STT_OBJECT && type != STT_FUNC)) continue;
      const uintptr_t begin = base + symbol.st_value;
      symbols.push_back(
          {begin, begin + symbol.st_size, file.data() + names.sh_offset + symbol.st_name, type == STT_FUNC});
    }
  }
  std::sort(symbols.begin(), symbols.end(),
            [](const Symbol& a, const Symbol& b) { return a.begin < b.begin; });
  return symbols;
}

const std::vector<Symbol>& symbols() {
  static const std::vector<Symbol> all = read_symbols();
  return all;
}

std::string demangled(const std::string& name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  if (status != 0) return name;
  std::string result = text;
  std::free(text);
  const std::string anonymous = "(anonymous namespace)::";
  for (size_t at; (at = result.find(anonymous)) != std::string::npos;) result.erase(at, anonymous.size());
  return result;
}

bool is_guard(const Symbol& symbol) { return symbol.name.find("emulation_guard_") != std::string::npos; }

// "modfast::block_sum" and "of_warp" of "modfast::block_sum(modfast::Split)::of_warp".
std::string variable_name(const std::string& name) {
  const std::string full = demangled(name);
  const size_t last = full.rfind("::");
  return last == std::string::npos ? full : full.substr(last + 2);
}

}  // namespace

const std::vector<SharedVariable>& shared_variables() {
  static const std::vector<SharedVariable> all = [] {
    std::vector<SharedVariable> found;
    const auto& list = symbols();
    for (size_t i = 0; i + 1 < list.size(); ++i) {
      if (!is_guard(list[i]) || list[i].is_function) continue;
      if (is_guard(list[i + 1])) throw std::runtime_error("a shared variable does not follow its guard");
      found.push_back({list[i + 1].begin, list[i + 1].end, variable_name(list[i + 1].name)});
    }
    return found;
  }();
  return all;
}

std::string kernel_name(const void* function) {
  const auto address = reinterpret_cast<uintptr_t>(function);
  for (const Symbol& symbol : symbols()) {
    if (!symbol.is_function || symbol.begin != address) continue;
    std::string name = demangled(symbol.name);
    if (name.rfind("void ", 0) == 0) name.erase(0, 5);
    return name.substr(0, name.find('('));
  }
  return "(unnamed)";
}

size_t own_shared_bytes(const void* function) {
  const auto address = reinterpret_cast<uintptr_t>(function);
  const auto& list = symbols();
  size_t bytes = 0;
  for (const Symbol& kernel : list) {
    if (!kernel.is_function || kernel.begin != address || kernel.name.rfind("_Z", 0) != 0) continue;
    // How compilers write the name of a variable in a function.
    const std::string begins = "_ZZ" + kernel.name.substr(2) + "E";
    for (size_t i = 0; i + 1 < list.size(); ++i) {
      if (!is_guard(list[i]) || list[i + 1].name.rfind(begins, 0) != 0) continue;
      bytes += list[i + 1].end - list[i + 1].begin;
    }
    return bytes;
  }
  return bytes;
}

}  // namespace emulation

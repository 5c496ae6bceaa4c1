// The family's loops for the instruction set in use.
#include "optim/lines.h"

#include "common/instruction_set.h"

namespace modfast {

const OptimLines& optim_lines_in_use() {
#if defined(__x86_64__)
  switch (instruction_set_in_use()) {
    case InstructionSet::avx512: return optim_lines_avx512;
    case InstructionSet::avx2: return optim_lines_avx2;
    case InstructionSet::baseline: break;
  }
#endif
  return optim_lines_baseline;
}

}  // namespace modfast

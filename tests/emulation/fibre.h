// Stacks of their own for functions that wait for each other.
#pragma once

#include <cstddef>

namespace emulation {

// A stack on which one function runs, which may leave it in the midst and come back.
class Fibre {
 public:
  Fibre();
  ~Fibre();
  Fibre(const Fibre&) = delete;

  // Begins `run` on the stack, where nothing ran before, or a function that has left for good.
  void begin(void (*run)());
  // To be called before that if the function that ran there was in the midst of its work.
  void drop();
  // Called outside of all fibres: runs until the function leaves.
  void enter();
  // Called in the fibre: returns to where it was entered. The function that a fibre runs leaves, never
  // returns.
  void leave();

 private:
  char* stack_;
  void* inside_ = nullptr;   // where the stack stands, while another runs
  void* outside_ = nullptr;  // likewise for the one that entered
  void* shadow_ = nullptr;   // the address sanitizer's own
  const void* outside_stack_ = nullptr;
  size_t outside_bytes_ = 0;
  void arrive();
  static void start();
};

}  // namespace emulation

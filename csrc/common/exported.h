// Functions that a compiled library shows to the world. Everything else in it is hidden. They are plain C, so
// that any program can call them: Python does so by ctypes, and no version of Python is compiled in.
#pragma once

#if defined(_WIN32)
#define MODFAST_EXPORTED extern "C" __declspec(dllexport)
#else
#define MODFAST_EXPORTED extern "C" __attribute__((visibility("default")))
#endif

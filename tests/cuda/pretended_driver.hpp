#pragma once
/// \file
/// What a test asks of pretended_driver.cpp beyond the driver's own functions.

extern "C" {

struct AttzooLaunch {
  char kernel[64];
  unsigned blocks[3], threads, shared_bytes;
  void* stream;
  int device;
  unsigned long long instructions, products;  // of all warps; mma among them
  double conflicts;                           // turns that shared memory takes for each it needs
};

/// Launches since the last attzoo_reset().
int attzoo_launches();
AttzooLaunch attzoo_launch(int i);
/// Forgets launches, the error, and what attzoo_fail(), attzoo_capture() and attzoo_seed() said.
void attzoo_reset();
/// What the interpreter said first; empty: nothing.
const char* attzoo_error();
/// The compute capability of all devices, 80 at first.
void attzoo_capability(int capability);
/// The next call of this function of the driver returns the code.
void attzoo_fail(const char* function, int code);
/// Whether all streams are captured into a graph; what is launched runs all the same.
void attzoo_capture(bool on);
/// Of the order in which warps and blocks run.
void attzoo_seed(unsigned seed);

}  // extern "C"

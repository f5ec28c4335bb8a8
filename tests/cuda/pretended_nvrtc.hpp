#pragma once
/// \file
/// What a test asks of pretended_nvrtc.cpp beyond NVRTC's own functions.

extern "C" {

/// Whether a real NVRTC was found: the file in ATTZOO_REAL_NVRTC, or by its name.
int attzoo_has_real_nvrtc();
/// Libraries of fibres instead of PTX.
void attzoo_compile_for_cpu(int on);
/// PTX is optimised less, in a third of the time; a test begins without that.
void attzoo_compile_quickly(int on);
/// The architecture of PTX: "compute_80" at first.
void attzoo_target(const char* target);
/// Compilations fail with this code; 0: they do not.
void attzoo_fail_compilations(int code);
/// How many there were.
int attzoo_compilations();
/// The option that named the device of the last one.
const char* attzoo_architecture();
/// Where the text has `from`, it gets `to`; empty: it stays as it is.
void attzoo_mutate(const char* from, const char* to);
/// In how many texts that was since.
int attzoo_mutations();

}  // extern "C"

#pragma once
/// \file
/// The version of attzoo, for the preprocessor; the build and the packages read theirs from here.

#define ATTZOO_VERSION_MAJOR 0
#define ATTZOO_VERSION_MINOR 4
#define ATTZOO_VERSION_PATCH 0

/// A number that grows with the version: 400 is 0.4.0. `#if ATTZOO_VERSION >= 400`
#define ATTZOO_VERSION \
  (ATTZOO_VERSION_MAJOR * 10000 + ATTZOO_VERSION_MINOR * 100 + ATTZOO_VERSION_PATCH)

/// "0.4.0", a string literal.
#define ATTZOO_VERSION_STRING \
  ATTZOO_VERSION_JOIN_(ATTZOO_VERSION_MAJOR, ATTZOO_VERSION_MINOR, ATTZOO_VERSION_PATCH)
#define ATTZOO_VERSION_JOIN_(major, minor, patch) ATTZOO_VERSION_QUOTE_(major.minor.patch)
#define ATTZOO_VERSION_QUOTE_(text) #text

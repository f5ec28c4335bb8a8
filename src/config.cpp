// The library attzoo::compiled and its users must agree that its functions are defined here.

#ifndef ATTZOO_COMPILED
#error attzoo's .cpp files are compiled with ATTZOO_COMPILED defined, as their users' are
#endif

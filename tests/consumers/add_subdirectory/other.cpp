// Includes all that attention.cpp does: a definition that is not inline would be there twice.

#include <attzoo/attzoo.hpp>

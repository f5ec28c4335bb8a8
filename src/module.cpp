// The modules of the library attzoo::compiled.

#include <attzoo/core/buckets.ipp>
#include <attzoo/lsh.ipp>
#include <attzoo/module/attend_by_sums.ipp>
#include <attzoo/module/blend.ipp>
#include <attzoo/module/checks.ipp>
#include <attzoo/module/gate.ipp>
#include <attzoo/module/overlapping_blocks.ipp>
#include <attzoo/module/parts.ipp>

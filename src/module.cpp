// The modules of the library attzoo::compiled.

#include <attzoo/alibi.ipp>
#include <attzoo/attzoo.hpp>
#include <attzoo/core/buckets.ipp>
#include <attzoo/lsh.ipp>
#include <attzoo/module/attend_by_sums.ipp>
#include <attzoo/module/blend.ipp>
#include <attzoo/module/callable_module.ipp>
#include <attzoo/module/checks.ipp>
#include <attzoo/module/gate.ipp>
#include <attzoo/module/overlapping_blocks.ipp>
#include <attzoo/module/parts.ipp>

ATTZOO_MECHANISM(, VanillaSelfAttentionImpl)
ATTZOO_MECHANISM(, MultiHeadSelfAttentionImpl)
ATTZOO_MECHANISM(, LocalSelfAttentionImpl)
ATTZOO_MECHANISM(, GroupedSelfAttentionImpl)
ATTZOO_MECHANISM(, DilatedSelfAttentionImpl)
ATTZOO_MECHANISM(, LinearSelfAttentionImpl<>)
ATTZOO_MECHANISM(, BlockSelfAttentionImpl)
ATTZOO_MECHANISM(, ALiBiSelfAttentionImpl)
ATTZOO_MECHANISM(, LSHSelfAttentionImpl)
ATTZOO_MECHANISM(, LongformerSelfAttentionImpl)

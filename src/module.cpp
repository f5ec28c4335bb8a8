// The modules of the library attzoo::compiled: what they share, and the code of each mechanism of
// the umbrella header.

#define ATTZOO_DEFINE_MECHANISMS

#include <attzoo/attzoo.hpp>
#include <attzoo/block/overlapping_blocks.ipp>
#include <attzoo/core/layers/layers.ipp>
#include <attzoo/linear/attend_by_sums.ipp>
#include <attzoo/lsh.ipp>
#include <attzoo/lsh/bucket_cache.ipp>
#include <attzoo/lsh/buckets.ipp>
#include <attzoo/module/block_parts.ipp>
#include <attzoo/module/cache.ipp>
#include <attzoo/module/call.ipp>
#include <attzoo/module/checks.ipp>
#include <attzoo/module/gate.ipp>
#include <attzoo/module/projections.ipp>
#include <attzoo/module/rms_norm.ipp>
#include <attzoo/module/row_buffer.ipp>
#include <attzoo/module/softmax.ipp>
#include <attzoo/module/stack.ipp>
#include <attzoo/module/token_cache.ipp>
#include <attzoo/module/torch_masks.ipp>

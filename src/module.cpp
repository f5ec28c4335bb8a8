// The modules of the library attzoo::compiled: what they share, and the code of each mechanism of
// the umbrella header.

#define ATTZOO_DEFINE_MODULE
#define ATTZOO_DEFINE_MECHANISMS

#include <attzoo/attzoo.hpp>
#include <attzoo/block/overlapping_blocks.hpp>
#include <attzoo/indexed/index_cache.hpp>
#include <attzoo/linear/attend_by_sums.hpp>
#include <attzoo/lsh/bucket_cache.hpp>
#include <attzoo/lsh/buckets.hpp>
#include <attzoo/module/block_parts.hpp>
#include <attzoo/module/cache.hpp>
#include <attzoo/module/call.hpp>
#include <attzoo/module/checks.hpp>
#include <attzoo/module/freeze.hpp>
#include <attzoo/module/gate.hpp>
#include <attzoo/module/lora.hpp>
#include <attzoo/module/parts.hpp>
#include <attzoo/module/projections.hpp>
#include <attzoo/module/recurrent.hpp>
#include <attzoo/module/recurrent_call.hpp>
#include <attzoo/module/rms_norm.hpp>
#include <attzoo/module/row_buffer.hpp>
#include <attzoo/module/short_convolution.hpp>
#include <attzoo/module/softmax.hpp>
#include <attzoo/module/stack.hpp>
#include <attzoo/module/state_cache.hpp>
#include <attzoo/module/token_cache.hpp>
#include <attzoo/module/torch_masks.hpp>
#include <attzoo/native_sparse/block_cache.hpp>
#include <attzoo/performer/favor_cache.hpp>

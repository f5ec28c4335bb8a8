// The core of the library attzoo::compiled.

#include <attzoo/core/attention/backend.ipp>
#include <attzoo/core/attention/chunked.ipp>
#include <attzoo/core/attention/dispatch.ipp>
#include <attzoo/core/attention/reference.ipp>
#include <attzoo/core/cpu/fused.ipp>
#include <attzoo/core/isa.ipp>
#include <attzoo/core/modifier/any_mask.ipp>
#include <attzoo/core/modifier/grid.ipp>
#include <attzoo/core/modifier/mask_values.ipp>
#include <attzoo/core/modifier/score_values.ipp>
#include <attzoo/core/modifier/table.ipp>
#include <attzoo/core/modifier/token_places.ipp>
#include <attzoo/core/pair_products.ipp>
#include <attzoo/functional/attention.ipp>
#include <attzoo/functional/checks.ipp>
#include <attzoo/functional/masks.ipp>
#include <attzoo/functional/scores.ipp>
#include <attzoo/functional/sdpa.ipp>

namespace attzoo::core {

#define ATTZOO_NAMED_MASK(F) template struct NamedMask<kernel::F>;
ATTZOO_NAMED_MASKS(ATTZOO_NAMED_MASK)

}  // namespace attzoo::core

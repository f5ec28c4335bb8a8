// The core of the library attzoo::compiled.

#define ATTZOO_DEFINE_CORE

#include <attzoo/core/attention/backend.hpp>
#include <attzoo/core/attention/chunked.hpp>
#include <attzoo/core/attention/dispatch.hpp>
#include <attzoo/core/attention/reference.hpp>
#include <attzoo/core/autograd.hpp>
#include <attzoo/core/checks.hpp>
#include <attzoo/core/cpu/chosen.hpp>
#include <attzoo/core/cpu/fused.hpp>
#include <attzoo/core/cpu/recurrence.hpp>
#include <attzoo/core/cpu/runtime.hpp>
#include <attzoo/core/cpu/short_convolution.hpp>
#include <attzoo/core/cuda/emit.hpp>
#include <attzoo/core/cuda/source.hpp>
#include <attzoo/core/documents.hpp>
#include <attzoo/core/isa.hpp>
#include <attzoo/core/layers/adaptable_linear.hpp>
#include <attzoo/core/layers/layers.hpp>
#include <attzoo/core/layers/rotate.hpp>
#include <attzoo/core/modifier/any_mask.hpp>
#include <attzoo/core/modifier/derivative.hpp>
#include <attzoo/core/modifier/grid.hpp>
#include <attzoo/core/modifier/mask_values.hpp>
#include <attzoo/core/modifier/score_values.hpp>
#include <attzoo/core/modifier/symbol.hpp>
#include <attzoo/core/modifier/table.hpp>
#include <attzoo/core/modifier/token_places.hpp>
#include <attzoo/core/pair_products.hpp>
#include <attzoo/core/recurrence/linear_attention.hpp>
#include <attzoo/core/recurrence/recur.hpp>
#include <attzoo/core/recurrence/short_convolution.hpp>
#include <attzoo/core/row_lists.hpp>
#include <attzoo/core/unchanged.hpp>
#include <attzoo/core/views.hpp>

namespace attzoo::core {

#define ATTZOO_NAMED_MASK(F) template struct NamedMask<kernel::F>;
ATTZOO_NAMED_MASKS(ATTZOO_NAMED_MASK)

}  // namespace attzoo::core

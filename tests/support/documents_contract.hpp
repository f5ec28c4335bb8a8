#pragma once
/// \file
/// Packed batches: what a module makes of documents in one row is what it makes of each alone. And
/// caches, where tokens of one sequence stand behind padding or other documents.

#include <attzoo/module/any_attention.hpp>

#include <string>

namespace attzoo::testing {

/// Output, weights, lse and every gradient. `inputs` may have key_padding_mask [2, 40],
/// global_attention [40] or [2, 40], mask [40, 40], causal and position_offset.
void expect_documents_are_alone(const AnyAttention& m, const AttentionInputs& inputs,
                                const std::string& what);

/// A NaN in one document stays there, forward and backward.
void expect_documents_are_apart(const AnyAttention& m, const std::string& what);

/// The inputs that every module takes, together.
void expect_packs(const AnyAttention& m, const std::string& what);

/// A cache whose sequences begin behind padding of their own, or behind documents of the prompt:
/// each goes on as it does alone. `beyond`: rows before the end of a whole pass that are not those
/// of a longer one.
void expect_goes_on_as_alone(const AnyAttention& m, const std::string& what, int64_t beyond = 0);

}  // namespace attzoo::testing

#pragma once

#include <attzoo/core/storage.hpp>

namespace attzoo::core {

ATTZOO_API std::string storage_problem(const torch::Tensor& t) {
  if (!t.defined()) return "an undefined tensor";
  if (t.is_nested()) return "a nested tensor";  // has no sizes()
  if (t.layout() != torch::kStrided) return c10::str("a tensor of the layout ", t.layout());
  if (t.is_meta()) return "a tensor on the meta device, which holds no numbers";
  if (!t.has_storage()) return c10::str("a tensor without a storage on ", t.device());
  if (t.numel() == 0 || t._is_zerotensor()) return {};
  int64_t last = t.storage_offset();  // the element that lies furthest in the storage
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  const auto needed = static_cast<uint64_t>(last + 1) * t.dtype().itemsize();
  if (t.storage().nbytes() < needed) {
    return c10::str("a tensor ", t.sizes(), " whose storage has ", t.storage().nbytes(),
                    " bytes of the ", needed, " that it needs");
  }
  return {};
}

}  // namespace attzoo::core

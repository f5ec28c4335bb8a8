#pragma once
/// \file
/// Attention by its definition, to compare with.

#include <attzoo/core/choose.hpp>

namespace attzoo {

/// While one lives, attention on this thread, the linear one too, runs by definition, everything
/// n x n in memory: to compare with, and to debug. Example:
/// `EagerReferenceGuard eager; auto want = attn(x).output;`
class EagerReferenceGuard {
 public:
  EagerReferenceGuard() : before_(core::eager_reference()) { core::eager_reference() = true; }
  ~EagerReferenceGuard() { core::eager_reference() = before_; }
  EagerReferenceGuard(const EagerReferenceGuard&) = delete;
  EagerReferenceGuard& operator=(const EagerReferenceGuard&) = delete;

  /// Whether one lives on this thread.
  static bool enabled() { return core::eager_reference(); }

 private:
  bool before_;
};

}  // namespace attzoo

#pragma once
/// \file
/// Attention by its definition, to compare with.

namespace attzoo {

/// While one lives, attention() on this thread runs by definition, everything n x n in memory: to
/// compare with, and to debug. Example: `EagerReferenceGuard eager; auto want = attn(x).output;`
class EagerReferenceGuard {
 public:
  EagerReferenceGuard() : before_(enabled()) { enabled() = true; }
  ~EagerReferenceGuard() { enabled() = before_; }
  EagerReferenceGuard(const EagerReferenceGuard&) = delete;
  EagerReferenceGuard& operator=(const EagerReferenceGuard&) = delete;

  static bool& enabled() {
    static thread_local bool on = false;
    return on;
  }

 private:
  bool before_;
};

}  // namespace attzoo

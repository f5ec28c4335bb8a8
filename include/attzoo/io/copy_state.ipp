#pragma once

#include <attzoo/core/storage.hpp>
#include <attzoo/io/copy_state.hpp>

#include <ATen/MemoryOverlap.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace attzoo::core {

/// Whether rounding `t` to `dtype` makes a finite number infinite.
ATTZOO_API bool overflows(const torch::Tensor& t, torch::ScalarType dtype) {
  if (c10::promoteTypes(t.scalar_type(), dtype) == dtype) return false;
  return torch::isinf(t.to(dtype)).ne(torch::isinf(t)).any().item<bool>();
}

ATTZOO_API std::string cannot_copy(const torch::Tensor& own, const torch::Tensor& given,
                                   const torch::Tensor& numbers, bool convert) {
  if (const auto problem = storage_problem(own); !problem.empty()) {
    return "the module's own is " + problem;
  }
  if (own.is_inference() && !c10::InferenceMode::is_enabled()) {
    return "the module's own is an inference tensor, which only InferenceMode may write";
  }
  if (at::has_internal_overlap(own) == at::MemOverlap::Yes) {
    return c10::str("the module's own ", own.sizes(), " shares memory between its elements");
  }
  if (const auto problem = storage_problem(numbers); !problem.empty()) {
    return "expected a dense tensor, got " + problem;
  }
  const auto dtype = own.scalar_type();
  const bool converts = convert && own.is_floating_point() && given.is_floating_point();
  if (numbers.sizes() != own.sizes() || (given.scalar_type() != dtype && !converts)) {
    return c10::str("expected ", own.sizes(), " ", dtype, ", got ", numbers.sizes(), " ",
                    given.scalar_type());
  }
  if (converts && overflows(given, dtype)) {
    return c10::str("has numbers of ", given.scalar_type(), " that are infinite in ", dtype);
  }
  return {};
}

ATTZOO_API bool is_same_tensor(const torch::Tensor& a, const torch::Tensor& b) {
  return a.numel() > 0 && a.data_ptr() == b.data_ptr() && a.sizes() == b.sizes() &&
         a.strides() == b.strides();
}

ATTZOO_API std::string check_shared(const std::map<std::string, torch::Tensor>& own,
                                    const std::map<std::string, torch::Tensor>& state) {
  std::string wrong;
  std::map<const void*, std::string> first;  // by memory
  for (const auto& [name, tensor] : own) {
    if (tensor.numel() == 0) continue;
    const auto [it, fresh] = first.try_emplace(tensor.data_ptr(), name);
    const auto numbers = [&, dtype = tensor.scalar_type()](const std::string& which) {
      return state.at(which).to(torch::kCPU, dtype);
    };
    if (!fresh && own.at(it->second).sizes() == tensor.sizes() &&
        !torch::equal(numbers(name), numbers(it->second))) {
      wrong += "\n  " + name + ": is the module's " + it->second + ", but other numbers are given";
    }
  }
  return wrong;
}

ATTZOO_API void copy_state(const std::map<std::string, torch::Tensor>& own,
                           const std::map<std::string, torch::Tensor>& state) {
  torch::NoGradGuard no_grad;
  std::vector<std::pair<torch::Tensor, torch::Tensor>> copies;  // to, from
  for (const auto& [name, to] : own) {
    auto from = state.at(name).to(to.device());
    const bool own_memory = std::any_of(
        own.begin(), own.end(), [&](const auto& entry) { return entry.second.is_alias_of(from); });
    copies.emplace_back(to, own_memory ? from.clone() : from);
  }
  for (const auto& [to, from] : copies) to.copy_(from);
}

}  // namespace attzoo::core

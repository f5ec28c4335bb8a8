#pragma once

#include <attzoo/core/checks.hpp>
#include <attzoo/io/copy_state.hpp>

#include <ATen/MemoryOverlap.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <iterator>
#include <string_view>
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

ATTZOO_API std::string no_name_fits(const std::map<std::string, torch::Tensor>& own,
                                    const std::map<std::string, torch::Tensor>& state) {
  const auto any = [](const std::map<std::string, torch::Tensor>& tensors, std::string_view part) {
    return std::any_of(tensors.begin(), tensors.end(), [&](const auto& entry) {
      return entry.first.find(part) != std::string::npos;
    });
  };
  // Parts of an upstream name and of ours, and the map between them; the special ones come first.
  struct Sign {
    const char *theirs, *ours, *map;
  };
  static constexpr Sign kSigns[] = {
      {"sinks", "sinks", "gpt_oss()"},
      {"pre_feedforward_layernorm", "norm_attn_out", "gemma2()"},
      {"q_proj.weight", "w_g.weight", "qwen3_next(num_heads)"},
      {"q_proj.weight", "w_q.weight", "llama()"},
      {"c_attn.weight", "w_q.weight", "gpt2()"},
      {"query.weight", "w_q.weight", "bert()"},
      {"in_proj_weight", "w_q.weight", "torch_multihead_attention()"},
      {"q_proj_weight", "w_q.weight", "torch_multihead_attention()"},
  };
  const auto* const sign = std::find_if(std::begin(kSigns), std::end(kSigns), [&](const Sign& s) {
    return any(state, s.theirs) && any(own, s.ours);
  });
  const auto hint =
      sign == std::end(kSigns) ? std::string() : c10::str("did you mean names::", sign->map, "? ");
  return "no name fits: " + hint +
         "another library's names need a NameMap (io/name_maps.hpp), a part of a model "
         "tensors_under()";
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

#pragma once

#include <attzoo/core/checks.hpp>
#include <attzoo/io/checkpoint.hpp>
#include <attzoo/io/file.hpp>
#include <attzoo/io/json.hpp>
#include <attzoo/io/safetensors.hpp>
#include <attzoo/io/state_dict.hpp>

#include <ATen/MemoryOverlap.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <string_view>
#include <utility>

namespace attzoo::core {

/// Whether rounding `t` to `dtype` makes a finite number infinite.
ATTZOO_API bool overflows(const torch::Tensor& t, torch::ScalarType dtype) {
  if (c10::promoteTypes(t.scalar_type(), dtype) == dtype) return false;
  return torch::isinf(t.to(dtype)).ne(torch::isinf(t)).any().item<bool>();
}

/// What keeps the numbers of `numbers`, which were made of the tensor `given` or are it, from being
/// copied into `own`; empty if nothing does. With `convert`, a floating tensor may be given for one
/// of another floating dtype, unless a number would become infinite.
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

/// Whether two tensors are the same memory in the same shape, as one parameter under two names is.
ATTZOO_API bool is_same_tensor(const torch::Tensor& a, const torch::Tensor& b) {
  return a.numel() > 0 && storage_problem(a).empty() && a.data_ptr() == b.data_ptr() &&
         a.sizes() == b.sizes() && a.strides() == b.strides();
}

/// One tensor under two names, as in a wrapper around the same module twice, cannot become two: a
/// line for each that should; empty if none.
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

/// A line for an error where no tensor has a name of the module's: whose names they may be.
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
      {"encoder.conv1.weight", "w_q.weight", "whisper()"},
      {"encoder_attn.q_proj.weight", "cross.w_q.weight", "bart()"},
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

/// Copies what fits: every source is ready before the first number changes, so nothing can fail
/// halfway, and no source changes because it is itself a part of the module.
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

/// What keeps `numbers`, made of the tensor `given`, from becoming our tensor `name`; empty if
/// nothing does.
using WhyNot = std::function<std::string(const std::string& name, const torch::Tensor& given,
                                         const torch::Tensor& numbers)>;

/// Tensors on their way from upstream names to ours. Our tensors may be empty, where names and
/// sizes alone are of interest.
class NameMapping {
 public:
  NameMapping(const std::map<std::string, torch::Tensor>& own, const NameMap& names, WhyNot why_not)
      : own_(own), names_(names), why_not_(std::move(why_not)) {}

  /// The tensors by our names; `wrong` has a line for each complaint.
  std::map<std::string, torch::Tensor> map(const std::map<std::string, torch::Tensor>& tensors,
                                           std::string& wrong) {
    for (const auto& [name, tensor] : tensors) place(name, tensor);
    for (const auto& [name, tied_to] : tied_) place_tied(name, tensors.at(name), tied_to);
    for (const auto& [name, tensor] : own_) {
      if (state_.count(name) == 0) find_missing(name, tensor);
    }
    if (!own_.empty() && !tensors.empty() && !matched_) complain(no_name_fits(own_, tensors));
    wrong = std::move(wrong_);
    return std::move(state_);
  }

 private:
  void complain(const std::string& what) { wrong_ += "\n  " + what; }
  static std::string from(const std::string& ours, const std::string& upstream) {
    return ours == upstream ? ours : ours + " (from " + printable(upstream) + ")";
  }

  static bool is_zero(const torch::Tensor& t) {
    return storage_problem(t).empty() && !t.count_nonzero().is_nonzero();
  }

  void place(const std::string& name, const torch::Tensor& tensor) {
    std::string first;  // the names that the module lacks
    for (const auto& rule : names_.rules()) {
      const auto pieces = match_name(rule.from, name);
      if (!pieces) continue;
      matched_ = matched_ || rule.from != "*";  // which any name is
      if (!rule.refused.empty()) return complain(printable(name) + ": " + rule.refused);
      if (rule.zeros && !is_zero(tensor)) {
        return complain(printable(name) + ": is not all zeros, and the module has no counterpart");
      }
      std::vector<NameTarget> targets = rule.to;
      std::string lacks;
      for (auto& target : targets) {
        target.name = fill_name(target.name, *pieces);
        if (own_.count(target.name) == 0) lacks += (lacks.empty() ? "" : ", ") + target.name;
      }
      if (lacks.empty()) {
        matched_ = true;
        for (const auto& target : targets) give(target, name, tensor);
        return;
      }
      const auto tied_to = fill_name(rule.tied_to, *pieces);
      if (own_.count(tied_to) > 0) {
        tied_[name] = tied_to;
        return;
      }
      if (first.empty() && lacks != name) first = lacks;
    }
    complain("extra: " + printable(name) +
             (first.empty() ? "" : " (the module has no " + first + ")"));
  }

  void give(const NameTarget& target, const std::string& name, const torch::Tensor& tensor) {
    const auto [origin, fresh] = origins_.try_emplace(target.name, name);
    if (!fresh) {
      return complain("extra: " + from(target.name, name) + ": is given by " +
                      printable(origin->second) + " too");
    }
    std::string why = storage_problem(tensor);
    if (!why.empty()) {
      return complain(from(target.name, name) + ": expected a dense tensor, got " + why);
    }
    torch::Tensor numbers;
    try {
      torch::NoGradGuard no_grad;
      numbers = target.change ? target.change(tensor) : tensor;
      why = why_not_(target.name, tensor, numbers);
    } catch (const c10::Error& error) {
      why = error.what_without_backtrace();
    }
    if (!why.empty()) return complain(from(target.name, name) + ": " + why);
    state_[target.name] = numbers;
  }

  /// A weight in whose place we have `tied_to`. A file may have it alone.
  void place_tied(const std::string& name, const torch::Tensor& tensor,
                  const std::string& tied_to) {
    if (origins_.count(tied_to) == 0) return give({tied_to}, name, tensor);
    const auto given = state_.find(tied_to);
    if (given == state_.end()) return;  // which is an error already
    const auto& own = own_.at(tied_to);
    const auto becomes = [&](const torch::Tensor& t) {
      return t.to(torch::kCPU, own.scalar_type());
    };
    const bool same = storage_problem(tensor).empty() && tensor.sizes() == given->second.sizes() &&
                      (own.numel() == 0 || torch::equal(becomes(tensor), becomes(given->second)));
    if (!same) {
      complain(printable(name) + ": the module has " + tied_to +
               " in its place, but is given other numbers for that");
    }
  }

  void find_missing(const std::string& name, const torch::Tensor& tensor) {
    for (const auto& [other, numbers] : state_) {
      if (is_same_tensor(tensor, own_.at(other))) {
        state_[name] = torch::Tensor(numbers);
        return;
      }
    }
    if (origins_.count(name) > 0) return;  // given, and complained about
    std::string upstream;
    for (const auto& rule : names_.rules()) {
      for (const auto& target : rule.to) {
        const auto pieces = match_name(target.name, name);
        if (pieces) upstream += (upstream.empty() ? "" : " or ") + fill_name(rule.from, *pieces);
      }
    }
    complain("missing: " + (upstream.empty() ? name : from(name, upstream)));
  }

  const std::map<std::string, torch::Tensor>& own_;
  const NameMap& names_;
  WhyNot why_not_;
  bool matched_ = false;                        // a name is one of the map's, or of ours
  std::map<std::string, torch::Tensor> state_;  // by our names
  std::map<std::string, std::string> origins_;  // our name -> upstream
  std::map<std::string, std::string> tied_;     // upstream name -> ours that has its numbers
  std::string wrong_;
};

ATTZOO_API void check_sizes(const std::map<std::string, std::vector<int64_t>>& sizes,
                            const std::map<std::string, torch::Tensor>& tensors,
                            const NameMap& names, const std::string& who) {
  std::map<std::string, torch::Tensor> own;
  for (const auto& [name, size] : sizes) own[name] = torch::empty({0});
  const auto why_not = [&](const std::string& name, const torch::Tensor&,
                           const torch::Tensor& numbers) {
    const auto& expected = sizes.at(name);
    return numbers.sizes() == expected
               ? std::string()
               : c10::str("expected ", torch::IntArrayRef(expected), ", got ", numbers.sizes());
  };
  std::string wrong;
  NameMapping(own, names, why_not).map(tensors, wrong);
  TORCH_CHECK_VALUE(wrong.empty(), who, ":", wrong);
}

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API std::map<std::string, torch::Tensor> state_dict(const torch::nn::Module& module) {
  std::map<std::string, torch::Tensor> state;
  for (const auto& p : module.named_parameters()) state[p.key()] = p.value();
  for (const auto& b : module.named_buffers()) state[b.key()] = b.value();
  return state;
}

ATTZOO_API void save_state_dict(const torch::nn::Module& module,
                                const std::filesystem::path& path) {
  save_safetensors(path, state_dict(module));
}

ATTZOO_API std::map<std::string, torch::Tensor> state_dict(const torch::nn::Module& module,
                                                           const NameMap& names) {
  const torch::NoGradGuard no_grad;
  const auto own = state_dict(module);
  std::string wrong;
  const auto upstream = core::upstream_tensors(own, names, wrong);
  TORCH_CHECK_VALUE(wrong.empty(), "state_dict: the map does not name all of the module ",
                    module.name(), ":", wrong);
  return upstream;
}

ATTZOO_API void save_state_dict(const torch::nn::Module& module, const std::filesystem::path& path,
                                const NameMap& names) {
  save_safetensors(path, state_dict(module, names));
}

ATTZOO_API void load_state_dict(torch::nn::Module& module,
                                const std::map<std::string, torch::Tensor>& state) {
  const auto own = state_dict(module);
  auto needed = state;
  std::erase_if(needed, [&](const auto& entry) {
    const auto& name = entry.first;
    return (name == "alibi_bias" || name.ends_with(".alibi_bias")) && own.count(name) == 0;
  });
  load_state_dict(module, needed, NameMap().rename("*", "*"));
}

ATTZOO_API void load_state_dict(torch::nn::Module& module, const std::filesystem::path& path) {
  const auto tensors = load_safetensors(path).tensors;
  core::naming(core::named("load_state_dict", path), [&] { load_state_dict(module, tensors); });
}

ATTZOO_API void load_state_dict(torch::nn::Module& module,
                                const std::map<std::string, torch::Tensor>& tensors,
                                const NameMap& names, const LoadOptions& options) {
  const std::string who = "load_state_dict: the tensors do not fit the module " + module.name();
  const auto own = state_dict(module);
  core::naming(who, [&] {
    std::string wrong;
    const auto why_not = [&](const std::string& name, const torch::Tensor& given,
                             const torch::Tensor& numbers) {
      return core::cannot_copy(own.at(name), given, numbers, options.convert_dtype);
    };
    const auto state = core::NameMapping(own, names, why_not).map(tensors, wrong);
    if (wrong.empty()) wrong = core::check_shared(own, state);
    TORCH_CHECK_VALUE(wrong.empty(), who, ":", wrong);
    core::copy_state(own, state);
  });
}

ATTZOO_API void load_state_dict(torch::nn::Module& module, const std::filesystem::path& path,
                                const NameMap& names, const LoadOptions& options) {
  const auto tensors = open_checkpoint(path).tensors;
  core::naming(core::named("load_state_dict", path),
               [&] { load_state_dict(module, tensors, names, options); });
}

ATTZOO_API std::map<std::string, torch::Tensor> tensors_under(
    const std::map<std::string, torch::Tensor>& tensors, const std::string& prefix) {
  std::map<std::string, torch::Tensor> under;
  for (const auto& [name, tensor] : tensors) {
    if (name.starts_with(prefix)) under[name.substr(prefix.size())] = tensor;
  }
  TORCH_CHECK_VALUE(!under.empty(), "tensors_under: no tensor has a name that begins with \"",
                    core::printable(prefix), "\"");
  return under;
}

}  // namespace attzoo

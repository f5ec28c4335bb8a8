#pragma once
/// \file Makes operations of a kernel's statements; device functions are put where they are called.

#include <memory>
#include <set>

#include "ptx_arithmetic.hpp"
#include "ptx_collective.hpp"
#include "ptx_convert.hpp"
#include "ptx_memory.hpp"

namespace attzoo::ptx {

inline size_t aligned(size_t offset, size_t to) { return (offset + to - 1) / to * to; }

/// Where an instruction stands.
struct Source {
  int line;
  std::string text, opcode;
};

/// A register whose lanes are filled when a warp starts.
struct Special {
  Slot slot;
  std::string name;  ///< as %tid.x, or empty for the address of local memory at the offset
  size_t offset = 0;
};

/// A kernel ready to run.
struct Kernel {
  std::vector<Operation> code;
  std::vector<Source> sources;  ///< of each operation
  std::vector<Special> specials;
  RegisterFile file;
  std::vector<std::pair<size_t, size_t>> parameters;  ///< offset and bytes of each
  std::unique_ptr<std::vector<std::byte>> arguments = std::make_unique<std::vector<std::byte>>();
  size_t shared_bytes = 0, shared_dynamic = 0, local_bytes = 0;
};

/// Where the variables of a module lie.
using Addresses64 = std::map<std::string, uint64_t>;

/// Decodes one kernel of a module.
class Compiler : public Names {
 public:
  Compiler(const Text& text, const Addresses64& globals, Kernel& kernel)
      : text_(text), globals_(globals), kernel_(kernel) {
    always_ = kernel_.file.constant(1, 0).place;
    carry_ = kernel_.file.add(0).place;
  }

  void compile(const Function& entry) {
    size_t offset = 0;
    for (const auto& p : entry.parameters) {
      offset = aligned(offset, p.align);
      kernel_.parameters.push_back({offset, p.bytes});
      offset += p.bytes;
    }
    kernel_.arguments->resize(std::max<size_t>(offset, 1));
    lay_out_shared(entry);
    Frame frame;
    for (size_t i = 0; i < entry.parameters.size(); ++i) {
      const auto* at = kernel_.arguments->data() + kernel_.parameters[i].first;
      frame.scopes.back().addresses[entry.parameters[i].name] = reinterpret_cast<uint64_t>(at);
    }
    body(entry, frame);
    emit_exit(0);
  }

  std::optional<Slot> find(const std::string& name, uint32_t width) override {
    for (auto scope = frame_->scopes.rbegin(); scope != frame_->scopes.rend(); ++scope) {
      if (const auto slot = in_scope(*scope, name, width)) return slot;
    }
    if (name[0] == '%') return special(name);
    if (const auto s = shared_.find(name); s != shared_.end()) return address(s->second, width);
    if (const auto g = globals_.find(name); g != globals_.end()) return address(g->second, width);
    return std::nullopt;
  }

 private:
  struct Scope {
    std::map<std::string, Slot> registers;
    std::map<std::string, std::pair<int, uint32_t>> ranges;  ///< prefix: count and width
    std::map<std::string, size_t> locals;                    ///< offsets in local memory
    Addresses64 addresses;
  };

  /// What a function's names mean at one of its calls.
  struct Frame {
    std::vector<Scope> scopes = std::vector<Scope>(1);
    std::map<std::string, uint32_t> labels;
    std::map<std::string, std::vector<std::string>> tables;
    std::vector<std::pair<uint32_t, std::string>> jumps;
    std::string last_label;
    bool entry = true;
  };

  Slot address(uint64_t value, uint32_t width) {
    return kernel_.file.constant(value, width == 4 ? 4 : 8);
  }

  std::optional<Slot> in_scope(Scope& scope, const std::string& name, uint32_t width) {
    if (const auto r = scope.registers.find(name); r != scope.registers.end()) return r->second;
    if (const auto a = scope.addresses.find(name); a != scope.addresses.end()) {
      return address(a->second, width);
    }
    if (const auto l = scope.locals.find(name); l != scope.locals.end()) {
      const Slot slot = kernel_.file.add(8);
      kernel_.specials.push_back({slot, "", l->second});
      return scope.registers[name] = slot;
    }
    const size_t digits = name.find_last_not_of("0123456789") + 1;
    const auto range = scope.ranges.find(name.substr(0, digits));
    if (range == scope.ranges.end() || digits == name.size()) return std::nullopt;
    if (std::stoi(name.substr(digits)) >= range->second.first) return std::nullopt;
    return scope.registers[name] = kernel_.file.add(range->second.second);
  }

  std::optional<Slot> special(const std::string& name) {
    static const std::set<std::string> wide{"%clock64", "%globaltimer", "%gridid"};
    static const std::set<std::string> narrow{
        "%tid.x",          "%tid.y",       "%tid.z",       "%ntid.x",      "%ntid.y",
        "%ntid.z",         "%ctaid.x",     "%ctaid.y",     "%ctaid.z",     "%nctaid.x",
        "%nctaid.y",       "%nctaid.z",    "%laneid",      "%warpid",      "%nwarpid",
        "%smid",           "%nsmid",       "%clock",       "%clock_hi",    "%lanemask_eq",
        "%lanemask_lt",    "%lanemask_le", "%lanemask_gt", "%lanemask_ge", "%dynamic_smem_size",
        "%total_smem_size"};
    if (!narrow.count(name) && !wide.count(name)) return std::nullopt;
    const auto [known, fresh] = special_.try_emplace(name);
    if (fresh) {
      known->second = kernel_.file.add(wide.count(name) ? 8 : 4);
      kernel_.specials.push_back({known->second, name});
    }
    return known->second;
  }

  /// Variables of the module, then those of the kernel, then the dynamic array.
  void lay_out_shared(const Function& entry) {
    std::vector<Variable> variables, external;
    const auto sort = [&](const Variable& v) {
      if (v.space == "shared") (v.external || v.bytes == 0 ? external : variables).push_back(v);
    };
    for (const auto& v : text_.variables) sort(v);
    for (const auto& s : entry.body) {
      if (starts(s.text, 0, ".shared")) sort(Reader::variable(s.text));
    }
    for (const auto& v : variables) {
      const size_t at = aligned(kernel_.shared_bytes, v.align);
      shared_[v.name] = at;
      kernel_.shared_bytes = at + v.bytes;
    }
    kernel_.shared_dynamic = kernel_.shared_bytes;
    for (const auto& v : external) {
      kernel_.shared_dynamic = aligned(kernel_.shared_dynamic, v.align);
    }
    for (const auto& v : external) shared_[v.name] = kernel_.shared_dynamic;
  }

  void body(const Function& function, Frame& frame) {
    Frame* outer = std::exchange(frame_, &frame);
    for (const auto& s : function.body) {
      try {
        statement(s);
      } catch (const std::exception& e) {
        const std::string what = e.what();
        if (what.rfind("ptx: ", 0) == 0) throw;
        throw Error("ptx: " + what + "; " + function.name + ", line " + std::to_string(s.line) +
                    ": " + trim(s.text));
      }
    }
    const uint32_t end = here();
    for (const auto& [at, label] : frame.jumps) {
      const auto target = frame.labels.find(label);
      if (target == frame.labels.end() && !label.empty()) throw Error("ptx: no label " + label);
      kernel_.code[at].number = label.empty() ? end : target->second;
    }
    frame_ = outer;
  }

  void statement(const Statement& s) {
    using Kind = Statement::Kind;
    if (s.kind == Kind::kOpen) frame_->scopes.emplace_back();
    if (s.kind == Kind::kClose) frame_->scopes.pop_back();
    if (s.kind == Kind::kLabel) {
      frame_->last_label = s.text;
      if (!frame_->labels.try_emplace(s.text, here()).second) throw Error("a label twice");
    }
    if (s.kind == Kind::kText && s.text.empty()) return;
    if (s.kind == Kind::kText && s.text[0] == '.') declaration(s.text);
    if (s.kind == Kind::kText && s.text[0] != '.') instruction(s);
  }

  void declaration(const std::string& text) {
    if (starts(text, 0, ".branchtargets")) {
      frame_->tables[frame_->last_label] = split(text.substr(14), ',');
    } else if (starts(text, 0, ".reg")) {
      registers(text);
    } else if (starts(text, 0, ".local") || starts(text, 0, ".param")) {
      const Variable v = Reader::variable(text);
      const size_t at = aligned(kernel_.local_bytes, v.align);
      frame_->scopes.back().locals[v.name] = at;
      kernel_.local_bytes = at + v.bytes;
    } else if (!starts(text, 0, ".shared") && !starts(text, 0, ".pragma")) {
      throw Error("unknown declaration");
    }
  }

  /// .reg .b32 %r<5> or .reg .b16 low, high
  void registers(const std::string& text) {
    Scope& scope = frame_->scopes.back();
    std::string first;
    for (const auto& one : split(text, ',')) {
      const Variable v = Reader::variable(first.empty() ? one : first + one);
      if (first.empty()) first = ".reg ." + v.type + " ";
      const uint32_t width =
          static_cast<uint32_t>(v.type == "pred" ? 0 : std::max<size_t>(v.bytes, 2));
      if (v.range >= 0) {
        scope.ranges[v.name] = {v.range, width};
      } else {
        scope.registers[v.name] = kernel_.file.add(width);
      }
    }
  }

  uint32_t here() const { return static_cast<uint32_t>(kernel_.code.size()); }

  void instruction(const Statement& s) {
    std::string text = trim(s.text);
    now_ = {s.line, text, ""};
    guard_ = always_;
    flip_ = 0;
    if (text[0] == '@') {
      const size_t end = text.find_first_of(" \t\n");
      std::string predicate = text.substr(1, end - 1);
      flip_ = predicate[0] == '!' ? kFull : 0;
      const auto slot = find(predicate.substr(flip_ != 0), 0);
      if (!slot) throw Error("unknown predicate");
      guard_ = slot->place;
      text = trim(text.substr(end));
    }
    const size_t end = std::min(text.find_first_of(" \t\n"), text.size());
    now_.opcode = text.substr(0, end);
    decode(split(text.substr(end), ','));
  }

  void decode(std::vector<std::string> operands) {
    Decoding d(now_.opcode, std::move(operands), kernel_.file, *this);
    const std::string& n = d.name();
    if (n == "bra") return emit_jump(d.x.at(0), guard_, flip_);
    if (n == "brx") return emit_table(d);
    if (n == "call") return call(d);
    if (n == "exit" || (n == "ret" && frame_->entry)) return emit_exit(guard_ == always_ ? 0 : 1);
    if (n == "ret") return emit_jump("", guard_, flip_);
    const bool known = decode_carry(d, carry_) ||
                       ((n == "min" || n == "max") && decode_extreme(d)) || decode_integer(d) ||
                       decode_float(d) || decode_logic(d) || decode_conversion(d) ||
                       decode_memory(d) || decode_collective(d);
    if (!known) throw Error("unknown instruction");
    emit(d.op, guard_, flip_);
  }

  void emit(Operation op, uint32_t guard, uint32_t flip) {
    op.guard = guard;
    op.flip = flip;
    kernel_.code.push_back(op);
    kernel_.sources.push_back(now_);
  }

  void emit_exit(bool guarded) {
    Operation op;
    op.execute = [](Warp& w, const Operation&, uint32_t mask) { w.leave(mask); };
    if (now_.opcode.empty() || here() == 0) now_.opcode = "ret";
    emit(op, guarded ? guard_ : always_, guarded ? flip_ : 0);
  }

  void emit_jump(const std::string& label, uint32_t guard, uint32_t flip) {
    Operation op;
    op.execute = [](Warp& w, const Operation& o, uint32_t mask) {
      w.jump(mask, static_cast<uint32_t>(o.number));
    };
    frame_->jumps.push_back({here(), label});
    emit(op, guard, flip);
  }

  /// brx.idx becomes a comparison and a jump for each target.
  void emit_table(Decoding& d) {
    const auto table = frame_->tables.find(d.x.at(1));
    if (table == frame_->tables.end()) throw Error("unknown table of targets");
    if (guard_ != always_) throw Error("a guarded brx is not supported");
    const Slot index = d.from(d.x.at(0), 4), equal = kernel_.file.add(0);
    for (size_t i = 0; i < table->second.size(); ++i) {
      Operation op;
      op.execute = &compare<std::equal_to<>, uint32_t>;
      op.r = {equal.place, index.place, kernel_.file.constant(i, 4).place, 0, equal.place};
      emit(op, always_, 0);
      emit_jump(table->second[i], equal.place, 0);
    }
  }

  static std::vector<std::string> in_brackets(const std::string& text) {
    return split(text.substr(1, text.size() - 2), ',');
  }

  /// Puts the called function here; its parameters are the caller's variables.
  void call(Decoding& d) {
    if (guard_ != always_) throw Error("a guarded call is not supported");
    size_t at = 0;
    std::vector<std::string> results, arguments;
    if (d.x.at(at)[0] == '(') results = in_brackets(d.x[at++]);
    const std::string name = d.x.at(at++);
    if (at < d.x.size()) arguments = in_brackets(d.x[at]);
    const auto callee = std::find_if(text_.functions.begin(), text_.functions.end(),
                                     [&](const Function& f) { return f.name == name; });
    if (callee == text_.functions.end()) return emit_unknown_call();
    if (!active_.insert(name).second) throw Error("recursion is not supported");
    Frame frame;
    frame.entry = false;
    bind(callee->results, results, frame);
    bind(callee->parameters, arguments, frame);
    body(*callee, frame);
    active_.erase(name);
  }

  void bind(const std::vector<Variable>& formal, const std::vector<std::string>& actual,
            Frame& frame) {
    if (formal.size() != actual.size()) throw Error("a call with another number of arguments");
    for (size_t i = 0; i < formal.size(); ++i) {
      const auto slot = find(actual[i], 8);
      if (!slot || slot->width != 8) throw Error("unknown argument " + actual[i]);
      frame.scopes.front().registers[formal[i].name] = *slot;
    }
  }

  void emit_unknown_call() {
    Operation op;
    op.execute = [](Warp&, const Operation&, uint32_t) {
      throw Error("call of an unknown function");
    };
    emit(op, always_, 0);
  }

  const Text& text_;
  const Addresses64& globals_;
  Kernel& kernel_;
  Addresses64 shared_;
  std::map<std::string, Slot> special_;
  std::set<std::string> active_;  ///< functions whose calls are being put in place
  Frame* frame_ = nullptr;
  Source now_{0, "end", "ret"};
  uint32_t always_ = 0, carry_ = 0, guard_ = 0, flip_ = 0;
};

}  // namespace attzoo::ptx

#pragma once
/// \file Runs the kernels of a PTX module on the processor, with the freedoms that a GPU has.
///
/// Shared memory and registers start as NaN, data of cp.async appear at the wait that covers them,
/// warps take turns of random lengths, blocks come in a random order, and what is undefined on a
/// GPU (a barrier or a collective without some of its lanes, a race, a wrong address) throws.

#include <numeric>
#include <random>

#include "ptx_kernel.hpp"

namespace attzoo::ptx {

/// One launch of a kernel.
class Launch {
 public:
  Launch(Kernel& kernel, Global& global, const Options& options, Size3 grid, Size3 threads,
         size_t dynamic_shared, unsigned seed)
      : kernel_(kernel),
        options_(options),
        grid_(grid),
        threads_(threads),
        dynamic_(dynamic_shared),
        random_(seed),
        counts_(kernel.code.size()) {
    const uint64_t n = uint64_t{threads.x} * threads.y * threads.z;
    if (n == 0 || n > 1024) throw Error("ptx: a block of " + std::to_string(n) + " threads");
    thread_count_ = static_cast<uint32_t>(n);
    block_.global = &global;
    block_.statistics = &statistics_;
    block_.local_bytes = aligned(kernel.local_bytes, 16);
    warps_.resize((thread_count_ + kLanes - 1) / kLanes);
    storage_.resize(warps_.size());
  }

  Statistics run() {
    std::vector<uint64_t> order(uint64_t{grid_.x} * grid_.y * grid_.z);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    for (const uint64_t i : order) run_block(i);
    for (size_t i = 0; i < counts_.size(); ++i) {
      if (counts_[i] > 0) statistics_.instructions[kernel_.sources[i].opcode] += counts_[i];
      statistics_.total += counts_[i];
    }
    return std::move(statistics_);
  }

 private:
  void run_block(uint64_t i) {
    at_ = {static_cast<uint32_t>(i % grid_.x), static_cast<uint32_t>(i / grid_.x % grid_.y),
           static_cast<uint32_t>(i / grid_.x / grid_.y)};
    const size_t shared = dynamic_ == 0 ? kernel_.shared_bytes : kernel_.shared_dynamic + dynamic_;
    block_.shared.reset(shared, options_.races && warps_.size() > 1);
    block_.local.resize(block_.local_bytes * warps_.size() * kLanes);
    Shared::poison(block_.local.data(), block_.local.size());
    block_.arrived = {};
    for (size_t w = 0; w < warps_.size(); ++w) start(w);
    std::vector<size_t> ready;
    for (;;) {
      ready.clear();
      for (size_t w = 0; w < warps_.size(); ++w) {
        if (warps_[w].state == State::kRunning) ready.push_back(w);
      }
      if (ready.empty() && release() == 0) break;
      if (!ready.empty()) turn(warps_[ready[random_() % ready.size()]]);
    }
  }

  void start(size_t index) {
    const auto& image = kernel_.file.image();
    storage_[index].assign(image.begin(), image.end());
    Warp& w = warps_[index];
    w.block = &block_;
    w.index = static_cast<int>(index);
    w.registers = storage_[index].data();
    w.pc = w.here = 0;
    w.next = kEnd;
    const size_t lanes = std::min<size_t>(kLanes, thread_count_ - kLanes * index);
    w.mask = w.live = lanes == kLanes ? kFull : (1u << lanes) - 1;
    w.state = State::kRunning;
    w.groups = {};
    w.copies.clear();
    for (const auto& s : kernel_.specials) {
      for (int l = 0; l < kLanes; ++l) {
        put_wide(w.registers + s.slot.place, s.slot.width, l,
                 special(s, index, static_cast<size_t>(l)));
      }
    }
  }

  uint64_t special(const Special& s, size_t warp, size_t lane) const {
    const size_t thread = warp * kLanes + lane;
    if (s.name.empty()) {
      return reinterpret_cast<uint64_t>(block_.local.data()) + thread * block_.local_bytes +
             s.offset;
    }
    const Size3 tid{static_cast<uint32_t>(thread % threads_.x),
                    static_cast<uint32_t>(thread / threads_.x % threads_.y),
                    static_cast<uint32_t>(thread / threads_.x / threads_.y)};
    const std::pair<const char*, Size3> triples[] = {
        {"%tid.", tid}, {"%ntid.", threads_}, {"%ctaid.", at_}, {"%nctaid.", grid_}};
    for (const auto& [name, value] : triples) {
      if (starts(s.name, 0, name)) {
        return s.name.back() == 'x' ? value.x : s.name.back() == 'y' ? value.y : value.z;
      }
    }
    const uint64_t bit = 1ull << lane;
    const std::map<std::string, uint64_t> others{
        {"%laneid", lane},
        {"%warpid", warp},
        {"%nwarpid", warps_.size()},
        {"%nsmid", 1},
        {"%lanemask_eq", bit},
        {"%lanemask_lt", bit - 1},
        {"%lanemask_le", 2 * bit - 1},
        {"%lanemask_ge", ~(bit - 1)},
        {"%lanemask_gt", ~(2 * bit - 1)},
        {"%dynamic_smem_size", dynamic_},
        {"%total_smem_size", kernel_.shared_dynamic + dynamic_}};
    const auto known = others.find(s.name);
    return known == others.end() ? 0 : known->second;
  }

  /// A warp executes some instructions, now few, now very many.
  void turn(Warp& w) {
    try {
      const uint32_t longest = 1u << random_() % 13;
      for (uint64_t left = 1 + random_() % longest; left > 0; --left) {
        const Operation& o = kernel_.code[w.pc];
        const uint32_t mask = w.mask & (w.predicate(o.guard) ^ o.flip);
        ++counts_[w.pc];
        w.here = w.pc++;
        if (mask != 0) o.execute(w, o, mask);
        if (w.pc >= w.next || w.mask == 0) w.regroup();
        if (w.state != State::kRunning) break;
        ++executed_;
      }
      if (executed_ > options_.most_instructions) throw Error("too many instructions");
    } catch (const Error& e) {
      fail(e.what(), w);
    }
  }

  [[noreturn]] void fail(const std::string& what, const Warp& w) const {
    const Source& s = kernel_.sources[w.here];
    throw Error("ptx: " + what + "; warp " + std::to_string(w.index) + " of block (" +
                std::to_string(at_.x) + ", " + std::to_string(at_.y) + ", " +
                std::to_string(at_.z) + "), line " + std::to_string(s.line) + ": " + s.text);
  }

  /// Opens the barriers that all have reached; returns how many warps go on, 0 if all are done.
  size_t release() {
    size_t released = 0;
    const Warp* stuck = nullptr;
    for (int id = 0; id < 16; ++id) released += release(id);
    for (const auto& w : warps_) {
      if (w.state == State::kWaiting) stuck = &w;
    }
    if (released == 0 && stuck != nullptr) fail("deadlock at a barrier", *stuck);
    return released;
  }

  size_t release(int id) {
    std::vector<Warp*> here;
    uint32_t threads = block_.arrived[static_cast<size_t>(id)], alive = 0, votes = 0, lanes = 0;
    for (auto& w : warps_) {
      alive += w.state != State::kDone;
      if (w.state != State::kWaiting || w.arrival.id != id) continue;
      here.push_back(&w);
      threads += kLanes;
      votes += static_cast<uint32_t>(std::popcount(w.arrival.votes));
      lanes += static_cast<uint32_t>(std::popcount(w.arrival.here));
    }
    if (here.empty()) return 0;
    const uint32_t named = here.front()->arrival.threads, wanted = named ? named : alive * kLanes;
    for (const Warp* w : here) {
      if (w->arrival.threads != named) fail("warps name several numbers of threads", *w);
      if (named == 0 && w->arrival.pc != here.front()->arrival.pc) {
        fail("divergent barrier: warps wait at several places", *w);
      }
    }
    if (threads < wanted) return 0;
    if (threads > wanted) fail("more threads than the barrier takes", *here.front());
    block_.arrived[static_cast<size_t>(id)] = 0;
    block_.shared.next_epoch();
    for (Warp* w : here) go_on(*w, votes, lanes);
    return here.size();
  }

  static void go_on(Warp& w, uint32_t votes, uint32_t lanes) {
    const Arrival& a = w.arrival;
    const bool truth = a.kind == 2 ? votes == lanes : votes > 0;
    if (a.kind == 1) {
      each_lane(a.here, [&](int l) { put<uint32_t>(w.registers + a.to, l, votes); });
    } else if (a.kind > 1) {
      w.predicate(a.to) = (w.predicate(a.to) & ~a.here) | (truth ? a.here : 0);
    }
    w.state = State::kRunning;
  }

  Kernel& kernel_;
  const Options& options_;
  Size3 grid_, threads_, at_;
  size_t dynamic_;
  std::mt19937 random_;
  std::vector<uint64_t> counts_;
  uint64_t executed_ = 0;
  uint32_t thread_count_ = 0;
  Statistics statistics_;
  Block block_;
  std::vector<Warp> warps_;
  std::vector<std::vector<std::byte>> storage_;
};

/// The kernels of a PTX text, ready to run; one launch at a time.
class Module {
 public:
  Options options;

  explicit Module(const std::string& text) : text_(Reader(text).read()) {
    for (const auto& v : text_.variables) {
      if (v.space != "global" && v.space != "const") continue;
      auto& memory = memory_[v.name];
      memory.assign(std::max<size_t>(v.bytes, 1), std::byte{0});
      std::copy(v.initial.begin(), v.initial.end(), memory.begin());
      addresses_[v.name] = reinterpret_cast<uint64_t>(memory.data());
      global_.allow(memory.data(), memory.size());
    }
    for (const auto& f : text_.functions) {
      if (!f.entry) continue;
      Compiler(text_, addresses_, kernels_[f.name]).compile(f);
      global_.allow(kernels_[f.name].arguments->data(), kernels_[f.name].arguments->size());
    }
  }
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  bool has(const std::string& kernel) const { return kernels_.count(kernel) > 0; }

  /// A variable of the module, or null.
  void* variable(const std::string& name) {
    const auto known = memory_.find(name);
    return known == memory_.end() ? nullptr : known->second.data();
  }

  /// From now on global memory is what was allowed, and accesses elsewhere throw.
  void allow(const void* pointer, size_t bytes) {
    global_.allow(pointer, bytes);
    global_.restrict(true);
  }

  /// Forgets what was allowed.
  void allow_everything() { global_.restrict(false); }

  /// Runs a kernel; the parameters are pointers to the values, as the driver takes them.
  Statistics run(const std::string& name, Size3 grid, Size3 block, size_t dynamic_shared_bytes,
                 void* const* parameters, unsigned seed = 1) {
    const auto kernel = kernels_.find(name);
    if (kernel == kernels_.end()) throw Error("ptx: no kernel " + name);
    size_t i = 0;
    for (const auto& [offset, bytes] : kernel->second.parameters) {
      std::memcpy(kernel->second.arguments->data() + offset, parameters[i++], bytes);
    }
    return Launch(kernel->second, global_, options, grid, block, dynamic_shared_bytes, seed).run();
  }

 private:
  Text text_;
  std::map<std::string, std::vector<std::byte>> memory_;
  Addresses64 addresses_;
  std::map<std::string, Kernel> kernels_;
  Global global_;
};

}  // namespace attzoo::ptx

#pragma once
/// \file
/// Which blocks a query of BigBird attends to.

#include <attzoo/module/token_blocks.hpp>

namespace attzoo::core {

/// The blocks that queries of each block attend to: those around it, the global ones, and random
/// ones.
struct BigBirdPattern {
  TokenBlocks blocks;
  /// bool [rows, heads, blocks, blocks], which add up: one, or one for each time that a block may
  /// be named.
  std::vector<torch::Tensor> parts;

  /// With `num_random` blocks for each, drawn by `seed`; or those `given`, integers
  /// [heads or 1, blocks - 2 or 1, n], counted from the begin of a sequence. Causal, the last block
  /// is a block like others, and random ones are drawn of earlier ones, so that nothing depends on
  /// how long the sequence will be. `repeats`: a block that is given again counts again.
  BigBirdPattern(const Heads& heads, int64_t block_size, int64_t num_random, uint64_t seed,
                 const torch::Tensor& given, bool causal, bool repeats);
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <algorithm>
#include <set>
#include <string>

namespace attzoo::core {

/// Random bits of a state (Steele, Lea, Flood, 2014: SplitMix64).
inline uint64_t next_random(uint64_t& state) {
  uint64_t x = state += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

/// `count` of the numbers below n that are not `taken` (ascending), each equally often; all of them
/// where there are fewer.
inline std::vector<int64_t> draw_blocks(int64_t n, const std::vector<int64_t>& taken, int64_t count,
                                        uint64_t state) {
  const int64_t left = n - static_cast<int64_t>(taken.size());
  std::set<int64_t> drawn;  // Floyd's way: of the numbers below j + 1 a new one, or j
  for (int64_t j = std::max<int64_t>(0, left - count); j < left; ++j) {
    const auto any = static_cast<int64_t>(next_random(state) % static_cast<uint64_t>(j + 1));
    if (!drawn.insert(any).second) drawn.insert(j);
  }
  std::vector<int64_t> out;
  for (int64_t number : drawn) {  // of those that are not taken
    for (const int64_t t : taken) number += t <= number;
    out.push_back(number);
  }
  return out;
}

ATTZOO_API BigBirdPattern::BigBirdPattern(const Heads& heads, int64_t block_size,
                                          int64_t num_random, uint64_t seed,
                                          const torch::Tensor& given, bool causal, bool repeats)
    : blocks(heads, block_size) {
  const int64_t n = blocks.count(), H = given.defined() ? given.size(0) : heads.q.size(1);
  if (given.defined()) num_random = given.size(2);
  for (int64_t i = 0; i <= (repeats ? num_random : 0); ++i) {
    parts.push_back(torch::zeros({blocks.rows(), H, n, n}, torch::kBool));
  }
  for (const auto& s : blocks.sequences()) {
    const int64_t end = s.blocks - 1;
    TORCH_CHECK_VALUE(!given.defined() || given.size(1) == 1 || given.size(1) == s.blocks - 2,
                      "BigBirdSelfAttention: set_random_blocks gave blocks for ", given.size(1),
                      " blocks of queries, all but the first and the last; a sequence of ",
                      s.tokens, " tokens has ", s.blocks, " blocks of ", block_size);
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t i = 0; i < s.blocks; ++i) {
        const auto choose = [&](int64_t j, size_t part = 0) {
          const int64_t row = (s.row * H + h) * n + s.first + i;
          parts[part].mutable_data_ptr<bool>()[row * n + s.first + j] = true;
        };
        if (i == 0 || (i == end && !causal)) {
          for (int64_t j = 0; j < s.blocks; ++j) choose(j);
          continue;
        }
        const std::set<int64_t> near =
            causal ? std::set<int64_t>{0, i - 1, i} : std::set<int64_t>{0, i - 1, i, i + 1, end};
        for (const int64_t j : near) choose(j);
        const std::vector<int64_t> taken(near.begin(), near.end());
        std::vector<int64_t> drawn;
        if (!given.defined()) {
          uint64_t state = seed;
          for (const int64_t x : {h, i}) state = next_random(state) ^ static_cast<uint64_t>(x);
          drawn = draw_blocks(causal ? i + 1 : s.blocks, taken, num_random, state);
        } else if (given.size(1) == 1 || i < end) {
          const auto own = given[h][given.size(1) == 1 ? 0 : i - 1];
          drawn.assign(own.const_data_ptr<int64_t>(), own.const_data_ptr<int64_t>() + num_random);
        }
        for (size_t r = 0; r < drawn.size(); ++r) {
          const bool is_there = drawn[r] < s.blocks;
          TORCH_CHECK_VALUE(is_there || causal,
                            "BigBirdSelfAttention: set_random_blocks gave block ", drawn[r],
                            ", a sequence of ", s.tokens, " tokens has ", s.blocks);
          if (is_there) choose(drawn[r], repeats ? r + 1 : 0);
        }
      }
    }
  }
}

}  // namespace attzoo::core

#endif

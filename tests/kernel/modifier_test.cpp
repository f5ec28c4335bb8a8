#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <attzoo/kernel/attention/schedule.hpp>

#include "modifiers.hpp"

namespace attzoo::kernel {
namespace {

/// The promise of `reach`: what it leaves out is forbidden, what it calls full is allowed.
void check_reach(const AnyMask& mask, int L, int S, const char* what) {
  std::mt19937 random(7);
  const int stride = mask.mask.stride;
  for (int trial = 0; trial < 60; ++trial) {
    const int b = trial % 2, begin = static_cast<int>(random() % static_cast<unsigned>(L));
    const int end = begin + 1 + static_cast<int>(random() % static_cast<unsigned>(L - begin));
    Segments segments;
    reach(mask.mask, {b, 0, begin, end, S, stride}, segments);
    for (int kv = 0; kv < S; ++kv) {
      Cover cover = Cover::kEmpty;
      for (const auto& s : segments) {
        if (kv >= s.begin && kv < s.end) cover = s.cover;
      }
      for (int q = begin; q < end; q += stride) {
        if ((q + S - L - kv) % stride != 0) continue;  // another residue: never asked
        const bool may = mask.pair(b, 0, q, kv);
        ASSERT_FALSE(cover == Cover::kEmpty && may) << what << " q " << q << " kv " << kv;
        ASSERT_FALSE(cover == Cover::kFull && !may) << what << " q " << q << " kv " << kv;
      }
    }
    int last = 0;
    for (const auto& s : segments) {
      ASSERT_TRUE(s.begin >= last && s.begin < s.end && s.end <= S) << what;
      last = s.end;
    }
  }
}

/// On tiles: what is said of its pairs, lane by lane and key by key.
void check_allowed(const AnyMask& mask, int L, int S, const char* what) {
  std::mt19937 random(8);
  for (const int lanes : {16, 32, 64}) {
    std::vector<int> q;
    for (int i = 0; i < lanes; ++i)
      q.push_back(static_cast<int>(random() % static_cast<unsigned>(L)));
    for (const int keys : {1, 7, S / 3}) {
      const TilePosition t{1, 0, q.data(), lanes, 2, 2, keys, true};
      std::vector<uint8_t> out(static_cast<size_t>(t.size()) + 1, 7);
      allowed(mask.mask, t, out.data());
      for (int j = 0; j < keys; ++j) {
        for (int i = 0; i < lanes; ++i) {
          const int got = out[static_cast<size_t>(j * lanes + i)];
          ASSERT_EQ(got, mask.pair(1, 0, q[static_cast<size_t>(i)], 2 + 2 * j))
              << what << " lanes " << lanes << " lane " << i << " key " << j;
        }
      }
      ASSERT_EQ(out.back(), 7) << what;
    }
  }
}

void check_mask(const AnyMask& mask, int L, int S, const char* what) {
  check_reach(mask, L, S, what);
  check_allowed(mask, L, S, what);
}

std::vector<uint8_t> random_flags(int n, double share) {  // of two sequences
  std::mt19937 random(3);
  std::bernoulli_distribution set(share);
  std::vector<uint8_t> flags(static_cast<size_t>(2 * n));
  for (auto& flag : flags) flag = set(random);
  return flags;
}

/// Key padding: a dense mask that says which keys it leaves.
AnyMask key_mask(const std::vector<uint8_t>& set, int n) {
  const auto* data = reinterpret_cast<const bool*>(set.data());
  return mask_of(DenseMask{data, n, 0, 0, 1, std::make_shared<Flags>(data, 2, n)});
}

std::shared_ptr<const DocumentTable> table_of(const std::vector<int64_t>& ids, int batch) {
  return std::make_shared<DocumentTable>(ids.data(), batch, static_cast<int>(ids.size()) / batch);
}

/// Runs of random length; with equal numbers together, and coming back.
void check_documents(int L, int S, double share) {
  std::mt19937_64 random(4);
  std::bernoulli_distribution border(share);
  for (const int64_t numbers : {int64_t{3}, std::numeric_limits<int64_t>::max()}) {
    std::uniform_int_distribution<int64_t> any(-numbers, numbers);
    for (const int batch : {1, 2}) {
      std::vector<int64_t> ids;
      for (int i = 0; i < batch * S; ++i)
        ids.push_back(i == 0 || border(random) ? any(random) : ids.back());
      const auto documents = mask_of(Documents{S - L, table_of(ids, batch)});
      check_mask(documents, L, S, "documents");
      check_mask(mask_of(CallableMask{Dilated{3}, S - L}) && documents, L, S, "dilated documents");
    }
  }
}

TEST(Masks, DocumentsReachNoOthers) {
  std::vector<int64_t> ids(1'000'000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = -static_cast<int64_t>(i / 1000) << 40;
  const Documents documents{0, table_of(ids, 2)};
  Segments segments;
  documents.reach({1, 0, 4096, 4160, 500'000}, segments);
  ASSERT_EQ(segments.size(), 1u);
  EXPECT_EQ(segments[0].begin, 4000);
  EXPECT_EQ(segments[0].end, 5000);
  EXPECT_EQ(segments[0].cover, Cover::kFull);
}

TEST(Masks, KeepTheirPromises) {
  for (const auto& [L, S] : {std::pair{70, 70}, {40, 90}, {90, 40}}) {
    const int shift = S - L;
    const auto causal = mask_of(CallableMask{Window{1 << 30, 0}, shift}),
               local = mask_of(CallableMask{Window{9, 4}, shift});
    const auto prefix = mask_of(CallableMask{Prefix{13}, 0}),
               third = mask_of(CallableMask{Dilated{3}, shift});
    check_mask(everybody(), L, S, "everybody");
    check_mask(causal, L, S, "causal");
    check_mask(local, L, S, "window");
    check_mask(mask_of(CallableMask{Causal(), shift}), L, S, "causal by name");
    check_mask(mask_of(CallableMask{Dilated{4}, shift}), L, S, "dilated");
    check_mask(mask_of(CallableMask{Blocks{16, 16, 0, 1 << 30}, shift}), L, S, "blocks");
    check_mask(mask_of(CallableMask{Blocks{10, 14, 3, 40}, shift}), L, S, "blocks with gaps");
    check_mask(mask_of(CallableMask{Blocks{10, 14, 20, 1 << 30}, shift}), L, S, "blocks behind");
    check_mask(prefix, L, S, "prefix");
    for (const double share : {0.02, 0.5, 0.98}) {
      const auto set = random_flags(S, share);
      check_mask(key_mask(set, S), L, S, "key padding");
      if (shift < 0) continue;
      check_documents(L, S, share);
      const auto flags = std::make_shared<Flags>(reinterpret_cast<const bool*>(set.data()), 2, S);
      const auto global = mask_of(GlobalTokens{shift, flags, true, true});
      check_mask(global, L, S, "global tokens");
      check_mask(mask_of(GlobalTokens{shift, flags, true, false}), L, S, "global rows");
      check_mask(local || global, L, S, "or");
      const std::vector<int> bits{0x5, 0x90, 0x33, 0x7f, 0x102, 0x1, 0xff};  // [2, 1, rows..., 1]
      check_mask(mask_of(ChosenBlocks{bits.data(), 1, 0, 1, shift, (S - L) / 20, 1, 20, 10}), L, S,
                 "chosen blocks");
    }
    check_mask(third && local, L, S, "dilated window");
    check_mask(causal && (mask_of(CallableMask{Prefix{5}, 0}) ||
                          mask_of(CallableMask{Blocks{8, 8, 0, 1 << 30}, shift})),
               L, S, "nested");
    check_mask(!(local || prefix), L, S, "not");
    check_mask((third && local) || prefix, L, S, "dilated within or");
    check_mask(!everybody(), L, S, "nobody");
    check_mask(everybody() && local, L, S, "everybody and");
    check_mask(everybody() || local, L, S, "everybody or");
  }
}

/// Windows of k tokens at the distance d, which stop at the borders or look back alone.
GridAxis window_of(int n, int k, int d, bool causal = false) {
  if (causal) return {n, (k - 1) * d, 0, d, 0, n};
  return {n, k / 2 * d, k / 2 * d, d, k * d, n - k * d};
}

TEST(Masks, NeighborhoodsKeepTheirPromises) {
  for (const int d : {1, 2, 3}) {
    for (const bool causal : {false, true}) {
      const auto a = window_of(70, 5, d, causal), b = window_of(3, 5, 1), c = window_of(6, 3, d);
      for (const auto& [L, S] : {std::pair{70, 70}, {90, 70}, {20, 70}}) {
        check_mask(mask_of(CallableMask{Neighborhood1{{a}}, S - L}), L, S, "of a row");
      }
      for (const int L : {210, 100}) {
        check_mask(mask_of(CallableMask{Neighborhood2{{a, b}}, 210 - L}), L, 210, "narrow");
        check_mask(mask_of(CallableMask{Neighborhood2{{b, a}}, 210 - L}), L, 210, "wide");
      }
      const auto grid = mask_of(CallableMask{Neighborhood2{{window_of(9, 3, 2, causal), c}}, 0});
      check_mask(grid, 54, 54, "of a grid");
      check_mask(grid && mask_of(CallableMask{Dilated{3}, 0}), 54, 54, "dilated grid");
      check_mask(mask_of(CallableMask{Neighborhood3{{c, window_of(5, 3, 1, causal), c}}, 0}), 180,
                 180, "of a block");
    }
  }
}

TEST(Masks, NeighborhoodsReachWhatTheySee) {
  const Neighborhood2 grid{{window_of(64, 7, 1), window_of(64, 7, 1)}};
  Segments segments;
  grid.reach({0, 0, 640, 704, 4096}, segments);  // a row
  ASSERT_EQ(segments.size(), 1u);
  EXPECT_EQ(segments[0].begin, 7 * 64);
  EXPECT_EQ(segments[0].end, 14 * 64);
  segments.clear();
  grid.reach({0, 0, 640 + 20, 640 + 24, 4096}, segments);
  ASSERT_EQ(segments.size(), 7u * 3);  // of every row seven to ten keys, of which all see four
  EXPECT_EQ(segments[1].begin, 7 * 64 + 20);
  EXPECT_EQ(segments[1].end, 7 * 64 + 24);
  EXPECT_EQ(segments[1].cover, Cover::kFull);
}

TEST(Masks, OfTilesReachWhatTheySay) {
  constexpr int kTile = 16, L = 40, S = 50;
  const auto pairs = [](auto, auto, auto q, auto kv) { return kv < 16 || (q >= 32 && kv > q); };
  const auto mask = mask_of(CallableMask{pairs, 0});
  TileCover tiles{kTile, 1, 1, 3, 4, {}};
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < 4; ++column) {
      int may = 0, all = 0;
      for (int q = row * kTile; q < std::min(L, (row + 1) * kTile); ++q) {
        for (int kv = column * kTile; kv < std::min(S, (column + 1) * kTile); ++kv) {
          ++all;
          may += mask.pair(0, 0, q, kv);
        }
      }
      tiles.cover.push_back(may == 0 ? Cover::kEmpty : may == all ? Cover::kFull : Cover::kPartial);
    }
  }
  const auto shared = std::make_shared<TileCover>(tiles);
  check_mask({tiled(mask.mask, shared), mask.pair}, L, S, "tiled");
  Segments segments;
  reach(tiled(mask.mask, shared), {0, 0, 3, 16, S}, segments);
  ASSERT_EQ(segments.size(), 1u);
  EXPECT_EQ(segments[0].end, 16);
  EXPECT_EQ(segments[0].cover, Cover::kFull);
}

TEST(Masks, SchedulesCostWhatTheyVisit) {
  // A window's schedule has as many tiles at a million keys as at a thousand.
  std::vector<KeyTile> tiles;
  Segments segments;
  Window{64, 64}.reach({0, 0, 500'000, 500'064, 1'000'000}, segments);
  cut(segments, 0, 1, 48, 1, tiles);
  EXPECT_EQ(tiles.size(), 4u);
  // A dilation walks one residue alone.
  segments.clear();
  const auto dilated =
      mask_of(CallableMask{Dilated{100}, 0}) && mask_of(CallableMask{Window{1000, 1000}, 0});
  reach(dilated.mask, {0, 0, 5007, 5008, 100'000, 100}, segments);
  cut(segments, 7, 100, 48, 1, tiles);
  ASSERT_EQ(tiles.size(), 1u);
  EXPECT_EQ(tiles[0].begin, 4007);
  EXPECT_EQ(tiles[0].count, 21);
  EXPECT_FALSE(tiles[0].partial);
}

TEST(Masks, TilesCoverTheSegmentsOnce) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 300; ++trial) {
    const int S = 1 + static_cast<int>(random() % 300), stride = 1 + static_cast<int>(random() % 5);
    const int residue = static_cast<int>(random() % static_cast<unsigned>(stride));
    Segments segments;
    for (int at = 0; at < S;) {
      const int length = 1 + static_cast<int>(random() % 40);
      append(segments, at, at + length, static_cast<Cover>(random() % 3), S);
      at += length;
    }
    std::vector<KeyTile> tiles;
    cut(segments, residue, stride, 16, 1, tiles);
    std::vector<int> visits(static_cast<size_t>(S), 0), full(static_cast<size_t>(S), 0);
    for (const auto& t : tiles) {
      EXPECT_LE(t.count, 16);
      for (int i = 0; i < t.count; ++i) {
        ++visits[static_cast<size_t>(t.begin + i * stride)];
        full[static_cast<size_t>(t.begin + i * stride)] = !t.partial;
      }
    }
    for (int kv = 0; kv < S; ++kv) {
      Cover cover = Cover::kEmpty;
      for (const auto& s : segments) {
        if (kv >= s.begin && kv < s.end) cover = s.cover;
      }
      const bool wanted = kv % stride == residue && cover != Cover::kEmpty;
      EXPECT_EQ(visits[static_cast<size_t>(kv)], wanted ? 1 : 0);
      if (wanted && cover == Cover::kPartial) {
        EXPECT_FALSE(full[static_cast<size_t>(kv)]);
      }
    }
  }
}

/// f(f(s)) and its derivative are those of the parts, whatever else is in the chain.
TEST(Scores, ChainsMultiplyTheirSlopes) {
  int q[16];
  for (int i = 0; i < 16; ++i) q[i] = i;
  const TilePosition t{0, 0, q, 16, 3, 2, 2, true};
  const auto score = score_of<double>(Softcap{2}) + unchanged<double>() +
                     score_of<double>(CallableScore{
                         [](auto s, auto, auto, auto at, auto kv) { return s * s - at * kv; }, 5});
  double s[32], slope[32];
  for (int i = 0; i < 32; ++i) {
    s[i] = 0.3 * i - 4;
    slope[i] = i;
  }
  score.score.modify(score.score.self.get(), t, s, slope);
  for (int i = 0; i < 32; ++i) {
    const auto want = score.pair(Dual<double>(0.3 * i - 4, 1), Index{0}, Index{0}, Index{i % 16},
                                 Index{3 + i / 16 * 2});
    EXPECT_NEAR(s[i], want.v, 1e-12);
    EXPECT_NEAR(slope[i], i * want.d, 1e-12);
  }
}

/// The slope of a score at s, of a query.
template <class T>
T slope_at(const AnyScore<T>& score, T s, int query) {
  const std::vector<int> q(16, query);
  std::vector<T> scores(16, s), slopes(16, 1);
  const TilePosition t{0, 0, q.data(), 16, 0, 1, 1, true};
  score.score.modify(score.score.self.get(), t, scores.data(), slopes.data());
  return slopes[7];
}

/// What does not change changes nothing: neither a constant beside a score of -inf, nor what
/// where() left out.
template <class T>
void check_slopes_at_infinity() {
  const T inf = std::numeric_limits<T>::infinity();
  const auto times =
      score_of<T>(CallableScore{[](auto s, auto, auto, auto, auto) { return s * 3.0 / 2 - 1; }, 0});
  EXPECT_NEAR(slope_at(times, -inf, 0), 1.5, 1e-6);
  EXPECT_NEAR(slope_at(score_of<T>(Softcap{30}), -inf, 0), 0, 1e-6);
  const auto left_out = score_of<T>(CallableScore{
      [](auto s, auto, auto, auto q, auto) { return where(q == 0, s, -INFINITY); }, 0});
  const auto sigmoid_by_hand = score_of<T>(
      CallableScore{[](auto s, auto, auto, auto, auto) { return 1 / (1 + exp(-s)); }, 0});
  for (const auto& then : {times, score_of<T>(Softcap{30}), sigmoid_by_hand}) {
    EXPECT_EQ(slope_at(left_out + then, T(2), 1), 0);
    EXPECT_NEAR(slope_at(left_out + then, T(2), 0), slope_at(then, T(2), 0), 1e-6);
  }
}
TEST(Scores, ConstantsHaveNoPartInSlopes) {
  check_slopes_at_infinity<float>();
  check_slopes_at_infinity<double>();
}

/// A chain's tensors are numbered in order.
TEST(Scores, ChainsCollectInOrder) {
  int q[16];
  for (int i = 0; i < 16; ++i) q[i] = i;
  const TilePosition t{0, 0, q, 16, 2, 3, 2, true};  // the keys 2 and 5
  const double slopes[] = {0.5};
  const auto alibi = make_score<double>(AlibiOfTensor<double>{{{slopes, 1}}, 0});
  const double nothing[] = {0};
  const auto bias = make_score<double>(Bias<double>{nothing, 0, 0, 0, 0});
  const auto score = chain(chain(alibi, bias), chain(make_score<double>(Softcap{3}), alibi));
  ASSERT_EQ(score.tensors, 3);
  double s[32], ds[32], sums[3] = {};
  for (int i = 0; i < 32; ++i) s[i] = 0.25 * i, ds[i] = i % 16 < 12 ? 1 : 0;
  TensorGradient<double> to[3];
  for (int i = 0; i < 3; ++i) to[i].data = sums + i;
  score.collect(score.self.get(), t, 14, s, ds, to);
  double first = 0, second = 0, last = 0;
  for (int i = 0; i < 32; ++i) {
    if (i % 16 >= 12) continue;
    const double distance = std::abs(i % 16 - (i < 16 ? 2 : 5));
    const double y = std::tanh((0.25 * i - 0.5 * distance) / 3), slope = 1 - y * y;
    EXPECT_NEAR(ds[i], slope, 1e-12);
    first -= slope * distance;
    second += slope;
    last -= distance;
  }
  EXPECT_NEAR(sums[0], first, 1e-12);
  EXPECT_NEAR(sums[1], second, 1e-12);
  EXPECT_NEAR(sums[2], last, 1e-12);
  for (double& x : ds) x = 1;
  sums[0] = 0;
  alibi.collect(alibi.self.get(), t, 12, s, ds, to);  // not key by key, as in a chain
  EXPECT_NEAR(sums[0], last, 1e-12);
}

}  // namespace
}  // namespace attzoo::kernel

#include <gtest/gtest.h>
#include <attzoo/kernel/masks.hpp>

#include <limits>
#include <random>

namespace attzoo::kernel {
namespace {

/// The promise of `reach`: what it leaves out is forbidden, what it calls full is allowed.
template <class Mask>
void check_reach(const Mask& mask, int L, int S, const char* what) {
  std::mt19937 random(7);
  const int stride = stride_of(mask);
  for (int trial = 0; trial < 60; ++trial) {
    const int b = trial % 2, begin = static_cast<int>(random() % static_cast<unsigned>(L));
    const int end = begin + 1 + static_cast<int>(random() % static_cast<unsigned>(L - begin));
    Segments segments;
    mask.reach({b, 0, begin, end, S, stride}, segments);
    for (int kv = 0; kv < S; ++kv) {
      Cover cover = Cover::kEmpty;
      for (const auto& s : segments) {
        if (kv >= s.begin && kv < s.end) cover = s.cover;
      }
      for (int q = begin; q < end; q += stride) {
        if ((q + S - L - kv) % stride != 0) continue;  // another residue: never asked
        const bool allowed = mask(b, 0, q, kv);
        ASSERT_FALSE(cover == Cover::kEmpty && allowed) << what << " q " << q << " kv " << kv;
        ASSERT_FALSE(cover == Cover::kFull && !allowed) << what << " q " << q << " kv " << kv;
      }
    }
    int last = 0;
    for (const auto& s : segments) {
      ASSERT_TRUE(s.begin >= last && s.begin < s.end && s.end <= S) << what;
      last = s.end;
    }
  }
}

std::shared_ptr<const Flags> random_flags(int batch, int n, double share, unsigned seed) {
  std::mt19937 random(seed);
  std::bernoulli_distribution set(share);
  const auto flags = std::make_unique<bool[]>(static_cast<size_t>(batch * n));
  for (int i = 0; i < batch * n; ++i) flags[static_cast<size_t>(i)] = set(random);
  return std::make_shared<Flags>(flags.get(), batch, n);
}

/// Key padding, as DenseMask schedules it.
struct KeyMask {
  std::shared_ptr<const Flags> flags;
  bool operator()(int b, int, int, int kv) const { return flags->at(b, kv); }
  void reach(const Rows& r, Segments& out) const {
    DenseMask{nullptr, 0, 0, 0, 0, flags}.reach(r, out);
  }
};

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
      const Documents documents{S - L, table_of(ids, batch)};
      check_reach(documents, L, S, "documents");
      check_reach(MaybeDocuments{documents}, L, S, "given documents");
      check_reach(And<Dilated, Documents>{{S - L, 3}, documents}, L, S, "dilated documents");
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

TEST(Masks, ReachKeepsItsPromise) {
  for (const auto& [L, S] : {std::pair{70, 70}, {40, 90}, {90, 40}}) {
    const int shift = S - L;
    const Window causal{shift, 1 << 30, 0}, local{shift, 9, 4};
    check_reach(Full{}, L, S, "full");
    check_reach(causal, L, S, "causal");
    check_reach(local, L, S, "window");
    check_reach(Dilated{shift, 4}, L, S, "dilated");
    check_reach(Blocks{shift, 16, 16, 0, 1 << 30}, L, S, "blocks");
    check_reach(Blocks{shift, 10, 14, 3, 40}, L, S, "blocks with gaps");
    check_reach(Prefix{13}, L, S, "prefix");
    check_reach(MaybeDocuments{}, L, S, "no documents");
    for (const double share : {0.02, 0.5, 0.98}) {
      const auto flags = random_flags(2, S, share, 3);
      check_reach(KeyMask{flags}, L, S, "key padding");
      if (shift >= 0) {
        check_documents(L, S, share);
        check_reach(GlobalTokens{shift, flags, true, true}, L, S, "global tokens");
        check_reach(GlobalTokens{shift, flags, true, false}, L, S, "global rows");
        check_reach(Or<Window, GlobalTokens>{local, {shift, flags, true, true}}, L, S, "or");
      }
    }
    check_reach(And<Dilated, Window>{{shift, 3}, local}, L, S, "dilated window");
    check_reach(And<Window, Or<Prefix, Blocks>>{causal, {{5}, {shift, 8, 8, 0, 1 << 30}}}, L, S,
                "nested");
    check_reach(Not<Or<Window, Prefix>>{{local, {13}}}, L, S, "not");
    check_reach(Or<And<Dilated, Window>, Prefix>{{{shift, 3}, local}, {4}}, L, S,
                "dilated within or");
  }
}

TEST(Masks, SchedulesCostWhatTheyVisit) {
  // A window's schedule has as many tiles at a million keys as at a thousand.
  std::vector<KeyTile> tiles;
  Segments segments;
  Window{0, 64, 64}.reach({0, 0, 500'000, 500'064, 1'000'000}, segments);
  cut(segments, 0, 1, 48, 1, tiles);
  EXPECT_EQ(tiles.size(), 4u);
  // A dilation walks one residue alone.
  segments.clear();
  And<Dilated, Window>{{0, 100}, {0, 1000, 1000}}.reach({0, 0, 5007, 5008, 100'000, 100}, segments);
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

}  // namespace
}  // namespace attzoo::kernel

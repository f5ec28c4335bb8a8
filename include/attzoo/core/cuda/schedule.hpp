#pragma once
/// \file
/// Which tiles of a problem's pairs the blocks of a kernel visit, found on the host by what the
/// mask says that it reaches.

#include <attzoo/config.hpp>
#include <attzoo/core/checks.hpp>
#include <attzoo/kernel/modifier/modifier.hpp>

#include <vector>

namespace attzoo::core {

/// What is asked of a schedule.
struct ScheduleOrder {
  int queries, keys;       // of a tile
  bool rows_are_keys;      // else they are queries
  bool by_batch, by_head;  // whether the mask differs there
  int shared_heads = 0;    // more than 0: the rows are all queries of so many heads
  int parts = 1;           // of the columns, in turn for each row
};

/// Entries and segments as cuda::Schedule has them.
struct HostSchedule {
  std::vector<int> entries, segments;
  int count = 0;  // entries for each batch and head that differ
  int by_batch = 0, by_head = 0;
  int step = 1;        // at which rows and columns that meet lie
  int most_tiles = 0;  // that an entry has
};
ATTZOO_API HostSchedule make_schedule(const kernel::Mask& mask, const Shape& n,
                                      const ScheduleOrder& order);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <algorithm>
#include <cstdint>

namespace attzoo::core {

class Scheduler {
 public:
  Scheduler(const kernel::Mask& mask, const Shape& n, const ScheduleOrder& order)
      : mask_(mask), n_(n), order_(order) {
    made_.step = order.shared_heads > 0 ? 1 : std::max(1, mask.stride);
  }

  HostSchedule run() {
    const int heads = order_.shared_heads > 0 ? order_.shared_heads : 1;
    const int batches = order_.by_batch ? static_cast<int>(n_.B) : 1;
    const int classes = order_.by_head ? static_cast<int>(n_.H) / heads : 1;
    for (int b = 0; b < batches; ++b) {
      for (int h = 0; h < classes; ++h) {
        made_.count = 0;
        for (int residue = 0; residue < made_.step; ++residue) add_residue(b, h * heads, residue);
      }
    }
    // The kernel counts heads, of which those that share keys have one entry.
    made_.by_batch = order_.by_batch ? classes : 0;
    made_.by_head = order_.by_head ? 1 : 0;
    return std::move(made_);
  }

 private:
  /// How many of the places first, first + step, ... there are before `end`.
  int count_of(int first, int64_t end) const {
    return first < end ? static_cast<int>((end - first + made_.step - 1) / made_.step) : 0;
  }
  static int tiles_of(int places, int size) { return (places + size - 1) / size; }

  /// The queries of a residue, and the keys that lie where they do.
  void add_residue(int b, int h, int residue) {
    const int first_key =
        static_cast<int>(((residue + n_.S - n_.L) % made_.step + made_.step) % made_.step);
    const int queries = count_of(residue, n_.L), keys = count_of(first_key, n_.S);
    const int query_tile = order_.shared_heads > 0 ? static_cast<int>(n_.L) : order_.queries;
    const int rows = tiles_of(queries, query_tile), columns = tiles_of(keys, order_.keys);
    std::vector<kernel::Cover> cover(static_cast<size_t>(rows) * static_cast<size_t>(columns),
                                     kernel::Cover::kEmpty);
    const auto at = [&](int row, int column) -> kernel::Cover& {
      return cover[static_cast<size_t>(row) * static_cast<size_t>(columns) +
                   static_cast<size_t>(column)];
    };
    for (int row = 0; row < rows; ++row) {
      const int begin = residue + row * query_tile * made_.step;
      const int end =
          static_cast<int>(std::min<int64_t>(n_.L, begin + int64_t{query_tile} * made_.step));
      for (const auto& s : reached(b, h, begin, end)) {
        const int from = count_of(first_key, s.begin), to = count_of(first_key, s.end);
        for (int column = from / order_.keys; column * order_.keys < to; ++column) {
          const bool whole =
              from <= column * order_.keys && std::min(keys, (column + 1) * order_.keys) <= to;
          at(row, column) = whole ? s.cover : kernel::Cover::kPartial;
        }
      }
    }
    if (order_.rows_are_keys) {
      for (int column = 0; column < columns; ++column) {
        add_entries(first_key + column * order_.keys * made_.step, rows,
                    [&](int row) { return at(row, column); });
      }
    } else {
      for (int row = 0; row < rows; ++row) {
        add_entries(residue + row * query_tile * made_.step, columns,
                    [&](int column) { return at(row, column); });
      }
    }
  }

  /// What queries of a head reach; of heads that share keys, what one of them does.
  kernel::Segments reached(int b, int h, int begin, int end) const {
    const int S = static_cast<int>(n_.S);
    kernel::Segments all;
    kernel::reach(mask_, {b, h, begin, end, S, made_.step}, all);
    if (!order_.by_head) return all;
    for (int other = 1; other < order_.shared_heads; ++other) {
      kernel::Segments more;
      kernel::reach(mask_, {b, h + other, begin, end, S, made_.step}, more);
      // Full is what is full for all of them.
      all = kernel::combine(all, more, S, [](kernel::Cover x, kernel::Cover y) {
        return x == y ? x : kernel::Cover::kPartial;
      });
    }
    return all;
  }

  template <class CoverOf>
  void add_entries(int first, int tiles, CoverOf cover_of) {
    int visited = 0;
    for (int i = 0; i < tiles; ++i) visited += cover_of(i) != kernel::Cover::kEmpty;
    made_.most_tiles = std::max(made_.most_tiles, visited);
    int tile = 0;
    for (int part = 0; part < order_.parts; ++part) {
      const int begin = segments(),
                until = static_cast<int>(int64_t{visited} * (part + 1) / order_.parts);
      int left = until - static_cast<int>(int64_t{visited} * part / order_.parts);
      for (; left > 0; ++tile) {
        const auto cover = cover_of(tile);
        if (cover == kernel::Cover::kEmpty) continue;
        add_tile(tile, cover == kernel::Cover::kPartial, segments() == begin);
        --left;
      }
      for (const int x : {first, begin, segments(), part}) made_.entries.push_back(x);
      ++made_.count;
    }
  }
  int segments() const { return static_cast<int>(made_.segments.size() / 3); }
  void add_tile(int tile, bool asks, bool is_first) {
    auto& s = made_.segments;
    if (!is_first && s[s.size() - 2] == tile && s.back() == static_cast<int>(asks)) {
      ++s[s.size() - 2];
    } else {
      for (const int x : {tile, tile + 1, static_cast<int>(asks)}) s.push_back(x);
    }
  }

  const kernel::Mask& mask_;
  const Shape& n_;
  const ScheduleOrder& order_;
  HostSchedule made_;
};

ATTZOO_API HostSchedule make_schedule(const kernel::Mask& mask, const Shape& n,
                                      const ScheduleOrder& order) {
  return Scheduler(mask, n, order).run();
}

}  // namespace attzoo::core

#endif

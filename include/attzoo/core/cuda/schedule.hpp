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

  /// Tiles [first, end) of a row or a column, whose pairs are asked or not.
  struct Run {
    int first, end;
    bool asks;
  };
  using Runs = std::vector<Run>;
  /// A tile that is there already is one of which parts are reached.
  static void append(Runs& runs, int first, int end, bool asks) {
    if (!runs.empty()) first = std::max(first, runs.back().end);
    if (first >= end) return;
    if (!runs.empty() && runs.back().end == first && runs.back().asks == asks) {
      runs.back().end = end;
    } else {
      runs.push_back({first, end, asks});
    }
  }
  /// The tiles of `size` out of so many keys that the keys [begin, end) lie in.
  static void append_keys(Runs& runs, int begin, int end, bool asks, int size, int keys) {
    if (begin >= end) return;
    const int first = begin / size, last = (end - 1) / size;
    const bool whole_first = begin % size == 0, whole_last = end % size == 0 || end == keys;
    if (!whole_first) append(runs, first, first + 1, true);
    append(runs, first, last + (whole_last ? 1 : 0), asks);
    append(runs, last, last + 1, true);
  }

  /// The queries of a residue, and the keys that lie where they do.
  void add_residue(int b, int h, int residue) {
    const int first_key =
        static_cast<int>(((residue + n_.S - n_.L) % made_.step + made_.step) % made_.step);
    const int queries = count_of(residue, n_.L), keys = count_of(first_key, n_.S);
    const int query_tile = order_.shared_heads > 0 ? static_cast<int>(n_.L) : order_.queries;
    const int rows = tiles_of(queries, query_tile), columns = tiles_of(keys, order_.keys);
    std::vector<Runs> of_columns(order_.rows_are_keys ? static_cast<size_t>(columns) : 0);
    for (int row = 0; row < rows; ++row) {
      const int begin = residue + row * query_tile * made_.step;
      const int end =
          static_cast<int>(std::min<int64_t>(n_.L, begin + int64_t{query_tile} * made_.step));
      Runs runs;
      for (const auto& s : reached(b, h, begin, end)) {
        append_keys(runs, count_of(first_key, s.begin), count_of(first_key, s.end),
                    s.cover == kernel::Cover::kPartial, order_.keys, keys);
      }
      if (!order_.rows_are_keys) {
        add_entries(begin, runs);
        continue;
      }
      for (const auto& run : runs) {
        for (int column = run.first; column < run.end; ++column) {
          append(of_columns[static_cast<size_t>(column)], row, row + 1, run.asks);
        }
      }
    }
    for (int column = 0; order_.rows_are_keys && column < columns; ++column) {
      add_entries(first_key + column * order_.keys * made_.step,
                  of_columns[static_cast<size_t>(column)]);
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

  /// Those of one block, or of one for each part.
  void add_entries(int first, const Runs& runs) {
    int visited = 0;
    for (const auto& run : runs) visited += run.end - run.first;
    made_.most_tiles = std::max(made_.most_tiles, visited);
    const auto segments = [&] { return static_cast<int>(made_.segments.size() / 3); };
    const auto until = [&](int part) {
      return static_cast<int>(int64_t{visited} * part / order_.parts);
    };
    auto run = runs.begin();
    int tile = runs.empty() ? 0 : run->first;
    for (int part = 0; part < order_.parts; ++part) {
      const int begin = segments();
      for (int left = until(part + 1) - until(part); left > 0;) {
        const int end = std::min(run->end, tile + left);
        for (const int x : {tile, end, static_cast<int>(run->asks)}) made_.segments.push_back(x);
        left -= end - tile;
        tile = end == run->end && ++run != runs.end() ? run->first : end;
      }
      for (const int x : {first, begin, segments(), part}) made_.entries.push_back(x);
      ++made_.count;
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

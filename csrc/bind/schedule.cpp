// Cuts the runs of a plan into items of bounded work. A run is cut by its own rows and length only,
// at fixed positions: a sequence gets the same bits in any batch that shares nothing with it.
#include "schedule.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace spark {
namespace {

// more rows than this fill the machine without cutting the keys
constexpr int32_t kSplitRows = 256;

struct Work {
  SparkItem item;
  int64_t cost;
};

struct Scheduler {
  const std::vector<int32_t>& plan;
  const SparkScheduleOptions& options;
  SparkPlan header;
  SparkSchedule out{};
  std::vector<int32_t> order, parts, slots, first_token;
  std::vector<Work> work;

  const int32_t* at(int32_t offset) const { return plan.data() + offset; }
  int32_t sequence(int32_t place) const { return at(header.order)[place]; }
  int32_t length(int32_t place) const { return at(header.lengths)[sequence(place)]; }
  int32_t queries(int32_t place) const {
    const int32_t* starts = at(header.query_offsets) + sequence(place);
    return starts[1] - starts[0];
  }

  // lay out everything but the items, whose number is not known yet
  void place_arrays() {
    int32_t width = std::max(options.table_width, 1);
    const int32_t* tables = at(header.table_offsets);
    for (int32_t s = 0; s < header.num_sequences; ++s)
      width = std::max(width, tables[s + 1] - tables[s]);
    out.table_rows = std::max({options.table_rows, header.num_sequences, 1});
    out.table_width = width;
    out.order = static_cast<int32_t>(sizeof(SparkSchedule) / sizeof(int32_t)) +
                out.table_rows * out.table_width;
    out.parts = out.order + options.tokens;
    out.slots = out.parts + options.tokens;
    out.items = out.slots + options.tokens;
  }

  int32_t table(int32_t place) const {
    return static_cast<int32_t>(sizeof(SparkSchedule) / sizeof(int32_t)) +
           sequence(place) * out.table_width;
  }

  void order_tokens() {
    for (int32_t place = 0; place < header.num_sequences; ++place) {
      first_token.push_back(static_cast<int32_t>(order.size()));
      for (int32_t q = 0; q < queries(place); ++q)
        order.push_back(at(header.query_offsets)[sequence(place)] + q);
    }
    for (int32_t token = header.num_tokens; token < options.tokens; ++token) order.push_back(token);
    parts.assign(options.tokens, 0);
    slots.assign(options.tokens, 0);
  }

  int32_t keys_per_item(int32_t rows, int32_t keys) const {
    if (rows > kSplitRows) return std::max(keys, 1);
    int64_t step = rows <= options.small_rows ? options.small_keys : options.large_keys;
    while (step * options.most_parts < keys) step *= 2;
    return static_cast<int32_t>(step);
  }

  void add_run(const SparkRun& run) {
    int32_t rows = 0, longest = 0;
    for (int32_t i = run.first; i < run.first + run.count; ++i) {
      rows += queries(i) * options.group;
      longest = std::max(longest, length(i));
    }
    const bool own = run.count == 1;
    const int32_t begin = run.block_begin * header.block_size;
    const int32_t end =
        own ? longest : static_cast<int32_t>(int64_t{run.block_end} * header.block_size);
    const int32_t step = keys_per_item(rows, end - begin);
    int32_t splits = std::max((end - begin + step - 1) / step, 1);
    if (own && options.headroom) {
      // an empty item changes no bit, so that room for growth can be prepared
      splits = std::min((end - begin + options.headroom + step - 1) / step, options.most_parts);
      out.growth = std::min(out.growth, begin + splits * step - longest);
    }
    const int32_t first = first_token[run.first];
    const int32_t part = parts[order[first]];
    for (int32_t i = first; i < first + rows / options.group; ++i) parts[order[i]] += splits;
    const int32_t tile = rows <= options.small_rows ? options.small_rows : options.large_rows;
    for (int32_t s = 0; s < splits; ++s) {
      const int32_t from = begin + s * step, to = own && s + 1 == splits ? INT32_MAX : from + step;
      // the last rows of a prefill see the most keys; tiles that read the same keys are neighbours
      for (int32_t row = (rows - 1) / tile * tile; row >= 0; row -= tile) {
        const int32_t last = std::min(row + tile, rows);
        const int32_t unseen = own ? (rows - last) / options.group : 0;
        const int64_t keys = std::max(std::min(to, end - unseen) - from, 0);
        work.push_back({{table(run.first), first, row, last, from, std::min(to, own ? to : end),
                         part + s, own},
                        (keys + 1) * (tile == options.small_rows ? 1 : 2)});
      }
    }
  }

  // a row without keys gives 0
  void add_padding() {
    for (int32_t token = header.num_tokens; token < options.tokens; ++token) {
      parts[token] = 1;
      work.push_back({{0, token, 0, options.group, 0, 0, 0, 0}, 0});
    }
  }

  std::vector<int32_t> words() {
    for (int32_t token = 0; token < options.tokens; ++token) {
      slots[token] = out.num_slots;
      if (parts[token] > 1) out.num_slots += parts[token];
    }
    std::stable_sort(work.begin(), work.end(),
                     [](const Work& a, const Work& b) { return a.cost > b.cost; });
    constexpr int32_t kItemWords = sizeof(SparkItem) / sizeof(int32_t);
    out.num_items = static_cast<int32_t>(work.size());
    out.words = out.items + out.num_items * kItemWords;
    std::vector<int32_t> words(out.words, 0);
    std::memcpy(words.data(), &out, sizeof(out));
    const int32_t* offsets = at(header.table_offsets);
    for (int32_t place = 0; place < header.num_sequences; ++place) {
      const int32_t s = sequence(place);
      std::copy(at(header.tables) + offsets[s], at(header.tables) + offsets[s + 1],
                words.begin() + table(place));
    }
    std::copy(order.begin(), order.end(), words.begin() + out.order);
    std::copy(parts.begin(), parts.end(), words.begin() + out.parts);
    std::copy(slots.begin(), slots.end(), words.begin() + out.slots);
    for (int32_t i = 0; i < out.num_items; ++i)
      std::memcpy(&words[out.items + i * kItemWords], &work[i].item, sizeof(SparkItem));
    return words;
  }
};

void check(const SparkPlan& plan, const SparkScheduleOptions& o) {
  auto require = [](bool good, const char* name, const std::string& bound, int32_t value) {
    if (!good)
      throw std::invalid_argument(std::string(name) + " must be " + bound + ", got " +
                                  std::to_string(value));
  };
  require(o.group >= 1, "group", ">= 1", o.group);
  require(o.headroom >= 0, "headroom", ">= 0", o.headroom);
  require(o.small_rows >= o.group, "small_rows", ">= group", o.small_rows);
  require(o.large_rows >= o.small_rows, "large_rows", ">= small_rows", o.large_rows);
  require(o.small_keys >= 1 && o.large_keys >= 1, "small_keys and large_keys", ">= 1",
          std::min(o.small_keys, o.large_keys));
  require(o.most_parts >= 1, "most_parts", ">= 1", o.most_parts);
  if (o.headroom && plan.num_tokens != plan.num_sequences)
    throw std::invalid_argument("headroom is for plans with one query a sequence");
}

}  // namespace

std::vector<int32_t> schedule(const std::vector<int32_t>& plan,
                              const SparkScheduleOptions& options) {
  SparkPlan header;
  std::memcpy(&header, plan.data(), sizeof(header));
  check(header, options);
  Scheduler scheduler{plan, options, header, {}, {}, {}, {}, {}, {}};
  scheduler.out.growth = INT32_MAX;
  scheduler.place_arrays();
  scheduler.order_tokens();
  const auto* runs = reinterpret_cast<const SparkRun*>(scheduler.at(header.runs));
  for (int32_t r = 0; r < header.num_runs; ++r) scheduler.add_run(runs[r]);
  scheduler.add_padding();
  return scheduler.words();
}

}  // namespace spark

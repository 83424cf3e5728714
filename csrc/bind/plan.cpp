// The work list of one step: sequences sorted so that siblings are neighbours, and the runs of
// blocks they share. Sharing always starts at block 0, so two tables agree on a prefix only.
#include "spark/plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>

#include "block_pool.h"

namespace spark {
namespace {

// a shared run pays for merging its partial results only when it saves a few block reads
constexpr int64_t kMinSavedBlocks = 4;

using Tables = std::vector<const Sequence*>;

int32_t table_blocks(const Sequence& s) { return static_cast<int32_t>(s.table.size()); }

// number of leading blocks that `a` and `b` share; the tables agree exactly up to there
int32_t common(const Sequence& a, const Sequence& b) {
  int32_t low = 0, high = std::min(table_blocks(a), table_blocks(b));
  while (low < high) {
    int32_t middle = (low + high) / 2;
    if (a.table[middle] == b.table[middle]) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

struct RunBuilder {
  const Tables& tables;
  const std::vector<int32_t>& order;
  std::vector<int32_t> shared;  // with the next sequence in order
  std::vector<SparkRun> runs;

  // emit the runs of order[first, last), whose tables agree before block `begin`
  void build(int32_t first, int32_t last, int32_t begin) {
    if (last - first == 1) {
      runs.push_back({first, 1, begin, table_blocks(*tables[order[first]])});
      return;
    }
    int32_t end = *std::min_element(shared.begin() + first, shared.begin() + last - 1);
    int64_t saved = static_cast<int64_t>(end - begin) * (last - first - 1);
    if (saved >= kMinSavedBlocks) {
      runs.push_back({first, last - first, begin, end});
      begin = end;
    }
    for (int32_t child = first, i = first; i < last; ++i) {
      if (i + 1 < last && shared[i] > end) continue;
      build(child, i + 1, begin);
      child = i + 1;
    }
  }
};

std::vector<SparkRun> find_runs(const Tables& tables, std::vector<int32_t>& order, bool share) {
  RunBuilder builder{tables, order, {}, {}};
  int32_t count = static_cast<int32_t>(tables.size());
  if (!share) {
    for (int32_t i = 0; i < count; ++i) builder.build(i, i + 1, 0);
    return builder.runs;
  }
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    int32_t depth = common(*tables[a], *tables[b]);
    bool a_ends = depth == table_blocks(*tables[a]), b_ends = depth == table_blocks(*tables[b]);
    if (a_ends || b_ends) return a_ends && b_ends ? a < b : a_ends;
    return tables[a]->table[depth] < tables[b]->table[depth];
  });
  for (int32_t i = 0; i + 1 < count; ++i) {
    builder.shared.push_back(common(*tables[order[i]], *tables[order[i + 1]]));
  }
  for (int32_t first = 0, i = 0; i < count; ++i) {
    if (i + 1 < count && builder.shared[i] > 0) continue;
    builder.build(first, i + 1, 0);
    first = i + 1;
  }
  return builder.runs;
}

}  // namespace

std::vector<int32_t> BlockPool::plan(const std::vector<int64_t>& seqs,
                                     const std::vector<int64_t>& query_lens, bool share) const {
  if (seqs.size() != query_lens.size())
    throw std::invalid_argument("query_lens must have one entry a sequence: got " +
                                std::to_string(query_lens.size()) + " for " +
                                std::to_string(seqs.size()));
  int32_t count = static_cast<int32_t>(seqs.size());
  Tables tables;
  std::vector<int32_t> query_offsets{0}, lengths, table_offsets{0};
  for (int32_t i = 0; i < count; ++i) {
    const Sequence& sequence = at(seqs[i]);
    int64_t queries = query_lens[i], length = sequence.length;
    auto where = "query_lens[" + std::to_string(i) + "] of seq " + std::to_string(seqs[i]);
    if (queries < 1 || queries > length)
      throw std::invalid_argument(where + " must be in [1, " + std::to_string(length) +
                                  "] (append first), got " + std::to_string(queries));
    for (int64_t b = (length - queries) / block_size_; b < table_blocks(sequence); ++b) {
      if (refs_[sequence.table[b]] > 1)
        throw std::invalid_argument(where + " is " + std::to_string(queries) +
                                    ", which would overwrite blocks shared with a fork");
    }
    tables.push_back(&sequence);
    query_offsets.push_back(query_offsets.back() + static_cast<int32_t>(queries));
    lengths.push_back(static_cast<int32_t>(length));
    table_offsets.push_back(table_offsets.back() + table_blocks(sequence));
  }
  Tables distinct = tables;
  std::sort(distinct.begin(), distinct.end());
  if (std::adjacent_find(distinct.begin(), distinct.end()) != distinct.end())
    throw std::invalid_argument("seqs must not name a sequence twice");

  std::vector<int32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::vector<SparkRun> runs = find_runs(tables, order, share);

  SparkPlan header{};
  constexpr int32_t kHeaderWords = sizeof(SparkPlan) / sizeof(int32_t);
  header.magic = kSparkPlanMagic;
  header.num_sequences = count;
  header.num_tokens = query_offsets.back();
  header.num_blocks = static_cast<int32_t>(refs_.size());
  header.block_size = static_cast<int32_t>(block_size_);
  header.num_runs = static_cast<int32_t>(runs.size());
  header.query_offsets = kHeaderWords;
  header.lengths = header.query_offsets + count + 1;
  header.table_offsets = header.lengths + count;
  header.tables = header.table_offsets + count + 1;
  header.order = header.tables + table_offsets.back();
  header.runs = header.order + count;
  header.words = header.runs + 4 * header.num_runs;

  std::vector<int32_t> words(header.words);
  std::memcpy(words.data(), &header, sizeof(header));
  auto put = [&](int32_t offset, const auto& values) {
    if (!values.empty())
      std::memcpy(&words[offset], values.data(), values.size() * sizeof(values[0]));
  };
  put(header.query_offsets, query_offsets);
  put(header.lengths, lengths);
  put(header.table_offsets, table_offsets);
  for (int32_t i = 0; i < count; ++i) put(header.tables + table_offsets[i], tables[i]->table);
  put(header.order, order);
  put(header.runs, runs);
  return words;
}

}  // namespace spark

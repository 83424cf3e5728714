// One row from its chunks' sums to its token and scores, and the split of the work over threads.
#pragma once

#include <omp.h>

#include <cmath>
#include <vector>

#include "score_select.h"

namespace {

template <typename T>
struct Scorer {
  const SparkScore& args;
  int64_t index;
  Slice<T> slice;
  int64_t chunks;
  Row row;

  Scorer(const SparkScore& a, int64_t r)
      : args(a), index(r), chunks((a.vocab + kChunk - 1) / kChunk), row(a, r) {
    const int64_t words = (a.vocab + 31) / 32;
    slice = {static_cast<const T*>(a.logits) + r * a.stride, a.vocab,
             a.allowed == nullptr ? nullptr : a.allowed + r * words};
  }

  Chunk measure(int64_t c) const {
    const Slice<T> chunk = slice.chunk(c);
    Chunk out;
    out.max = out.allowed_max = largest<false>(chunk);
    // nothing but -inf, or an invalid row
    if (std::isinf(out.max)) return out;
    out.plain = sums<true, false>(chunk, Power(out.max, 1.0));
    if (row.tempered()) {
      const Power power(out.max, row.scale);
      const bool moments = args.entropy_tempered != nullptr;
      out.hot = moments ? sums<true, false>(chunk, power) : sums<false, false>(chunk, power);
    }
    if (slice.words != nullptr) {
      out.allowed_max = largest<true>(chunk);
      if (out.allowed_max == -kInf) return out;
      out.allowed_mass = sums<false, true>(chunk, Power(out.allowed_max, row.scale)).s;
    }
    return out;
  }

  void finish(const Chunk* parts) const {
    Result found{-kInf, {}, {}, -kInf, 0, false};
    float max = -kInf;
    for (int64_t c = 0; c < chunks; ++c) max = parts[c].max > max ? parts[c].max : max;
    thread_local std::vector<Part> space;
    space.resize(chunks);
    Total plain[kMergers], hot[kMergers];
    bool nan = false;
    uint64_t total = 0;
    for (int64_t c = 0; c < chunks; ++c) {
      nan |= is_invalid(parts[c]);
      const int m = c % kMergers;
      space[c] = {parts[c].max, fixed(merge(parts[c], max, row.scale, plain[m], hot[m]))};
      total += space[c].mass;
    }
    if (nan || std::isinf(max)) return write_failure(args, index);
    found.max = found.drawn_max = max;
    found.plain = tree_sum(plain);
    found.hot = row.tempered() ? tree_sum(hot) : found.plain;

    Base<T> base{slice, row.scale, max, total, space, Cut{}};
    if (slice.words != nullptr && !restrict_to_allowed(base, parts))
      return write_failure(args, index);
    const Filter filter(args, index, row.greedy);
    const int64_t token = choose(base, filter);
    found.drawn_max = base.max;
    found.kept = base.total;
    found.everything = slice.words == nullptr && filter.off();
    write_scores(args, index, row, found, token, widened(slice.x[token]));
  }

  static Total tree_sum(Total* each) {
    for (int width = kMergers / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) each[i].add(each[i + width]);
    }
    return each[0];
  }

  // Turns the whole row's distribution into that of its allowed tokens; false if there are none.
  bool restrict_to_allowed(Base<T>& base, const Chunk* parts) const {
    base.max = -kInf;
    for (int64_t c = 0; c < chunks; ++c) base.max = std::max(base.max, parts[c].allowed_max);
    if (base.max == -kInf) return false;
    base.total = 0;
    for (int64_t c = 0; c < chunks; ++c) {
      base.parts[c] = {parts[c].allowed_max, allowed_mass(parts[c], base.max, row.scale)};
      base.total += base.parts[c].mass;
    }
    return true;
  }

  // The token, drawn or given; truncates the distribution on the way.
  int64_t choose(Base<T>& base, const Filter& filter) const {
    const int64_t given = args.given == nullptr ? -1 : args.given[index];
    if (filter.top_k == 1) {
      base.total = kUnit;
      return given >= 0 ? given : argmax(base);
    }
    if (!filter.off()) truncate(base, filter);
    return given >= 0 ? given : token_at(base, draw_point(args, index, base.total));
  }
};

// Fewer logits than this are not worth waking other threads for.
constexpr int64_t kAlone = 1 << 17;

template <typename T>
void score_rows(const SparkScore& args) {
  const int64_t rows = args.rows, chunks = (args.vocab + kChunk - 1) / kChunk;
  const int threads = rows * args.vocab < kAlone ? 1 : omp_get_max_threads();
  if (rows >= 2 * threads) {
    // a row stays in its core's cache from the first pass to the draw
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < rows; ++r) {
      thread_local std::vector<Chunk> parts;
      parts.resize(chunks);
      const Scorer<T> row(args, r);
      for (int64_t c = 0; c < chunks; ++c) parts[c] = row.measure(c);
      row.finish(parts.data());
    }
    return;
  }
  std::vector<Chunk> parts(rows * chunks);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * chunks; ++i) {
      parts[i] = Scorer<T>(args, i / chunks).measure(i % chunks);
    }
#pragma omp for schedule(dynamic)
    for (int64_t r = 0; r < rows; ++r) Scorer<T>(args, r).finish(parts.data() + r * chunks);
  }
}

void score_all(const SparkScore& args) {
  if (args.dtype == SPARK_BF16) return score_rows<Bf16>(args);
  if (args.dtype == SPARK_F16) return score_rows<Half>(args);
  score_rows<float>(args);
}

}  // namespace

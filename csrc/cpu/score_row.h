// One row from its chunks' sums to its token and scores, and the split of the work over threads.
#pragma once

#include <omp.h>

#include <cmath>
#include <vector>

#include "score_select.h"
#include "spark/philox.h"
#include "spark/score.h"

namespace {

// What a pass over one chunk leaves behind.
struct Chunk {
  float max;
  Sums plain;  // at temperature 1
  Sums hot;    // tempered, when the temperature is not 1
  float allowed_max;
  float allowed_mass;  // tempered, over the allowed tokens
};

// Sums of a whole row, relative to its largest logit.
struct Total {
  double s = 0.0, t = 0.0, q = 0.0;

  // Adds a chunk whose own largest logit lies `d` <= 0 from the row's (times 1 / temperature).
  void add(const Sums& chunk, double d) {
    const double a = std::exp(d), s1 = chunk.s, t1 = chunk.t, q1 = chunk.q;
    s += a * s1;
    t += a * (t1 + d * s1);
    q += a * (q1 + 2.0 * d * t1 + d * d * s1);
  }
  float entropy(double most) const {
    return static_cast<float>(std::fmin(std::fmax(std::log(s) - t / s, 0.0), most));
  }
  float varentropy() const {
    const double mean = t / s;
    return static_cast<float>(std::fmax(q / s - mean * mean, 0.0));
  }
};

template <typename T>
struct Row {
  const SparkScore& args;
  int64_t index;
  Slice<T> slice;
  int64_t chunks;
  bool greedy;
  double scale;

  Row(const SparkScore& a, int64_t r) : args(a), index(r), chunks((a.vocab + kChunk - 1) / kChunk) {
    const int64_t words = (a.vocab + 31) / 32;
    slice = {static_cast<const T*>(a.logits) + r * a.stride, a.vocab,
             a.allowed == nullptr ? nullptr : a.allowed + r * words};
    const float temperature = a.temperature == nullptr ? 1.0f : a.temperature[r];
    greedy = temperature == 0.0f;
    scale = greedy ? 1.0 : 1.0 / double(temperature);
  }

  bool tempered() const { return scale != 1.0; }

  Chunk measure(int64_t c) const {
    const Slice<T> all = slice.chunk(c).unmasked();
    const float factor = static_cast<float>(scale);
    Chunk out = {largest(all), {0, 0, 0}, {0, 0, 0}, 0.0f, 0.0f};
    // nothing but -inf, or an invalid row
    if (std::isinf(out.max)) return {out.max, {0, 0, 0}, {0, 0, 0}, -kInf, 0.0f};
    out.plain = sums<true>(all, out.max, 1.0f);
    if (tempered()) {
      out.hot = args.entropy_tempered == nullptr ? sums<false>(all, out.max, factor)
                                                 : sums<true>(all, out.max, factor);
    }
    if (slice.words != nullptr) {
      const Slice<T> some = slice.chunk(c);
      out.allowed_max = largest(some);
      if (out.allowed_max != -kInf) {
        out.allowed_mass = sums<false>(some, out.allowed_max, factor).s;
      }
    }
    return out;
  }

  void fail() const {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    args.tokens[index] = -1;
    for (float* out : {args.logprob, args.log_kept_mass, args.entropy, args.varentropy,
                       args.entropy_tempered, args.varentropy_tempered}) {
      if (out != nullptr) out[index] = nan;
    }
  }

  void finish(const Chunk* parts) const {
    float max = -kInf;
    for (int64_t c = 0; c < chunks; ++c) max = parts[c].max > max ? parts[c].max : max;
    Total plain, hot;
    bool nan = false;
    for (int64_t c = 0; c < chunks; ++c) {
      nan |= std::isnan(parts[c].max) || std::isnan(parts[c].plain.t);
      if (parts[c].plain.s == 0.0f) continue;
      const double d = double(parts[c].max) - double(max);
      plain.add(parts[c].plain, d);
      if (tempered()) hot.add(parts[c].hot, scale * d);
    }
    if (nan || std::isinf(max)) return fail();
    if (!tempered()) hot = plain;

    const Base<T> base = base_of(parts);
    if (base.max == -kInf) return fail();
    const Kept kept = choose(base);
    // masses are relative to the largest allowed logit, the sums to the largest
    const double log_base = scale * (double(base.max) - double(max)) - std::log(hot.s);
    const double x = value(slice.x, kept.token);
    const double most = std::log(double(slice.size));
    args.tokens[index] = kept.token;
    args.logprob[index] = log_probability(scale * (x - double(max)) - std::log(hot.s));
    const bool everything = slice.words == nullptr && kept.mass == base.total;
    args.log_kept_mass[index] = everything ? 0.0f : log_probability(log_base + std::log(kept.mass));
    args.entropy[index] = plain.entropy(most);
    args.varentropy[index] = plain.varentropy();
    if (args.entropy_tempered != nullptr) {
      args.entropy_tempered[index] = hot.entropy(most);
      args.varentropy_tempered[index] = hot.varentropy();
    }
  }

  Base<T> base_of(const Chunk* parts) const {
    thread_local std::vector<Part> space;
    space.resize(chunks);
    float max = -kInf;
    for (int64_t c = 0; c < chunks; ++c) {
      space[c].max = slice.words == nullptr ? parts[c].max : parts[c].allowed_max;
      max = space[c].max > max ? space[c].max : max;
    }
    double total = 0.0;
    for (int64_t c = 0; c < chunks; ++c) {
      const float mass = slice.words != nullptr ? parts[c].allowed_mass
                         : tempered()           ? parts[c].hot.s
                                                : parts[c].plain.s;
      const double d = scale * (double(space[c].max) - double(max));
      space[c].mass = mass == 0.0f ? 0.0 : mass * std::exp(d);
      total += space[c].mass;
    }
    return {slice, static_cast<float>(scale), max, total, space};
  }

  Filter filter() const {
    const int64_t k = args.top_k == nullptr ? 0 : args.top_k[index];
    return {greedy ? 1 : (k >= slice.size ? 0 : k), args.top_p == nullptr ? 1.0 : args.top_p[index],
            args.min_p == nullptr ? 0.0 : args.min_p[index]};
  }

  Kept choose(const Base<T>& base) const {
    const int64_t given = args.given == nullptr ? -1 : args.given[index];
    const uint64_t seed = args.seed == nullptr ? 0 : args.seed[index];
    const uint64_t position = args.position == nullptr ? 0 : args.position[index];
    const Filter filter = this->filter();
    Kept kept{given, base.total};
    if (filter.top_k == 1) {
      kept = {given >= 0 ? given : argmax(base), 1.0};
    } else if (!filter.off()) {
      kept = draw_truncated(base, filter, philox_uniform(seed, position));
      if (given >= 0) kept.token = given;
    } else if (given < 0) {
      kept.token = draw_full(base, philox_uniform(seed, position));
    }
    return kept;
  }

  static float log_probability(double v) { return static_cast<float>(std::fmin(v, 0.0)); }
};

// Fewer logits than this are not worth waking other threads for.
constexpr int64_t kAlone = 1 << 16;

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
      const Row<T> row(args, r);
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
      parts[i] = Row<T>(args, i / chunks).measure(i % chunks);
    }
#pragma omp for schedule(dynamic)
    for (int64_t r = 0; r < rows; ++r) Row<T>(args, r).finish(parts.data() + r * chunks);
  }
}

void score_all(const SparkScore& args) {
  if (args.dtype == SPARK_BF16) {
    score_rows<uint16_t>(args);
  } else {
    score_rows<float>(args);
  }
}

}  // namespace

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
  float max = -kInf;
  Sums plain;  // at temperature 1
  Sums hot;    // tempered, when the temperature is not 1
  float allowed_max = -kInf;
  float allowed_mass = 0.0f;  // tempered, over the allowed tokens
};

// Sums of a whole row, relative to its largest logit.
struct Total {
  double s = 0.0, t = 0.0, q = 0.0;

  // Adds a chunk whose own largest logit weighs `a` = e^d, d <= 0, of the row's.
  void add(const Sums& chunk, double d, double a) {
    const double s1 = chunk.s, t1 = chunk.t, q1 = chunk.q;
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
    const Slice<T> chunk = slice.chunk(c);
    Chunk out;
    out.max = out.allowed_max = largest<false>(chunk);
    // nothing but -inf, or an invalid row
    if (std::isinf(out.max)) return out;
    out.plain = sums<true, false>(chunk, Power(out.max, 1.0));
    if (tempered()) {
      const Power power(out.max, scale);
      const bool moments = args.entropy_tempered != nullptr;
      out.hot = moments ? sums<true, false>(chunk, power) : sums<false, false>(chunk, power);
    }
    if (slice.words != nullptr) {
      out.allowed_max = largest<true>(chunk);
      if (out.allowed_max == -kInf) return out;
      out.allowed_mass = sums<false, true>(chunk, Power(out.allowed_max, scale)).s;
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
    thread_local std::vector<Part> space;
    space.resize(chunks);
    Total plain, hot;
    bool nan = false;
    for (int64_t c = 0; c < chunks; ++c) {
      const Chunk& part = parts[c];
      nan |= std::isnan(part.max) || std::isnan(part.plain.t);
      const double d = double(part.max) - double(max), a = part.plain.s > 0 ? std::exp(d) : 0.0;
      if (a > 0.0) plain.add(part.plain, d, a);
      const double hot_a = tempered() && a > 0.0 ? std::exp(scale * d) : a;
      if (tempered() && hot_a > 0.0) hot.add(part.hot, scale * d, hot_a);
      space[c] = {part.max, hot_a * (tempered() ? part.hot.s : part.plain.s)};
    }
    if (nan || std::isinf(max)) return fail();
    if (!tempered()) hot = plain;

    Base<T> base{slice, scale, max, hot.s, space, Cut{}};
    if (slice.words != nullptr && !restrict_to_allowed(base, parts)) return fail();
    const int64_t token = choose(base);
    const double log_sum = std::log(hot.s), x = value(slice.x, token);
    args.tokens[index] = token;
    args.logprob[index] = log_probability(scale * (x - double(max)) - log_sum);
    // the kept total is relative to the largest allowed logit, the sum to the largest of all
    const double down = scale * (double(base.max) - double(max));
    const bool all = slice.words == nullptr && base.total == hot.s;
    args.log_kept_mass[index] = all ? 0.0f : log_probability(down + std::log(base.total) - log_sum);
    const double most = std::log(double(slice.size));
    args.entropy[index] = plain.entropy(most);
    args.varentropy[index] = plain.varentropy();
    if (args.entropy_tempered != nullptr) {
      args.entropy_tempered[index] = hot.entropy(most);
      args.varentropy_tempered[index] = hot.varentropy();
    }
  }

  // Turns the whole row's distribution into that of its allowed tokens; false if there are none.
  bool restrict_to_allowed(Base<T>& base, const Chunk* parts) const {
    base.max = -kInf;
    for (int64_t c = 0; c < chunks; ++c) base.max = std::max(base.max, parts[c].allowed_max);
    if (base.max == -kInf) return false;
    base.total = 0.0;
    for (int64_t c = 0; c < chunks; ++c) {
      const double d = double(parts[c].allowed_max) - double(base.max);
      const float mass = parts[c].allowed_mass;
      base.parts[c] = {parts[c].allowed_max, mass > 0.0f ? mass * std::exp(scale * d) : 0.0};
      base.total += base.parts[c].mass;
    }
    return true;
  }

  Filter filter() const {
    const int64_t k = args.top_k == nullptr ? 0 : args.top_k[index];
    return {greedy ? 1 : (k >= slice.size ? 0 : k), args.top_p == nullptr ? 1.0 : args.top_p[index],
            args.min_p == nullptr ? 0.0 : args.min_p[index]};
  }

  // The token, drawn or given; truncates the distribution on the way.
  int64_t choose(Base<T>& base) const {
    const int64_t given = args.given == nullptr ? -1 : args.given[index];
    const Filter filter = this->filter();
    if (filter.top_k == 1) {
      base.total = 1.0;
      return given >= 0 ? given : argmax(base);
    }
    if (!filter.off()) truncate(base, filter);
    if (given >= 0) return given;
    const uint64_t seed = args.seed == nullptr ? 0 : args.seed[index];
    const uint64_t position = args.position == nullptr ? 0 : args.position[index];
    return draw_token(base, philox_uniform(seed, position));
  }

  static float log_probability(double v) { return static_cast<float>(std::fmin(v, 0.0)); }
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

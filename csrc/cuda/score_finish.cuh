// One row from its chunks' sums to its token: a block merges the chunks, truncates by digits of the
// logits instead of sorting them, and reads one chunk again to draw from it.
#pragma once

#include "score_block.cuh"
#include "spark/score_cut.h"

namespace {

constexpr int kMostChunks = 512;
// a search takes this many bits of a logit's key at a time
constexpr int kDigit = 11;
constexpr int kBins = 1 << kDigit;
// tokens of a chunk for each thread
constexpr int kOwn = kChunk / kThreads;

// Larger logits have larger keys; both zeros have the same.
__device__ inline uint32_t key_of(float x) {
  const uint32_t bits = bits_as<uint32_t>(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline float logit_of(uint32_t key) {
  return bits_as<float>(key >> 31 ? key & 0x7fffffffu : ~key);
}

struct Shared {
  float max[kMostChunks];  // of what may be drawn
  uint64_t mass[kMostChunks];
  uint32_t count[kBins], low[kBins], high[kBins];
  Result found;
  uint64_t total;
  bool valid;
  float bound;
  unsigned long long first;
  Scan scan;
};

template <typename T>
struct Finisher {
  const SparkScore& args;
  const int64_t index;
  const Logits<T> logits;
  const Row row;
  const int chunks;
  const float factor;
  Shared& at;
  Cut cut;

  __device__ Finisher(const SparkScore& a, int64_t r, Shared& shared)
      : args(a),
        index(r),
        logits(a, r),
        row(a, r),
        chunks(static_cast<int>((a.vocab + kChunk - 1) / kChunk)),
        factor(factor_of(row.scale)),
        at(shared) {}

  __device__ void run(const Chunk* parts) {
    if (threadIdx.x < kWarp) merge_chunks(parts);
    __syncthreads();
    if (!at.valid) {
      if (threadIdx.x == 0) write_failure(args, index);
      return;
    }
    const Filter filter(args, index, row.greedy);
    const int64_t given = args.given == nullptr ? -1 : args.given[index];
    const bool one = filter.top_k == 1;
    uint64_t kept = one ? kUnit : at.total;
    if (!one && !filter.off()) kept = truncate(filter);
    const int64_t token = given >= 0 ? given : (one ? argmax() : token_at(kept));
    if (threadIdx.x > 0) return;
    Result found = at.found;
    found.kept = kept;
    found.everything = logits.words == nullptr && filter.off();
    write_scores(args, index, row, found, token, widened(logits.x[token]));
  }

 private:
  // One warp: the row's sums, and the mass of each chunk.
  __device__ void merge_chunks(const Chunk* parts) {
    const int lane = threadIdx.x;
    float max = -kInf, allowed_max = -kInf;
    bool invalid = !row.valid;
    for (int c = lane; c < chunks; c += kWarp) {
      max = larger(max, parts[c].max);
      allowed_max = larger(allowed_max, parts[c].allowed_max);
      invalid |= is_invalid(parts[c]);
    }
    max = largest_of_warp(max);
    allowed_max = largest_of_warp(allowed_max);
    const bool masked = logits.words != nullptr;
    Total plain, hot;
    uint64_t total = 0;
    for (int c = lane; c < chunks; c += kWarp) {
      const uint64_t mass = fixed(merge(parts[c], max, row.scale, plain, hot));
      at.max[c] = masked ? parts[c].allowed_max : parts[c].max;
      at.mass[c] = masked ? allowed_mass(parts[c], allowed_max, row.scale) : mass;
      total += at.mass[c];
    }
#pragma unroll
    for (int bit = kWarp / 2; bit > 0; bit /= 2) {
      plain.add({from_other(plain.s, bit), from_other(plain.t, bit), from_other(plain.q, bit)});
      hot.add({from_other(hot.s, bit), from_other(hot.t, bit), from_other(hot.q, bit)});
      total += from_other(total, bit);
    }
    invalid = __any_sync(kAll, invalid) || !(max > -kInf && max < kInf) ||
              (masked && allowed_max == -kInf);
    if (lane > 0) return;
    at.valid = !invalid;
    at.total = total;
    at.found.max = max;
    at.found.drawn_max = masked ? allowed_max : max;
    at.found.plain = plain;
    at.found.hot = row.tempered() ? hot : plain;
  }

  __device__ uint64_t weight(float x, double max) const {
    return fixed(exp2_of(power_of(x, static_cast<float>(max), factor)));
  }

  // Calls visit(logit, token) for every allowed logit of at least `bound` in a chunk; one warp.
  template <typename Visit>
  __device__ void visit_chunk(int chunk, float bound, Visit visit) const {
    constexpr int kTokens = Piece<T>::kTokens;
    for (int j = threadIdx.x % kWarp; j < kChunk / kTokens; j += kWarp) {
      const int64_t token = chunk * kChunk + j * kTokens;
      const Piece<T> piece = logits.load(token);
      const uint32_t bits = logits.allowed(token);
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        if ((bits >> i) & 1 && piece[i] >= bound) visit(piece[i], token + i);
      }
    }
  }

  // The kept mass; sets the cut and the mass of each chunk.
  __device__ uint64_t truncate(const Filter& filter) {
    const double max = at.found.drawn_max;
    uint64_t left = at.total;
    cut = Cut{};
    if (filter.min_p > 0.0) cut.x = min_p_bound(max, row.scale, filter.min_p);
    if (filter.top_k > 0) {
      const Asked asked = {static_cast<uint32_t>(filter.top_k), kEndless};
      const Prefix found = find_cut(asked, top_k_bound(filter.top_k));
      if (found.cut.before(cut)) cut = found.cut;
      left = found.mass;
    }
    if (filter.top_p < 1.0) {
      const float bound = top_p_bound(max, row.scale, filter.top_p, left, args.vocab);
      const Asked asked = {kAll, enough_of(filter.top_p, left)};
      const Prefix found = find_cut(asked, bound);
      if (found.cut.before(cut)) cut = found.cut;
    }
    return keep_to_cut(max);
  }

  // The k-th largest of the chunks' maxima: k tokens are at least as large.
  __device__ float top_k_bound(int64_t k) const {
    if (k > chunks) return kLowest;
    const int c = threadIdx.x;
    if (c < chunks) {
      int rank = 0;
      for (int o = 0; o < chunks; ++o) {
        rank += at.max[o] > at.max[c] || (at.max[o] == at.max[c] && o < c);
      }
      if (rank == k - 1) at.bound = at.max[c];
    }
    __syncthreads();
    return fmaxf(at.bound, kLowest);
  }

  // The shortest prefix of what is asked for, digit by digit of the key of its last logit.
  __device__ Prefix find_cut(const Asked& asked, float bound) {
    // two-byte floats have nothing in the low bits
    constexpr int kEnd = sizeof(T) == 4 ? 0 : 32 - 2 * kDigit;
    uint32_t key = 0;
    Tally before;
    uint32_t ties = 0;
    for (int shift = 32 - kDigit;; shift = shift > kDigit ? shift - kDigit : 0) {
      const int bits = shift == 0 ? 32 - 2 * kDigit : kDigit;
      const Crossing found = count_digit(key, shift, bits, asked, bound, before);
      if (found.index < 0) return {{bound}, at.scan.total.mass};
      key |= static_cast<uint32_t>((1 << bits) - 1 - found.index) << shift;
      before = found.before;
      ties = at.count[found.index];
      if (shift == kEnd) break;
    }
    if (kEnd > 0 && key >> 31 == 0) key |= (1u << kEnd) - 1;
    const float x = logit_of(key);
    const uint64_t each = weight(x, at.found.drawn_max);
    uint64_t kept = asked.count - before.count;
    if (each > 0) {
      const uint64_t missing = asked.mass - before.mass, most = (missing - 1) / each + 1;
      kept = most < kept ? most : kept;
    }
    const uint64_t mass = before.mass + kept * each;
    if (kept >= ties) return {{x}, mass};
    return {{x, tie_at(x, static_cast<uint32_t>(kept))}, mass};
  }

  // Tallies one digit of the keys that begin with `key`, largest first, and finds the crossing.
  __device__ Crossing count_digit(uint32_t key, int shift, int bits, const Asked& asked,
                                  float bound, const Tally& before) {
    __syncthreads();
    for (int b = threadIdx.x; b < kBins; b += kThreads) at.count[b] = at.low[b] = at.high[b] = 0;
    __syncthreads();
    const int above = shift + bits;
    for (int c = threadIdx.x / kWarp; c < chunks; c += kWarps) {
      if (!(at.max[c] >= bound)) continue;
      visit_chunk(c, bound, [&](float x, int64_t) {
        const uint32_t mine = key_of(x);
        if (above < 32 && (mine ^ key) >> above != 0) return;
        const int bin = (1 << bits) - 1 - static_cast<int>((mine >> shift) & ((1u << bits) - 1));
        const uint64_t mass = weight(x, at.found.drawn_max);
        atomicAdd(&at.count[bin], 1u);
        // a sum of 64 bits in two of 32: whoever overflows the low one carries
        const uint32_t low = static_cast<uint32_t>(mass);
        const uint32_t old = atomicAdd(&at.low[bin], low);
        const uint32_t high = static_cast<uint32_t>(mass >> 32) + (old + low < old);
        if (high > 0) atomicAdd(&at.high[bin], high);
      });
    }
    __syncthreads();
    constexpr int n = kBins / kThreads;
    Tally mine[n];
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int b = threadIdx.x * n + i;
      mine[i] = {at.count[b], (uint64_t(at.high[b]) << 32) + at.low[b]};
    }
    return at.scan.find(mine, asked, before);
  }

  // The token of the n-th (from 1) of the logits that are `x`.
  __device__ int64_t tie_at(float x, uint32_t n) {
    __syncthreads();
    for (int c = threadIdx.x / kWarp; c < chunks; c += kWarps) {
      uint32_t ties = 0;
      if (at.max[c] >= x) {
        visit_chunk(c, x, [&](float logit, int64_t) { ties += logit == x; });
      }
#pragma unroll
      for (int bit = kWarp / 2; bit > 0; bit /= 2) ties += from_other(ties, bit);
      if (threadIdx.x % kWarp == 0) at.count[c] = ties;
    }
    __syncthreads();
    const int c = threadIdx.x;
    const Tally chunk[1] = {{c < chunks ? at.count[c] : 0, 0}};
    const Crossing in = at.scan.find(chunk, {n, kEndless}, {});
    const int64_t start = in.index * kChunk;
    Tally own[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      own[i] = {logits.at(start + c * kOwn + i) == x, 0};
    }
    return start + at.scan.find(own, {n, kEndless}, in.before).index;
  }

  __device__ uint64_t keep_to_cut(double max) {
    __syncthreads();
    for (int c = threadIdx.x / kWarp; c < chunks; c += kWarps) {
      uint64_t mass = 0;
      if (at.max[c] >= cut.x) {
        visit_chunk(c, cut.x, [&](float x, int64_t token) {
          if (cut.keeps(x, token)) mass += weight(x, max);
        });
      }
#pragma unroll
      for (int bit = kWarp / 2; bit > 0; bit /= 2) mass += from_other(mass, bit);
      if (threadIdx.x % kWarp == 0) at.mass[c] = mass;
    }
    __syncthreads();
    const int c = threadIdx.x;
    const Tally chunk[1] = {{0, c < chunks ? at.mass[c] : 0}};
    at.scan.find(chunk, {1, kEndless}, {});
    return at.scan.total.mass;
  }

  // The token in which the row's random point of [0, kept) falls.
  __device__ int64_t token_at(uint64_t kept) {
    const int t = threadIdx.x;
    const uint64_t point = draw_point(args, index, kept);
    const Tally chunk[1] = {{0, t < chunks ? at.mass[t] : 0}};
    const Crossing in = at.scan.find(chunk, {kAll, point + 1}, {});
    const int64_t start = in.index * kChunk;
    Tally own[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int64_t token = start + t * kOwn + i;
      const float x = logits.at(token);
      own[i].mass = cut.keeps(x, token) ? weight(x, at.max[in.index]) : 0;
    }
    at.scan.find(own, {kAll, kEndless}, {});
    const uint64_t inside = rescaled(point - in.before.mass, at.mass[in.index], at.scan.total.mass);
    return start + at.scan.find(own, {kAll, inside + 1}, {}).index;
  }

  // The first of the largest.
  __device__ int64_t argmax() {
    const int t = threadIdx.x;
    if (t == 0) at.first = kMostTokens;
    __syncthreads();
    const float max = static_cast<float>(at.found.drawn_max);
    if (t < chunks && at.max[t] == max) atomicMin(&at.first, static_cast<unsigned long long>(t));
    __syncthreads();
    const int64_t start = at.first * kChunk;
    __syncthreads();
    if (t == 0) at.first = kMostTokens;
    __syncthreads();
    for (int i = kOwn - 1; i >= 0; --i) {
      const unsigned long long token = start + t * kOwn + i;
      if (logits.at(token) == max) atomicMin(&at.first, token);
    }
    __syncthreads();
    return at.first;
  }
};

}  // namespace

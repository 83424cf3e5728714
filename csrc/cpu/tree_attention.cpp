// Cuts one call into work items, runs them on all threads and merges partial results. How the work
// is cut depends on the plan only, never on the number of threads: results are reproducible.
#include "tree_attention.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "spark/isa.h"

namespace spark::attention {
namespace {

// decode splits a long run of keys for the sake of idle threads
constexpr int32_t kKeySplit = 512;
// multiply-adds that pay for waking the threads
constexpr double kParallelWork = 5e5;

template <typename T>
const T* words(const SparkPlan* plan, int32_t offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const int32_t*>(plan) + offset);
}

Kernels kernels(SparkDType dtype) {
#if defined(__x86_64__)
  switch (spark_cpu_isa()) {
    case SPARK_ISA_AVX512:
      // SPARK_ISA=avx512 means that and no more
      if (dtype == SPARK_BF16 && __builtin_cpu_supports("avx512bf16") && !std::getenv("SPARK_ISA"))
        return kernels_avx512bf16(dtype);
      return kernels_avx512(dtype);
    case SPARK_ISA_AVX2:
      return kernels_avx2(dtype);
    default:
      break;
  }
#endif
  return kernels_plain(dtype);
}

struct FreeDeleter {
  void operator()(float* p) const { std::free(p); }
};

// grows, never shrinks; contents are lost when it grows
struct Buffer {
  std::unique_ptr<float, FreeDeleter> data;
  int64_t size = 0;

  float* get(int64_t floats) {
    if (floats > size) {
      size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
      data.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
      if (!data) throw std::bad_alloc();
      size = floats;
    }
    return data.get();
  }
};

struct Schedule {
  std::vector<Item> items;
  std::vector<int32_t> parts;
  std::vector<int64_t> slots;
  int64_t num_slots = 0;
  double work = 0;

  void build(const Context& c);
};

void Schedule::build(const Context& c) {
  const SparkTreeAttention& a = *c.args;
  const SparkPlan& plan = *a.plan;
  const int32_t group = static_cast<int32_t>(a.num_heads / a.num_kv_heads);
  items.clear();
  parts.assign(plan.num_sequences, 0);
  work = 0;
  for (int32_t r = 0; r < plan.num_runs; ++r) {
    const SparkRun& run = c.runs[r];
    int32_t rows = 0, longest = 0;
    for (int32_t i = run.first; i < run.first + run.count; ++i) {
      rows += static_cast<int32_t>(c.query_length(c.order[i])) * group;
      longest = std::max(longest, c.lengths[c.order[i]]);
    }
    int32_t begin = run.block_begin * plan.block_size;
    int32_t end = std::min<int64_t>(int64_t{run.block_end} * plan.block_size, longest);
    int32_t splits = rows <= kRowTile ? (end - begin + kKeySplit - 1) / kKeySplit : 1;
    int32_t part = parts[c.order[run.first]];
    for (int32_t i = run.first; i < run.first + run.count; ++i) parts[c.order[i]] += splits;
    int32_t step = splits > 1 ? kKeySplit : end - begin;
    for (int32_t h = 0; h < a.num_kv_heads; ++h)
      // the last rows see the most keys: start with them
      for (int32_t row = (rows - 1) / kRowTile * kRowTile; row >= 0; row -= kRowTile)
        for (int32_t s = 0; s < splits; ++s)
          items.push_back({h, r, row, std::min(row + kRowTile, rows), begin + s * step,
                           std::min(begin + (s + 1) * step, end), part + s});
    work += double(rows) * (end - begin) * a.num_kv_heads * a.head_dim;
  }
  slots.resize(plan.num_sequences);
  num_slots = 0;
  for (int32_t s = 0; s < plan.num_sequences; ++s) {
    slots[s] = num_slots;
    if (parts[s] > 1) num_slots += c.query_length(s) * a.num_heads * parts[s];
  }
}

}  // namespace
}  // namespace spark::attention

extern "C" void spark_cpu_tree_attention(const SparkTreeAttention* args) {
  using namespace spark::attention;
  // of the calling thread: inside the parallel region the name would mean another one's
  static thread_local Schedule schedule;
  static thread_local Buffer partial_buffer;
  const SparkPlan* plan = args->plan;
  Context c{args,
            words<int32_t>(plan, plan->query_offsets),
            words<int32_t>(plan, plan->lengths),
            words<int32_t>(plan, plan->table_offsets),
            words<int32_t>(plan, plan->tables),
            words<int32_t>(plan, plan->order),
            words<SparkRun>(plan, plan->runs),
            nullptr,
            nullptr,
            nullptr};
  schedule.build(c);
  c.parts = schedule.parts.data();
  c.slots = schedule.slots.data();
  c.partial = partial_buffer.get(schedule.num_slots * (padded(args->head_dim) + 2));

  const Kernels kernel = kernels(args->dtype);
  const int64_t tokens = plan->num_tokens;
  auto sequence_of = [&](int64_t token) {
    const int32_t* end = c.query_offsets + plan->num_sequences;
    return static_cast<int32_t>(std::upper_bound(c.query_offsets, end, token) - c.query_offsets) -
           1;
  };
  const int64_t num_items = static_cast<int64_t>(schedule.items.size());
  const Item* items = schedule.items.data();
  const bool some_merge = schedule.num_slots > 0;
#pragma omp parallel if (schedule.work > kParallelWork)
  {
    static thread_local Buffer scratch_buffer;
    float* scratch = scratch_buffer.get(scratch_floats(args->head_dim));
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) {
      const int32_t s = sequence_of(t);
      kernel.write(c, s, t - c.query_offsets[s]);
    }
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < num_items; ++i) kernel.attend(c, items[i], scratch);
    if (some_merge) {
#pragma omp for schedule(static)
      for (int64_t t = 0; t < tokens; ++t) {
        const int32_t s = sequence_of(t);
        if (c.parts[s] > 1) kernel.merge(c, s, t - c.query_offsets[s]);
      }
    }
  }
}

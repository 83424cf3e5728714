// The torch-free host structures behind `spark_kernels._C`.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <utility>

#include "block_pool.h"
#include "schedule.h"
#include "spark/plan.h"

namespace py = pybind11;
using spark::BlockPool;

namespace {

// the words of one plan, kept alive for the tensors that view them
struct Plan {
  std::vector<int32_t> words;

  explicit Plan(std::vector<int32_t> given) : words(std::move(given)) {
    if (words.size() < sizeof(SparkPlan) / sizeof(int32_t) || header().magic != kSparkPlanMagic ||
        header().words < 0 || words.size() < static_cast<size_t>(header().words))
      throw std::invalid_argument("words are not those of a plan of BlockPool.plan");
  }
  const SparkPlan& header() const { return *reinterpret_cast<const SparkPlan*>(words.data()); }
  std::vector<int32_t> slice(int32_t offset, int32_t n) const {
    return {words.begin() + offset, words.begin() + offset + n};
  }
};

struct Schedule {
  std::vector<int32_t> words;

  const SparkSchedule& header() const {
    return *reinterpret_cast<const SparkSchedule*>(words.data());
  }
};

void bind_schedule(py::module_& m) {
  py::class_<Schedule>(
      m, "Schedule", py::buffer_protocol(), py::dynamic_attr(),
      "A GPU's work list: an int32 buffer laid out as csrc/include/spark/schedule.h says.")
      .def_buffer([](Schedule& s) {
        return py::buffer_info(s.words.data(), static_cast<py::ssize_t>(s.words.size()));
      })
      .def_property_readonly("num_items", [](const Schedule& s) { return s.header().num_items; })
      .def_property_readonly(
          "num_slots", [](const Schedule& s) { return s.header().num_slots; },
          "Partial results a query head needs room for.")
      .def_property_readonly(
          "growth", [](const Schedule& s) { return s.header().growth; },
          "Tokens that every sequence may gain before a new schedule is due.")
      .def_property_readonly("table_rows", [](const Schedule& s) { return s.header().table_rows; })
      .def_property_readonly("table_width",
                             [](const Schedule& s) { return s.header().table_width; });
}

std::vector<std::array<int32_t, 4>> runs(const Plan& plan) {
  const auto* first = reinterpret_cast<const SparkRun*>(&plan.words[plan.header().runs]);
  std::vector<std::array<int32_t, 4>> out;
  for (int32_t i = 0; i < plan.header().num_runs; ++i)
    out.push_back({first[i].first, first[i].count, first[i].block_begin, first[i].block_end});
  return out;
}

void bind_plan(py::module_& m) {
  py::class_<Plan>(m, "Plan", py::buffer_protocol(), py::dynamic_attr(),
                   "One step's batch: an int32 buffer laid out as csrc/include/spark/plan.h says.")
      .def(py::init<std::vector<int32_t>>(), py::arg("words"), "A plan from its words.")
      .def_buffer([](Plan& p) {
        return py::buffer_info(p.words.data(), static_cast<py::ssize_t>(p.words.size()));
      })
      .def_property_readonly("num_sequences",
                             [](const Plan& p) { return p.header().num_sequences; })
      .def_property_readonly(
          "num_tokens", [](const Plan& p) { return p.header().num_tokens; },
          "Sum of the query lengths.")
      .def_property_readonly("block_size", [](const Plan& p) { return p.header().block_size; })
      .def_property_readonly(
          "query_offsets",
          [](const Plan& p) {
            return p.slice(p.header().query_offsets, p.header().num_sequences + 1);
          },
          "First token of each sequence, and the number of tokens.")
      .def_property_readonly(
          "lengths",
          [](const Plan& p) { return p.slice(p.header().lengths, p.header().num_sequences); },
          "Tokens of each sequence, its queries included.")
      .def_property_readonly(
          "tables",
          [](const Plan& p) {
            const auto& h = p.header();
            const int32_t* offsets = &p.words[h.table_offsets];
            std::vector<std::vector<int32_t>> out;
            for (int32_t i = 0; i < h.num_sequences; ++i)
              out.push_back(p.slice(h.tables + offsets[i], offsets[i + 1] - offsets[i]));
            return out;
          },
          "Block ids of each sequence.")
      .def_property_readonly(
          "order",
          [](const Plan& p) { return p.slice(p.header().order, p.header().num_sequences); },
          "Sequence indices, siblings next to each other.")
      .def_property_readonly(
          "runs", &runs,
          "(first, count, block_begin, block_end): those blocks are the same in the tables of\n"
          "order[first:first + count].")
      .def(
          "schedule",
          [](const Plan& p, int32_t group, int32_t tokens, int32_t table_rows, int32_t table_width,
             int32_t headroom, int32_t small_rows, int32_t large_rows, int32_t small_keys,
             int32_t large_keys, int32_t most_parts) {
            SparkScheduleOptions options{group,      std::max(tokens, p.header().num_tokens),
                                         table_rows, table_width,
                                         headroom,   small_rows,
                                         large_rows, small_keys,
                                         large_keys, most_parts};
            return Schedule{spark::schedule(p.words, options)};
          },
          py::arg("group"), py::kw_only(), py::arg("tokens") = 0, py::arg("table_rows") = 0,
          py::arg("table_width") = 0, py::arg("headroom") = 0, py::arg("small_rows") = 16,
          py::arg("large_rows") = 64, py::arg("small_keys") = 256, py::arg("large_keys") = 512,
          py::arg("most_parts") = 32,
          "Pack the plan into a GPU's work list for `group` query heads a key/value head. Rows of\n"
          "q up to `tokens` that no sequence owns get an item without keys; `table_rows` and\n"
          "`table_width` make room in the block tables, `headroom` in the lists.");
}

void bind_pool(py::module_& m) {
  py::register_exception<spark::OutOfBlocks>(m, "OutOfBlocks", PyExc_RuntimeError);
  py::class_<BlockPool>(m, "BlockPool", "Reference-counted KV blocks of `block_size` tokens.")
      .def(py::init<int64_t, int64_t>(), py::arg("num_blocks"), py::arg("block_size"))
      .def("open", &BlockPool::open, "Return the handle of a new, empty sequence.")
      .def("append", &BlockPool::append, py::arg("seq"), py::arg("n"),
           "Reserve room for `n` more tokens. Raises OutOfBlocks, changing nothing.")
      .def(
          "fork", &BlockPool::fork, py::arg("seq"), py::arg("n"), py::arg("at") = py::none(),
          "Return (`n` children, pairs): the children share the first `at` tokens (default: all).\n"
          "Full blocks are shared; a partial one is to be copied to a fresh block of each child:\n"
          "`pairs` lists (source block, fresh block, used tokens) for `kv_fork`.\n"
          "Raises OutOfBlocks, changing nothing.")
      .def("release", &BlockPool::release, py::arg("seq"),
           "Drop the sequence and free the blocks nobody else holds.")
      .def(
          "length", [](const BlockPool& p, int64_t seq) { return p.at(seq).length; },
          py::arg("seq"), "Tokens of the sequence.")
      .def(
          "table", [](const BlockPool& p, int64_t seq) { return p.at(seq).table; }, py::arg("seq"),
          "Block ids of the sequence, in order.")
      .def("refcount", &BlockPool::refcount, py::arg("block"), "Sequences that hold the block.")
      .def(
          "plan",
          [](const BlockPool& p, const std::vector<int64_t>& seqs,
             const std::vector<int64_t>& query_lens,
             bool share) { return Plan{p.plan(seqs, query_lens, share)}; },
          py::arg("seqs"), py::arg("query_lens"), py::arg("share") = true,
          "Describe one step: the last `query_lens[i]` tokens of `seqs[i]` are to be written and\n"
          "attended. With `share`, blocks that siblings share are listed once.")
      .def_property_readonly("num_free", &BlockPool::num_free, "Free blocks.")
      .def_property_readonly("num_blocks", &BlockPool::num_blocks)
      .def_property_readonly("num_sequences", &BlockPool::num_sequences, "Live sequences.")
      .def_property_readonly("block_size", &BlockPool::block_size, "Tokens a block holds.");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  bind_schedule(m);
  bind_plan(m);
  bind_pool(m);
}

// Reference-counted KV blocks and the block tables of the sequences that share them.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace spark {

struct OutOfBlocks : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Sequence {
  int64_t length = 0;
  std::vector<int32_t> table;
};

using CopyPair = std::tuple<int64_t, int64_t, int64_t>;  // source block, fresh block, used tokens

// Invariant: refcount(b) is the number of table entries that name b; blocks of count 0 are free.
// Only the last block of a sequence can be partly filled, and then nobody else holds it.
class BlockPool {
 public:
  BlockPool(int64_t num_blocks, int64_t block_size);

  int64_t open();
  void append(int64_t seq, int64_t n);
  std::pair<std::vector<int64_t>, std::vector<CopyPair>> fork(int64_t seq, int64_t n,
                                                              std::optional<int64_t> at);
  void release(int64_t seq);
  std::vector<int32_t> plan(const std::vector<int64_t>& seqs,
                            const std::vector<int64_t>& query_lens, bool share) const;

  const Sequence& at(int64_t seq) const;
  int64_t refcount(int64_t block) const;
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_blocks() const { return static_cast<int64_t>(refs_.size()); }
  int64_t num_sequences() const { return static_cast<int64_t>(sequences_.size()); }
  int64_t block_size() const { return block_size_; }

 private:
  int32_t take();
  // hand out blocks in ascending order, as a new pool does; all must be free
  void number_free();
  void require_free(int64_t needed, const char* what) const;

  int64_t block_size_;
  int64_t next_ = 0;
  std::vector<int32_t> refs_;
  std::vector<int32_t> free_;
  std::unordered_map<int64_t, Sequence> sequences_;
};

}  // namespace spark

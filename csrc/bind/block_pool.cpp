#include "block_pool.h"

#include <numeric>
#include <string>

namespace spark {

using std::to_string;

BlockPool::BlockPool(int64_t num_blocks, int64_t block_size) : block_size_(block_size) {
  if (num_blocks < 1 || num_blocks > INT32_MAX)
    throw std::invalid_argument("num_blocks must be in [1, 2^31), got " + to_string(num_blocks));
  if (block_size < 1 || block_size > INT32_MAX)
    throw std::invalid_argument("block_size must be in [1, 2^31), got " + to_string(block_size));
  refs_.assign(num_blocks, 0);
  free_.resize(num_blocks);
  number_free();
}

const Sequence& BlockPool::at(int64_t seq) const {
  auto found = sequences_.find(seq);
  if (found == sequences_.end())
    throw std::invalid_argument("seq " + to_string(seq) + " is unknown or was released");
  return found->second;
}

int64_t BlockPool::refcount(int64_t block) const {
  if (block < 0 || block >= num_blocks())
    throw std::invalid_argument("block must be in [0, " + to_string(num_blocks()) + "), got " +
                                to_string(block));
  return refs_[block];
}

void BlockPool::require_free(int64_t needed, const char* what) const {
  if (needed > num_free())
    throw OutOfBlocks(std::string(what) + " needs " + to_string(needed) + " blocks, " +
                      to_string(num_free()) + " of " + to_string(num_blocks()) +
                      " are free: release a sequence or make the pool larger");
}

int32_t BlockPool::take() {
  int32_t block = free_.back();
  free_.pop_back();
  refs_[block] = 1;
  return block;
}

int64_t BlockPool::open() {
  sequences_.emplace(next_, Sequence{});
  return next_++;
}

void BlockPool::append(int64_t seq, int64_t n) {
  const Sequence& current = at(seq);
  if (n < 0 || n > INT32_MAX - current.length)
    throw std::invalid_argument("n must be >= 0 and keep the length below 2^31, got " +
                                to_string(n));
  int64_t blocks = (current.length + n + block_size_ - 1) / block_size_;
  int64_t needed = blocks - static_cast<int64_t>(current.table.size());
  require_free(needed, "append");
  Sequence& sequence = sequences_[seq];
  for (int64_t i = 0; i < needed; ++i) sequence.table.push_back(take());
  sequence.length += n;
}

std::pair<std::vector<int64_t>, std::vector<CopyPair>> BlockPool::fork(int64_t seq, int64_t n,
                                                                       std::optional<int64_t> at) {
  const Sequence& parent = this->at(seq);
  int64_t length = at.value_or(parent.length);
  if (n < 0) throw std::invalid_argument("n must be >= 0, got " + to_string(n));
  if (length < 0 || length > parent.length)
    throw std::invalid_argument("at must be in [0, " + to_string(parent.length) + "], got " +
                                to_string(length));
  int64_t full = length / block_size_, used = length % block_size_;
  require_free(used ? n : 0, "fork");

  std::vector<int64_t> children;
  std::vector<CopyPair> pairs;
  // copies, because adding a child may move the parent
  std::vector<int32_t> shared(parent.table.begin(), parent.table.begin() + full);
  int32_t tail = used ? parent.table[full] : 0;
  for (int64_t i = 0; i < n; ++i) {
    int64_t child = open();
    Sequence& sequence = sequences_[child];
    sequence.length = length;
    sequence.table.reserve(shared.size() + 8);
    sequence.table = shared;
    for (int32_t block : shared) ++refs_[block];
    if (used) {
      sequence.table.push_back(take());
      pairs.emplace_back(tail, sequence.table.back(), used);
    }
    children.push_back(child);
  }
  return {children, pairs};
}

void BlockPool::release(int64_t seq) {
  for (int32_t block : at(seq).table) {
    if (--refs_[block] == 0) free_.push_back(block);
  }
  sequences_.erase(seq);
  // plans sort by block: an emptied pool must not remember what it held
  if (sequences_.empty()) number_free();
}

void BlockPool::number_free() { std::iota(free_.rbegin(), free_.rend(), 0); }

}  // namespace spark

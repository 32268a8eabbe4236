// Memory that the kernels own: weights in shared chunks, KV and work buffers in their own mappings, in huge pages where
// the system offers them. Everything starts as zeros and takes memory only once it is touched.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

constexpr size_t kPage = 4096;         // the smallest there are

class Mapping {
 public:
  explicit Mapping(size_t bytes);      // throws std::bad_alloc
  // The beginning of a file, to be read only. The file stays open, with the locks that it has, as long as this. Throws std::bad_alloc.
  Mapping(int fd, size_t bytes);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  bool read_only() const { return fd_ >= 0 || sealed_; }
  void seal() { sealed_ = true; }      // it is as it has to be

 private:
  uint8_t* data_;
  size_t size_;
  void* base_;
  size_t mapped_;
  int fd_ = -1;
  bool sealed_ = false;
};

// A piece of a chunk; the chunk lives as long as any piece of it.
struct Piece {
  std::shared_ptr<Mapping> chunk;
  uint8_t* data = nullptr;
  size_t bytes = 0;
};

// Hands out pieces, 64-byte aligned, of chunks of 32 MB (or one of its own for a large piece), so that many small matrices
// share huge pages instead of wasting the end of one each.
class Arena {
 public:
  Piece take(size_t bytes);

 private:
  std::mutex mutex_;
  std::shared_ptr<Mapping> chunk_;
  size_t used_ = 0;
};

#include "memory.h"

#include <fcntl.h>
#include <new>
#include <sys/mman.h>
#include <unistd.h>

namespace {
constexpr size_t kHuge = size_t(2) << 20;
constexpr size_t kChunk = size_t(32) << 20;
size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
}  // namespace

Mapping::Mapping(size_t bytes) : size_(bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();        // rounding up must not wrap
  const bool huge = bytes >= kHuge;
  mapped_ = huge ? round_up(bytes, kHuge) + kHuge : round_up(bytes ? bytes : 1, kPage);
  base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base_ == MAP_FAILED) throw std::bad_alloc();
  data_ = reinterpret_cast<uint8_t*>(huge ? round_up(reinterpret_cast<uintptr_t>(base_), kHuge) : reinterpret_cast<uintptr_t>(base_));
#if defined(MADV_HUGEPAGE)
  if (huge) madvise(data_, round_up(bytes, kHuge), MADV_HUGEPAGE);     // advice: without it things are only slower
#endif
}

Mapping::Mapping(int fd, size_t bytes) : size_(bytes), mapped_(bytes), fd_(fcntl(fd, F_DUPFD_CLOEXEC, 0)) {
  base_ = fd_ < 0 ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd_, 0);
  if (base_ == MAP_FAILED) {
    if (fd_ >= 0) close(fd_);
    throw std::bad_alloc();
  }
  data_ = static_cast<uint8_t*>(base_);
#if defined(MADV_HUGEPAGE)
  madvise(base_, bytes, MADV_HUGEPAGE);                    // where the file system has large folios
#endif
#if defined(MADV_WILLNEED)
  madvise(base_, bytes, MADV_WILLNEED);
#endif
}

Mapping::~Mapping() {
  munmap(base_, mapped_);
  if (fd_ >= 0) close(fd_);
}

Piece Arena::take(size_t bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  const size_t need = round_up(bytes ? bytes : 1, 64);
  if (need >= kChunk / 2) {
    auto own = std::make_shared<Mapping>(need);
    return {own, own->data(), bytes};
  }
  std::lock_guard<std::mutex> lock(mutex_);
  if (!chunk_ || used_ + need > kChunk) {
    chunk_ = std::make_shared<Mapping>(kChunk);
    used_ = 0;
  }
  Piece piece{chunk_, chunk_->data() + used_, bytes};
  used_ += need;
  return piece;
}

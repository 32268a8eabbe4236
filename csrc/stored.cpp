// Packed weights in a file: mapped instead of packed anew, and the checksum that tells whether they are what was written.
#include "ops.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>
#include <vector>

using Bytes = nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>;
using ByteArray = nb::ndarray<const uint8_t, nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The beginning of an open file: mapped, and shared by all processes that map it, or copied into memory of its own, whose large pages
// are read faster where the file system has small ones.
struct MappedFile {
  std::shared_ptr<Mapping> memory;
};

// A view that keeps the memory.
static Bytes view_of(const std::shared_ptr<Mapping>& memory, const uint8_t* data, size_t bytes) {
  nb::capsule owner(new std::shared_ptr<Mapping>(memory), [](void* p) noexcept { delete static_cast<std::shared_ptr<Mapping>*>(p); });
  const size_t shape[] = {bytes};
  return Bytes(data, 1, shape, owner);
}

// Reads the beginning of a file into memory, by several threads. Returns 0, or the errno of the first failure.
static int read_whole(int fd, uint8_t* data, size_t bytes, int threads) {
  constexpr size_t kPart = size_t(8) << 20;
  std::atomic<size_t> next{0};
  std::atomic<int> failed{0};
  const auto read = [&] {
    for (size_t at = next.fetch_add(kPart); at < bytes && !failed; at = next.fetch_add(kPart)) {
      const size_t end = std::min(at + kPart, bytes);
      for (size_t done = at; done < end;) {
        const ssize_t n = pread(fd, data + done, end - done, off_t(done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
          failed = n < 0 ? errno : EIO;                    // 0: the file became shorter
          return;
        }
        done += size_t(n);
      }
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; i++) others.emplace_back(read);
  read();
  for (std::thread& other : others) other.join();
  return failed;
}

static void open_mapped(MappedFile* self, int fd, size_t bytes, int copied_by) {
  struct stat status;
  if (fstat(fd, &status) != 0 || bytes == 0 || uint64_t(status.st_size) < bytes) throw nb::value_error("the file is shorter than that");
  if (copied_by <= 0) {
    new (self) MappedFile{std::make_shared<Mapping>(fd, bytes)};
    return;
  }
  auto memory = std::make_shared<Mapping>(bytes);
  int failed;
  {
    Released nogil;
    failed = read_whole(fd, memory->data(), bytes, copied_by);
  }
  if (failed) {
    errno = failed;
    PyErr_SetFromErrno(PyExc_OSError);
    throw nb::python_error();
  }
  memory->seal();
  new (self) MappedFile{std::move(memory)};
}

static Piece piece_of(const MappedFile& file, size_t start, size_t bytes) {
  const size_t size = file.memory->size();
  if (start > size || bytes > size - start) throw nb::value_error("the stored weight lies beyond the end of its file");
  return {file.memory, file.memory->data() + start, bytes};
}

// Eight words at a time, each in a chain of its own (a multiplication has a latency of three or four cycles, and one may start each
// cycle). Every step of a chain can be undone, so a difference within one word is always found, any other but by a chance of 2^-64.
static uint64_t checksum(const uint8_t* p, size_t bytes) {
  constexpr int kChains = 8;
  constexpr uint64_t kFactor = 0x9e3779b97f4a7c15;         // odd; the golden ratio
  uint64_t h[kChains], w[kChains] = {};
  for (int i = 0; i < kChains; i++) h[i] = kFactor * uint64_t(i + 1);
  const auto step = [&] {
    for (int i = 0; i < kChains; i++) {
      const uint64_t x = h[i] ^ w[i];
      h[i] = (x << 29 | x >> 35) * kFactor;
    }
  };
  size_t at = 0;
  for (; at + sizeof w <= bytes; at += sizeof w) {
    std::memcpy(w, p + at, sizeof w);
    step();
  }
  std::memset(w, 0, sizeof w);
  if (at < bytes) std::memcpy(w, p + at, bytes - at);
  step();
  uint64_t sum = bytes;
  for (int i = 0; i < kChains; i++) {
    const uint64_t x = sum ^ h[i];
    sum = (x << 29 | x >> 35) * kFactor;
    sum ^= sum >> 32;
  }
  return sum;
}

void def_stored(nb::module_& m, nb::class_<Weight>& weight, nb::class_<Bank>& bank) {
  m.def("checksum", [](const ByteArray& a) {
    Released nogil;
    return checksum(a.data(), a.size());
  });
  nb::class_<MappedFile>(m, "MappedFile")
      .def("__init__", &open_mapped, nb::arg("fd"), nb::arg("num_bytes"), nb::arg("copied_by") = 0)
      .def("view", [](const MappedFile& f, size_t start, size_t bytes) {
        const Piece piece = piece_of(f, start, bytes);
        return view_of(piece.chunk, piece.data, piece.bytes);
      });
  weight
      .def_static("stored", [](const MappedFile& f, size_t start, size_t bytes, int kind, int n, int k, int gated) {
        return Weight(piece_of(f, start, bytes), kind, n, k, gated);
      }, nb::arg(), nb::arg("start"), nb::arg("num_bytes"), nb::arg("kind"), nb::arg("n"), nb::arg("k"), nb::arg("gated_features") = 0)
      .def("bytes", [](const Weight& w) { return view_of(w.memory.chunk, w.memory.data, w.memory.bytes); });
  bank
      .def_static("stored", [](const MappedFile& f, size_t start, size_t bytes, int kind, int experts, int n, int k, int gated) {
        return Bank(piece_of(f, start, bytes), kind, experts, n, k, gated);
      }, nb::arg(), nb::arg("start"), nb::arg("num_bytes"), nb::arg("kind"), nb::arg("num_experts"), nb::arg("n"), nb::arg("k"), nb::arg("gated_features") = 0)
      .def("bytes", [](const Bank& b) { return view_of(b.memory.chunk, b.memory.data, b.memory.bytes); });
}

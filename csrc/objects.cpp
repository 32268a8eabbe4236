#include "objects.h"

namespace {

struct Choice {
  const Kernels* kernels;
  bool usable;
};

}  // namespace

#if defined(KERNELS_X86)
namespace isa_avx512_vnni { extern const Kernels kernels; }
namespace isa_avx2 { extern const Kernels kernels; }
#endif
#if defined(KERNELS_NEON)
namespace isa_neon_dotprod { extern const Kernels kernels; }
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif
namespace isa_portable { extern const Kernels kernels; }

// Best first. The only place that asks what the processor can do.
static std::vector<Choice> choices() {
  std::vector<Choice> all;
#if defined(KERNELS_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  all.push_back({&isa_avx512_vnni::kernels, avx512});
  all.push_back({&isa_avx2::kernels, avx2});   // every processor with AVX2 has F16C
#endif
#if defined(KERNELS_NEON)
#if defined(__linux__)
  all.push_back({&isa_neon_dotprod::kernels, (getauxval(AT_HWCAP) & (1ul << 20)) != 0});   // HWCAP_ASIMDDP
#else
  all.push_back({&isa_neon_dotprod::kernels, true});       // every Apple processor
#endif
#endif
  all.push_back({&isa_portable::kernels, true});
  return all;
}

std::vector<std::string> usable_kernels() {
  std::vector<std::string> names;
  for (const auto& c : choices())
    if (c.usable) names.push_back(c.kernels->name);
  return names;
}

const Kernels& find_kernels(const std::string& name) {
  for (const auto& c : choices()) {
    if (name.empty() ? !c.usable : name != c.kernels->name) continue;
    if (!c.usable) throw nb::value_error(("this processor cannot run the " + name + " kernels").c_str());
    return *c.kernels;
  }
  throw nb::value_error(("no kernels are called " + name).c_str());
}

Weight::Weight(Arena& arena, int kind, int n, int k, int gated_features) : out_features(n), gated(gated_features > 0) {
  if (n <= 0 || k <= 0) throw nb::value_error("a weight needs at least one row and one column");
  if (kind <= kInt8 && k % 32 != 0) throw nb::value_error("the width of a quantised matrix must be a multiple of 32");
  const size_t groups = size_t(k) / 32, pairs = (size_t(k) + 1) / 2;
  view.kind = kind;
  view.k = k;
  view.groups = int(groups);
  view.n = gated ? (gated_features + 31) / 32 * 64 : n;
  view.panels = (view.n + 15) / 16;
  const size_t int8_bytes = groups / 2 * kInt8Pair + groups % 2 * kInt8Last;
  view.panel = kind == kInt4 ? groups * 320 : kind == kInt8 ? int8_bytes : pairs * (kind == kF32 ? 128 : 64);
  memory = arena.take(view.panel * size_t(view.panels));
  view.w = memory.data;
}

Activation::Activation(int rows, int width, bool ints, bool floats) : max_rows(rows) {
  if (rows <= 0 || width <= 0) throw nb::value_error("an activation needs at least one row and one column");
  if (ints && width % 32 != 0) throw nb::value_error("the width of an int8 activation must be a multiple of 32");
  view.width = width;
  view.groups = (width + 31) / 32;
  view.stride = view.groups * 32;
  const size_t tiles = (size_t(rows) + kTileRows - 1) / kTileRows;
  const size_t int_bytes = ints ? (tiles * size_t(view.groups) * kTileRows * sizeof(Group) + 63) / 64 * 64 : 0;
  const size_t float_bytes = floats ? size_t(rows) * size_t(view.stride) * 4 : 0;
  memory = std::make_shared<Mapping>(int_bytes + float_bytes);
  view.q = ints ? reinterpret_cast<Group*>(memory->data()) : nullptr;
  view.f = floats ? reinterpret_cast<float*>(memory->data() + int_bytes) : nullptr;
}

std::vector<KVLayer> KVLayer::make(int num_layers, int num_slots, int heads, int dim) {
  if (num_layers <= 0) throw nb::value_error("there must be at least one KV layer");
  if (num_slots <= 0 || num_slots % kRun != 0) throw nb::value_error("the number of KV slots must be a positive multiple of 16");
  if (heads <= 0 || dim <= 0 || dim % 16 != 0) throw nb::value_error("the head dimension must be a positive multiple of 16");
  constexpr size_t kShift = 1056;      // 33 lines: the same head of neighbouring runs falls into other sets of the first cache
  const size_t half = size_t(heads) * size_t(dim) * kRun, stride = 2 * half * size_t(num_layers) + (num_layers > 1 ? kShift : 0);
  const int runs = num_slots / kRun;
  auto memory = std::make_shared<Mapping>(size_t(runs) * stride * 2);
  auto* at = reinterpret_cast<uint16_t*>(memory->data());
  std::vector<KVLayer> layers;
  for (int i = 0; i < num_layers; i++, at += 2 * half) layers.push_back({{at, at + half, stride, runs, heads, dim}, memory});
  return layers;
}

void KVLayer::touch(int start, int end) const {
  const int first = std::max(start, 0) / kRun, last = std::min((end + kRun - 1) / kRun, view.num_runs);
  auto* base = memory->data();
  const size_t run_bytes = view.stride * sizeof(uint16_t);
  for (size_t at = size_t(first) * run_bytes; at < size_t(std::max(last, first)) * run_bytes; at += kPage)
    __atomic_fetch_or(base + at, uint8_t(0), __ATOMIC_RELAXED);
}

Runtime::Runtime(int threads, const std::string& isa, int spin_us, bool ahead)
    : kernels_(&find_kernels(isa)), ahead_(ahead), pool_(threads, spin_us, ahead) {}

void Runtime::begin(nb::object tape) {
  if (tape_) throw nb::value_error("a tape is being recorded already");
  tape_ = nb::cast<Tape*>(tape);
  tape_object_ = std::move(tape);
}

void Runtime::end() {
  tape_ = nullptr;
  tape_object_.reset();
}

void Runtime::run(const Op* ops, size_t count, std::vector<nb::object>& keep) {
  if (tape_) {
    tape_->ops.insert(tape_->ops.end(), ops, ops + count);
    for (auto& k : keep) tape_->keep.push_back(std::move(k));
    return;
  }
  run_now(ops, count);
}

void Runtime::run_now(const Op* ops, size_t count) {
  nb::gil_scoped_release nogil;
  pool_.run(ops, count);
}

uint64_t Runtime::start(const Op& op, std::vector<nb::object>& keep) {
  forget_finished();
  auto own = std::make_unique<Op>(op);
  const uint64_t job = pool_.submit(own.get(), 1);
  started_.push_back({job, std::move(own), std::move(keep)});
  if (!ahead_) wait(job);
  return job;
}

uint64_t Runtime::replay(nb::object object, bool profile) {
  forget_finished();
  Tape& tape = nb::cast<Tape&>(object);
  if (profile) tape.spent.resize(tape.ops.size());
  const uint64_t job = pool_.submit(tape.ops.data(), tape.ops.size(), profile ? tape.spent.data() : nullptr);
  started_.push_back({job, nullptr, {std::move(object)}});
  if (profile || !ahead_) wait(job);
  return job;
}

void Runtime::wait(uint64_t job) {
  {
    nb::gil_scoped_release nogil;
    pool_.wait(job);
  }
  forget_finished();
}

void Runtime::forget_finished() {
  while (!started_.empty() && started_.front().job <= pool_.finished()) {
    const Started done = std::move(started_.front());      // what it kept may call into Python when it goes
    started_.pop_front();
  }
}

void* Runtime::buffer(const char* what, size_t bytes) {
  auto& slot = buffers_[{what, bytes}];
  if (!slot) slot = std::make_unique<Mapping>(bytes);
  return slot->data();
}

#include "objects.h"
#include "processor.h"
#include "sets.h"              // SETS(X): X(name) of each set that was compiled; CMakeLists.txt writes it

#include <algorithm>
#include <unistd.h>

#define DECLARE(set) namespace isa_##set { extern const Kernels kernels; }
SETS(DECLARE)

static const Kernels* compiled(const std::string& name) {
#define POINTER(set) &isa_##set::kernels,
  for (const Kernels* kernels : {SETS(POINTER)})
    if (name == kernels->name) return kernels;
  return nullptr;
}

std::vector<std::string> usable_kernels() {
  std::vector<std::string> names = processor_sets();
  names.erase(std::remove_if(names.begin(), names.end(), [](const std::string& name) { return !compiled(name); }), names.end());
  return names;
}

const Kernels& find_kernels(const std::string& name) {
  const auto usable = usable_kernels();
  if (usable.empty()) throw nb::value_error("these kernels were compiled for another processor");
  if (name.empty()) return *compiled(usable.front());
  if (!compiled(name)) throw nb::value_error(("no kernels are called " + name).c_str());
  if (std::find(usable.begin(), usable.end(), name) == usable.end()) throw nb::value_error(("this processor cannot run the " + name + " kernels").c_str());
  return *compiled(name);
}

// Far beyond any model, and small enough that no index of the kernels, an int, overflows.
constexpr int kMaxWidth = 1 << 24, kMaxRows = 1 << 28;

// The memory that a product of sizes takes. One that does not fit a size_t is more memory than any machine has.
static size_t bytes_of(std::initializer_list<size_t> sizes) {
  size_t bytes = 1;
  for (const size_t size : sizes)
    if (__builtin_mul_overflow(bytes, size, &bytes)) throw std::bad_alloc();
  return bytes;
}

// The shape of a packed matrix, of which there is no memory yet.
static WeightView shape_of(int kind, int n, int k, int gated_features) {
  if (kind < kMx4 || kind > kF32) throw nb::value_error("no such kind of weight");
  if (n <= 0 || k <= 0) throw nb::value_error("a weight needs at least one row and one column");
  if (n > kMaxRows || k > kMaxWidth) throw nb::value_error("a weight has at most 2^28 rows and 2^24 columns");
  const bool gated = gated_features > 0;
  if (gated_features < 0 || (gated && n != 2 * int64_t(gated_features))) throw nb::value_error("a gated weight has twice as many rows as features");
  if (kind <= kInt8 && k % 32 != 0) throw nb::value_error("the width of a quantized matrix must be a multiple of 32");
  const size_t groups = size_t(k) / 32, pairs = (size_t(k) + 1) / 2;
  WeightView view{};
  view.kind = kind;
  view.k = k;
  view.groups = int(groups);
  view.n = gated ? (gated_features + 31) / 32 * 64 : n;
  view.panels = (view.n + 15) / 16;
  const size_t int8_bytes = groups / 2 * kInt8Pair + groups % 2 * kInt8Last;
  if (kind >= kQ3 && kind <= kQ2 && k % 256 != 0) throw nb::value_error("the width of a matrix of this kind must be a multiple of 256");
  view.panel = kind <= kIq3x ? groups * kLevelGroup : kind <= kIq1 ? groups / 8 * kThreeSuper : kind == kQ2 ? groups / 8 * kTwoSuper : kind == kInt4 ? groups * kInt4Group : kind == kInt8 ? int8_bytes : pairs * (kind == kF32 ? 128 : 64);
  return view;
}

Weight::Weight(Arena& arena, int kind, int n, int k, int gated_features)
    : view(shape_of(kind, n, k, gated_features)), out_features(n), gated(gated_features > 0) {
  memory = arena.take(bytes_of({view.panel, size_t(view.panels)}));
  view.w = memory.data;
}

// Memory that holds a packed matrix already, and no other.
static Piece stored_piece(const Piece& stored, size_t bytes) {
  if (stored.bytes != bytes) throw nb::value_error("the stored weight has another size");
  if (reinterpret_cast<uintptr_t>(stored.data) % 64 != 0) throw nb::value_error("a stored weight must be 64-byte aligned");
  return stored;
}

Weight::Weight(const Piece& stored, int kind, int n, int k, int gated_features)
    : view(shape_of(kind, n, k, gated_features)), out_features(n), gated(gated_features > 0) {
  memory = stored_piece(stored, bytes_of({view.panel, size_t(view.panels)}));
  view.w = memory.data;
}

Bank::Bank(Arena* arena, const Piece* stored, int kind, int experts, int n, int k, int gated_features)
    : view{shape_of(kind, n, k, gated_features), 0}, num_experts(experts), out_features(n), gated(gated_features > 0) {
  if (experts <= 0 || experts > kMaxExperts) throw nb::value_error("a bank has from 1 to 4096 experts");
  view.stride = bytes_of({view.w.panel, size_t(view.w.panels)});
  const size_t bytes = bytes_of({view.stride, size_t(experts)});
  memory = arena ? arena->take(bytes) : stored_piece(*stored, bytes);
  view.w.w = memory.data;
}
Bank::Bank(Arena& arena, int kind, int experts, int n, int k, int gated_features)
    : Bank(&arena, nullptr, kind, experts, n, k, gated_features) {}
Bank::Bank(const Piece& stored, int kind, int experts, int n, int k, int gated_features)
    : Bank(nullptr, &stored, kind, experts, n, k, gated_features) {}

Activation::Activation(int rows, int width, bool ints, bool floats) : max_rows(rows) {
  if (rows <= 0 || width <= 0) throw nb::value_error("an activation needs at least one row and one column");
  if (rows > kMaxRows || width > kMaxWidth) throw nb::value_error("an activation has at most 2^28 rows and 2^24 columns");
  if (ints && width % 32 != 0) throw nb::value_error("the width of an int8 activation must be a multiple of 32");
  view.width = width;
  view.groups = (width + 31) / 32;
  view.stride = view.groups * 32 + 16;  // an odd number of lines: neighbouring rows fall into other sets of the first cache
  const size_t tiles = (size_t(rows) + kTileRows - 1) / kTileRows;
  const size_t int_bytes = ints ? (tiles * size_t(view.groups) * kTileRows * sizeof(Group) + 63) / 64 * 64 : 0;
  const size_t float_bytes = floats ? size_t(rows) * size_t(view.stride) * 4 : 0;
  memory = std::make_shared<Mapping>(int_bytes + float_bytes);
  view.q = ints ? reinterpret_cast<Group*>(memory->data()) : nullptr;
  view.f = floats ? reinterpret_cast<float*>(memory->data() + int_bytes) : nullptr;
}

static int kv_form(const std::string& name) {
  const char* names[] = {"float16", "int8", "fp8_e4m3"};   // in the order of KVForm
  for (int form = kKVHalf; form <= kKVE4M3; form++)
    if (name == names[form]) return form;
  throw nb::value_error(("K and V are kept as float16, int8 or fp8_e4m3, not as " + name).c_str());
}

size_t KVLayer::layer_bytes() const {
  const size_t values = 2 * size_t(view.heads) * size_t(view.dim) * kRun, scales = 2 * size_t(view.heads) * kRun;
  return view.form == kKVHalf ? values * 2 : values + scales * 4;
}

std::vector<KVLayer> KVLayer::make(int num_layers, int num_slots, int heads, int head_dim, const std::string& form) {
  if (num_layers <= 0) throw nb::value_error("there must be at least one KV layer");
  if (num_slots <= 0 || num_slots % kRun != 0) throw nb::value_error("the number of KV slots must be a positive multiple of 16");
  if (heads <= 0 || head_dim <= 0 || head_dim > kMaxWidth) throw nb::value_error("the head dimension must be positive, and at most 2^24");
  const int dim = (head_dim + 15) / 16 * 16;
  if (heads > kMaxWidth / dim) throw nb::value_error("a KV layer has at most 2^24 values of K in a slot");
  KVLayer layer{{nullptr, 0, kv_form(form), num_slots / kRun, heads, dim, head_dim}, nullptr};
  constexpr size_t kShift = 33 * 64;   // 33 lines: the same head of neighbouring runs falls into other sets of the first cache
  const size_t bytes = layer.layer_bytes();
  layer.view.stride = bytes * size_t(num_layers) + (num_layers > 1 ? kShift : 0);
  layer.memory = std::make_shared<Mapping>(bytes_of({size_t(layer.view.num_runs), layer.view.stride}));
  layer.view.at = layer.memory->data();
  std::vector<KVLayer> layers;
  for (int i = 0; i < num_layers; i++, layer.view.at += bytes) layers.push_back(layer);
  return layers;
}

void KVLayer::touch(int start, int end) const {
  const int first = std::max(start, 0) / kRun, last = std::min(end / kRun + (end % kRun > 0), view.num_runs);
  auto* base = memory->data();
  for (size_t at = size_t(first) * view.stride; at < size_t(std::max(last, first)) * view.stride; at += kPage)
    __atomic_fetch_or(base + at, uint8_t(0), __ATOMIC_RELAXED);
}

void Kept::add(Kept&& more) {
  for (auto& object : more.objects) objects.push_back(std::move(object));
  for (auto& array : more.arrays) arrays.push_back(std::move(array));
}

Released::~Released() {
  try {
    PyEval_RestoreThread(state_);
  } catch (...) {                      // not an exception: the interpreter has ended and ends this thread
    for (;;) pause();
  }
}

static uint64_t next_id() {
  static uint64_t ids = 0;             // guarded by the GIL
  return ++ids;
}

static std::unique_ptr<Pool, DeletePool> make_pool(int threads, int spin_us, bool ahead, uint64_t jobs_before = 0) {
  if (spin_us < 0) throw nb::value_error("spin_us must not be negative");
  return std::unique_ptr<Pool, DeletePool>(new Pool(threads, spin_us, ahead, jobs_before));
}

Runtime::Runtime(int threads, const std::string& isa, int spin_us, bool ahead)
    : kernels_(&find_kernels(isa)), ahead_(ahead), spin_us_(spin_us), id_(next_id()), pool_(make_pool(threads, spin_us, ahead)) {}

Pool& Runtime::pool() {
  if (pool_->forked()) replace_pool();
  return *pool_;
}

// Jobs that were on their way when the process was forked go on in the parent only: here they are lost, and say so when waited for.
void Runtime::replace_pool() {
  const uint64_t done = pool_->finished(), begun = pool_->submitted();
  auto fresh = make_pool(pool_->size(), spin_us_, ahead_, begun);
  fresh->set_adaptive(pool_->wants_adaptive());
  if (done < begun) lost_.emplace_back(done, begun);
  pool_ = std::move(fresh);
  const auto gone = std::move(started_);                   // what it kept may call into Python when it goes
  started_.clear();
}

// ---- recording --------------------------------------------------------------------------------------------------------------
static Tape& tape_of(const nb::object& object) {
  Tape* tape = nullptr;
  if (!nb::try_cast<Tape*>(object, tape) || !tape) throw nb::type_error("a Tape is needed");
  return *tape;
}

bool Runtime::runs(const Tape& tape) {
  forget_finished();
  for (const auto& started : started_)
    if (started.tape == &tape) return true;
  return false;
}

void Runtime::begin(nb::object object) {
  Tape& tape = tape_of(object);
  if (tape_ || tape.recording) throw nb::value_error("a tape is being recorded already");
  if (tape.owner && tape.owner != id_) throw nb::value_error("this tape was recorded by another op set");
  if (runs(tape)) throw nb::value_error("this tape runs: wait for it before recording more");
  tape.owner = id_;
  tape.recording = true;
  tape_ = &tape;
  tape_object_ = std::move(object);
  recorder_ = std::this_thread::get_id();
}

void Runtime::end() {
  if (!recording()) throw nb::value_error("no tape is being recorded by this thread");
  tape_->recording = false;
  tape_ = nullptr;
  const nb::object gone = std::move(tape_object_);
}

// ---- running ----------------------------------------------------------------------------------------------------------------
void Runtime::run(const Op* ops, size_t count, Kept& keep) {
  if (!recording()) return run_now(ops, count);
  tape_->keep.add(std::move(keep));
  tape_->ops.insert(tape_->ops.end(), ops, ops + count);
}

void Runtime::run_now(const Op* ops, size_t count) {
  Pool& pool = this->pool();
  Released nogil;
  pool.run(ops, count);
}

// The entry is there before the job is: nothing of a job that runs may depend on memory being found for it.
uint64_t Runtime::submit(Started started, const Op* ops, size_t count, uint64_t* spent) {
  Pool& pool = this->pool();
  forget_finished();
  started.number = UINT64_MAX;         // not finished
  started_.push_back(std::move(started));
  auto& entry = started_.back();
  try {
    entry.number = pool.submit(ops, count, spent);
  } catch (...) {
    started_.pop_back();
    throw;
  }
  return entry.number;
}

uint64_t Runtime::start(const Op& op, Kept& keep) {
  Started started;
  started.op = std::make_unique<Op>(op);
  started.keep = std::move(keep);
  const Op* own = started.op.get();
  const uint64_t number = submit(std::move(started), own, 1, nullptr);
  if (!ahead_) wait_for(number);
  return tagged(number);
}

uint64_t Runtime::replay(nb::object object, bool profile) {
  Tape& tape = tape_of(object);
  if (tape.recording) throw nb::value_error("this tape is being recorded");
  if (tape.owner && tape.owner != id_) throw nb::value_error("this tape was recorded by another op set");
  Started started;
  started.tape = &tape;
  started.keep.objects.push_back(std::move(object));
  std::vector<uint64_t> spent(profile ? tape.ops.size() : 0);
  const uint64_t number = submit(std::move(started), tape.ops.data(), tape.ops.size(), profile ? spent.data() : nullptr);
  if (profile || !ahead_) wait_for(number);
  if (tape.spent.size() < spent.size()) tape.spent.resize(spent.size());
  for (size_t i = 0; i < spent.size(); i++) tape.spent[i] += spent[i];
  return tagged(number);
}

constexpr int kNumberBits = 48;

uint64_t Runtime::tagged(uint64_t number) const { return id_ << kNumberBits | number; }

void Runtime::wait(uint64_t job) {
  if (job == 0) return;
  const uint64_t number = job & ((uint64_t(1) << kNumberBits) - 1);
  if (job != tagged(number)) throw nb::value_error("this job belongs to another op set");
  if (number > pool().submitted()) throw nb::value_error("no such job was ever started");
  for (const auto& [after, up_to] : lost_)
    if (number > after && number <= up_to) throw std::runtime_error("this job ran when the process was forked: its result is in the parent only");
  wait_for(number);
}

void Runtime::wait_for(uint64_t number) {
  Pool& pool = this->pool();
  if (pool.finished() < number) {
    Released nogil;
    pool.wait(number);
  }
  forget_finished();
}

void Runtime::forget_finished() {
  while (!started_.empty() && started_.front().number <= pool_->finished()) {
    const Started done = std::move(started_.front());      // what it kept may call into Python when it goes
    started_.pop_front();
  }
}

void* Runtime::buffer(const char* what, size_t bytes) {
  auto& slot = buffers_[{what, bytes}];
  if (!slot) slot = std::make_unique<Mapping>(bytes);
  return slot->data();
}

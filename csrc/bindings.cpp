// The Python module: its classes, copies, loading and measuring. The ops are in ops_model.cpp and ops_logits.cpp.
#include "call.h"
#include "ops.h"
#include "processor.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstring>

// ---- between host and device ----------------------------------------------------------------------------------------------
struct CopyArgs {
  uint8_t* to;
  const uint8_t* from;
  size_t rows, row_bytes, to_stride, from_stride;          // bytes
};
static void copy_bytes(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const CopyArgs*>(args);
  if (c.take()) return;
  for (size_t r = 0; r < a.rows; r++) std::memcpy(a.to + r * a.to_stride, a.from + r * a.from_stride, a.row_bytes);
}

// An array of any type as rows of bytes: one where all of it is contiguous, else its first dimension, whose rows must be.
static Matrix<const uint8_t> rows_of_bytes(const Call& c, const nb::ndarray<nb::ro>& a, const char* arg) {
  const size_t item = a.itemsize();
  size_t inner = 1;                    // elements of an entry of the first dimension
  bool whole = true;
  for (size_t i = a.ndim(); i-- > 0;) {
    const bool tight = a.shape(i) <= 1 || a.stride(i) == int64_t(inner);
    whole = whole && tight;
    c.check(tight || a.size() == 0 || (i == 0 && a.stride(0) >= int64_t(inner)), arg, "must have contiguous rows");
    if (i > 0) inner *= a.shape(i);
  }
  c.check(a.nbytes() <= INT_MAX, arg, "is too large");
  const auto* p = static_cast<const uint8_t*>(a.data());
  if (whole || a.size() == 0) return {p, 1, int(a.nbytes()), a.nbytes()};
  return {p, int(a.shape(0)), int(inner * item), size_t(a.stride(0)) * item};
}

// to[...] = from, in its turn among what was started. Returns the job to wait for.
static uint64_t copy(Runtime& rt, Obj to, Obj from) {
  Call c("copy");
  const auto t = c.array<OutArray>(to, "to");
  const auto f = c.array<InArray>(from, "from");
  c.check(t.dtype() == f.dtype() && t.ndim() == f.ndim(), "to", "and from must have the same type and shape");
  for (size_t i = 0; i < t.ndim(); i++) c.check(t.shape(i) == f.shape(i), "to", "and from must have the same type and shape");
  const auto tb = rows_of_bytes(c, nb::ndarray<nb::ro>(t), "to"), fb = rows_of_bytes(c, nb::ndarray<nb::ro>(f), "from");
  c.check(!overlap(tb, fb), "to", "must not share memory with from");
  // Where only one of them is in pieces, so is the other.
  const auto& cut = tb.rows > fb.rows ? tb : fb;
  const size_t rows = size_t(cut.rows), bytes = size_t(cut.cols);
  CopyArgs a{const_cast<uint8_t*>(tb.p), fb.p, rows, bytes, tb.rows == cut.rows ? tb.ld : bytes, fb.rows == cut.rows ? fb.ld : bytes};
  return rt.start(make_op("copy", &copy_bytes, a), c.keep);
}

// The memory of a KV pool, for those who copy runs of slots: bytes [run][layer][those of a layer]. It may be kept: it holds the memory.
using Runs = nb::ndarray<nb::numpy, uint8_t, nb::ndim<3>>;
static Runs view_runs(const KVLayer& l, int num_layers) {
  const size_t bytes = l.layer_bytes();
  if (num_layers <= 0 || size_t(num_layers) > l.view.stride / bytes) throw nb::value_error("the pool has not so many layers");
  const size_t shape[] = {size_t(l.view.num_runs), size_t(num_layers), bytes};
  const int64_t strides[] = {int64_t(l.view.stride), int64_t(bytes), 1};
  nb::capsule owner(new std::shared_ptr<Mapping>(l.memory), [](void* p) noexcept { delete static_cast<std::shared_ptr<Mapping>*>(p); });
  return Runs(l.memory->data(), 3, shape, owner, strides);
}

// ---- loading and measuring --------------------------------------------------------------------------------------------------
using Source1D = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
// Rows of a matrix that begins at `to` and has `out_features`.
static void pack_rows(Runtime& rt, const WeightView& view, int out_features, bool gated, uint8_t* to, const Source1D& src, int source, int rows, int first_row) {
  if (rows <= 0 || src.nbytes() % size_t(rows) != 0) throw nb::value_error("pack: the source does not divide into its rows");
  const size_t row = src.nbytes() / size_t(rows), k = size_t(view.k);
  static const struct { int kind, last; size_t len, bytes; } kSources[] = {
      {kF32, kF32, 1, 4}, {kF16, kF16, 1, 2}, {kBF16, kBF16, 1, 2}, {kInt4, kInt4, 32, 18}, {kInt4, kInt4, 32, 20}, {kInt8, kInt8, 32, 22},
      {kInt8, kInt8, 32, 24}, {kInt8, kInt8, 32, 34}, {kInt4, kInt4, 256, 144}, {kInt8, kInt8, 256, 176}, {kInt8, kInt8, 256, 210},
      {kMx4, kMx4, 32, 17}, {kIq4, kIq3x, 32, 18}, {kQ3, kIq1, 256, 274}, {kQ2, kQ2, 256, 84}};
  if (source < 0 || source > kSrcQ2_K) throw nb::value_error("pack: unknown block format");
  const auto& s = kSources[source];
  if (view.kind < s.kind || view.kind > s.last || k % s.len != 0 || k / s.len * s.bytes != row) throw nb::value_error("pack: the source's rows do not fit the weight");
  const int places = gated ? (first_row == 0 || first_row == 32 ? out_features / 2 : 0) : out_features - first_row;
  if (first_row < 0 || rows > places) throw nb::value_error("pack: more rows than the weight has");
  PackArgs a{static_cast<const uint8_t*>(src.data()), row, source, rows, to, view.panel, view.kind, view.k, view.groups, view.panels, first_row, gated};
  const Op op = make_op("pack", rt.kernels().pack, a);
  rt.run_now(&op);
}
static void check_writable(const Piece& memory) {
  if (memory.chunk->read_only()) throw nb::value_error("pack: a stored weight is packed already");
}
static void pack(Runtime& rt, Weight& w, const Source1D& src, int source, int rows, int first_row) {
  check_writable(w.memory);
  pack_rows(rt, w.view, w.out_features, w.gated, w.memory.data, src, source, rows, first_row);
}
static void pack_expert(Runtime& rt, Bank& b, int expert, const Source1D& src, int source, int rows, int first_row) {
  if (expert < 0 || expert >= b.num_experts) throw nb::value_error("pack: no such expert");
  check_writable(b.memory);
  pack_rows(rt, b.view.w, b.out_features, b.gated, b.memory.data + size_t(expert) * b.view.stride, src, source, rows, first_row);
}

static double read_bandwidth(Runtime& rt, const Weight& w, int repeats) {
  alignas(64) static uint64_t sink[kMaxThreads * 8];
  const Op op = make_op("read", rt.kernels().read, ReadArgs{w.memory.data, w.memory.bytes, sink});
  const auto t0 = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; i++) rt.run_now(&op);
  return double(w.memory.bytes) * repeats / std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count();
}
static double peak(Runtime& rt, int what, int loops) {
  const auto t0 = std::chrono::steady_clock::now();
  const double ops = rt.kernels().peak(what, loops);
  return ops / std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count();
}

NB_MODULE(_cpu, m) {
  m.doc() = "Native CPU kernels; use sglang.srt.model.kernels.cpu.CpuOps.";
  nb::set_leak_warnings(false);        // a daemon thread that is in a call when the interpreter ends keeps what it uses
  m.attr("KV_RUN") = kRun;
  m.def("usable_isas", &usable_kernels);
  m.def("processor_isas", &processor_sets);
  nb::class_<Weight> weight(m, "Weight");
  weight
      .def("__init__", [](Weight* self, Runtime& rt, int kind, int n, int k, int gated) { new (self) Weight(rt.arena(), kind, n, k, gated); },
           nb::arg(), nb::arg("kind"), nb::arg("n"), nb::arg("k"), nb::arg("gated_features") = 0)
      .def_ro("out_features", &Weight::out_features)
      .def_prop_ro("in_features", [](const Weight& w) { return w.view.k; })
      .def_prop_ro("kind", [](const Weight& w) { return w.view.kind; })
      .def_prop_ro("num_bytes", [](const Weight& w) { return w.memory.bytes; });
  nb::class_<Bank> bank(m, "Bank");
  bank
      .def("__init__", [](Bank* self, Runtime& rt, int kind, int experts, int n, int k, int gated) { new (self) Bank(rt.arena(), kind, experts, n, k, gated); },
           nb::arg(), nb::arg("kind"), nb::arg("num_experts"), nb::arg("n"), nb::arg("k"), nb::arg("gated_features") = 0)
      .def_ro("num_experts", &Bank::num_experts)
      .def_prop_ro("out_features", [](const Bank& b) { return int64_t(b.num_experts) * b.out_features; })
      .def_prop_ro("in_features", [](const Bank& b) { return b.view.w.k; })
      .def_prop_ro("kind", [](const Bank& b) { return b.view.w.kind; })
      .def_prop_ro("num_bytes", [](const Bank& b) { return b.memory.bytes; });
  nb::class_<Activation>(m, "Activation")
      .def(nb::init<int, int, bool, bool>())
      .def_ro("max_rows", &Activation::max_rows)
      .def_prop_ro("width", [](const Activation& a) { return a.view.width; })
      .def_prop_ro("num_bytes", [](const Activation& a) { return a.memory->size(); });
  nb::class_<KVLayer>(m, "KVLayer")
      .def_static("make", &KVLayer::make)
      .def("touch", [](const KVLayer& l, int start, int end) {
        Released nogil;
        l.touch(start, end);
      })
      .def("runs", &view_runs, nb::arg("num_layers"))
      .def_prop_ro("num_kv_heads", [](const KVLayer& l) { return l.view.heads; })
      .def_prop_ro("head_dim", [](const KVLayer& l) { return l.view.head; })
      .def_prop_ro("num_bytes", [](const KVLayer& l) { return size_t(l.view.num_runs) * l.layer_bytes(); });
  nb::class_<Tape>(m, "Tape")
      .def(nb::init<>())
      .def("__len__", [](const Tape& t) { return t.ops.size(); })
      .def("clear_profile", [](Tape& t) { t.spent.clear(); })
      .def("profile", [](const Tape& t) {
        std::vector<std::pair<std::string, uint64_t>> r;
        for (size_t i = 0; i < t.spent.size(); i++) r.emplace_back(t.ops[i].name, t.spent[i]);
        return r;
      });
  nb::class_<Runtime> runtime(m, "Runtime");
  runtime
      .def(nb::init<int, const std::string&, int, bool>(), nb::arg("threads"), nb::arg("isa"), nb::arg("spin_us"), nb::arg("ahead"))
      .def_prop_ro("isa", [](const Runtime& r) { return r.kernels().name; })
      .def_prop_ro("threads", [](Runtime& r) { return r.pool().size(); })
      .def_prop_ro("active_threads", [](Runtime& r) { return r.pool().active(); })
      .def("set_adaptive", [](Runtime& r, bool on) {
        r.finish();
        r.pool().set_adaptive(on);
      })
      .def("begin", &Runtime::begin)
      .def("end", &Runtime::end)
      .def("replay", &Runtime::replay, nb::arg("tape"), nb::arg("profile") = false)
      .def("wait", &Runtime::wait)
      .def("finish", &Runtime::finish)
      .def("copy", &copy)
      .def("pack", &pack)
      .def("pack_expert", &pack_expert)
      .def("read_bandwidth", &read_bandwidth)
      .def("peak", &peak);
  def_model_ops(runtime);
  def_expert_ops(runtime);
  def_logit_ops(runtime);
  def_adapter_ops(runtime);
  def_state_ops(runtime);
  def_stored(m, weight, bank);
}

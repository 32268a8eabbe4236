// The ops of a forward pass: each checks its arrays once, when it is called or recorded, and becomes a plain Op.
#include "call.h"
#include "ops.h"

#include <nanobind/stl/string.h>

static int gate_of(const Call& c, const std::string& name) {
  if (name == "silu") return kSilu;
  if (name == "gelu_tanh") return kGeluTanh;
  if (name == "gelu") return kGelu;
  c.fail("gate", "must be silu, gelu_tanh or gelu");
}

// ---- the forward pass -----------------------------------------------------------------------------------------------------
static void take_sampled(Runtime& rt, Obj ids, Obj previous, Obj sampled, Obj rows) {
  Call c("take_sampled");
  auto to = c.out_vec<int>(ids, "ids", 0);
  auto from = c.vec<int>(previous, "previous", 0), values = c.vec<int>(sampled, "sampled", 0);
  TakeArgs a{to.p, from.p, values.p, c.rows(rows), smaller(to.n, from.n), values.n};
  rt.run(make_op("take_sampled", rt.kernels().take_sampled, a), c.keep);
}

static void embedding(Runtime& rt, Obj weight, Obj ids, Obj out, Obj rows, float scale) {
  Call c("embedding");
  const WeightView& w = c.weight(weight, "weight");
  auto o = c.out_mat<float>(out, "out", w.k);
  auto id = c.vec<int>(ids, "ids", 0);
  const int n = smaller(o.rows, id.n);
  rt.run(make_op("embedding", rt.kernels().embedding, EmbeddingArgs{w, id.p, o.p, o.ld, scale, c.rows(rows), n}), c.keep);
}

static void rms_norm(Runtime& rt, Obj x, Obj weight, Obj out, Obj rows, float eps, Obj delta, Obj row_idx) {
  Call c("rms_norm");
  auto xm = c.out_mat<float>(x, "x", 1);
  NormArgs a{};
  a.x = xm.p, a.ld_x = xm.ld, a.width = xm.cols, a.x_rows = a.max_rows = xm.rows, a.eps = eps;
  a.weight = c.vec<float>(weight, "weight", size_t(xm.cols)).p;
  c.check(size_t(xm.cols) * 4 <= kScratchBytes, "x", "is too wide");
  if (!delta.is_none()) {
    auto d = c.mat<float>(delta, "delta", xm.cols);
    c.check(d.rows >= xm.rows, "delta", "must have as many rows as x");
    c.apart(xm, d, "x", true);
    a.delta = d.p, a.ld_delta = d.ld;
  }
  if (!row_idx.is_none()) {
    auto idx = c.vec<int>(row_idx, "row_idx", 0);
    a.row_idx = idx.p, a.max_rows = idx.n;
    c.check(xm.rows > 0, "x", "must have rows");
  }
  if (nb::isinstance<Activation>(out)) {
    Activation& o = c.handle<Activation>(out, "out");
    c.check(o.view.width == xm.cols, "out", "must be as wide as x");
    a.act = o.view;
    a.max_rows = smaller(a.max_rows, o.max_rows);
  } else {
    auto o = c.out_mat<float>(out, "out", xm.cols);
    c.apart(o, xm, "out", a.row_idx == nullptr);
    if (a.delta) c.apart(o, Matrix<const float>{a.delta, xm.rows, xm.cols, a.ld_delta}, "out", a.row_idx == nullptr);
    a.out = o.p, a.ld_out = o.ld;
    a.max_rows = smaller(a.max_rows, o.rows);
  }
  a.rows = c.rows(rows);
  rt.run(make_op("rms_norm", rt.kernels().rms_norm, a), c.keep);
}

static void linear(Runtime& rt, Obj weight, Obj x, Obj out, Obj rows, Obj bias) {
  Call c("linear");
  const Weight& packed = c.handle<Weight>(weight, "weight");
  const WeightView& w = packed.view;
  const Activation& act = c.reads(x, w);
  auto o = c.out_mat<float>(out, "out", packed.out_features);
  const float* b = nullptr;
  if (!bias.is_none()) {
    auto v = c.vec<float>(bias, "bias", size_t(w.n));
    c.apart(o, row(v), "out");
    c.check(!packed.gated, "bias", "goes with weights of pack only");
    b = v.p;
  }
  const LinearArgs a{w, act.view, o.p, o.ld, b, c.rows(rows), smaller(o.rows, act.max_rows), packed.out_features};
  rt.run(make_op("linear", packed.gated ? rt.kernels().linear_gated : rt.kernels().linear, a), c.keep);
}

static void linear_blocks(Runtime& rt, Obj weight, Obj x, Obj out, Obj rows, Obj whole, Obj num_blocks, Obj blocks) {
  Call c("linear_blocks");
  const WeightView& w = c.weight(weight, "weight");
  const Activation& act = c.reads(x, w);
  auto o = c.out_mat<float>(out, "out", w.n);
  const LinearArgs linear{w, act.view, o.p, o.ld, nullptr, c.rows(rows), smaller(o.rows, act.max_rows)};
  const int* listed = c.vec<int>(blocks, "blocks", size_t(w.panels)).p;
  rt.run(make_op("linear_blocks", rt.kernels().linear_blocks,
                 BlocksArgs{linear, c.vec<int>(whole, "whole", 1).p, c.vec<int>(num_blocks, "num_blocks", 1).p, listed, w.panels}), c.keep);
}

static void gated_linear(Runtime& rt, Obj weight, Obj x, Obj out, Obj rows, const std::string& gate) {
  Call c("gated_linear");
  const WeightView& w = c.weight(weight, "weight", true);
  const Activation& act = c.reads(x, w);
  Activation& o = c.handle<Activation>(out, "out");
  c.check(o.view.width == c.handle<Weight>(weight, "weight").out_features / 2, "out", "must be half as wide as the weight's out_features");
  const int n = smaller(o.max_rows, act.max_rows), fn = gate_of(c, gate);
  c.check(&o != &act, "out", "must not be what is read");
  rt.run(make_op("gated_linear", rt.kernels().gated_linear, GatedLinearArgs{w, act.view, o.view, fn, c.rows(rows), n}), c.keep);
}

static void gate(Runtime& rt, Obj gate_in, Obj up, Obj out, Obj rows, const std::string& fn) {
  Call c("gate");
  ActView view;
  int max_rows;
  if (nb::isinstance<Activation>(out)) {
    Activation& o = c.handle<Activation>(out, "out");
    view = o.view, max_rows = o.max_rows;
  } else {
    auto o = c.out_mat<float>(out, "out", 1);
    view = {nullptr, o.p, o.cols, (o.cols + 31) / 32, int(o.ld)}, max_rows = o.rows;
  }
  auto g = c.mat<float>(gate_in, "gate", view.width), u = c.mat<float>(up, "up", view.width);
  if (!view.q) {
    const Matrix<float> o{view.f, max_rows, view.width, size_t(view.stride)};
    c.apart(o, g, "out"), c.apart(o, u, "out");
  }
  const int n = smaller(smaller(g.rows, u.rows), max_rows);
  rt.run(make_op("gate", rt.kernels().gate, GateArgs{g.p, u.p, g.ld, u.ld, view, gate_of(c, fn), c.rows(rows), n}), c.keep);
}

static void store(Runtime& rt, Obj x, Obj out, Obj rows) {
  Call c("store");
  Activation& o = c.handle<Activation>(out, "out");
  auto m = c.mat<float>(x, "x", o.view.width);
  rt.run(make_op("store", rt.kernels().store, GateArgs{m.p, nullptr, m.ld, 0, o.view, 0, c.rows(rows), smaller(m.rows, o.max_rows)}), c.keep);
}

// Columns of a buffer: a product of counts that came from outside.
static int columns(const Call& c, const char* arg, int64_t n) {
  c.check(n <= int64_t(kMaxExtent), arg, "is too large");
  return int(n);
}
static void check_heads(const Call& c, int num_heads, const KVView& kv) {
  c.check(num_heads > 0 && num_heads % kv.heads == 0, "num_heads", "must be a multiple of the number of KV heads");
}

static void rope_store(Runtime& rt, Obj qkv, Obj kv, Obj positions, Obj slots, Obj rows, int num_heads, Obj cos, Obj sin, float q_scale,
                       Obj q_norm, Obj k_norm, float eps, bool norm_last, Obj q_growth, bool q_only) {
  Call c("rope_store");
  RopeArgs a{};
  a.kv = c.handle<KVLayer>(kv, "kv").view;
  check_heads(c, num_heads, a.kv);
  if (q_only) a.kv.heads = 0;
  auto m = c.out_mat<float>(qkv, "qkv", columns(c, "num_heads", (int64_t(num_heads) + 2 * a.kv.heads) * a.kv.head));
  auto co = c.mat<float>(cos, "cos", 1), si = c.mat<float>(sin, "sin", 1);
  c.check(co.cols == si.cols && co.rows == si.rows && co.rows > 0, "sin", "must have the shape of cos");
  c.check(co.ld == size_t(co.cols) && si.ld == size_t(si.cols), "cos", "and sin must be contiguous");
  c.check(2 * co.cols <= a.kv.head, "cos", "has more pairs than a head");
  c.check(q_norm.is_none() == k_norm.is_none(), "q_norm", "and k_norm must be given together");
  if (!q_norm.is_none()) {
    a.q_norm = c.vec<float>(q_norm, "q_norm", size_t(a.kv.head)).p;
    a.k_norm = c.vec<float>(k_norm, "k_norm", size_t(a.kv.head)).p;
  }
  a.qkv = m.p, a.ld = m.ld, a.num_heads = num_heads, a.rot = co.cols, a.cos = co.p, a.sin = si.p, a.num_positions = co.rows;
  if (!q_growth.is_none()) a.q_growth = c.vec<float>(q_growth, "q_growth", size_t(co.rows)).p;
  a.norm_last = norm_last;
  auto pos = c.vec<int>(positions, "positions", 0), slot = c.vec<int>(slots, "slots", 0);
  a.positions = pos.p, a.slots = slot.p;
  a.q_scale = q_scale, a.eps = eps, a.rows = c.rows(rows);
  a.max_rows = smaller(m.rows, smaller(pos.n, slot.n));
  rt.run(make_op("rope_store", rt.kernels().rope_store, a), c.keep);
}

static MetaView meta_of(Call& c, Obj meta, int max_rows) {
  MetaView m{};
  auto field = [&](const char* name) { return nb::getattr(meta, name); };
  auto table = c.mat<int>(field("req_to_token"), "meta.req_to_token", 1);
  c.check(table.rows <= 1 || table.ld == size_t(table.cols), "meta.req_to_token", "must be contiguous");
  m.req_to_token = table.p, m.table_rows = table.rows, m.context_len = table.cols;
  c.check(table.rows > 0, "meta.req_to_token", "must have rows");
  auto idx = c.vec<int>(field("req_pool_idx"), "meta.req_pool_idx", 0);
  m.req_pool_idx = idx.p, m.max_reqs = idx.n;
  const size_t n = size_t(idx.n);
  m.num_reqs = c.vec<int>(field("num_reqs"), "meta.num_reqs", 1).p;
  m.q_start = c.vec<int>(field("q_start"), "meta.q_start", n).p;
  m.q_len = c.vec<int>(field("q_len"), "meta.q_len", n).p;
  m.seq_lens = c.vec<int>(field("seq_lens"), "meta.seq_lens", n).p;
  nb::object ends = nb::getattr(meta, "row_ends", nb::none());
  if (!ends.is_none()) m.row_ends = c.vec<int>(ends, "meta.row_ends", size_at(max_rows)).p;
  return m;
}

static void attention(Runtime& rt, Obj qkv, Obj kv, Obj out, Obj meta, int num_heads, int window, float soft_cap, Obj sinks) {
  Call c("attention");
  AttentionArgs a{};
  a.kv = c.handle<KVLayer>(kv, "kv").view;
  check_heads(c, num_heads, a.kv);
  c.check(window >= 0, "window", "must not be negative");
  c.check(soft_cap >= 0, "soft_cap", "must not be negative");
  const int width = columns(c, "num_heads", int64_t(num_heads) * a.kv.head);
  auto m = c.mat<float>(qkv, "qkv", width);
  Activation& o = c.handle<Activation>(out, "out");
  c.check(o.view.width == width, "out", "must be num_heads * head_dim wide");
  a.qkv = m.p, a.ld = m.ld, a.out = o.view;
  a.num_heads = num_heads, a.window = window, a.soft_cap = soft_cap;
  if (!sinks.is_none()) a.sinks = c.vec<float>(sinks, "sinks", size_t(num_heads)).p;
  a.max_rows = smaller(m.rows, o.max_rows);
  a.meta = meta_of(c, meta, a.max_rows);
  // The size of a thread's scratch (attention.h, carve).
  const size_t dim = size_t(a.kv.dim), grp = size_t(num_heads / a.kv.heads), rows = grp > 96 ? grp : 96;
  c.check((rows * (2 * dim + 16) + 16 * dim + 3 * kChunk * dim + 4096) * 4 <= kScratchBytes, "kv", "has heads too large for these kernels");
  const size_t entry = size_t(num_heads) * (dim + 16) * 4, chunks = size_t(a.meta.context_len + kChunk - 1) / kChunk;
  size_t entries = chunks * size_t(a.meta.max_reqs);
  const size_t limit = (size_t(64) << 20) / entry;
  entries = entries > limit ? (limit > chunks ? limit : chunks) : entries;
  a.part_entries = int(entries);
  a.part = static_cast<float*>(rt.buffer("attention partials", entries * entry));
  a.rows_out = static_cast<float*>(rt.buffer("attention rows", size_t(a.max_rows) * size_t(width) * 4));
  const Op ops[2] = {make_op("attention", rt.kernels().attention, a), make_op("attention_finish", rt.kernels().attention_finish, a)};
  rt.run(ops, 2, c.keep);
}

static void soft_cap(Runtime& rt, Obj x, Obj rows, float cap) {
  Call c("soft_cap");
  auto m = c.out_mat<float>(x, "x", 1);
  c.check(cap > 0, "cap", "must be positive");
  rt.run(make_op("soft_cap", rt.kernels().soft_cap, SoftCapArgs{m.p, m.ld, m.cols, cap, c.rows(rows), m.rows}), c.keep);
}

// ---- several residual streams ------------------------------------------------------------------------------------------------
static void scale_rows(Runtime& rt, Obj x, Obj rows, float by) {
  Call c("scale");
  auto m = c.out_mat<float>(x, "x", 1);
  rt.run(make_op("scale", rt.kernels().scale_rows, SoftCapArgs{m.p, m.ld, m.cols, by, c.rows(rows), m.rows}), c.keep);
}

static void sparsify(Runtime& rt, Obj x, Obj rows, float deviations) {
  Call c("sparsify");
  auto m = c.out_mat<float>(x, "x", 1);
  rt.run(make_op("sparsify", rt.kernels().sparsify, SoftCapArgs{m.p, m.ld, m.cols, deviations, c.rows(rows), m.rows}), c.keep);
}

static void match_rms(Runtime& rt, Obj x, Obj like, Obj rows) {
  Call c("match_rms");
  auto m = c.out_mat<float>(x, "x", 1);
  auto l = c.mat<float>(like, "like", m.cols);
  c.check(l.cols == m.cols, "like", "must be as wide as x");
  c.apart(m, l, "x");
  MatchArgs a{m.p, l.p, m.ld, l.ld, m.cols, c.rows(rows), smaller(m.rows, l.rows)};
  rt.run(make_op("match_rms", rt.kernels().match_rms, a), c.keep);
}

// ---- vision-language models --------------------------------------------------------------------------------------------------------
static RowsArgs rows_args(Call& c, Obj x, Obj source, Obj index, Obj rows) {
  RowsArgs a{};
  auto s = c.mat<float>(source, "source", 1);
  auto o = c.out_mat<float>(x, "out", s.cols);
  a.source = s.p, a.ld_source = s.ld, a.width = s.cols, a.source_rows = s.rows;
  a.out = o.p, a.ld_out = o.ld;
  auto idx = c.vec<int>(index, "index", 0);
  c.apart(o, s, "out");
  a.index = idx.p;
  a.rows = c.rows(rows), a.max_rows = smaller(o.rows, idx.n);
  c.check(s.rows > 0, "source", "must have rows");
  return a;
}
static void overlay(Runtime& rt, Obj x, Obj source, Obj index, Obj rows, bool add) {
  Call c("overlay");
  RowsArgs a = rows_args(c, x, source, index, rows);
  a.add = add;
  rt.run(make_op("overlay", rt.kernels().overlay, a), c.keep);
}
static void gather_rows(Runtime& rt, Obj x, Obj index, Obj out, Obj rows) {
  Call c("gather_rows");
  rt.run(make_op("gather_rows", rt.kernels().gather_rows, rows_args(c, out, x, index, rows)), c.keep);
}

static void blend_rows(Runtime& rt, Obj x, Obj index, Obj weight, Obj out, Obj rows) {
  Call c("blend_rows");
  auto s = c.mat<float>(x, "x", 1);
  auto o = c.out_mat<float>(out, "out", s.cols);
  auto i = c.mat<int>(index, "index", 1);
  auto w = c.mat<float>(weight, "weight", i.cols);
  c.check(w.cols == i.cols && i.ld == size_t(i.cols), "index", "must be contiguous, and as wide as weight");
  c.check(s.rows > 0, "x", "must have rows");
  c.apart(o, s, "out");
  BlendArgs a{s.p, s.ld, i.p, w.p, w.ld, o.p, o.ld, s.cols, s.rows, i.cols, c.rows(rows), smaller(o.rows, smaller(i.rows, w.rows))};
  rt.run(make_op("blend_rows", rt.kernels().blend_rows, a), c.keep);
}

static void select_rope(Runtime& rt, Obj cos, Obj sin, Obj positions, Obj axes, Obj out_cos, Obj out_sin, Obj rows) {
  Call c("select_rope");
  auto co = c.mat<float>(cos, "cos", 1), si = c.mat<float>(sin, "sin", 1);
  c.check(co.cols == si.cols && co.rows == si.rows && co.rows > 0, "sin", "must have the shape of cos");
  auto oc = c.out_mat<float>(out_cos, "out_cos", co.cols), os = c.out_mat<float>(out_sin, "out_sin", co.cols);
  auto tight = [&](auto& m) { return m.cols == co.cols && m.ld == size_t(m.cols); };
  c.check(tight(co) && tight(si) && tight(oc) && tight(os), "cos", "and all tables must be contiguous and equally wide");
  auto p = c.mat<int>(positions, "positions", 1);
  c.check(p.rows == 3, "positions", "must have three rows");
  for (const auto& from : {co, si}) c.apart(oc, from, "out_cos"), c.apart(os, from, "out_sin");
  c.apart(oc, os, "out_cos");
  SelectRopeArgs a{co.p, si.p, p.p, c.vec<int>(axes, "axes", size_t(co.cols)).p, p.ld, oc.p, os.p, co.cols, co.rows, c.rows(rows),
                   smaller(smaller(oc.rows, os.rows), p.cols)};
  rt.run(make_op("select_rope", rt.kernels().select_rope, a), c.keep);
}

static void layer_norm(Runtime& rt, Obj x, Obj weight, Obj bias, Obj out, Obj rows, float eps, Obj delta) {
  Call c("layer_norm");
  auto xm = c.out_mat<float>(x, "x", 1);
  LayerNormArgs a{};
  a.x = xm.p, a.ld_x = xm.ld, a.width = xm.cols, a.max_rows = xm.rows, a.eps = eps;
  a.weight = c.vec<float>(weight, "weight", size_t(xm.cols)).p, a.bias = c.vec<float>(bias, "bias", size_t(xm.cols)).p;
  if (!delta.is_none()) {
    auto d = c.mat<float>(delta, "delta", xm.cols);
    c.check(d.rows >= xm.rows, "delta", "must have as many rows as x");
    c.apart(xm, d, "x", true);
    a.delta = d.p, a.ld_delta = d.ld;
  }
  if (nb::isinstance<Activation>(out)) {
    Activation& o = c.handle<Activation>(out, "out");
    c.check(o.view.width == xm.cols, "out", "must be as wide as x");
    a.act = o.view;
    a.max_rows = smaller(a.max_rows, o.max_rows);
  } else {
    auto o = c.out_mat<float>(out, "out", xm.cols);
    c.apart(o, xm, "out", true);
    if (a.delta) c.apart(o, Matrix<const float>{a.delta, xm.rows, xm.cols, a.ld_delta}, "out", true);
    a.out = o.p, a.ld_out = o.ld;
    a.max_rows = smaller(a.max_rows, o.rows);
  }
  a.rows = c.rows(rows);
  rt.run(make_op("layer_norm", rt.kernels().layer_norm, a), c.keep);
}

static void activate(Runtime& rt, Obj x, Obj out, Obj rows, const std::string& fn) {
  Call c("activate");
  Activation& o = c.handle<Activation>(out, "out");
  auto m = c.mat<float>(x, "x", o.view.width);
  const int f = fn == "quick_gelu" ? int(kQuickGelu) : fn == "relu" ? int(kRelu) : fn == "relu2" ? int(kRelu2) : gate_of(c, fn);
  rt.run(make_op("activate", rt.kernels().activate, GateArgs{m.p, nullptr, m.ld, 0, o.view, f, c.rows(rows), smaller(m.rows, o.max_rows)}), c.keep);
}

static void rotate(Runtime& rt, Obj x, Obj cos, Obj sin, Obj rows, int num_heads, int head_dim) {
  Call c("rotate");
  c.check(num_heads > 0 && head_dim > 0, "num_heads", "and head_dim must be positive");
  auto m = c.out_mat<float>(x, "x", columns(c, "num_heads", int64_t(num_heads) * head_dim));
  auto co = c.mat<float>(cos, "cos", 1), si = c.mat<float>(sin, "sin", 1);
  c.check(co.cols == si.cols && 2 * co.cols <= head_dim && co.ld == size_t(co.cols) && si.ld == size_t(si.cols), "cos",
          "and sin must be contiguous, of one width, at most half a head");
  RotateArgs a{m.p, m.ld, co.p, si.p, num_heads, head_dim, co.cols, c.rows(rows), smaller(m.rows, smaller(co.rows, si.rows))};
  rt.run(make_op("rotate", rt.kernels().rotate, a), c.keep);
}

static void segment_attention(Runtime& rt, Obj qkv, Obj starts, Obj out, int begin, int end, int num_heads, int head_dim, float scale,
                              int window, Obj bias) {
  Call c("segment_attention");
  c.check(num_heads > 0 && head_dim > 0 && head_dim <= 1024 && num_heads <= 65536, "num_heads", "and head_dim must be positive and not huge");
  auto m = c.mat<float>(qkv, "qkv", 3 * num_heads * head_dim);
  auto o = c.out_mat<float>(out, "out", num_heads * head_dim);
  const int n = smaller(m.rows, o.rows);
  c.check(0 <= begin && begin <= end && end <= n, "begin", "and end must be rows of qkv and out");
  c.apart(o, m, "out");
  auto at = c.vec<int>(starts, "starts", 1);
  columns(c, "qkv", (int64_t(n) + at.n) * num_heads);      // units of work
  SegmentArgs a{m.p, m.ld, at.p, o.p, o.ld, at.n - 1, begin, end, n, num_heads, head_dim, scale, window, nullptr, 0, 0};
  c.check(window >= 0 && window <= 1 << 30, "window", "must not be negative or huge");
  if (!bias.is_none()) {
    auto b = c.mat<float>(bias, "bias", 1);
    c.check(b.rows >= num_heads && b.cols % 2 == 1, "bias", "must have a row for each head and an odd number of columns");
    a.bias = b.p, a.ld_bias = b.ld, a.reach = b.cols / 2;
  }
  const size_t dim = size_t(head_dim + 15) / 16 * 16;
  c.check((48 * (2 * dim + 16) + 16 * dim + 3 * kChunk * dim + 4096) * 4 <= kScratchBytes, "head_dim", "is too large for these kernels");
  rt.run(make_op("segment_attention", rt.kernels().segment_attention, a), c.keep);
}

void def_model_ops(nb::class_<Runtime>& runtime) {
  runtime
      .def("take_sampled", &take_sampled)
      .def("embedding", &embedding)
      .def("rms_norm", &rms_norm, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none())
      .def("linear_blocks", &linear_blocks)
      .def("linear", &linear, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none())
      .def("gated_linear", &gated_linear)
      .def("gate", &gate)
      .def("store", &store)
      .def("rope_store", &rope_store, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
           nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg())
      .def("attention", &attention, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none())
      .def("soft_cap", &soft_cap)
      .def("scale", &scale_rows)
      .def("sparsify", &sparsify)
      .def("match_rms", &match_rms)
      .def("overlay", &overlay)
      .def("gather_rows", &gather_rows)
      .def("blend_rows", &blend_rows)
      .def("select_rope", &select_rope)
      .def("layer_norm", &layer_norm, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none())
      .def("activate", &activate)
      .def("rotate", &rotate)
      .def("segment_attention", &segment_attention, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
           nb::arg(), nb::arg().none());
}

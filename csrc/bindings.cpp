// The Python module: every op checks its arrays once, when it is called or recorded, and becomes a plain Op.
#include "call.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstring>

static int smaller(int a, int b) { return a < b ? a : b; }
template <class T> static Matrix<T> row(const Vector<T>& v) { return {v.p, 1, v.n, size_t(v.n)}; }

static int gate_of(const Call& c, const std::string& name) {
  if (name == "silu") return kSilu;
  if (name == "gelu_tanh") return kGeluTanh;
  if (name == "gelu") return kGelu;
  c.fail("gate", "must be silu, gelu_tanh or gelu");
}

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

// ---- the forward pass -----------------------------------------------------------------------------------------------------
static void take_drawn(Runtime& rt, Obj ids, Obj previous, Obj drawn, Obj rows) {
  Call c("take_drawn");
  auto to = c.out_vec<int>(ids, "ids", 0);
  auto from = c.vec<int>(previous, "previous", 0), values = c.vec<int>(drawn, "drawn", 0);
  TakeArgs a{to.p, from.p, values.p, c.rows(rows), smaller(to.n, from.n), values.n};
  rt.run(make_op("take_drawn", rt.kernels().take_drawn, a), c.keep);
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
  const WeightView& w = c.weight(weight, "weight");
  const Activation& act = c.reads(x, w);
  auto o = c.out_mat<float>(out, "out", w.n);
  const float* b = nullptr;
  if (!bias.is_none()) {
    auto v = c.vec<float>(bias, "bias", size_t(w.n));
    c.apart(o, row(v), "out");
    b = v.p;
  }
  rt.run(make_op("linear", rt.kernels().linear, LinearArgs{w, act.view, o.p, o.ld, b, c.rows(rows), smaller(o.rows, act.max_rows)}), c.keep);
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
  Activation& o = c.handle<Activation>(out, "out");
  auto g = c.mat<float>(gate_in, "gate", o.view.width), u = c.mat<float>(up, "up", o.view.width);
  const int n = smaller(smaller(g.rows, u.rows), o.max_rows);
  rt.run(make_op("gate", rt.kernels().gate, GateArgs{g.p, u.p, g.ld, u.ld, o.view, gate_of(c, fn), c.rows(rows), n}), c.keep);
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
                       Obj q_norm, Obj k_norm, float eps) {
  Call c("rope_store");
  RopeArgs a{};
  a.kv = c.handle<KVLayer>(kv, "kv").view;
  check_heads(c, num_heads, a.kv);
  auto m = c.out_mat<float>(qkv, "qkv", columns(c, "num_heads", (int64_t(num_heads) + 2 * a.kv.heads) * a.kv.dim));
  auto co = c.mat<float>(cos, "cos", 1), si = c.mat<float>(sin, "sin", 1);
  c.check(co.cols == si.cols && co.rows == si.rows && co.rows > 0, "sin", "must have the shape of cos");
  c.check(co.ld == size_t(co.cols) && si.ld == size_t(si.cols), "cos", "and sin must be contiguous");
  c.check(2 * co.cols <= a.kv.dim, "cos", "has more pairs than a head");
  c.check(q_norm.is_none() == k_norm.is_none(), "q_norm", "and k_norm must be given together");
  if (!q_norm.is_none()) {
    a.q_norm = c.vec<float>(q_norm, "q_norm", size_t(a.kv.dim)).p;
    a.k_norm = c.vec<float>(k_norm, "k_norm", size_t(a.kv.dim)).p;
  }
  a.qkv = m.p, a.ld = m.ld, a.num_heads = num_heads, a.rot = co.cols, a.cos = co.p, a.sin = si.p, a.num_positions = co.rows;
  auto pos = c.vec<int>(positions, "positions", 0), slot = c.vec<int>(slots, "slots", 0);
  a.positions = pos.p, a.slots = slot.p;
  a.q_scale = q_scale, a.eps = eps, a.rows = c.rows(rows);
  a.max_rows = smaller(m.rows, smaller(pos.n, slot.n));
  rt.run(make_op("rope_store", rt.kernels().rope_store, a), c.keep);
}

static size_t size_at(int n) { return size_t(n < 0 ? 0 : n); }
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

static void attention(Runtime& rt, Obj qkv, Obj kv, Obj out, Obj meta, int num_heads, int window, float soft_cap) {
  Call c("attention");
  AttentionArgs a{};
  a.kv = c.handle<KVLayer>(kv, "kv").view;
  check_heads(c, num_heads, a.kv);
  c.check(window >= 0, "window", "must not be negative");
  c.check(soft_cap >= 0, "soft_cap", "must not be negative");
  const int width = columns(c, "num_heads", int64_t(num_heads) * a.kv.dim);
  auto m = c.mat<float>(qkv, "qkv", width);
  Activation& o = c.handle<Activation>(out, "out");
  c.check(o.view.width == width, "out", "must be num_heads * head_dim wide");
  a.qkv = m.p, a.ld = m.ld, a.out = o.view;
  a.num_heads = num_heads, a.window = window, a.soft_cap = soft_cap;
  a.max_rows = smaller(m.rows, o.max_rows);
  a.meta = meta_of(c, meta, a.max_rows);
  // What a thread's scratch must hold (attention.h, carve).
  const size_t dim = size_t(a.kv.dim), grp = size_t(num_heads / a.kv.heads), rows = grp > 96 ? grp : 96;
  c.check((rows * (2 * dim + 16) + 16 * dim + 3 * kChunk * dim + 4096) * 4 <= kScratchBytes, "kv", "has heads too large for these kernels");
  const size_t entry = size_t(num_heads) * (dim + 16) * 4, chunks = size_t(a.meta.context_len + kChunk - 1) / kChunk;
  size_t entries = chunks * size_t(a.meta.max_reqs);
  const size_t limit = (size_t(64) << 20) / entry;
  entries = entries > limit ? (limit > chunks ? limit : chunks) : entries;
  a.part_entries = int(entries);
  a.part = static_cast<float*>(rt.buffer("attention partials", entries * entry));
  a.rows_out = static_cast<float*>(rt.buffer("attention rows", size_t(a.max_rows) * size_t(num_heads) * dim * 4));
  const Op ops[2] = {make_op("attention", rt.kernels().attention, a), make_op("attention_finish", rt.kernels().attention_finish, a)};
  rt.run(ops, 2, c.keep);
}

static void soft_cap(Runtime& rt, Obj x, Obj rows, float cap) {
  Call c("soft_cap");
  auto m = c.out_mat<float>(x, "x", 1);
  c.check(cap > 0, "cap", "must be positive");
  rt.run(make_op("soft_cap", rt.kernels().soft_cap, SoftCapArgs{m.p, m.ld, m.cols, cap, c.rows(rows), m.rows}), c.keep);
}

// ---- models that see --------------------------------------------------------------------------------------------------------
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
  c.check(w.cols == i.cols && i.ld == size_t(i.cols) && w.ld == size_t(w.cols), "index", "and weight must be contiguous and equally wide");
  c.check(s.rows > 0, "x", "must have rows");
  c.apart(o, s, "out");
  BlendArgs a{s.p, s.ld, i.p, w.p, o.p, o.ld, s.cols, s.rows, i.cols, c.rows(rows), smaller(o.rows, smaller(i.rows, w.rows))};
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
  const int f = fn == "quick_gelu" ? int(kQuickGelu) : gate_of(c, fn);
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

static void segment_attention(Runtime& rt, Obj qkv, Obj starts, Obj out, int begin, int end, int num_heads, int head_dim, float scale) {
  Call c("segment_attention");
  c.check(num_heads > 0 && head_dim > 0 && head_dim <= 1024 && num_heads <= 65536, "num_heads", "and head_dim must be positive and not huge");
  auto m = c.mat<float>(qkv, "qkv", 3 * num_heads * head_dim);
  auto o = c.out_mat<float>(out, "out", num_heads * head_dim);
  const int n = smaller(m.rows, o.rows);
  c.check(0 <= begin && begin <= end && end <= n, "begin", "and end must be rows of qkv and out");
  c.apart(o, m, "out");
  auto at = c.vec<int>(starts, "starts", 1);
  columns(c, "qkv", (int64_t(n) + at.n) * num_heads);      // units of work
  SegmentArgs a{m.p, m.ld, at.p, o.p, o.ld, at.n - 1, begin, end, n, num_heads, head_dim, scale};
  const size_t dim = size_t(head_dim + 15) / 16 * 16;
  c.check((48 * (2 * dim + 16) + 16 * dim + 3 * kChunk * dim + 4096) * 4 <= kScratchBytes, "head_dim", "is too large for these kernels");
  rt.run(make_op("segment_attention", rt.kernels().segment_attention, a), c.keep);
}

// ---- on logits ------------------------------------------------------------------------------------------------------------
static LogitsArgs logits(Call& c, Obj x, int num_rows) {
  auto m = c.out_mat<float>(x, "x", 1);
  c.check(num_rows <= m.rows && num_rows >= 0, "num_rows", "must not exceed the rows of x");
  return {m.p, m.ld, m.cols, num_rows};
}

static void adjust(Runtime& rt, Obj x, Obj indptr, Obj ids, Obj scale, Obj bias) {
  Call c("adjust");
  auto bounds = c.vec<int>(indptr, "indptr", 1);
  const int n = bounds.n - 1;
  const int* ptr = bounds.p;
  c.check(ptr[0] == 0, "indptr", "must start at 0");
  for (int i = 0; i < n; i++) c.check(ptr[i] <= ptr[i + 1], "indptr", "must not decrease");
  const size_t total = size_at(ptr[n]);
  AdjustArgs a{logits(c, x, n), ptr, c.vec<int>(ids, "ids", total).p, c.vec<float>(scale, "scale", total).p,
               c.vec<float>(bias, "bias", total).p, int(total)};
  rt.start(make_op("adjust", rt.kernels().adjust, a), c.keep);
}

static void mask(Runtime& rt, Obj x, Obj row_idx, Obj bits) {
  Call c("mask");
  auto b = c.mat<uint32_t>(bits, "bits", 0);
  auto idx = c.vec<int>(row_idx, "row_idx", 0);
  const int n = idx.n;
  c.check(b.rows >= n && (n <= 1 || b.ld == size_t(b.cols)), "bits", "must be contiguous with a row for each of row_idx");
  auto m = c.out_mat<float>(x, "x", 1);
  MaskArgs a{{m.p, m.ld, m.cols, m.rows}, idx.p, b.p, n, b.cols};
  rt.start(make_op("mask", rt.kernels().mask, a), c.keep);
}

static void argmax(Runtime& rt, Obj x, int num_rows, Obj out) {
  Call c("argmax");
  RowArgs a{logits(c, x, num_rows), c.out_vec<int>(out, "out", size_at(num_rows)).p, nullptr};
  rt.start(make_op("argmax", rt.kernels().argmax, a), c.keep);
}

static void log_sum_exp(Runtime& rt, Obj x, int num_rows, Obj out) {
  Call c("log_sum_exp");
  RowArgs a{logits(c, x, num_rows), nullptr, c.out_vec<float>(out, "out", size_at(num_rows)).p};
  const Op op = make_op("log_sum_exp", rt.kernels().log_sum_exp, a);
  rt.run_now(&op);
}

static void top_k(Runtime& rt, Obj x, int num_rows, int k, Obj ids, Obj values) {
  Call c("top_k");
  LogitsArgs l = logits(c, x, num_rows);
  c.check(k >= 1 && k <= l.n && size_t(k) * 8 <= kScratchBytes, "k", "must be between 1 and the number of columns");
  auto i = c.out_mat<int>(ids, "ids", k);
  auto v = c.out_mat<float>(values, "values", k);
  c.check(i.rows >= num_rows && v.rows >= num_rows, "ids", "and values must have num_rows rows");
  const Op op = make_op("top_k", rt.kernels().top_k, TopKArgs{l, k, i.ld, v.ld, i.p, v.p});
  rt.run_now(&op);
}

static void sample(Runtime& rt, Obj x, int num_rows, Obj temperature, Obj top_k, Obj top_p, Obj min_p, Obj uniform, Obj out) {
  Call c("sample");
  SampleArgs a{};
  a.x = logits(c, x, num_rows);
  const size_t n = size_at(num_rows);
  a.temperature = c.vec<float>(temperature, "temperature", n).p, a.top_k = c.vec<int>(top_k, "top_k", n).p;
  a.top_p = c.vec<float>(top_p, "top_p", n).p, a.min_p = c.vec<float>(min_p, "min_p", n).p;
  a.uniform = c.vec<float>(uniform, "uniform", n).p, a.out = c.out_vec<int>(out, "out", n).p;
  a.work_bytes = (size_t(1) << 16) + (size_t(a.x.n) + 64) * 20;
  a.work_bytes = (a.work_bytes + 63) / 64 * 64;
  a.work = static_cast<char*>(rt.buffer("sampling", a.work_bytes * size_t(rt.pool().size())));
  rt.start(make_op("sample", rt.kernels().sample, a), c.keep);
}

// ---- loading and measuring --------------------------------------------------------------------------------------------------
static void pack(Runtime& rt, Weight& w, const nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>& src, int source, int rows, int first_row) {
  if (rows <= 0 || src.nbytes() % size_t(rows) != 0) throw nb::value_error("pack: the source does not divide into its rows");
  const size_t row = src.nbytes() / size_t(rows), k = size_t(w.view.k);
  static const struct { int kind; size_t len, bytes; } kSources[] = {
      {kF32, 1, 4}, {kF16, 1, 2}, {kBF16, 1, 2}, {kInt4, 32, 18}, {kInt4, 32, 20}, {kInt8, 32, 22},
      {kInt8, 32, 24}, {kInt8, 32, 34}, {kInt4, 256, 144}, {kInt8, 256, 176}, {kInt8, 256, 210}};
  if (source < 0 || source > kSrcQ6_K) throw nb::value_error("pack: unknown block format");
  const auto& s = kSources[source];
  if (s.kind != w.view.kind || k % s.len != 0 || k / s.len * s.bytes != row) throw nb::value_error("pack: the source's rows do not fit the weight");
  const int places = w.gated ? (first_row == 0 || first_row == 32 ? w.out_features / 2 : 0) : w.out_features - first_row;
  if (first_row < 0 || rows > places) throw nb::value_error("pack: more rows than the weight has");
  PackArgs a{static_cast<const uint8_t*>(src.data()), row, source, rows, w.memory.data, w.view.panel, w.view.kind,
             w.view.k, w.view.groups, w.view.panels, first_row, w.gated};
  const Op op = make_op("pack", rt.kernels().pack, a);
  rt.run_now(&op);
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
  nb::class_<Weight>(m, "Weight")
      .def("__init__", [](Weight* self, Runtime& rt, int kind, int n, int k, int gated) { new (self) Weight(rt.arena(), kind, n, k, gated); },
           nb::arg(), nb::arg("kind"), nb::arg("n"), nb::arg("k"), nb::arg("gated_features") = 0)
      .def_ro("out_features", &Weight::out_features)
      .def_prop_ro("in_features", [](const Weight& w) { return w.view.k; })
      .def_prop_ro("kind", [](const Weight& w) { return w.view.kind; })
      .def_prop_ro("num_bytes", [](const Weight& w) { return w.memory.bytes; });
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
      .def_prop_ro("num_kv_heads", [](const KVLayer& l) { return l.view.heads; })
      .def_prop_ro("head_dim", [](const KVLayer& l) { return l.view.dim; })
      .def_prop_ro("num_bytes", [](const KVLayer& l) { return size_t(l.view.num_runs) * l.view.heads * l.view.dim * kRun * 4; });
  nb::class_<Tape>(m, "Tape")
      .def(nb::init<>())
      .def("__len__", [](const Tape& t) { return t.ops.size(); })
      .def("clear_profile", [](Tape& t) { t.spent.clear(); })
      .def("profile", [](const Tape& t) {
        std::vector<std::pair<std::string, uint64_t>> r;
        for (size_t i = 0; i < t.spent.size(); i++) r.emplace_back(t.ops[i].name, t.spent[i]);
        return r;
      });
  nb::class_<Runtime>(m, "Runtime")
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
      .def("take_drawn", &take_drawn)
      .def("embedding", &embedding)
      .def("rms_norm", &rms_norm, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none())
      .def("linear_blocks", &linear_blocks)
      .def("linear", &linear, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none())
      .def("gated_linear", &gated_linear)
      .def("gate", &gate)
      .def("store", &store)
      .def("rope_store", &rope_store, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
           nb::arg().none(), nb::arg().none(), nb::arg())
      .def("attention", &attention)
      .def("soft_cap", &soft_cap)
      .def("overlay", &overlay)
      .def("gather_rows", &gather_rows)
      .def("blend_rows", &blend_rows)
      .def("select_rope", &select_rope)
      .def("layer_norm", &layer_norm, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none())
      .def("activate", &activate)
      .def("rotate", &rotate)
      .def("segment_attention", &segment_attention)
      .def("adjust", &adjust)
      .def("mask", &mask)
      .def("argmax", &argmax)
      .def("log_sum_exp", &log_sum_exp)
      .def("top_k", &top_k)
      .def("sample", &sample)
      .def("pack", &pack)
      .def("read_bandwidth", &read_bandwidth)
      .def("peak", &peak);
}

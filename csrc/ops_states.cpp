// The ops on states of recurrent and convolutional layers, as those of ops_model.cpp.
#include "call.h"
#include "ops.h"

static StatesView states_of(Call& c, Obj meta, int num_slots) {
  auto at = [&](const char* name, size_t least) { return c.vec<int>(nb::getattr(meta, name), name, least); };
  StatesView v{};
  v.num_reqs = at("num_reqs", 1).p;
  const auto starts = at("q_start", 1);
  const size_t reqs = size_t(starts.n);
  v.q_start = starts.p, v.max_reqs = starts.n;
  v.q_len = at("q_len", reqs).p, v.source = at("source", reqs).p, v.target = at("target", reqs).p;
  v.save_starts = at("save_starts", reqs + 1).p;
  const auto rows = at("save_rows", 0);
  v.save_rows = rows.p, v.max_saves = rows.n;
  v.save_slots = at("save_slots", size_t(rows.n)).p;
  v.num_slots = num_slots;
  return v;
}
// A layer's states, [slots][size].
static float* state_of(Call& c, Obj state, int num_slots, int64_t size) {
  c.check(size > 0 && size <= 1 << 28, "state", "is too large");
  const auto m = c.out_mat<float>(state, "state", int(size));
  c.check(m.rows == num_slots && m.cols == size && m.ld == size_t(size), "state", "must be contiguous, of the size that the other arguments say");
  return m.p;
}

static void short_conv(Runtime& rt, Obj x, Obj weight, Obj state, int num_slots, Obj out, Obj meta, Obj bias, bool silu, Obj before, Obj after) {
  Call c("short_conv");
  const auto w = c.mat<float>(weight, "weight", 1);
  c.check(w.ld == size_t(w.cols) && w.rows >= 2 && w.rows <= 8, "weight", "must be contiguous, of 2 to 8 taps");
  const auto xm = c.mat<float>(x, "x", w.cols);
  ConvArgs a{};
  a.x = xm.p, a.ld_x = xm.ld, a.weight = w.p, a.channels = w.cols, a.taps = w.rows, a.silu = silu, a.max_rows = xm.rows;
  a.state = state_of(c, state, num_slots, int64_t(w.rows - 1) * w.cols);
  if (!bias.is_none()) a.bias = c.vec<float>(bias, "bias", size_t(w.cols)).p;
  auto also = [&](Obj o, const char* name, const float*& p, size_t& ld) {
    if (o.is_none()) return;
    const auto m = c.mat<float>(o, name, w.cols);
    p = m.p, ld = m.ld, a.max_rows = smaller(a.max_rows, m.rows);
  };
  also(before, "before", a.before, a.ld_before);
  also(after, "after", a.after, a.ld_after);
  if (nb::isinstance<Activation>(out)) {
    Activation& o = c.handle<Activation>(out, "out");
    c.check(o.view.width == w.cols, "out", "must be as wide as weight");
    a.act = o.view, a.max_rows = smaller(a.max_rows, o.max_rows);
  } else {
    auto o = c.out_mat<float>(out, "out", w.cols);
    o.cols = w.cols;
    Matrix<const float> from = xm;
    from.cols = w.cols;
    c.apart(o, from, "out", true);
    a.out = o.p, a.ld_out = o.ld, a.max_rows = smaller(a.max_rows, o.rows);
  }
  a.at = states_of(c, meta, num_slots);
  rt.run(make_op("short_conv", rt.kernels().short_conv, a), c.keep);
}

static void delta_rule(Runtime& rt, Obj qkv, Obj gates, Obj decay, Obj dt_bias, Obj state, int num_slots, int k_heads, int v_heads, int k_dim, int v_dim,
                       Obj out, Obj meta, Obj rows, bool turns) {
  Call c("delta_rule");
  auto small = [](int n) { return n > 0 && n <= 1 << 14; };
  c.check(small(k_heads) && small(v_heads) && v_heads % k_heads == 0, "state", "must have a multiple of num_k_heads heads");
  c.check(small(k_dim) && small(v_dim) && size_t(k_dim) * 32 * 4 <= kScratchBytes, "state", "has heads that are too large");
  const int64_t width = 2 * int64_t(k_heads) * k_dim + int64_t(v_heads) * v_dim;
  c.check(width <= 1 << 26, "qkv", "is too wide");
  auto x = c.out_mat<float>(qkv, "qkv", int(width));
  auto g = c.out_mat<float>(gates, "gates", 2 * v_heads);
  auto o = c.out_mat<float>(out, "out", v_heads * v_dim);
  c.apart(o, x, "out"), c.apart(o, g, "out"), c.apart(x, g, "qkv");
  DeltaArgs a{};
  a.qkv = x.p, a.ld_qkv = x.ld, a.gates = g.p, a.ld_gates = g.ld, a.out = o.p, a.ld_out = o.ld;
  a.decay = c.vec<float>(decay, "decay", size_t(v_heads)).p, a.dt_bias = c.vec<float>(dt_bias, "dt_bias", size_t(v_heads)).p;
  a.state = state_of(c, state, num_slots, int64_t(v_heads) * k_dim * v_dim);
  a.k_heads = k_heads, a.v_heads = v_heads, a.k_dim = k_dim, a.v_dim = v_dim, a.turns = turns;
  a.max_rows = smaller(x.rows, smaller(g.rows, o.rows)), a.rows = c.rows(rows);
  a.at = states_of(c, meta, num_slots);
  const Op ops[] = {make_op("delta_prepare", rt.kernels().delta_prepare, a), make_op("delta_rule", rt.kernels().delta_rule, a)};
  rt.run(ops, 2, c.keep);
}

static void state_space(Runtime& rt, Obj xbc, Obj gates, Obj decay, Obj dt_bias, Obj skip, Obj state, int num_slots, int groups, int heads, int state_dim,
                        int head_dim, Obj out, Obj meta, Obj rows, float shortest, float longest) {
  Call c("state_space");
  auto small = [](int n) { return n > 0 && n <= 1 << 14; };
  c.check(small(groups) && small(heads) && heads % groups == 0, "state", "must have a multiple of num_groups heads");
  c.check(small(state_dim) && small(head_dim) && size_t(state_dim) * 32 * 4 <= kScratchBytes, "state", "has heads that are too large");
  const int64_t width = int64_t(heads) * head_dim + 2 * int64_t(groups) * state_dim;
  c.check(width <= 1 << 26, "xbc", "is too wide");
  c.check(shortest >= 0 && longest >= shortest, "step_limits", "must be two, the lower one first");
  auto x = c.out_mat<float>(xbc, "xbc", int(width));
  auto g = c.out_mat<float>(gates, "gates", 2 * heads);
  auto o = c.out_mat<float>(out, "out", heads * head_dim);
  c.apart(o, x, "out"), c.apart(o, g, "out"), c.apart(x, g, "xbc");
  SpaceArgs a{};
  a.xbc = x.p, a.ld_xbc = x.ld, a.gates = g.p, a.ld_gates = g.ld, a.out = o.p, a.ld_out = o.ld;
  auto per_head = [&](Obj v, const char* name) { return c.vec<float>(v, name, size_t(heads)).p; };
  a.decay = per_head(decay, "decay"), a.dt_bias = per_head(dt_bias, "dt_bias"), a.skip = per_head(skip, "skip");
  a.state = state_of(c, state, num_slots, int64_t(heads) * state_dim * head_dim);
  a.groups = groups, a.heads = heads, a.state_dim = state_dim, a.head_dim = head_dim, a.shortest = shortest, a.longest = longest;
  a.max_rows = smaller(x.rows, smaller(g.rows, o.rows)), a.rows = c.rows(rows);
  a.at = states_of(c, meta, num_slots);
  const Op ops[] = {make_op("space_prepare", rt.kernels().space_prepare, a), make_op("state_space", rt.kernels().state_space, a)};
  rt.run(ops, 2, c.keep);
}

static void selective_scan(Runtime& rt, Obj x, Obj dt, Obj bc, Obj z, Obj decay, Obj dt_bias, Obj skip, Obj state, int num_slots, Obj out, Obj meta, Obj rows) {
  Call c("selective_scan");
  Activation& o = c.handle<Activation>(out, "out");
  const auto d = c.mat<float>(decay, "decay", 1);
  c.check(d.cols == o.view.width && d.ld == size_t(d.cols) && d.rows > 0 && size_t(d.rows) * 32 * 4 <= kScratchBytes, "decay",
          "must be contiguous, as wide as out, and not huge");
  const auto xm = c.mat<float>(x, "x", d.cols), zm = c.mat<float>(z, "z", d.cols), m = c.mat<float>(bc, "bc", 2 * d.rows);
  auto t = c.out_mat<float>(dt, "dt", d.cols);
  c.apart(t, xm, "dt"), c.apart(t, zm, "dt"), c.apart(t, m, "dt");
  ScanArgs a{};
  a.x = xm.p, a.ld_x = xm.ld, a.z = zm.p, a.ld_z = zm.ld, a.bc = m.p, a.ld_bc = m.ld, a.dt = t.p, a.ld_dt = t.ld, a.decay = d.p;
  a.dt_bias = c.vec<float>(dt_bias, "dt_bias", size_t(d.cols)).p, a.skip = c.vec<float>(skip, "skip", size_t(d.cols)).p;
  a.state = state_of(c, state, num_slots, int64_t(d.rows) * d.cols);
  a.out = o.view, a.state_dim = d.rows, a.channels = d.cols, a.rows = c.rows(rows);
  a.max_rows = smaller(smaller(xm.rows, zm.rows), smaller(smaller(m.rows, t.rows), o.max_rows));
  a.at = states_of(c, meta, num_slots);
  const Op ops[] = {make_op("scan_prepare", rt.kernels().scan_prepare, a), make_op("selective_scan", rt.kernels().selective_scan, a)};
  rt.run(ops, 2, c.keep);
}

static void gated_norm(Runtime& rt, Obj x, Obj gate, Obj weight, Obj out, Obj rows, float eps, int group, bool gate_first) {
  Call c("gated_norm");
  Activation& o = c.handle<Activation>(out, "out");
  const auto w = c.vec<float>(weight, "weight", 1);
  c.check(group > 0 && o.view.width % group == 0 && size_t(o.view.width) * 4 <= kScratchBytes, "out", "must be as wide as some groups, and not huge");
  c.check(w.n == group || w.n == o.view.width, "weight", "must be as long as a group, or as all");
  const auto xm = c.mat<float>(x, "x", o.view.width), g = c.mat<float>(gate, "gate", o.view.width);
  const GatedNormArgs a{xm.p, g.p, w.p, xm.ld, g.ld, o.view, group, eps, c.rows(rows), smaller(o.max_rows, smaller(xm.rows, g.rows)), w.n > group, gate_first};
  rt.run(make_op("gated_norm", rt.kernels().gated_norm, a), c.keep);
}

static void sigmoid_gate(Runtime& rt, Obj x, Obj gate, Obj out, Obj rows) {
  Call c("sigmoid_gate");
  Activation& o = c.handle<Activation>(out, "out");
  const Activation& in = c.handle<Activation>(x, "x");
  c.check(in.view.f != nullptr && in.view.width == o.view.width && &in != &o, "x", "must be another activation in float32, as wide as out");
  const auto g = c.mat<float>(gate, "gate", o.view.width);
  const GatedNormArgs a{in.view.f, g.p, nullptr, size_t(in.view.stride), g.ld, o.view, o.view.width, 0.f, c.rows(rows), smaller(smaller(o.max_rows, in.max_rows), g.rows), 0, 0};
  rt.run(make_op("sigmoid_gate", rt.kernels().sigmoid_gate, a), c.keep);
}

void def_state_ops(nb::class_<Runtime>& runtime) {
  runtime
      .def("short_conv", &short_conv, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg().none(),
           nb::arg().none())
      .def("delta_rule", &delta_rule)
      .def("state_space", &state_space)
      .def("selective_scan", &selective_scan)
      .def("gated_norm", &gated_norm)
      .def("sigmoid_gate", &sigmoid_gate);
}

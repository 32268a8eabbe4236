// The ops on mixtures of experts, as those of ops_model.cpp.
#include "call.h"
#include "ops.h"

#include <nanobind/stl/string.h>

static RoutesView routes_of(Call& c, Obj routes, int max_rows) {
  RoutesView v{};
  auto ids = c.out_mat<int>(nb::getattr(routes, "ids"), "routes.ids", 1);
  auto weights = c.out_mat<float>(nb::getattr(routes, "weights"), "routes.weights", ids.cols);
  c.check(ids.ld == size_t(ids.cols) && weights.ld == size_t(weights.cols) && weights.cols == ids.cols, "routes.ids", "and routes.weights must be contiguous and equally wide");
  c.check(ids.rows >= max_rows && weights.rows >= max_rows, "routes.ids", "and routes.weights must have as many rows as the other arguments");
  c.check(int64_t(max_rows) * ids.cols <= 1 << 24, "routes.ids", "is too large");
  v.ids = ids.p, v.weights = weights.p, v.k = ids.cols;
  v.order = c.out_vec<int>(nb::getattr(routes, "order"), "routes.order", size_t(max_rows) * size_t(v.k)).p;
  auto starts = c.out_vec<int>(nb::getattr(routes, "starts"), "routes.starts", 2);
  v.starts = starts.p, v.experts = starts.n - 1;
  c.check(v.experts <= kMaxExperts, "routes.starts", "is of too many experts");
  return v;
}

static void route(Runtime& rt, Obj logits, Obj routes, Obj rows, bool sigmoid, bool normalize, float scale, int groups, int top_groups, int group_best, Obj bias, Obj scales) {
  Call c("route");
  auto x = c.mat<float>(logits, "logits", 1);
  RouteArgs a{};
  a.logits = x.p, a.ld = x.ld, a.max_rows = x.rows, a.rows = c.rows(rows);
  a.to = routes_of(c, routes, x.rows);
  c.check(a.to.experts == x.cols, "routes.starts", "must have one element more than there are columns of logits");
  c.check(groups > 0 && x.cols % groups == 0, "num_groups", "must divide the number of experts");
  c.check(0 < top_groups && top_groups <= groups, "top_groups", "must be at most num_groups");
  c.check(a.to.k <= x.cols / groups * top_groups, "routes.ids", "is wider than there are experts to choose");
  c.check(group_best == 1 || group_best == 2, "group_best", "must be 1 or 2");
  a.sigmoid = sigmoid, a.normalize = normalize, a.scale = scale;
  a.groups = groups, a.top_groups = top_groups, a.group_best = group_best;
  if (!bias.is_none()) a.bias = c.vec<float>(bias, "bias", size_t(x.cols)).p;
  if (!scales.is_none()) a.scales = c.vec<float>(scales, "scales", size_t(x.cols)).p;
  const Op ops[2] = {make_op("route", rt.kernels().route, a), make_op("sort_pairs", rt.kernels().sort_pairs, a)};
  rt.run(ops, 2, c.keep);
}

static const Bank& bank_of(Call& c, Obj o, const RoutesView& routes, bool gated) {
  const Bank& b = c.handle<Bank>(o, "bank");
  c.check(b.gated == gated, "bank", gated ? "must be one of gated matrices" : "is one of gated matrices: only gated_experts reads it");
  c.check(b.num_experts == routes.experts, "bank", "has not as many experts as routes");
  return b;
}
static const Matrix<const float> bias_of(Call& c, Obj o, const Bank& b) {
  if (o.is_none()) return {nullptr, 0, 0, 0};
  auto m = c.mat<float>(o, "bias", b.out_features);
  c.check(m.rows >= b.num_experts, "bias", "must have a row for each expert");
  return m;
}
static int expert_gate_of(const Call& c, const std::string& name) {
  if (name == "silu") return kSilu;
  if (name == "gelu_tanh") return kGeluTanh;
  if (name == "gelu") return kGelu;
  if (name == "clamped_silu") return kClampedSilu;
  if (name == "relu2") return kRelu2;
  c.fail("gate", "must be silu, gelu_tanh, gelu, clamped_silu or relu2");
}

static void gated_experts(Runtime& rt, Obj bank, Obj x, Obj out, Obj routes, Obj rows, const std::string& gate, Obj bias) {
  Call c("gated_experts");
  Activation& o = c.handle<Activation>(out, "out");
  const Activation& in = c.handle<Activation>(x, "x");
  GatedExpertsArgs a{};
  a.routes = routes_of(c, routes, 0);
  a.max_rows = smaller(in.max_rows, o.max_rows / a.routes.k);
  a.routes = routes_of(c, routes, a.max_rows);
  a.gate = expert_gate_of(c, gate);
  const bool alone = a.gate == kRelu2;
  const Bank& b = bank_of(c, bank, a.routes, !alone);
  c.reads(x, b.view.w);
  c.check(&o != &in, "out", "must not be what is read");
  c.check(o.view.width == b.out_features / (alone ? 1 : 2), "out", alone ? "must be as wide as an expert's out_features" : "must be half as wide as an expert's out_features");
  const auto m = bias_of(c, bias, b);
  a.bank = b.view, a.out = o.view, a.bias = m.p, a.ld_bias = m.ld, a.rows = c.rows(rows);
  // Rows of pairs, in the one form that the bank reads.
  const bool ints = b.view.w.kind <= kInt8;
  const size_t pairs = size_t(a.max_rows) * size_t(a.routes.k), tiles = (pairs + kTileRows - 1) / kTileRows;
  a.x = in.view;
  ActView from = in.view;
  if (ints) from.f = nullptr, a.x.f = nullptr, a.x.q = static_cast<Group*>(rt.buffer("rows of experts, int8", tiles * size_t(in.view.groups) * kTileRows * sizeof(Group)));
  else from.q = nullptr, a.x.q = nullptr, a.x.f = static_cast<float*>(rt.buffer("rows of experts", pairs * size_t(in.view.stride) * 4));
  const GatherArgs g{from, a.x, a.routes.order, a.routes.k, a.rows, a.max_rows};
  const Op ops[2] = {make_op("gather_pairs", rt.kernels().gather_pairs, g), make_op("gated_experts", rt.kernels().gated_experts, a)};
  rt.run(ops, 2, c.keep);
}

static void experts_linear(Runtime& rt, Obj bank, Obj x, Obj out, Obj routes, Obj rows, Obj bias) {
  Call c("experts_linear");
  const Activation& in = c.handle<Activation>(x, "x");
  ExpertsLinearArgs a{};
  a.routes = routes_of(c, routes, 0);
  a.max_rows = in.max_rows / a.routes.k;
  const Bank& b = bank_of(c, bank, a.routes, false);
  auto o = c.out_mat<float>(out, "out", b.out_features);
  a.max_rows = smaller(a.max_rows, o.rows);
  a.routes = routes_of(c, routes, a.max_rows);
  c.reads(x, b.view.w);
  const auto m = bias_of(c, bias, b);
  if (m.p) c.apart(o, m, "out");
  a.bank = b.view, a.x = in.view, a.bias = m.p, a.ld_bias = m.ld, a.out = o.p, a.ld_out = o.ld, a.rows = c.rows(rows);
  rt.run(make_op("experts_linear", rt.kernels().experts_linear, a), c.keep);
}

static void heads_linear(Runtime& rt, Obj bank, Obj x, Obj out, Obj rows) {
  Call c("heads_linear");
  const Bank& b = c.handle<Bank>(bank, "bank");
  const Activation& in = c.handle<Activation>(x, "x");
  c.check(!b.gated && b.view.w.kind > kInt8, "bank", "must be of matrices in a float format, without gates");
  c.check(int64_t(b.num_experts) * b.view.w.k == in.view.width && in.view.f, "x", "must be made for the bank, with a width for each of its heads");
  c.check(b.view.w.k % 2 == 0, "bank", "must be of matrices with an even number of columns");
  c.check(int64_t(b.num_experts) * b.view.w.n <= int64_t(kMaxExtent), "bank", "makes too many columns");
  auto o = c.out_mat<float>(out, "out", int(b.num_experts) * b.view.w.n);
  rt.run(make_op("heads_linear", rt.kernels().heads_linear, HeadsArgs{b.view, in.view, int(b.num_experts), o.p, o.ld, c.rows(rows), smaller(o.rows, in.max_rows)}), c.keep);
}

void def_expert_ops(nb::class_<Runtime>& runtime) {
  runtime
      .def("route", &route, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none())
      .def("gated_experts", &gated_experts, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none())
      .def("experts_linear", &experts_linear, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none())
      .def("heads_linear", &heads_linear, nb::arg(), nb::arg(), nb::arg(), nb::arg());
}

// The ops on logits: each checks its arrays once, when it is called, and becomes a plain Op.
#include "call.h"
#include "ops.h"

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

void def_logit_ops(nb::class_<Runtime>& runtime) {
  runtime
      .def("adjust", &adjust)
      .def("mask", &mask)
      .def("argmax", &argmax)
      .def("log_sum_exp", &log_sum_exp)
      .def("top_k", &top_k)
      .def("sample", &sample);
}

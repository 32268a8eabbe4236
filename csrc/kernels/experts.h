// Mixtures of experts (arXiv 2101.03961): which experts compute a row, and linear layers that each have for themselves.
//
// A pair is a row and one of the experts it has chosen: pair row * k + choice. Pairs are sorted by expert, and by row within one, so
// that an expert's rows lie together and the panels of its matrices are read once for all of them. What a pair's outputs are
// does not depend on where it lies; what a row is given is added up by ascending expert.
#pragma once

namespace ISA {

// ---- routing ------------------------------------------------------------------------------------------------------------
constexpr float kNone = -__builtin_inff(), kLeast = -3e38f;        // what is not to be chosen; the least that is

static ALWAYS F load_or(const float* p, int n, float other) { return n >= 16 ? fload(p) : pick(first(n), fload_n(p, n), fset(other)); }

// The place of the largest of n values (rounded up to 16, none NaN), the first of equal ones.
static ALWAYS int largest(const float* v, int n) {
  F top = fload(v);
  for (int i = 16; i < n; i += 16) top = vmax(top, fload(v + i));
  const F most = fset(hmax(top));
  for (int i = 0; i < n; i += 16)
    if (const unsigned hits = mask_bits(ge(fload(v + i), most))) return i + __builtin_ctz(hits);
  return 0;
}
static ALWAYS void sigmoids(const float* x, int n, float* out) {
  for (int i = 0; i < n; i += 16) {
    const F v = fload_n(x + i, n - i);
    fstore(out + i, keep_nan(v, div(fset(1.f), add(fset(1.f), vexp(neg(v))))));
  }
}
static ALWAYS void softmax(const float* x, int n, float* out) {
  F top = fset(kNone), sum = fzero();
  for (int i = 0; i < n; i += 16) top = vmax(top, load_or(x + i, n - i, kNone));
  const F most = fset(hmax(top));
  for (int i = 0; i < n; i += 16) {
    const F v = load_or(x + i, n - i, kNone), e = pick(first(n - i), keep_nan(v, vexp(sub(v, most))), fzero());
    fstore(out + i, e);
    sum = add(sum, e);
  }
  const F inverse = fset(1.f / hsum(sum));
  for (int i = 0; i < n; i += 16) fstore(out + i, mul(fload(out + i), inverse));
}
// Leaves only the experts of the best groups. A group is as good as its best expert, or its best two together.
static void keep_groups(const RouteArgs& a, float* choice, float* groups) {
  const int size = a.to.experts / a.groups;
  for (int g = 0; g < (a.groups + 15) / 16 * 16; g++) groups[g] = kNone;
  for (int g = 0; g < a.groups; g++) {
    float one = kNone, two = kNone;
    for (int i = g * size; i < (g + 1) * size; i++) {
      const float v = choice[i];
      if (v > one) two = one, one = v;
      else if (v > two) two = v;
    }
    groups[g] = a.group_best == 2 && size > 1 ? one + two : one;
    groups[g] = groups[g] > kLeast ? groups[g] : kLeast;
  }
  for (int j = 0; j < a.top_groups; j++) groups[largest(groups, a.groups)] = kNone;
  for (int g = 0; g < a.groups; g++)
    if (groups[g] != kNone)
      for (int i = g * size; i < (g + 1) * size; i++) choice[i] = kNone;
}
static void route_row(const RouteArgs& a, int r, float* work) {
  const int n = a.to.experts, k = a.to.k, wide = (n + 15) / 16 * 16;
  float *scores = work, *choice = work + wide;
  const float* x = a.logits + r * a.ld;
  if (a.sigmoid) sigmoids(x, n, scores);
  else softmax(x, n, scores);
  for (int i = 0; i < n; i += 16) {
    F v = fload(scores + i);
    if (a.bias) v = add(v, fload_n(a.bias + i, n - i));
    v = pick(is_nan(v), fset(kLeast), vmax(v, fset(kLeast)));
    fstore(choice + i, pick(first(n - i), v, fset(kNone)));
  }
  if (a.top_groups < a.groups) keep_groups(a, choice, choice + wide);
  int* ids = a.to.ids + size_t(r) * k;
  float *weights = a.to.weights + size_t(r) * k, total = a.sigmoid ? 1e-20f : 0.f;
  for (int j = 0; j < k; j++) {
    ids[j] = largest(choice, n);
    weights[j] = scores[ids[j]];
    choice[ids[j]] = kNone;
    total += weights[j];
  }
  for (int j = 0; j < k; j++) weights[j] = (a.normalize ? weights[j] / total : weights[j]) * a.scale * (a.scales ? a.scales[ids[j]] : 1.f);
}
static void route(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const RouteArgs*>(args);
  const Span own = own_rows(count(a.rows, a.max_rows), c);
  for (int r = own.begin; r < own.end; r++) route_row(a, r, reinterpret_cast<float*>(c.scratch));
}
static void sort_pairs(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const RouteArgs*>(args);
  if (c.take()) return;
  const int n = a.to.experts, pairs = count(a.rows, a.max_rows) * a.to.k;
  int* next = reinterpret_cast<int*>(c.scratch);
  for (int e = 0; e <= n; e++) a.to.starts[e] = 0;
  for (int i = 0; i < pairs; i++) a.to.starts[a.to.ids[i] + 1]++;
  for (int e = 0; e < n; e++) next[e] = a.to.starts[e], a.to.starts[e + 1] += a.to.starts[e];
  for (int i = 0; i < pairs; i++) a.to.order[next[a.to.ids[i]]++] = i;
}

// ---- rows of experts --------------------------------------------------------------------------------------------------------
// The rows of sorted pairs, side by side.
static void gather_pairs(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const GatherArgs*>(args);
  const int pairs = count(a.rows, a.max_rows) * a.k;
  const Span own = own_rows(pairs, c);
  for (int i = own.begin; i < own.end; i++) {
    const int r = clamp(a.order[i], 0, pairs - 1) / a.k;
    if (a.from.q) {
      Group *to = group_at(a.to, i, 0), *from = group_at(a.from, r, 0);
      for (int g = 0; g < a.from.groups; g++) to[size_t(g) * kTileRows] = from[size_t(g) * kTileRows];
    }
    if (a.from.f) __builtin_memcpy(a.to.f + size_t(i) * a.to.stride, a.from.f + size_t(r) * a.from.stride, size_t(a.from.stride) * 4);
  }
}

// Sorted pairs of one expert, as many as a panel is used for at a time, and the number of their first unit of work.
struct Part { int expert, begin, end, unit; };
constexpr size_t kPartsAt = size_t(2) << 20;               // in the scratch
constexpr int kMaxParts = (kScratchBytes - kPartsAt) / sizeof(Part);

// The parts of this step, each of `units` units; returns how many.
static ALWAYS int list_parts(const RoutesView& t, int pairs, int units, Part* parts) {
  int num = 0, at = 0;
  for (int e = 0; e < t.experts; e++) {
    const int end = clamp(t.starts[e + 1], at, pairs);
    if (end == at) continue;
    for (const int rows = block_rows(end - at); at < end && num < kMaxParts; num++) {
      parts[num] = {e, at, imin(at + rows, end), num * units};
      at = parts[num].end;
    }
  }
  return num;
}
static ALWAYS Part* parts_in(char* scratch) { return reinterpret_cast<Part*>(scratch + kPartsAt); }
static ALWAYS WeightView of_expert(const BankView& b, int e) {
  WeightView w = b.w;
  w.w += size_t(e) * b.stride;
  return w;
}

template <int FN> static void gated_rows_of_experts(const GatedExpertsArgs& a, const Ctx& c) {
  const int quads = a.bank.w.panels / 4;
  Part* parts = parts_in(c.scratch);
  const int num = list_parts(a.routes, count(a.rows, a.max_rows) * a.routes.k, quads, parts);
  int at = 0;
  for (Runs run(num * quads, 1, c); run.next();)
    for (int p = run.begin; p < run.end; p++) {
      while (p >= parts[at].unit + quads) at++;
      const Part& part = parts[at];
      const float* bias = a.bias ? a.bias + size_t(part.expert) * a.ld_bias : nullptr;
      gated_unit<FN>(of_expert(a.bank, part.expert), a.x, a.out, p - part.unit, part.begin, part.end, bias, c.scratch);
    }
}
// The same where an expert's first matrix stands alone: relu(up x)^2, of two panels at a time.
static ALWAYS void squared_unit(const WeightView& w, const ActView& x, const ActView& out, int q, int r0, int r1, const float* bias, char* scratch) {
  float* tmp = reinterpret_cast<float*>(scratch + kPanelBuf);
  float* end = tmp + size_t(r1 - r0) * 32;
  const int left = out.width - 32 * q, wide = imin(2, w.panels - 2 * q);
  for (float* t = tmp; t < end; t += 32)
    for (int i = 0; i < 32; i += 16) fstore(t + i, bias ? fload_n(bias + 32 * q + i, left - i) : fzero());
  panels(w, 2 * q, wide, x, r0, r1, reinterpret_cast<uint8_t*>(scratch), tmp, 32, true);
  for (float* t = tmp; t < end; t += 32) {
    const F a = vmax(fload(t), fzero()), b = vmax(fload(t + 16), fzero());
    write32(out, r0 + int(t - tmp) / 32, q, mul(a, a), mul(b, b), left);
  }
}
static void squared_rows_of_experts(const GatedExpertsArgs& a, const Ctx& c) {
  const int units = (a.bank.w.panels + 1) / 2;
  Part* parts = parts_in(c.scratch);
  const int num = list_parts(a.routes, count(a.rows, a.max_rows) * a.routes.k, units, parts);
  int at = 0;
  for (Runs run(num * units, 1, c); run.next();)
    for (int p = run.begin; p < run.end; p++) {
      while (p >= parts[at].unit + units) at++;
      const Part& part = parts[at];
      const float* bias = a.bias ? a.bias + size_t(part.expert) * a.ld_bias : nullptr;
      squared_unit(of_expert(a.bank, part.expert), a.x, a.out, p - part.unit, part.begin, part.end, bias, c.scratch);
    }
}
static void gated_experts(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const GatedExpertsArgs*>(args);
  if (a.gate == kRelu2) return squared_rows_of_experts(a, c);
  if (a.gate == kSilu) gated_rows_of_experts<kSilu>(a, c);
  else if (a.gate == kGeluTanh) gated_rows_of_experts<kGeluTanh>(a, c);
  else if (a.gate == kGelu) gated_rows_of_experts<kGelu>(a, c);
  else gated_rows_of_experts<kClampedSilu>(a, c);
}

// A thread has some columns of all rows to itself, so that what the experts make is added in their order, without a buffer.
constexpr int kColumnPanels = 16;
static void add_part(const ExpertsLinearArgs& a, const Part& part, int pairs, int p, int end, char* scratch) {
  const int width = 16 * (end - p), k = a.routes.k;
  float* tmp = reinterpret_cast<float*>(scratch + kPanelBuf);
  if (a.bias)
    for (int i = 0; i < part.end - part.begin; i++)
      for (int d = 0; d < width; d += 16)
        fstore(tmp + size_t(i) * width + d, fload_n(a.bias + size_t(part.expert) * a.ld_bias + 16 * p + d, a.bank.w.n - 16 * p - d));
  panels(of_expert(a.bank, part.expert), p, end - p, a.x, part.begin, part.end, reinterpret_cast<uint8_t*>(scratch), tmp, width, a.bias != nullptr);
  for (int i = part.begin; i < part.end; i++) {
    const int pair = clamp(a.routes.order[i], 0, pairs - 1);
    const F weight = fset(a.routes.weights[pair]);
    const float* y = tmp + size_t(i - part.begin) * width;
    float* out = a.out + size_t(pair / k) * a.ld_out + 16 * p;
    for (int d = 0, n = a.bank.w.n - 16 * p; d < width; d += 16) store_up_to(out + d, fma(weight, fload(y + d), load_up_to(out + d, n - d)), n - d);
  }
}
static void experts_linear(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const ExpertsLinearArgs*>(args);
  const int m = count(a.rows, a.max_rows), pairs = m * a.routes.k, n = a.bank.w.n;
  Part* parts = parts_in(c.scratch);
  const int num = list_parts(a.routes, pairs, 0, parts);
  for (Runs run(a.bank.w.panels, m <= 6 ? 3 : 1, c); run.next();)
    for (int p = run.begin, end; p < run.end; p = end) {
      end = imin(run.end, p + kColumnPanels);
      for (int r = 0; r < m; r++)
        for (int d = 16 * p; d < imin(16 * end, n); d += 16) store_up_to(a.out + size_t(r) * a.ld_out + d, fzero(), n - d);
      for (int i = 0; i < num; i++) add_part(a, parts[i], pairs, p, end, c.scratch);
    }
}

// ---- heads ------------------------------------------------------------------------------------------------------------------
// A unit is a panel of one head's matrix times a block of rows.
static void heads_linear(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const HeadsArgs*>(args);
  const int m = count(a.rows, a.max_rows), per = a.bank.w.panels, units = a.heads * per;
  if (m <= 0) return;
  const int rows = block_rows(m), blocks = (m + rows - 1) / rows;
  float* tmp = reinterpret_cast<float*>(c.scratch + kPanelBuf);
  for (Runs run(units * blocks, 1, c); run.next();)
    for (int u = run.begin; u < run.end; u++) {
      const int h = u % units / per, p = u % per, r0 = u / units * rows, r1 = imin(r0 + rows, m), n = a.bank.w.n - 16 * p;
      ActView x = a.x;
      x.f += size_t(h) * a.bank.w.k;
      panels(of_expert(a.bank, h), p, 1, x, r0, r1, reinterpret_cast<uint8_t*>(c.scratch), tmp, 16, false);
      for (int r = r0; r < r1; r++) store_up_to(a.out + size_t(r) * a.ld_out + size_t(h) * a.bank.w.n + 16 * p, fload(tmp + size_t(r - r0) * 16), n);
    }
}

}  // namespace ISA

// Ops on logits: penalties, masks, and choosing tokens. Rows are shared among the threads; a row is one thread's.
#pragma once

namespace ISA {

static ALWAYS float minus_inf() { return -__builtin_inff(); }

static void adjust(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const AdjustArgs*>(args);
  for (int i = c.tid; i < a.x.num_rows; i += c.n) {
    float* x = a.x.x + i * a.x.ld;
    for (int j = clamp(a.indptr[i], 0, a.total), end = imin(a.indptr[i + 1], a.total); j < end; j++) {
      const int id = a.ids[j];
      if (id < 0 || id >= a.x.n) continue;
      const float v = x[id];
      x[id] = (v > 0 ? v / a.scale[j] : v * a.scale[j]) + a.bias[j];
    }
  }
}
static void mask(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const MaskArgs*>(args);
  const F off = fset(minus_inf());
  for (int i = c.tid; i < a.num_masks; i += c.n) {
    const int row = a.row_idx[i];
    if (row < 0 || row >= a.x.num_rows) continue;
    float* x = a.x.x + row * a.x.ld;
    const uint32_t* bits = a.bits + size_t(i) * a.words;
    for (int k = 0; k < a.x.n; k += 16) {
      const unsigned b = k / 32 < a.words ? (bits[k / 32] >> (k % 32)) & 0xffff : 0;
      if (b == 0xffff) continue;
      const int n = a.x.n - k;
      fstore_n(x + k, pick(from_mask_bits(b), fload_n(x + k, n), off), n);
    }
  }
}

// The largest value and its lowest index; -1 if there is a NaN.
static int best_of(const float* x, int n, float* value) {
  F best = fset(minus_inf());
  I at = iset(0);
  unsigned nan = 0;
  int k = 0;
  for (; k + 16 <= n; k += 16) {
    const F v = fload(x + k);
    const M m = gt(v, best);
    best = pick(m, v, best);
    at = ipick(m, iset(k), at);
    nan |= mask_bits(is_nan(v));
  }
  alignas(64) float b[16];
  alignas(64) int i[16];
  fstore(b, best);
  istore(i, at);
  float top = minus_inf();
  int id = 0;                          // a row of nothing but -inf: its first index
  for (int l = 0; l < 16; l++) {
    const int j = i[l] + l;
    if (b[l] > top || (b[l] == top && b[l] > minus_inf() && j < id)) top = b[l], id = j;
  }
  for (; k < n; k++) {
    if (x[k] != x[k]) nan = 1;
    if (x[k] > top) top = x[k], id = k;
  }
  *value = top;
  return nan ? -1 : id;
}
static void argmax(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const RowArgs*>(args);
  float top;
  for (int r; (r = c.take()) < a.x.num_rows;) a.out_ids[r] = best_of(a.x.x + r * a.x.ld, a.x.n, &top);
}

// The sum of exp((x - top) * inv) with lanes in float over pieces of a row, pieces in double: a fixed order.
static double exp_sum(const float* x, int n, float top, float inv) {
  double total = 0;
  const F t = fset(top), s = fset(inv);
  for (int k = 0; k < n;) {
    const int end = imin(n, k + 1024);
    F sum = fzero();
    for (; k < end; k += 16) {
      const F v = fload_n(x + k, end - k);
      const F e = pick(first(end - k), vexp(mul(sub(v, t), s)), fzero());
      sum = add(sum, keep_nan(v, e));
    }
    total += double(hsum(sum));
  }
  return total;
}
static void log_sum_exp(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const RowArgs*>(args);
  for (int r; (r = c.take()) < a.x.num_rows;) {
    const float* x = a.x.x + r * a.x.ld;
    float top;
    best_of(x, a.x.n, &top);
    if (top == minus_inf()) a.out_values[r] = top;
    else a.out_values[r] = float(double(top) + __builtin_log(exp_sum(x, a.x.n, top, 1.f)));
  }
}

// ---- the k best -----------------------------------------------------------------------------------------------------------
struct Cand {
  float x;
  int id;
};
static ALWAYS bool better(Cand a, Cand b) { return a.x > b.x || (a.x == b.x && a.id < b.id); }
static ALWAYS Cand cand(const float* x, int id) { return {x[id] != x[id] ? minus_inf() : x[id], id}; }

// A heap whose top is its worst.
static void sift(Cand* h, int n, int i) {
  for (int j; (j = 2 * i + 1) < n; i = j) {
    if (j + 1 < n && better(h[j], h[j + 1])) j++;
    if (!better(h[i], h[j])) return;
    const Cand t = h[i];
    h[i] = h[j], h[j] = t;
  }
}
static void sort_best_first(Cand* h, int n) {
  for (int i = n / 2; i-- > 0;) sift(h, n, i);
  for (int m = n; m-- > 1;) {
    const Cand t = h[0];
    h[0] = h[m], h[m] = t;
    sift(h, m, 0);
  }
}
static void best_k(const float* x, int n, int k, Cand* h) {
  for (int i = 0; i < k; i++) h[i] = cand(x, i);
  for (int i = k / 2; i-- > 0;) sift(h, k, i);
  for (int i = k; i < n; i += 16) {
    unsigned m = mask_bits(mand(gt(fload_n(x + i, n - i), fset(h[0].x)), first(n - i)));
    for (; m; m &= m - 1) {
      const Cand v = cand(x, i + __builtin_ctz(m));
      if (!better(v, h[0])) continue;
      h[0] = v;
      sift(h, k, 0);
    }
  }
  sort_best_first(h, k);
}
static void top_k(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const TopKArgs*>(args);
  for (int r; (r = c.take()) < a.x.num_rows;) {
    int* ids = a.ids + r * a.ld_ids;
    float* values = a.values + r * a.ld_values;
    auto h = reinterpret_cast<Cand*>(c.scratch);
    best_k(a.x.x + r * a.x.ld, a.x.n, a.k, h);
    for (int i = 0; i < a.k; i++) ids[i] = h[i].id, values[i] = h[i].x;
  }
}

// ---- sampling ---------------------------------------------------------------------------------------------------------------
// Tokens are ordered by (value, id) without sorting the row. Distance from the best, t = (top - x) / temperature, falls into
// one of kBins bins, which are monotone in x; each bin's count and mass are summed; then only the bins where a limit falls
// (top_k, top_p, the sampling itself) are sorted. Sums are in double, bins in ascending order, so the result is the row's alone.
constexpr int kBins = 2048;
constexpr float kBinsPerUnit = 64.f;
constexpr float kNear = 14.f;          // candidates: tokens this near (e^-14 of the best); the rest only if needed

struct Bins {
  int count[kBins], begin[kBins + 1];
  double mass[kBins];
};
static ALWAYS int bin_of(float t) { return t >= float(kBins - 1) / kBinsPerUnit ? kBins - 1 : int(t * kBinsPerUnit); }

struct RowSample {                          // one row's
  const float* x;
  int n;
  float top, inv;
  Cand *list, *sorted;
  float* weight;                       // of sorted[i]
  Bins* bins;
  int num, sorted_bins;                // candidates; bins below sorted_bins are in order
};
// Candidates with (top - x) * inv <= limit, in order of id, and the bins they fall in.
static void collect(RowSample& d, float limit) {
  int m = 0;
  const F t = fset(d.top), s = fset(d.inv), lim = fset(limit);
  for (int k = 0; k < d.n; k += 16) {
    unsigned near = mask_bits(mand(ge(lim, mul(sub(t, fload_n(d.x + k, d.n - k)), s)), first(d.n - k)));
    for (; near; near &= near - 1) {
      const int id = k + __builtin_ctz(near);
      d.list[m++] = {d.x[id], id};
    }
  }
  d.num = m;
  Bins& b = *d.bins;
  __builtin_memset(b.count, 0, sizeof b.count);
  for (int i = 0; i < kBins; i++) b.mass[i] = 0;
  for (int i = 0; i < m; i += 16) {
    alignas(64) float v[16], e[16];
    const int e_n = imin(16, m - i);
    for (int l = 0; l < 16; l++) v[l] = l < e_n ? (d.top - d.list[i + l].x) * d.inv : 0.f;
    fstore(e, vexp(neg(fload(v))));
    for (int l = 0; l < e_n; l++) {
      const int at = bin_of(v[l]);
      b.count[at]++;
      b.mass[at] += double(e[l]);
    }
  }
  int sum = 0;
  for (int i = 0; i < kBins; i++) b.begin[i] = sum, sum += b.count[i];
  b.begin[kBins] = sum;
  for (int i = 0; i < m; i++) {        // spread over the bins; begin[] moves and is put back
    const int at = bin_of((d.top - d.list[i].x) * d.inv);
    d.sorted[b.begin[at]++] = d.list[i];
  }
  for (int i = 0; i < kBins; i++) b.begin[i] -= b.count[i];
  for (int i = 0; i < kBins; i++) b.count[i] = -b.count[i];          // negative: not in order yet
}
static void order_bin(RowSample& d, int bin) {
  Bins& b = *d.bins;
  if (b.count[bin] >= 0) return;
  const int n = b.count[bin] = -b.count[bin];
  Cand* p = d.sorted + b.begin[bin];
  if (n > 1) sort_best_first(p, n);
  for (int i = 0; i < n; i += 16) {
    alignas(64) float v[16];
    for (int l = 0; l < 16; l++) v[l] = i + l < n ? (p[i + l].x - d.top) * d.inv : 0.f;
    fstore_n(d.weight + b.begin[bin] + i, vexp(fload(v)), n - i);
  }
}
static ALWAYS int size_of(const Bins& b, int bin) { return b.count[bin] < 0 ? -b.count[bin] : b.count[bin]; }

// Mass of the first `num` tokens.
static double mass_of(RowSample& d, int num) {
  Bins& b = *d.bins;
  double sum = 0;
  for (int i = 0; i < kBins && num > 0; i++) {
    const int n = size_of(b, i);
    if (n <= num) sum += b.mass[i];
    else {
      order_bin(d, i);
      for (int j = 0; j < num; j++) sum += double(d.weight[b.begin[i] + j]);
    }
    num -= n;
  }
  return sum;
}
// How many tokens, best first, it takes for the mass to reach (or, strict, to exceed) `goal`; d.num + 1 if all do not.
static int reach(RowSample& d, double goal, bool strict) {
  Bins& b = *d.bins;
  double sum = 0;
  for (int i = 0; i < kBins; i++) {
    if (!b.count[i]) continue;
    if (strict ? sum + b.mass[i] <= goal : sum + b.mass[i] < goal) {
      sum += b.mass[i];
      continue;
    }
    order_bin(d, i);
    double inner = sum;
    for (int j = b.begin[i]; j < b.begin[i + 1]; j++) {
      inner += double(d.weight[j]);
      if (strict ? inner > goal : inner >= goal) return j + 1;
    }
    sum += b.mass[i];                  // the two orders of adding differ in the last bit: go on with the next bin
  }
  return d.num + 1;
}
// Tokens that are at least min_p times as likely as the best. Weights are monotone, so a bin decides, or its order does.
static int at_least(RowSample& d, float min_p, int num) {
  Bins& b = *d.bins;
  int m = 0;
  for (int i = 0; i < kBins && m < num; i++) {
    const int n = size_of(b, i);
    if (!n) continue;
    const float first_t = float(i) / kBinsPerUnit, last_t = float(i + 1) / kBinsPerUnit;
    alignas(64) float e[16];
    fstore(e, vexp(fset(-last_t)));
    if (e[0] * 0.999f >= min_p && i < kBins - 1) { m += n; continue; }
    fstore(e, vexp(fset(-first_t)));
    if (e[0] * 1.001f < min_p) break;
    order_bin(d, i);
    for (int j = 0; j < n; j++, m++)
      if (d.weight[b.begin[i] + j] < min_p) return imin(m, num);
  }
  return imin(m, num);
}
// The number of tokens kept and their order suffice for a sample only if they all are candidates: false asks for more.
static bool try_sample(RowSample& d, int k, double whole, float top_p, float min_p, float u, bool all, int* out) {
  int num = d.n;                       // tokens kept so far; d.n means no limit yet
  double mass = whole;
  if (k > 0 && k < d.n) {
    if (k > d.num && !all) return false;
    num = imin(k, d.num);
    mass = mass_of(d, num);
  }
  if (top_p < 1.f) {
    const int m = reach(d, double(top_p) * mass, false);
    if (m > d.num && !all) return false;
    if (m <= num && m <= d.num) num = m, mass = mass_of(d, num);
  }
  if (min_p > 0.f) {
    const int m = at_least(d, min_p, imin(num, d.num));    // 0 where min_p is above 1: then the best is kept all the same
    if (m == d.num && m < num && !all) return false;
    if (m < num) num = m, mass = mass_of(d, num);
  }
  int m = reach(d, double(u) * mass, true);
  if (m > d.num && !all) return false;
  m = imin(imin(m, num), d.num);
  if (m < 1) m = 1;
  Bins& b = *d.bins;
  int bin = 0;
  while (b.begin[bin + 1] < m) bin++;
  order_bin(d, bin);
  *out = d.sorted[m - 1].id;
  return true;
}
static int sample_row(const SampleArgs& a, int r, char* work) {
  RowSample d;
  d.x = a.x.x + r * a.x.ld;
  d.n = a.x.n;
  const int best = best_of(d.x, d.n, &d.top);
  if (best < 0 || d.top == minus_inf()) return -1;
  const float temperature = a.temperature[r];
  if (!(temperature > 1e-30f) || a.top_k[r] == 1 || d.top == __builtin_inff()) return best;
  d.inv = 1.f / temperature;
  d.bins = reinterpret_cast<Bins*>(work);
  d.list = reinterpret_cast<Cand*>(work + (sizeof(Bins) + 63) / 64 * 64);
  d.sorted = d.list + d.n;
  d.weight = reinterpret_cast<float*>(d.sorted + d.n);
  const double whole = exp_sum(d.x, d.n, d.top, d.inv);
  int out = best;
  for (int all = 0; all < 2; all++) {
    collect(d, all ? 3e38f : kNear);
    if (try_sample(d, a.top_k[r], whole, a.top_p[r], a.min_p[r], a.uniform[r], all, &out)) break;
  }
  return out;
}
static void sample(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const SampleArgs*>(args);
  for (int r; (r = c.take()) < a.x.num_rows;) a.out[r] = sample_row(a, r, a.work + size_t(c.tid) * a.work_bytes);
}

}  // namespace ISA

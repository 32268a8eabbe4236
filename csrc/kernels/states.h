// Recurrent and convolutional layers: a request's rows are taken one after the other, so nothing depends on how they were cut into
// steps. Threads share requests, heads and columns, which have nothing to do with each other.
#pragma once

namespace ISA {

// One request's rows, and where its states are. A slot that does not exist is never read or written.
struct Walk {
  int start, len, source, target, save, saves_end, done = 0;
  ALWAYS Walk(const StatesView& a, int r, int max_rows)
      : start(clamp(a.q_start[r], 0, max_rows)), len(clamp(a.q_len[r], 0, max_rows - start)), source(slot(a, a.source[r])),
        target(slot(a, a.target[r])), save(clamp(a.save_starts[r], 0, a.max_saves)), saves_end(clamp(a.save_starts[r + 1], save, a.max_saves)) {}
  static ALWAYS int slot(const StatesView& a, int s) { return s < 0 || s >= a.num_slots ? -1 : s; }
  // Calls put(slot) wherever the state after the next row is wanted.
  template <class Put> ALWAYS void note(const StatesView& a, Put put) {
    done++;
    for (; save < saves_end && a.save_rows[save] <= done; save++)
      if (a.save_rows[save] == done && slot(a, a.save_slots[save]) >= 0) put(a.save_slots[save]);
    if (done == len && target >= 0) put(target);
  }
};

// ---- short convolutions ---------------------------------------------------------------------------------------------------
constexpr int kMaxTaps = 8;

// Channels 32 g .. 32 g + 31 of one request; n of them exist.
static void conv_unit(const ConvArgs& a, Walk w, int g) {
  const int taps = a.taps, k = 32 * g, n = imin(32, a.channels - k), hi = n - 16;
  const size_t size = size_t(taps - 1) * a.channels;
  F seen[kMaxTaps][2], weight[kMaxTaps][2];
  for (int j = 0; j < taps; j++) {
    weight[j][0] = fload_n(a.weight + size_t(j) * a.channels + k, n);
    weight[j][1] = hi > 0 ? fload_n(a.weight + size_t(j) * a.channels + k + 16, hi) : fzero();
    seen[j][0] = seen[j][1] = fzero();
    if (j + 1 < taps && w.source >= 0) {
      const float* s = a.state + w.source * size + size_t(j) * a.channels + k;
      seen[j][0] = fload_n(s, n);
      if (hi > 0) seen[j][1] = fload_n(s + 16, hi);
    }
  }
  F bias[2] = {fzero(), fzero()};
  if (a.bias) {
    bias[0] = fload_n(a.bias + k, n);
    if (hi > 0) bias[1] = fload_n(a.bias + k + 16, hi);
  }
  for (int r = w.start; r < w.start + w.len; r++) {
    F y[2] = {fzero(), fzero()};
    for (int h = 0; h < (hi > 0 ? 2 : 1); h++) {
      const int m = n - 16 * h;
      F u = fload_n(a.x + r * a.ld_x + k + 16 * h, m);
      if (a.before) u = mul(fload_n(a.before + r * a.ld_before + k + 16 * h, m), u);
      seen[taps - 1][h] = u;
      F sum = mul(seen[0][h], weight[0][h]);
      for (int j = 1; j < taps; j++) sum = fma(seen[j][h], weight[j][h], sum);
      if (a.bias) sum = add(sum, bias[h]);
      if (a.silu) sum = silu(sum);
      if (a.after) sum = mul(fload_n(a.after + r * a.ld_after + k + 16 * h, m), sum);
      y[h] = sum;
      for (int j = 0; j + 1 < taps; j++) seen[j][h] = seen[j + 1][h];
    }
    if (a.out) {
      fstore_n(a.out + r * a.ld_out + k, y[0], n);
      if (hi > 0) fstore_n(a.out + r * a.ld_out + k + 16, y[1], hi);
    } else {
      write32(a.act, r, g, y[0], y[1], n);
    }
    w.note(a.at, [&](int slot) {
      float* s = a.state + slot * size + k;
      for (int j = 0; j + 1 < taps; j++) {
        fstore_n(s + size_t(j) * a.channels, seen[j][0], n);
        if (hi > 0) fstore_n(s + size_t(j) * a.channels + 16, seen[j][1], hi);
      }
    });
  }
}
static void short_conv(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const ConvArgs*>(args);
  const int reqs = count(a.at.num_reqs, a.at.max_reqs), groups = (a.channels + 31) / 32;
  for (int u; (u = c.take()) < reqs * groups;) conv_unit(a, Walk(a.at, u / groups, a.max_rows), u % groups);
}

// ---- gated delta rule -----------------------------------------------------------------------------------------------------
static ALWAYS void set_length(float* x, int n, float length) {
  F ss = fzero();
  for (int k = 0; k < n; k += 16) { const F t = load_up_to(x + k, n - k); ss = fma(t, t, ss); }
  const F f = fset(length / __builtin_sqrtf(hsum(ss) + 1e-6f));
  for (int k = 0; k < n; k += 16) store_up_to(x + k, mul(load_up_to(x + k, n - k), f), n - k);
}
static float softplus(float x) { return x > 20.f ? x : __builtin_log1pf(__builtin_expf(x)); }

// Heads of q and k get their lengths; b becomes its sigmoid, a what stays of the state.
static void delta_prepare(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const DeltaArgs*>(args);
  const float q_len = 1.f / __builtin_sqrtf(float(a.k_dim));
  for (int r, n = count(a.rows, a.max_rows); (r = c.take()) < n;) {
    float* x = a.qkv + r * a.ld_qkv;
    for (int h = 0; h < 2 * a.k_heads; h++) set_length(x + size_t(h) * a.k_dim, a.k_dim, h < a.k_heads ? q_len : 1.f);
    float *b = a.gates + r * a.ld_gates, *keep = b + a.v_heads;
    for (int h = 0; h < a.v_heads; h++) {
      b[h] = 1.f / (1.f + __builtin_expf(-b[h]));
      keep[h] = __builtin_expf(a.decay[h] * softplus(keep[h] + a.dt_bias[h]));
    }
  }
}

// Up to thirty-two columns of a head's state, which lie together in `s` [dim][32] meanwhile; `p`: the first in a slot, or null for
// the beginning of a text.
constexpr int kStateColumns = 32;
static ALWAYS void load_columns(float* s, const float* p, int dim, int ld, int n) {
  for (int i = 0; i < dim; i++) {
    fstore(s + 32 * i, p ? fload_n(p + size_t(i) * ld, n) : fzero());
    fstore(s + 32 * i + 16, p && n > 16 ? fload_n(p + size_t(i) * ld + 16, n - 16) : fzero());
  }
}
static ALWAYS void store_columns(const float* s, float* p, int dim, int ld, int n) {
  for (int i = 0; i < dim; i++) {
    fstore_n(p + size_t(i) * ld, fload(s + 32 * i), n);
    if (n > 16) fstore_n(p + size_t(i) * ld + 16, fload(s + 32 * i + 16), n - 16);
  }
}

// Some columns of one head's state.
static void delta_unit(const DeltaArgs& a, Walk w, int head, int block, float* s) {
  const int dim = a.k_dim, column = block * kStateColumns, n = imin(kStateColumns, a.v_dim - column), hi = n - 16;
  const size_t size = size_t(a.v_heads) * dim * a.v_dim, first = size_t(head) * dim * a.v_dim + column;
  load_columns(s, w.source < 0 ? nullptr : a.state + w.source * size + first, dim, a.v_dim, n);
  const int k_head = a.turns ? head % a.k_heads : head / (a.v_heads / a.k_heads);
  for (int r = w.start; r < w.start + w.len; r++) {
    const float* x = a.qkv + r * a.ld_qkv;
    const float *q = x + size_t(k_head) * dim, *k = q + size_t(a.k_heads) * dim;
    const float* v = x + size_t(2 * a.k_heads) * dim + size_t(head) * a.v_dim + column;
    const float* gates = a.gates + r * a.ld_gates;
    const F beta = fset(gates[head]), keep = fset(gates[a.v_heads + head]);
    F even[2] = {fzero(), fzero()}, odd[2] = {fzero(), fzero()};
    int i = 0;
    for (; i + 1 < dim; i += 2) {
      const F k0 = fset(k[i]), k1 = fset(k[i + 1]);
      even[0] = fma(fload(s + 32 * i), k0, even[0]), even[1] = fma(fload(s + 32 * i + 16), k0, even[1]);
      odd[0] = fma(fload(s + 32 * i + 32), k1, odd[0]), odd[1] = fma(fload(s + 32 * i + 48), k1, odd[1]);
    }
    if (i < dim) even[0] = fma(fload(s + 32 * i), fset(k[i]), even[0]), even[1] = fma(fload(s + 32 * i + 16), fset(k[i]), even[1]);
    const F v0 = fload_n(v, n), v1 = hi > 0 ? fload_n(v + 16, hi) : fzero();
    const F d0 = mul(fnma(keep, add(even[0], odd[0]), v0), beta), d1 = mul(fnma(keep, add(even[1], odd[1]), v1), beta);
    F o0 = fzero(), o1 = fzero();
    for (i = 0; i < dim; i++) {
      const F ki = fset(k[i]), qi = fset(q[i]);
      const F s0 = fma(ki, d0, mul(keep, fload(s + 32 * i))), s1 = fma(ki, d1, mul(keep, fload(s + 32 * i + 16)));
      fstore(s + 32 * i, s0), fstore(s + 32 * i + 16, s1);
      o0 = fma(s0, qi, o0), o1 = fma(s1, qi, o1);
    }
    float* out = a.out + r * a.ld_out + size_t(head) * a.v_dim + column;
    fstore_n(out, o0, n);
    if (hi > 0) fstore_n(out + 16, o1, hi);
    w.note(a.at, [&](int slot) { store_columns(s, a.state + slot * size + first, dim, a.v_dim, n); });
  }
}
static void delta_rule(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const DeltaArgs*>(args);
  const int reqs = count(a.at.num_reqs, a.at.max_reqs), blocks = (a.v_dim + kStateColumns - 1) / kStateColumns, each = a.v_heads * blocks;
  for (int u; (u = c.take()) < reqs * each;)
    delta_unit(a, Walk(a.at, u / each, a.max_rows), u % each / blocks, u % blocks, reinterpret_cast<float*>(c.scratch));
}

// ---- state spaces ----------------------------------------------------------------------------------------------------------
// Of each head, dt becomes its step, and what it keeps of the state stands beside.
static void space_prepare(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const SpaceArgs*>(args);
  for (int r, n = count(a.rows, a.max_rows); (r = c.take()) < n;) {
    float *step = a.gates + r * a.ld_gates, *keep = step + a.heads;
    for (int h = 0; h < a.heads; h++) {
      const float d = softplus(step[h] + a.dt_bias[h]);
      step[h] = d < a.shortest ? a.shortest : d > a.longest ? a.longest : d;
      keep[h] = __builtin_expf(a.decay[h] * step[h]);
    }
  }
}

// Some columns of one head's state.
static void space_unit(const SpaceArgs& a, Walk w, int head, int block, float* s) {
  const int dim = a.state_dim, column = block * kStateColumns, n = imin(kStateColumns, a.head_dim - column), hi = n - 16;
  const size_t size = size_t(a.heads) * dim * a.head_dim, first = size_t(head) * dim * a.head_dim + column;
  load_columns(s, w.source < 0 ? nullptr : a.state + w.source * size + first, dim, a.head_dim, n);
  const F skip = fset(a.skip[head]);
  for (int r = w.start; r < w.start + w.len; r++) {
    const float *row = a.xbc + r * a.ld_xbc, *x = row + size_t(head) * a.head_dim + column, *gates = a.gates + r * a.ld_gates;
    const float *b = row + size_t(a.heads) * a.head_dim + size_t(head / (a.heads / a.groups)) * dim, *k = b + size_t(a.groups) * dim;
    const F keep = fset(gates[a.heads + head]), step = fset(gates[head]);
    const F x0 = fload_n(x, n), x1 = hi > 0 ? fload_n(x + 16, hi) : fzero(), d0 = mul(step, x0), d1 = mul(step, x1);
    F even[2] = {fzero(), fzero()}, odd[2] = {fzero(), fzero()};
    auto go = [&](int i, F (&sum)[2]) {
      const F bi = fset(b[i]), ki = fset(k[i]);
      const F s0 = fma(bi, d0, mul(keep, fload(s + 32 * i))), s1 = fma(bi, d1, mul(keep, fload(s + 32 * i + 16)));
      fstore(s + 32 * i, s0), fstore(s + 32 * i + 16, s1);
      sum[0] = fma(s0, ki, sum[0]), sum[1] = fma(s1, ki, sum[1]);
    };
    int i = 0;
    for (; i + 1 < dim; i += 2) go(i, even), go(i + 1, odd);
    if (i < dim) go(i, even);
    float* out = a.out + r * a.ld_out + size_t(head) * a.head_dim + column;
    fstore_n(out, fma(skip, x0, add(even[0], odd[0])), n);
    if (hi > 0) fstore_n(out + 16, fma(skip, x1, add(even[1], odd[1])), hi);
    w.note(a.at, [&](int slot) { store_columns(s, a.state + slot * size + first, dim, a.head_dim, n); });
  }
}
static void state_space(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const SpaceArgs*>(args);
  const int reqs = count(a.at.num_reqs, a.at.max_reqs), blocks = (a.head_dim + kStateColumns - 1) / kStateColumns, each = a.heads * blocks;
  for (int u; (u = c.take()) < reqs * each;)
    space_unit(a, Walk(a.at, u / each, a.max_rows), u % each / blocks, u % blocks, reinterpret_cast<float*>(c.scratch));
}

// ---- selective scan ------------------------------------------------------------------------------------------------------
static void scan_prepare(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const ScanArgs*>(args);
  for (int r, n = count(a.rows, a.max_rows); (r = c.take()) < n;) {
    float* dt = a.dt + r * a.ld_dt;
    for (int k = 0; k < a.channels; k++) dt[k] = softplus(dt[k] + a.dt_bias[k]);
  }
}

// Channels 32 g .. 32 g + 31 of one request, whose states lie in `s` [state_dim][32] meanwhile.
static void scan_unit(const ScanArgs& a, Walk w, int g, float* s) {
  const int dim = a.state_dim, k = 32 * g, n = imin(32, a.channels - k), hi = n - 16;
  const size_t size = size_t(dim) * a.channels;
  load_columns(s, w.source < 0 ? nullptr : a.state + w.source * size + k, dim, a.channels, n);
  auto low = [&](const float* p) { return fload_n(p + k, n); };
  auto high = [&](const float* p) { return hi > 0 ? fload_n(p + k + 16, hi) : fzero(); };
  for (int r = w.start; r < w.start + w.len; r++) {
    const float *x = a.x + r * a.ld_x, *z = a.z + r * a.ld_z, *dt = a.dt + r * a.ld_dt, *b = a.bc + r * a.ld_bc, *c = b + dim;
    const F t0 = low(dt), t1 = high(dt), x0 = low(x), x1 = high(x), d0 = mul(t0, x0), d1 = mul(t1, x1);
    F o0 = mul(low(a.skip), x0), o1 = mul(high(a.skip), x1);
    for (int i = 0; i < dim; i++) {
      const float* decay = a.decay + size_t(i) * a.channels;
      const F bi = fset(b[i]), ci = fset(c[i]);
      const F s0 = fma(bi, d0, mul(vexp(mul(low(decay), t0)), fload(s + 32 * i)));
      const F s1 = fma(bi, d1, mul(vexp(mul(high(decay), t1)), fload(s + 32 * i + 16)));
      fstore(s + 32 * i, s0), fstore(s + 32 * i + 16, s1);
      o0 = fma(s0, ci, o0), o1 = fma(s1, ci, o1);
    }
    write32(a.out, r, g, mul(o0, silu(low(z))), mul(o1, silu(high(z))), n);
    w.note(a.at, [&](int slot) { store_columns(s, a.state + slot * size + k, dim, a.channels, n); });
  }
}
static void selective_scan(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const ScanArgs*>(args);
  const int reqs = count(a.at.num_reqs, a.at.max_reqs), groups = (a.channels + 31) / 32;
  for (int u; (u = c.take()) < reqs * groups;) scan_unit(a, Walk(a.at, u / groups, a.max_rows), u % groups, reinterpret_cast<float*>(c.scratch));
}

// ---- gates ----------------------------------------------------------------------------------------------------------------
// Rows of heads, normalized each, then gated. The row is put together in scratch, since groups of 32 may span heads.
static void gated_norm(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const GatedNormArgs*>(args);
  const int width = a.out.width;
  float* row = reinterpret_cast<float*>(c.scratch);
  for (int r, n = count(a.rows, a.max_rows); (r = c.take()) < n;) {
    const float *x = a.x + r * a.ld_x, *gate = a.gate + r * a.ld_gate;
    for (int h = 0; h < width; h += a.head) {
      const float* weight = a.weight + (a.wide ? h : 0);
      F ss = fzero();
      for (int k = 0; k < a.head; k += 16) {
        F t = fload_n(x + h + k, a.head - k);
        if (a.gate_first) t = mul(t, silu(fload_n(gate + h + k, a.head - k))), fstore_n(row + h + k, t, a.head - k);
        ss = fma(t, t, ss);
      }
      const F inv = fset(1.f / __builtin_sqrtf(hsum(ss) / float(a.head) + a.eps));
      for (int k = 0; k < a.head; k += 16) {
        const int m = a.head - k;
        const F y = mul(mul(fload_n((a.gate_first ? row : x) + h + k, m), inv), fload_n(weight + k, m));
        fstore_n(row + h + k, a.gate_first ? y : mul(y, silu(fload_n(gate + h + k, m))), m);
      }
    }
    for (int k = 0; k < width; k += 32) write32(a.out, r, k / 32, fload_n(row + k, width - k), width - k > 16 ? fload_n(row + k + 16, width - k - 16) : fzero(), width - k);
  }
}
static void sigmoid_gate(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const GatedNormArgs*>(args);
  each_group(a.out, count(a.rows, a.max_rows), c, [&](int r, int g) {
    const int k = 32 * g, n = a.out.width - k;
    const float *x = a.x + r * a.ld_x + k, *gate = a.gate + r * a.ld_gate + k;
    auto at = [&](int i) { return div(fload_n(x + i, n - i), add(fset(1.f), vexp(neg(fload_n(gate + i, n - i))))); };
    write32(a.out, r, g, at(0), n > 16 ? at(16) : fzero(), n);
  });
}

}  // namespace ISA

// Norms, gates, rope, embedding: what lies between the linear layers. Rows are independent of each other.
#pragma once

namespace ISA {

static ALWAYS int count(const int* rows, int max_rows) { return clamp(*rows, 0, max_rows); }

// The rows of this thread lie together: memory is read ahead.
struct Span { int begin, end; };
static ALWAYS Span own_rows(int n, const Ctx& c) { return {int(int64_t(n) * c.tid / c.n), int(int64_t(n) * (c.tid + 1) / c.n)}; }

// ---- embedding ----------------------------------------------------------------------------------------------------------
// Column `lane` of a panel, read back from the packed form.
static void unpack_row(const WeightView& w, int row, float scale, float* out) {
  const uint8_t* p = w.w + w.panel * (row / 16);
  const int lane = row % 16;
  auto half = [](const uint8_t* at, int i) { uint16_t h; __builtin_memcpy(&h, at + 2 * i, 2); return h; };
  if (w.kind <= kIq3x) {
    for (int g = 0; g < w.groups; g++, p += kLevelGroup) {
      const float d = f16_to_f32(half(p, lane));
      for (int k = 0; k < 32; k++) {
        const int v = p[32 + 64 * (k / 8) + 4 * lane + k % 4] >> (k % 8 / 4 * 4) & 15;
        out[32 * g + k] = scale * (d * float(int(kLevels[w.kind][v]) - 128));
      }
    }
  } else if (w.kind <= kQ2) {
    for (int g = 0; g < w.groups; g++, out += 32) {
      if (w.kind == kQ2) read_two(p, g, lane, out);
      else read_three(p, w.kind, g, lane, out);
      for (int k = 0; k < 32; k++) out[k] = scale * out[k];
    }
  } else if (w.kind == kInt4) {
    for (int g = 0; g < w.groups; g++, p += 320) {
      const float d = f16_to_f32(half(p, lane)), m = f16_to_f32(half(p + 32, lane));
      for (int j = 0; j < 4; j++)
        for (int b = 0; b < 4; b++) {
          const int v = p[64 + 64 * j + 4 * lane + b];
          out[32 * g + 8 * j + b] = scale * (d * float(v & 15) + m);
          out[32 * g + 8 * j + 4 + b] = scale * (d * float(v >> 4) + m);
        }
    }
  } else if (w.kind == kInt8) {
    for (int g = 0; g < w.groups; g++) {
      const float d = f16_to_f32(half(p + int8_scales(g), lane));
      const uint8_t* q = p + int8_values(g) + 4 * lane;
      for (int k = 0; k < 32; k++) out[32 * g + k] = scale * (d * float(int(q[64 * (k / 4) + k % 4]) - 128));
    }
  } else if (w.kind == kBF16) {
    for (int k = 0; k < w.k; k++) {
      const uint32_t b = uint32_t(half(p, 32 * (k / 2) + 2 * lane + k % 2)) << 16;
      float f;
      __builtin_memcpy(&f, &b, 4);
      out[k] = scale * f;
    }
  } else if (w.kind == kF16) {
    for (int k = 0; k < w.k; k++) out[k] = scale * f16_to_f32(half(p, 16 * k + lane));
  } else {
    for (int k = 0; k < w.k; k++) out[k] = scale * reinterpret_cast<const float*>(p)[16 * size_t(k) + lane];
  }
}
static void take_sampled(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const TakeArgs*>(args);
  if (c.take()) return;
  for (int i = 0, n = count(a.rows, a.max_rows); i < n; i++)
    if (a.previous[i] >= 0 && a.previous[i] < a.num_sampled) a.ids[i] = a.sampled[a.previous[i]] < 0 ? 0 : a.sampled[a.previous[i]];
}
static void embedding(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const EmbeddingArgs*>(args);
  for (int r = c.tid, n = count(a.rows, a.max_rows); r < n; r += c.n)
    unpack_row(a.w, clamp(a.ids[r], 0, a.w.n - 1), a.scale, a.out + r * a.ld_out);
}

// ---- norm ---------------------------------------------------------------------------------------------------------------
static void norm_row(const NormArgs& a, int i, float* buf) {
  const int src = a.row_idx ? clamp(a.row_idx[i], 0, a.x_rows - 1) : i, w = a.width;
  float* x = a.x + src * a.ld_x;
  const float* delta = a.delta ? a.delta + src * a.ld_delta : nullptr;
  float* v = !delta ? x : a.row_idx ? buf : x;             // a row may be wanted twice, so then x is left alone
  F ss = fzero();
  for (int k = 0; k < w; k += 16) {
    F t = fload_n(x + k, w - k);
    if (delta) {
      t = add(t, fload_n(delta + k, w - k));
      fstore_n(v + k, t, w - k);
    }
    ss = fma(t, t, ss);
  }
  const F inv = fset(1.f / __builtin_sqrtf(hsum(ss) / float(w) + a.eps));
  auto at = [&](int k) { return mul(mul(fload_n(v + k, w - k), inv), fload_n(a.weight + k, w - k)); };
  if (a.out) {
    float* out = a.out + i * a.ld_out;
    for (int k = 0; k < w; k += 16) fstore_n(out + k, at(k), w - k);
  } else {
    for (int k = 0; k < w; k += 32) write32(a.act, i, k / 32, at(k), w - k > 16 ? at(k + 16) : fzero(), w - k);
  }
}
static void rms_norm(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const NormArgs*>(args);
  const Span own = own_rows(count(a.rows, a.max_rows), c);
  for (int i = own.begin; i < own.end; i++) norm_row(a, i, reinterpret_cast<float*>(c.scratch));
}

// ---- gate, store ----------------------------------------------------------------------------------------------------------
constexpr int kSpanGroups = 64;        // of a row at a time: they stay in L1
template <class Fn> static ALWAYS void each_span(const ActView& out, int rows, const Ctx& c, Fn f) {
  const int g = (out.width + 31) / 32, parts = rows < 4 * c.n ? imin(4, g) : 1;        // few rows: threads share a row
  for (int u; (u = c.take()) < rows * parts;) {
    const int r = u / parts, p = u % parts, end = g * (p + 1) / parts;
    for (int i = g * p / parts; i < end; i += kSpanGroups) f(r, i, imin(i + kSpanGroups, end));
  }
}
template <class Fn> static ALWAYS void each_group(const ActView& out, int rows, const Ctx& c, Fn f) {
  each_span(out, rows, c, [&](int r, int begin, int end) {
    for (int i = begin; i < end; i++) f(r, i);
  });
}
// Two passes, as in gated_unit.
template <int FN> static void gate_rows(const GateArgs& a, const Ctx& c) {
  const int w = a.out.width;
  float* tmp = reinterpret_cast<float*>(c.scratch);
  each_span(a.out, count(a.rows, a.max_rows), c, [&](int r, int begin, int end) {
    const float *x = a.gate + r * a.ld_gate, *y = a.up + r * a.ld_up;
    for (int k = 32 * begin; k < 32 * end; k += 16)
      fstore(tmp + k - 32 * begin, k < w ? mul(gate_fn<FN>(fload_n(x + k, w - k)), fload_n(y + k, w - k)) : fzero());
    for (int g = begin; g < end; g++) {
      const float* t = tmp + 32 * (g - begin);
      write32(a.out, r, g, fload(t), fload(t + 16), w - 32 * g);
    }
  });
}
static void gate(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const GateArgs*>(args);
  if (a.fn == kSilu) gate_rows<kSilu>(a, c);
  else if (a.fn == kGeluTanh) gate_rows<kGeluTanh>(a, c);
  else gate_rows<kGelu>(a, c);
}
static void store(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const GateArgs*>(args);
  each_group(a.out, count(a.rows, a.max_rows), c, [&](int r, int g) {
    const int k = 32 * g, n = a.out.width - k;
    const float* x = a.gate + r * a.ld_gate + k;
    write32(a.out, r, g, fload_n(x, n), n > 16 ? fload_n(x + 16, n - 16) : fzero(), n);
  });
}

static void soft_cap(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const SoftCapArgs*>(args);
  const F cap = fset(a.cap), inv = fset(1.f / a.cap);
  const int parts = (a.n + 4095) / 4096, n = count(a.rows, a.max_rows);
  for (int u; (u = c.take()) < n * parts;) {
    float* x = a.x + u / parts * a.ld;
    const int end = imin(a.n, (u % parts + 1) * 4096);
    for (int k = u % parts * 4096; k < end; k += 16) fstore_n(x + k, mul(cap, vtanh(mul(fload_n(x + k, end - k), inv))), end - k);
  }
}

// ---- several residual streams ---------------------------------------------------------------------------------------------
static void scale_rows(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const SoftCapArgs*>(args);
  const F by = fset(a.cap);
  for (int r = c.tid, n = count(a.rows, a.max_rows); r < n; r += c.n) {
    float* x = a.x + size_t(r) * a.ld;
    for (int k = 0; k < a.n; k += 16) fstore_n(x + k, mul(fload_n(x + k, a.n - k), by), a.n - k);
  }
}
static ALWAYS float mean_square(const float* x, int n) {
  F ss = fzero();
  for (int k = 0; k < n; k += 16) { const F t = fload_n(x + k, n - k); ss = fma(t, t, ss); }
  return hsum(ss) / float(n);
}
static void match_rms(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const MatchArgs*>(args);
  for (int r = c.tid, n = count(a.rows, a.max_rows); r < n; r += c.n) {
    float* x = a.x + size_t(r) * a.ld;
    const float own = mean_square(x, a.n), other = mean_square(a.like + size_t(r) * a.ld_like, a.n);
    const F by = fset(__builtin_sqrtf(other) / __builtin_sqrtf(own > 1e-5f ? own : 1e-5f));
    for (int k = 0; k < a.n; k += 16) fstore_n(x + k, mul(fload_n(x + k, a.n - k), by), a.n - k);
  }
}
static void sparsify(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const SoftCapArgs*>(args);
  for (int r = c.tid, n = count(a.rows, a.max_rows); r < n; r += c.n) {
    float* x = a.x + size_t(r) * a.ld;
    F sum = fzero(), ss = fzero();
    for (int k = 0; k < a.n; k += 16) sum = add(sum, fload_n(x + k, a.n - k));
    const float mean = hsum(sum) / float(a.n);
    for (int k = 0; k < a.n; k += 16) {
      const F t = pick(first(a.n - k), sub(fload_n(x + k, a.n - k), fset(mean)), fzero());
      ss = fma(t, t, ss);
    }
    const F floor = fset(mean + a.cap * __builtin_sqrtf(hsum(ss) / float(a.n)));
    for (int k = 0; k < a.n; k += 16) fstore_n(x + k, vmax(sub(fload_n(x + k, a.n - k), floor), fzero()), a.n - k);
  }
}

// ---- rope and KV store ------------------------------------------------------------------------------------------------------
static ALWAYS void norm_head(float* x, const float* weight, int dim, float eps) {
  F ss = fzero();
  for (int k = 0; k < dim; k += 16) { const F t = load_up_to(x + k, dim - k); ss = fma(t, t, ss); }
  const F inv = fset(1.f / __builtin_sqrtf(hsum(ss) / float(dim) + eps));
  for (int k = 0; k < dim; k += 16) store_up_to(x + k, mul(mul(load_up_to(x + k, dim - k), inv), load_up_to(weight + k, dim - k)), dim - k);
}
static ALWAYS void rotate(float* x, const float* cos, const float* sin, int rot) {
  for (int k = 0; k < rot; k += 16) {
    const int n = rot - k;
    const F a = fload_n(x + k, n), b = fload_n(x + rot + k, n), s = fload_n(sin + k, n), co = fload_n(cos + k, n);
    fstore_n(x + k, fnma(b, s, mul(a, co)), n);
    fstore_n(x + rot + k, fma(a, s, mul(b, co)), n);
  }
}
static ALWAYS void turn_head(const RopeArgs& a, float* x, const float* norm, const float* cos, const float* sin) {
  if (norm && !a.norm_last) norm_head(x, norm, a.kv.head, a.eps);
  rotate(x, cos, sin, a.rot);
  if (norm && a.norm_last) norm_head(x, norm, a.kv.head, a.eps);
}
static void rope_row(const RopeArgs& a, int r) {
  const int head = a.kv.head, hq = a.num_heads, hkv = a.kv.heads, pos = clamp(a.positions[r], 0, a.num_positions - 1);
  const int slot = a.slots[r];
  const float *cos = a.cos + size_t(pos) * a.rot, *sin = a.sin + size_t(pos) * a.rot;
  float* row = a.qkv + r * a.ld;
  const F scale = fset(a.q_growth ? a.q_scale * a.q_growth[pos] : a.q_scale);
  for (int h = 0; h < hq; h++) {
    float* x = row + h * head;
    turn_head(a, x, a.q_norm, cos, sin);
    for (int k = 0; k < head; k += 16) store_up_to(x + k, mul(load_up_to(x + k, head - k), scale), head - k);
  }
  if (slot < 0 || slot >= a.kv.num_runs * kRun) return;
  for (int h = 0; h < hkv; h++) {
    float* x = row + (hq + h) * head;
    turn_head(a, x, a.k_norm, cos, sin);
    store_head(a.kv, slot, h, x, row + (hq + hkv + h) * head);
  }
}
static void rope_store(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const RopeArgs*>(args);
  const int n = count(a.rows, a.max_rows);
  // Sixteen rows at a time where there are many: adjacent rows write to the same lines of K.
  const int step = n >= 64 * c.n ? 16 : n >= 16 * c.n ? 4 : 1;
  for (int u; (u = c.take() * step) < n;)
    for (int r = u; r < imin(u + step, n); r++) rope_row(a, r);
}

}  // namespace ISA

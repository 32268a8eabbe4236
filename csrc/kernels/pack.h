// Packing: from the rows of a checkpoint to panels of 16 columns. Layouts: docs/kernels.md; block formats: the GGUF format.
#pragma once

namespace ISA {

static ALWAYS uint32_t word_at(const uint8_t* p) { uint32_t w; __builtin_memcpy(&w, p, 4); return w; }
static ALWAYS void put_word(uint8_t* p, uint32_t w) { __builtin_memcpy(p, &w, 4); }

// Nibbles laid out as in Q4_0 and Q4_1, low halves k 0..15, high halves k 16..31, as a lane's share of 256 bytes.
static ALWAYS void lane_nibbles(uint8_t* values, int lane, const uint8_t* qs) {
  const uint32_t low = 0x0f0f0f0f, w0 = word_at(qs), w1 = word_at(qs + 4), w2 = word_at(qs + 8), w3 = word_at(qs + 12);
  uint8_t* q = values + 4 * lane;
  put_word(q, (w0 & low) | (w1 & low) << 4);
  put_word(q + 64, (w2 & low) | (w3 & low) << 4);
  put_word(q + 128, ((w0 >> 4) & low) | (w1 & ~low));
  put_word(q + 192, ((w2 >> 4) & low) | (w3 & ~low));
}
static ALWAYS void lane_int4(uint8_t* group, int lane, uint16_t d, uint16_t m, const uint8_t* qs) {
  put_half(group + 2 * lane, d);
  put_half(group + 32 + 2 * lane, m);
  lane_nibbles(group + 64, lane, qs);
}
// A block of MXFP4: an exponent e, then nibbles. Levels are twice the values, so the scale is 2^(e - 128), within half precision.
static ALWAYS void lane_mx4(uint8_t* group, int lane, const uint8_t* block) {
  const uint32_t bits = uint32_t(block[0] ? block[0] - 1 : 0) << 23;
  float scale;
  __builtin_memcpy(&scale, &bits, 4);
  put_half(group + 2 * lane, f32_to_f16(scale < 65504.f ? scale : 65504.f));
  lane_nibbles(group + 32, lane, block + 1);
}
// A scale, then nibbles that are places in a table.
static ALWAYS void lane_level4(uint8_t* group, int lane, const uint8_t* block) {
  put_half(group + 2 * lane, half_at(block));
  lane_nibbles(group + 32, lane, block + 2);
}
static ALWAYS void lane_int8(uint8_t* group, int lane, const int8_t* q) {
  for (int j = 0; j < 8; j++) {
    uint32_t w;
    __builtin_memcpy(&w, q + 4 * j, 4);
    put_word(group + 64 * j + 4 * lane, w ^ 0x80808080);
  }
}
// 32 floats to int8 with a half precision scale.
static ALWAYS uint16_t to_int8(const float* x, int8_t* q) {
  F amax = fset(0.f);                  // the values come first in vmax: a NaN is passed over
  for (int i = 0; i < 32; i += 16) {
    const F a = fload(x + i);
    amax = vmax(sub(fset(0.f), a), vmax(a, amax));
  }
  float scale = hmax(amax) * (1.f / 127.f);
  uint16_t h = f32_to_f16(scale < 65504.f ? scale : 65504.f);
  scale = f16_to_f32(h);
  const float inv = scale > 0 ? 1.f / scale : 0.f;
  alignas(64) int t[32];
  for (int i = 0; i < 32; i += 16) istore(t + i, to_int(vmin(vmax(mul(fload(x + i), fset(inv)), fset(-127.f)), fset(127.f))));
  for (int i = 0; i < 32; i++) q[i] = int8_t(t[i]);
  return h;
}

static ALWAYS void k_scale(const uint8_t* s, int j, int* scale, int* min) {
  if (j < 4) *scale = s[j] & 63, *min = s[j + 4] & 63;
  else *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4, *min = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
}
// Group g (of 8) of a Q4_K or Q5_K super-block.
static void group_k(const uint8_t* b, int g, bool five, float* x) {
  int scale, min;
  k_scale(b + 4, g, &scale, &min);
  const float d = f16_to_f32(half_at(b)) * float(scale), m = f16_to_f32(half_at(b + 2)) * float(min);
  const uint8_t *high = b + 16, *q = b + (five ? 48 : 16) + 32 * (g / 2);
  const int shift = g % 2 * 4;
  for (int i = 0; i < 32; i++) {
    const int v = (q[i] >> shift & 15) | (five ? (high[i] >> g & 1) << 4 : 0);
    x[i] = d * float(v) - m;
  }
}
static void group_q6_k(const uint8_t* b, int g, float* x) {
  const int part = g / 4, quarter = g % 4;                 // 128 values a part, in four quarters of 32
  const uint8_t *low = b + 64 * part + 32 * (quarter % 2), *high = b + 128 + 32 * part;
  const auto scales = reinterpret_cast<const int8_t*>(b + 192) + 8 * part + 2 * quarter;
  const float d = f16_to_f32(half_at(b + 208));
  const int low_shift = quarter / 2 * 4, high_shift = 2 * quarter;
  for (int half = 0; half < 2; half++) {
    const float scale = d * float(scales[half]);
    for (int i = 16 * half; i < 16 * half + 16; i++) {
      const int v = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
      x[i] = scale * float(v - 32);
    }
  }
}
static ALWAYS int q5_at(const uint8_t* bits, const uint8_t* q, int i) {
  const int low = i < 16 ? q[i] & 15 : q[i - 16] >> 4;
  return low | int(word_at(bits) >> i & 1) << 4;
}

// Group g of a row as an int4 lane.
static ALWAYS void pack_int4(int source, const uint8_t* row, int g, uint8_t* group, int lane) {
  if (source == kSrcQ4_1) {
    const uint8_t* b = row + 20 * size_t(g);
    lane_int4(group, lane, half_at(b), half_at(b + 2), b + 4);
  } else if (source == kSrcQ4_0) {     // d (q - 8) = d q + m with m = -8 d, exactly
    const uint8_t* b = row + 18 * size_t(g);
    lane_int4(group, lane, half_at(b), f32_to_f16(-8.f * f16_to_f32(half_at(b))), b + 2);
  } else {                             // Q4_K: the scale and minimum of a group, rounded to half precision
    const uint8_t *b = row + 144 * size_t(g / 8), *q = b + 16 + 32 * (g % 8 / 2);
    int scale, min;
    k_scale(b + 4, g % 8, &scale, &min);
    uint8_t qs[16];
    for (int i = 0; i < 16; i++)
      qs[i] = g % 2 ? uint8_t(q[i] >> 4 | (q[i + 16] & 0xf0)) : uint8_t((q[i] & 15) | q[i + 16] << 4);
    lane_int4(group, lane, f32_to_f16(f16_to_f32(half_at(b)) * float(scale)), f32_to_f16(-f16_to_f32(half_at(b + 2)) * float(min)), qs);
  }
}
// Group g of a row as an int8 lane; returns the scale.
static ALWAYS uint16_t pack_int8(int source, const uint8_t* row, int g, uint8_t* group, int lane) {
  int8_t q[32];
  alignas(64) float x[32];
  uint16_t scale = 0;
  if (source == kSrcQ8_0) {
    const uint8_t* b = row + 34 * size_t(g);
    __builtin_memcpy(q, b + 2, 32);
    scale = half_at(b);
  } else if (source == kSrcQ5_0) {     // d (q - 16) is an int8 group as it stands
    const uint8_t* b = row + 22 * size_t(g);
    for (int i = 0; i < 32; i++) q[i] = int8_t(q5_at(b + 2, b + 6, i) - 16);
    scale = half_at(b);
  } else {
    if (source == kSrcQ5_1) {
      const uint8_t* b = row + 24 * size_t(g);
      const float d = f16_to_f32(half_at(b)), m = f16_to_f32(half_at(b + 2));
      for (int i = 0; i < 32; i++) x[i] = d * float(q5_at(b + 4, b + 8, i)) + m;
    } else if (source == kSrcQ5_K) {
      group_k(row + 176 * size_t(g / 8), g % 8, true, x);
    } else {
      group_q6_k(row + 210 * size_t(g / 8), g % 8, x);
    }
    scale = to_int8(x, q);
  }
  lane_int8(group, lane, q);
  return scale;
}

// Rows become columns: value i of row l goes to to[i * stride + l]. Blocks of rows' values keep the panel's lines in L1 while all
// lanes are written.
template <class T>
static void put_columns(const uint8_t* src, size_t row_bytes, int count, int lanes, uint8_t* to, size_t stride) {
  for (int i0 = 0; i0 < count; i0 += 64)
    for (int l = 0; l < lanes; l++)
      for (int i = i0; i < imin(i0 + 64, count); i++)
        __builtin_memcpy(to + size_t(i) * stride + sizeof(T) * l, src + size_t(l) * row_bytes + sizeof(T) * i, sizeof(T));
}

static void pack_panel(const PackArgs& a, const uint8_t* src, int lanes, int lane0, uint8_t* p) {
  const size_t rb = a.row_bytes;
  if (a.kind == kMx4) {
    for (int g = 0; g < a.groups; g++)
      for (int l = 0; l < lanes; l++) lane_mx4(p + kLevelGroup * size_t(g), lane0 + l, src + l * rb + 17 * size_t(g));
  } else if (a.kind <= kIq3x) {
    for (int g = 0; g < a.groups; g++)
      for (int l = 0; l < lanes; l++) lane_level4(p + kLevelGroup * size_t(g), lane0 + l, src + l * rb + 18 * size_t(g));
  } else if (a.kind <= kQ2) {
    for (int g = 0; g < a.groups; g++)
      for (int l = 0; l < lanes; l++) a.kind == kQ2 ? lane_two(p, g, lane0 + l, src + l * rb) : lane_three(p, g, lane0 + l, src + l * rb);
  } else if (a.kind == kInt4) {
    for (int g = 0; g < a.groups; g++)
      for (int l = 0; l < lanes; l++) pack_int4(a.source, src + l * rb, g, p + kInt4Group * size_t(g), lane0 + l);
  } else if (a.kind == kInt8) {
    for (int g = 0; g < a.groups; g++)
      for (int l = 0; l < lanes; l++)
        put_half(p + int8_scales(g) + 2 * (lane0 + l), pack_int8(a.source, src + l * rb, g, p + int8_values(g), lane0 + l));
  } else if (a.kind == kF32) {
    put_columns<uint32_t>(src, rb, a.k, lanes, p + 4 * lane0, 64);
  } else if (a.kind == kF16) {
    put_columns<uint16_t>(src, rb, a.k, lanes, p + 2 * lane0, 32);
  } else {                             // pairs of k: words; the last k of an odd number has a word of its own
    put_columns<uint32_t>(src, rb, a.k / 2, lanes, p + 4 * lane0, 64);
    if (a.k % 2)
      for (int l = 0; l < lanes; l++) put_half(p + 64 * size_t(a.k / 2) + 4 * (lane0 + l), half_at(src + l * rb + 2 * size_t(a.k - 1)));
  }
}
// Threads share the destination panels; a panel takes the source rows that fall into it.
static void pack(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const PackArgs*>(args);
  const int b0 = a.gated ? 0 : a.first_row / 16, shift = a.gated ? 0 : a.first_row;
  const int b1 = (shift + a.rows + 15) / 16;
  for (int u; (u = b0 + c.take()) < b1;) {
    const int r0 = u * 16 > shift ? u * 16 - shift : 0, r1 = imin(a.rows, (u + 1) * 16 - shift);
    const int at = a.gated ? u / 2 * 4 + u % 2 + a.first_row / 16 : u;
    pack_panel(a, a.src + r0 * a.row_bytes, r1 - r0, r0 + shift - u * 16, a.w + a.panel * at);
  }
}

}  // namespace ISA

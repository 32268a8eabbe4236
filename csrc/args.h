// The arguments of every op, and the table of functions that one instruction set provides.
//
// Pointers lead to buffers that outlive the op (bindings.cpp keeps the arrays alive). Counts that differ from step to step
// are read through pointers when the op runs; everything else is fixed when the op is made.
#pragma once
#include "op.h"

// ---- memory layouts ---------------------------------------------------------------------------------------------------

// One group of 32 activations of one row, quantised to int8.
struct Group {
  int8_t q[32];
  float d;                             // scale: value = d * q
  float s;                             // d * sum(q)
  int32_t i;                           // -128 * sum(q)
};
static_assert(sizeof(Group) == 44, "the kernels rely on it");

constexpr int kTileRows = 12;          // rows in a tile of activations: Group[tile][group][row in tile]
constexpr int kRun = 16;               // KV slots in a run
constexpr int kMaxExperts = 4096;      // of a layer
constexpr int kChunk = 128;            // positions of KV reduced on their own, at absolute multiples

// The input of a linear layer, in one form or both, as its readers need.
struct ActView {
  Group* q;                            // int8 tiles, or null
  float* f;                            // rows of `stride` floats, zero beyond `width`, or null
  int width, groups, stride;
};

enum Kind : int { kInt4 = 0, kInt8 = 1, kBF16 = 2, kF16 = 3, kF32 = 4 };

// int8 panels hold groups by twos, { 2 x 16 scales, 2 x 512 bytes }, so that everything lies in the order in which it is read.
constexpr size_t kInt8Pair = 1088, kInt8Last = 576;        // bytes of two groups, and of a last one without a second
static ALWAYS size_t int8_scales(int g) { return kInt8Pair * size_t(g / 2) + 32 * size_t(g % 2); }
static ALWAYS size_t int8_values(int g) { return kInt8Pair * size_t(g / 2) + 64 + 512 * size_t(g % 2); }

// A packed matrix: panels of 16 output columns (docs/kernels.md has the pictures).
struct WeightView {
  const uint8_t* w;
  size_t panel;                        // bytes of a panel
  int kind, n, k, groups, panels;
};

// As many matrices of one shape, one behind the other: those of experts.
struct BankView {
  WeightView w;                        // of the first
  size_t stride;                       // bytes from one to the next
};

struct RoutesView {                    // Routes of kernels/ops.py
  int* ids;                            // [max_rows][k]
  float* weights;                      // [max_rows][k]
  int *order, *starts;                 // [max_rows * k], [experts + 1]
  int k, experts;
};

struct KVView {
  uint16_t* k;                         // f16 [run][head][dim][16]
  uint16_t* v;                         // f16 [run][head][16][dim]
  size_t stride;                       // values from run to run: all layers of a run lie together
  int num_runs, heads, dim, head;      // a head has `head` values; dim: padded with zeros to a multiple of 16
};

struct MetaView {                      // AttentionMeta of kernels/ops.py
  const int *num_reqs, *req_pool_idx, *q_start, *q_len, *seq_lens, *req_to_token;
  const int* row_ends;                 // where what a row sees ends, or null: after the row itself
  int max_reqs, table_rows, context_len;
};

// ---- arguments ----------------------------------------------------------------------------------------------------------
enum GateFn : int { kSilu = 0, kGeluTanh = 1, kGelu = 2 };

struct EmbeddingArgs {
  WeightView w;
  const int* ids;
  float* out;
  size_t ld_out;
  float scale;
  const int* rows;
  int max_rows;
};
struct NormArgs {
  float* x;
  size_t ld_x;
  const float* delta;                  // or null
  size_t ld_delta;
  const float* weight;
  ActView act;                         // act.q and act.f null when out is given
  float* out;
  size_t ld_out;
  int width;
  float eps;
  const int* row_idx;                  // or null
  const int* rows;
  int max_rows, x_rows;
};
struct LinearArgs {
  WeightView w;
  ActView x;
  float* out;
  size_t ld_out;
  const float* bias;                   // or null
  const int* rows;
  int max_rows;
  int columns = 0;                     // linear_gated: of gate and up together
};
// Matrices of adapters, float16, zero where an adapter has none. Ranks go by sixteens ("groups").
//   a [slot][part][group][k][16 ranks]      b [slot][part][group][panel of the part][16 ranks][16 columns]
constexpr int kMaxParts = 4;
struct AdapterView {
  const uint16_t *a, *b;
  size_t a_slot, b_slot;               // values of a slot
  const float* scales;                 // [slots][parts]
  const int* ranks;                    // [slots][parts]; 0: the adapter leaves this part alone
  int slots, parts, groups, k;         // k: a multiple of 32
};
struct LowRankArgs {
  AdapterView bank;
  ActView x;
  float* h;                            // [max_rows][chunks][parts * groups * 16]
  float* out;
  size_t ld_out;
  const int *num_tiles, *slots, *starts, *order;           // RowAdapters of kernels/low_rank.py
  int chunks, chunk_len, max_tiles, max_rows;
  int first[kMaxParts], widths[kMaxParts], first_panel[kMaxParts + 1];
};
struct BlocksArgs {                    // linear_blocks
  LinearArgs linear;
  const int *whole, *num_blocks, *blocks;
  int max_blocks;
};
struct GatedLinearArgs {
  WeightView w;                        // of pack_gated
  ActView x, out;
  int gate;
  const int* rows;
  int max_rows;
};
struct GateArgs {                      // store: up is null and gate is the source
  const float *gate, *up;
  size_t ld_gate, ld_up;
  ActView out;
  int fn;
  const int* rows;
  int max_rows;
};
struct RopeArgs {
  float* qkv;
  size_t ld;
  KVView kv;
  const int *positions, *slots;
  int num_heads, rot;                  // rot: pairs of a head that turn
  const float *cos, *sin;
  int num_positions;
  float q_scale, eps;
  const float *q_norm, *k_norm;        // or null
  const float* q_growth;               // or null: [num_positions], multiplies q besides q_scale
  bool norm_last;                      // norms follow the rotation
  const int* rows;
  int max_rows;
};
struct AttentionArgs {
  const float* qkv;
  size_t ld;
  KVView kv;
  MetaView meta;
  ActView out;
  float* rows_out;                     // f32 [max_rows][num_heads * head]
  float* part;                         // [part_entries][num_heads][dim + 16]: results of single chunks
  int num_heads, part_entries, window, max_rows;
  float soft_cap;
  const float* sinks;                  // or null: [num_heads], a score of each head that is nobody's
};
struct SoftCapArgs {
  float* x;
  size_t ld;
  int n;
  float cap;
  const int* rows;
  int max_rows;
};

// For vision-language models.
enum ActivateFn : int { kQuickGelu = 3, kRelu = 4, kRelu2 = 5 };  // besides GateFn

struct RowsArgs {                      // overlay, gather_rows
  const float* source;
  size_t ld_source;
  const int* index;
  float* out;
  size_t ld_out;
  int width, source_rows, add;
  const int* rows;
  int max_rows;
};
struct BlendArgs {
  const float* source;
  size_t ld_source;
  const int* index;                    // [max_rows][count]
  const float* weight;
  float* out;
  size_t ld_out;
  int width, source_rows, count;
  const int* rows;
  int max_rows;
};
struct SelectRopeArgs {
  const float *cos, *sin;
  const int *positions, *axes;
  size_t ld_positions;
  float *out_cos, *out_sin;
  int width, num_positions;
  const int* rows;
  int max_rows;
};
struct LayerNormArgs {
  float* x;
  size_t ld_x;
  const float* delta;                  // or null
  size_t ld_delta;
  const float *weight, *bias;
  ActView act;                         // act.q and act.f null when out is given
  float* out;
  size_t ld_out;
  int width;
  float eps;
  const int* rows;
  int max_rows;
};
struct RotateArgs {
  float* x;
  size_t ld;
  const float *cos, *sin;
  int num_heads, head_dim, rot;
  const int* rows;
  int max_rows;
};
struct SegmentArgs {
  const float* qkv;
  size_t ld;
  const int* starts;                   // [num_segments + 1]
  float* out;
  size_t ld_out;
  int num_segments, begin, end, max_rows, num_heads, head_dim;
  float scale;
  int window;                          // how far a row sees to either side; 0: all of its segment
  const float* bias;                   // [num_heads, 2 * reach + 1], added to scores by distance; null: none
  size_t ld_bias;
  int reach;
};

// Mixtures of experts.
constexpr int kClampedSilu = 6;        // besides GateFn: with bounds, and 1 added to up
struct RouteArgs {                     // route, sort_pairs
  const float* logits;
  size_t ld;
  RoutesView to;
  const float* bias;                   // or null: added to scores for the choice alone
  int sigmoid, groups, top_groups, group_best, normalise;
  float scale;
  const int* rows;
  int max_rows;
};
struct GatherArgs {
  ActView from, to;
  const int* order;
  int k;
  const int* rows;
  int max_rows;
};
struct GatedExpertsArgs {
  BankView bank;                       // of gated matrices
  ActView x, out;                      // rows of sorted pairs
  RoutesView routes;
  const float* bias;                   // or null: [experts][2 * out.width], gate before up
  size_t ld_bias;
  const int* rows;
  int max_rows, gate;
};
struct ExpertsLinearArgs {
  BankView bank;
  ActView x;                           // rows of sorted pairs
  RoutesView routes;
  const float* bias;                   // or null: [experts][bank.w.n]
  size_t ld_bias;
  float* out;
  size_t ld_out;
  const int* rows;
  int max_rows;
};

struct TakeArgs {                      // take_sampled
  int* ids;
  const int *previous, *sampled, *rows;
  int max_rows, num_sampled;
};

// On logits: x is num_rows rows of n floats, ld apart.
struct LogitsArgs {
  float* x;
  size_t ld;
  int n, num_rows;
};
struct AdjustArgs {
  LogitsArgs x;
  const int *indptr, *ids;
  const float *scale, *bias;
  int total;                           // elements of ids, scale and bias
};
struct MaskArgs {
  LogitsArgs x;                        // num_rows: of the whole buffer
  const int* row_idx;
  const uint32_t* bits;
  int num_masks, words;
};
struct RowArgs {                       // argmax, log_sum_exp
  LogitsArgs x;
  int* out_ids;
  float* out_values;
};
struct TopKArgs {
  LogitsArgs x;
  int k;
  size_t ld_ids, ld_values;
  int* ids;
  float* values;
};
struct SampleArgs {
  LogitsArgs x;
  const float *temperature, *top_p, *min_p, *uniform;
  const int* top_k;
  int* out;
  char* work;                          // per thread: room for n candidates
  size_t work_bytes;
};

// Packing: one source matrix into a range of panels.
enum Source : int { kSrcF32, kSrcF16, kSrcBF16, kSrcQ4_0, kSrcQ4_1, kSrcQ5_0, kSrcQ5_1, kSrcQ8_0, kSrcQ4_K, kSrcQ5_K, kSrcQ6_K };
struct PackArgs {
  const uint8_t* src;
  size_t row_bytes;
  int source, rows;
  uint8_t* w;
  size_t panel;
  int kind, k, groups, panels;
  int first_row;                       // row `r` of src becomes column first_row + r ...
  int gated;                           // ... or, gated: 16-column panel b becomes panel b / 2 * 4 + b % 2 + first_row / 16
};

struct ReadArgs {                      // memory bandwidth, for benchmarks
  const uint8_t* p;
  size_t bytes;
  uint64_t* sink;                      // [kMaxThreads * 8]
};

struct Kernels {
  const char* name;
  OpFn take_sampled, embedding, rms_norm, linear, linear_blocks, linear_gated, gated_linear, gate, store, rope_store, attention, attention_finish, soft_cap;
  OpFn overlay, gather_rows, blend_rows, select_rope, layer_norm, activate, rotate, segment_attention;
  OpFn route, sort_pairs, gather_pairs, gated_experts, experts_linear;
  OpFn adjust, mask, argmax, log_sum_exp, top_k, sample;
  OpFn low_rank_down, low_rank_up;
  OpFn pack, read;
  double (*peak)(int what, int loops);  // operations a second of one thread: 0 int8 dots, 1 float32 FMA
};

// The arguments of every op, and the table of functions that one instruction set provides.
//
// Pointers lead to buffers that outlive the op (bindings.cpp keeps the arrays alive). Counts that differ from step to step
// are read through pointers when the op runs; everything else is fixed when the op is made.
#pragma once
#include "op.h"

// ---- memory layouts ---------------------------------------------------------------------------------------------------

// One group of 32 activations of one row, quantized to int8.
struct Group {
  int8_t q[32];
  float d;                             // scale: value = d * q
  float s;                             // d * sum(q)
  int32_t i;                           // -128 * sum(q)
  int32_t first;                       // the same of the first 16
  float low, high;                     // d * sum of the first 16, and of the others
};
static_assert(sizeof(Group) == 56, "the kernels rely on it");

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

// Up to kInt8 of groups of 32 k; up to kIq3x 4 bits are places in a table, of the next three 3 bits.
enum Kind : int { kMx4, kIq4, kIq3s, kIq3x, kQ3, kIq2, kIq1, kQ2, kInt4, kInt8, kBF16, kF16, kF32 };

// A group of an int4 panel: { 16 scales, 16 minima, 256 bytes of two values each }; where values are places in a table, without minima.
constexpr size_t kInt4Group = 320, kLevelGroup = 288;
// Values by their places, 128 more.
constexpr uint8_t kLevels[kQ2][16] = {
    {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116},   // E2M1, twice the value
    {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241},
    {129, 131, 133, 135, 137, 139, 141, 143, 127, 125, 123, 121, 119, 117, 115, 113},
    {132, 140, 148, 156, 164, 172, 180, 190, 124, 116, 108, 100, 92, 84, 76, 66},
    {124, 125, 126, 127, 128, 129, 130, 131},
    {136, 153, 171, 128, 120, 103, 85, 128},
    {119, 121, 127, 129, 135, 137, 128, 128},
};
constexpr float kUnits[kQ2] = {1.f, 1.f, 1.f, 1.f, 1.f, 0.125f, 0.125f};             // of the scales of 3-bit panels

// Eight groups of a panel of kQ3, kIq2 and kIq1: { 16 scales, 8 x { 2 x 16 factors, 128 bytes of low bits, 64 of high ones } },
// of kQ2: { 16 scales, 16 minima, 8 x { 2 x 16 bytes of a factor and one of the minimum, 128 bytes } } (small.h).
constexpr size_t kThreeGroup = 224, kThreeSuper = 32 + 8 * kThreeGroup, kTwoGroup = 160, kTwoSuper = 64 + 8 * kTwoGroup;

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

enum KVForm : int { kKVHalf = 0, kKVInt8 = 1, kKVE4M3 = 2 };
struct KVView {
  uint8_t* at;                         // of a run and layer: K [head][dim][16], V [head][16][dim], and in 8 bits scales f32 [head][2][16]
  size_t stride;                       // bytes from run to run: all layers of a run lie together
  int form, num_runs, heads, dim, head;          // a head has `head` values; dim: padded with zeros to a multiple of 16
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
struct SoftCapArgs {                   // also scale, sparsify
  float* x;
  size_t ld;
  int n;
  float cap;                           // or the factor, or the number of deviations
  const int* rows;
  int max_rows;
};

struct MatchArgs {
  float* x;
  const float* like;
  size_t ld, ld_like;
  int n;
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
  size_t ld_weight;
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
  const float* scales;                 // or null: of each expert's weights
  int sigmoid, groups, top_groups, group_best, normalize;
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
  BankView bank;                       // of gated matrices; for kRelu2 of single ones
  ActView x, out;                      // rows of sorted pairs
  RoutesView routes;
  const float* bias;                   // or null: [experts][2 * out.width], gate before up; for kRelu2 [experts][out.width]
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

// States of recurrent and convolutional layers (StateMeta of kernels/states.py).
struct StatesView {
  const int *num_reqs, *q_start, *q_len, *source, *target, *save_starts, *save_rows, *save_slots;
  int max_reqs, max_saves, num_slots;
};
struct ConvArgs {
  const float *x, *weight;             // weight [taps][channels]
  const float *bias, *before, *after;  // or null
  size_t ld_x, ld_before, ld_after;
  float* state;                        // [num_slots][taps - 1][channels]
  ActView act;                         // act.q and act.f null when out is given
  float* out;
  size_t ld_out;
  StatesView at;
  int channels, taps, silu, max_rows;
};
struct DeltaArgs {
  float *qkv, *gates;
  size_t ld_qkv, ld_gates;
  const float *decay, *dt_bias;
  float* state;                        // [num_slots][v_heads][k_dim][v_dim]
  float* out;
  size_t ld_out;
  StatesView at;
  const int* rows;
  int k_heads, v_heads, k_dim, v_dim, max_rows, turns;   // turns: head h of v has head h % k_heads of k
};
struct SpaceArgs {                     // state_space
  float *xbc, *gates;
  size_t ld_xbc, ld_gates;
  const float *decay, *dt_bias, *skip;
  float* state;                        // [num_slots][heads][state_dim][head_dim]
  float* out;
  size_t ld_out;
  StatesView at;
  const int* rows;
  float shortest, longest;             // step
  int groups, heads, state_dim, head_dim, max_rows;
};
struct ScanArgs {                      // selective_scan
  const float *x, *z, *bc;             // bc: B, then C
  float* dt;
  size_t ld_x, ld_z, ld_bc, ld_dt;
  const float *decay, *dt_bias, *skip; // decay [state_dim][channels]
  float* state;                        // [num_slots][state_dim][channels]
  ActView out;
  StatesView at;
  const int* rows;
  int state_dim, channels, max_rows;
};
struct GatedNormArgs {                 // gated_norm; sigmoid_gate: weight is null
  const float *x, *gate, *weight;
  size_t ld_x, ld_gate;
  ActView out;
  int head;                            // values of a head
  float eps;
  const int* rows;
  int max_rows, wide, gate_first;      // wide: weight has values for each head
};
struct HeadsArgs {                     // heads_linear
  BankView bank;                       // of float matrices, one for each head
  ActView x;                           // [heads][bank.w.k]
  int heads;
  float* out;                          // [heads][bank.w.n]
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
enum Source : int { kSrcF32, kSrcF16, kSrcBF16, kSrcQ4_0, kSrcQ4_1, kSrcQ5_0, kSrcQ5_1, kSrcQ8_0, kSrcQ4_K, kSrcQ5_K, kSrcQ6_K, kSrcMx4, kSrcLevel4, kSrcThree, kSrcQ2_K };
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
  OpFn scale_rows, sparsify, match_rms;
  OpFn overlay, gather_rows, blend_rows, select_rope, layer_norm, activate, rotate, segment_attention;
  OpFn route, sort_pairs, gather_pairs, gated_experts, experts_linear, heads_linear;
  OpFn adjust, mask, argmax, log_sum_exp, top_k, sample;
  OpFn low_rank_down, low_rank_up;
  OpFn short_conv, delta_prepare, delta_rule, space_prepare, state_space, scan_prepare, selective_scan, gated_norm, sigmoid_gate;
  OpFn pack, read;
  double (*peak)(int what, int loops);  // operations of one thread (kernels/limits.h)
};

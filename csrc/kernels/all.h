// All kernels of one instruction set and their table. ISA names the namespace, ISA_NAME what users see.
#pragma once
#include "math.h"
#include "kv.h"
#include "linear_int.h"
#include "small.h"
#include "elementwise.h"
#include "linear_float.h"
#include "linear.h"
#include "experts.h"
#include "attention.h"
#include "low_rank.h"
#include "states.h"
#include "vision.h"
#include "logits.h"
#include "pack.h"
#include "limits.h"

namespace ISA {
extern const Kernels kernels;
const Kernels kernels = {
    ISA_NAME, take_sampled, embedding, rms_norm, linear, linear_blocks, linear_gated, gated_linear, gate, store, rope_store, attention, attention_finish, soft_cap,
    scale_rows, sparsify, match_rms,
    overlay, gather_rows, blend_rows, select_rope, layer_norm, activate, rotate_rows, segment_attention,
    route, sort_pairs, gather_pairs, gated_experts, experts_linear, heads_linear,
    adjust, mask, argmax, log_sum_exp, top_k, sample, low_rank_down, low_rank_up,
    short_conv, delta_prepare, delta_rule, space_prepare, state_space, scan_prepare, selective_scan, gated_norm, sigmoid_gate, pack, read, peak,
};
}  // namespace ISA

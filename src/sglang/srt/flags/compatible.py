"""Flags of the original that are not fields of ServerArgs.

    ALIASES      another name of a field or of a flag below
    VALUES       another name for a value of a field; REFUSED_VALUES: values that have no meaning here
    FLAGS        everything else: accepted with one line that says what it does here, accepted only in the values that change nothing,
                 or refused with the reason

flags/names.py reads the tables for the command line, ServerArgs(...), Engine(...) and Runtime(...) alike. Source:
the page "Server Arguments" of its documentation, its releases 0.4.9, 0.5.6 and 0.5.23, and command lines of older ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class OtherFlag:
    """`takes`: how many words follow it on a command line. `here`: what it does here, or why it is refused. `neutral`: the
    values that ask for nothing, besides None and False; other values are refused if `refused`, and get a line if not."""

    takes: Literal["none", "one", "many"]
    here: str
    neutral: tuple[Any, ...] = ()
    refused: bool = False


def _rows(here: str, refused: bool, switches: str, one: str, many: str) -> dict[str, OtherFlag]:
    kinds: dict[Literal["none", "one", "many"], str] = {"none": switches, "one": one, "many": many}
    return {name: OtherFlag(takes, here, (), refused) for takes, names in kinds.items() for name in names.split()}


def _taken(here: str, switches: str = "", one: str = "", many: str = "") -> dict[str, OtherFlag]:
    return _rows(here, False, switches, one, many)


def _refused(why: str, switches: str = "", one: str = "", many: str = "") -> dict[str, OtherFlag]:
    return _rows(why, True, switches, one, many)


def _neutral(why: str, **values: Any) -> dict[str, OtherFlag]:
    """Flags of things that are not here, with the values that do without them."""
    return {
        name: OtherFlag("one", why, value if isinstance(value, tuple) else (value,), refused=True)
        for name, value in values.items()
    }


def _each(words: str, meaning: T) -> dict[str, T]:
    return dict.fromkeys(words.split(), meaning)


ALIASES: dict[str, str] = {
    "model": "model_path",
    "tp": "tp_size",
    "tensor_parallel_size": "tp_size",
    "grammar": "grammar_backend",
    "incremental_streaming_output": "stream_output",
    "disable_regex_jump_forward": "disable_jump_forward",
    "schedule_heuristic": "schedule_policy",
    "max_prefill_num_token": "max_prefill_tokens",
    "dp": "replicas",
    "dp_size": "replicas",
    "data_parallel_size": "replicas",
    "pp": "pp_size",
    "pipeline_parallel_size": "pp_size",
    "ep": "ep_size",
    "expert_parallel_size": "ep_size",
    "attention_context_parallel_size": "attn_cp_size",
    "moe_data_parallel_size": "moe_dp_size",
    "nccl_init_addr": "dist_init_addr",
    "speculative_draft_model": "speculative_draft_model_path",
    "fastapi_root_path": "root_path",
    "impl": "model_impl",
    "enable_hicache": "enable_hierarchical_cache",
    "return_hidden_states": "enable_return_hidden_states",
    "hierarchical_sparse_attention_extra_config": "hisparse_config",
    "decode_context_parallel_size": "dcp_size",
    "attention_data_parallel_size": "attn_dp_size",
    "grpc_http_sidecar_port": "smg_http_sidecar_port",
    "attention_reduce_in_fp32": "triton_attention_reduce_in_fp32",
    "enable_llama4_multimodal": "enable_multimodal",
    "file_storage_pth": "file_storage_path",
}
"""other name -> name. Abbreviations that only our own flags make ambiguous are here, too."""

ELSEWHERE: dict[str, str] = {
    "gpu_memory_utilization": "mem_fraction_static",
    "max_model_len": "context_length",
    "max_num_seqs": "max_running_requests",
    "max_num_batched_tokens": "chunked_prefill_size",
    "enforce_eager": "disable_cuda_graph",
    "hf_overrides": "json_model_override_args",
    "tokenizer": "tokenizer_path",
    "seed": "random_seed",
    "no_enable_prefix_caching": "disable_radix_cache",
    "guided_decoding_backend": "grammar_backend",
    "limit_mm_per_prompt": "max_media_items",
    "ctx_size": "context_length",
    "n_ctx": "context_length",
}
"""what other servers call a flag of ours, for the error that names ours"""

_KERNELS = "the kernels are chosen for the machine"

_LEVELS: dict[str, tuple[str | None, str]] = {
    word: (level, "")
    for level in ("debug", "info", "warning", "error", "critical")
    for word in (level.upper(), *{"warning": ("warn", "WARN"), "critical": ("fatal", "FATAL")}.get(level, ()))
}

VALUES: dict[str, dict[str, tuple[str | None, str]]] = {
    "kv_cache_dtype": {"bf16": ("bfloat16", ""), "fp8": ("fp8_e4m3", "")},
    "tokenizer_mode": {"slow": ("auto", "there is one tokenizer")},
    "grammar_backend": {"outlines": ("llguidance", "llguidance takes its place")},
    "quantization": {"awq_marlin": ("awq", _KERNELS), "gptq_marlin": ("gptq", _KERNELS)},
    "log_level": _LEVELS,
    "log_level_http": _LEVELS,
}
"""field -> {word: (our word, what to say of it)}"""

_NOT_AT_LOAD = (
    "--quantization int8 or int4 quantizes at load, and checkpoints are read as they are quantized: leave the flag out"
)

REFUSED_VALUES: dict[str, dict[str, str]] = {
    "quantization": _each(
        "mxfp8 bitsandbytes modelopt modelopt_fp8 modelopt_fp4 modelopt_mixed petit_nvfp4 w8a8_int8 w8a8_fp8 moe_wna16 "
        "qoq w4afp8 blockwise_int8 modelslim quark quark_int4fp8_moe marlin auto-round",
        _NOT_AT_LOAD,
    ),
    "load_format": _each(
        "pt npcache jax sharded_state presharded bitsandbytes mistral layered flash_rl remote remote_instance fastsafetensors private "
        "runai_streamer",
        "weights are read from safetensors and GGUF files",
    ),
    "kv_cache_dtype": _each("fp8_e5m2 fp4_e2m1", "cached K and V have 8 bits as fp8_e4m3 or int8"),
    "schedule_policy": {
        "lof": "how long an answer becomes is not known before",
        "priority": "priorities count under every policy",
        "routing-key": "requests carry no such key",
    },
    "speculative_algorithm": _each(
        "EAGLE EAGLE3 NEXTN DFLASH DSPARK FROZEN_KV_MTP",
        "heads that draft are not loaded; STANDALONE takes a draft model, NGRAM drafts from the request's own text",
    ),
    "device": _each("xpu hpu npu mps musa rocm", "kernels are there for cpu and cuda"),
}
"""field -> {word: why it is refused}"""

_KERNELS = "--kernels chooses the kernels, all of them together"
_CLUSTER = "it only matters for very large clusters"
_ONE_MACHINE = "a server runs on one machine"
_DRAFTS = "drafts are chains, as long as they pay (--speculative-num-steps is the most)"
_LOADER = "weights are read from the checkpoint's files by one loader"
_ADAPTERS = "adapters of all modules are computed by one kernel, and a name that nothing means is an error"
_CACHE = "the tiers of the prefix cache are --enable-hierarchical-cache and --cache-dir"
_STATES = "it only matters for models with recurrent states"
_TOKENIZING = "texts are tokenized on side threads as they come"
_METRICS = "metrics have fixed names, labels and buckets"
_NO_CODE = "no code that a flag or a request names is ever run"

FLAGS: dict[str, OtherFlag] = {
    # --- which implementation computes: answers are the same
    **_taken(
        _KERNELS,
        "enable_torch_compile enable_flashinfer mlx_enable_sampling enable_tf32_matmul enable_lean_attention "
        "enable_nvidia_megakernel enable_amd_monokernel enable_deepseek_v4_fp4_indexer enable_dsa_fused_indexer "
        "enable_scattered_sconv enforce_disable_flashinfer_allreduce_fusion "
        "disable_aiter_allreduce_fusion_in_prefill disable_aiter_allreduce_fusion_in_decode "
        "enable_w4a4_mxfp4_megamoe enforce_shared_experts_fusion enable_flashinfer_moe enable_flashinfer_autotune "
        "enable_torch_compile_debug_mode enable_fused_qk_norm_rope disable_flashinfer_autotune "
        "triton_attention_reduce_in_fp32 disable_flashinfer disable_flashinfer_sampling enable_flashinfer_mla "
        "enable_flashmla disable_mla enable_mla flashinfer_mla_disable_ragged enable_cutlass_mla "
        "enable_fp32_lm_head enable_flashinfer_cutlass_moe enable_flashinfer_cutedsl_moe "
        "enable_flashinfer_trtllm_moe enable_triton_kernel_moe enable_flashinfer_mxfp4_moe "
        "disable_flashinfer_cutlass_moe_fp4_allgather enable_flashinfer_allreduce_fusion "
        "enable_aiter_allreduce_fusion enable_fused_grouped_gemm_combine enable_fused_moe_sum_all_reduce",
        "prefill_attention_backend model_mode prefill_kv_cache_dequant_dtype dsv4_prefill_backend dsa_triton_union "
        "dsv4_attn_backend linear_attn_verify_backend boundary_reduction flashinfer_allreduce_fusion_backend "
        "qsa_indexer_dtype sampling_mask_max_tokens monokernel_backend decode_attention_backend fp8_gemm_backend "
        "fp4_gemm_backend fp8_gemm_runner_backend fp4_gemm_runner_backend bf16_gemm_backend moe_runner_backend "
        "dsa_prefill_backend dsa_decode_backend nsa_prefill_backend nsa_decode_backend nsa_prefill nsa_decode "
        "dsa_topk_backend dsa_paged_mqa_logits_backend flashinfer_mxfp4_moe_precision torch_compile_max_bs "
        "max_torch_compile_bs triton_attention_num_kv_splits triton_attention_split_tile_size mamba_backend "
        "linear_attn_backend linear_attn_decode_backend linear_attn_prefill_backend",
        "flashinfer_autotune_skip_ops",
    ),
    **_taken(
        "graphs are recorded for every size up to --cuda-graph-max-bs, and not at all with --disable-cuda-graph",
        "disable_cuda_graph_padding disable_prefill_cuda_graph disable_decode_cuda_graph debug_cuda_graph "
        "enable_profile_cuda_graph enable_cudagraph_gc disable_piecewise_cuda_graph enable_piecewise_cuda_graph "
        "enforce_piecewise_cuda_graph enable_breakable_cuda_graph",
        "piecewise_cuda_graph_compiler cuda_graph_backend_decode cuda_graph_backend_prefill "
        "cuda_graph_max_bs_decode cuda_graph_max_bs_prefill cuda_graph_max_seq_len_prefill "
        "cuda_graph_prefill_max_context context_bucket piecewise_cuda_graph_max_tokens cuda_graph_config",
        "cuda_graph_bs cuda_graph_bs_decode cuda_graph_bs_prefill piecewise_cuda_graph_tokens",
    ),
    **_taken(
        "steps follow each other without such a setting",
        "sleep_on_idle enable_prefill_delayer enable_dynamic_chunking enable_overlap_schedule disable_overlap_cg_plan",
        "scheduler_recv_interval prefill_decode_interval prefill_decode_interval_min_bs min_free_slots_delay "
        "batch_notify_size optimistic_prefill_attempts num_continuous_decode_steps prefill_max_requests "
        "prefill_delayer_max_delay_passes prefill_delayer_token_usage_low_watermark "
        "prefill_delayer_queue_min_ratio prefill_delayer_max_delay_ms max_micro_batch_size "
        "pp_max_micro_batch_size pp_async_batch_depth retraction_policy soft_watchdog_timeout",
        "prefill_delayer_forward_passes_buckets gc_threshold prefill_delayer_wait_seconds_buckets",
    ),
    **_taken(
        _TOKENIZING,
        "enable_tokenizer_batch_encode enable_http_worker_reuseport disable_tokenizer_batch_decode "
        "enable_dynamic_batch_tokenizer",
        "tokenizer_worker_num detokenizer_worker_num dynamic_batch_tokenizer_batch_size "
        "dynamic_batch_tokenizer_batch_timeout tokenizer_backend",
    ),
    **_taken("penalties cost nothing where no request asks for one", "disable_penalizer"),
    **_taken("a prefill takes several requests at once; --max-prefill-tokens limits it", "prefill_only_one_req"),
    **_taken("constraints need no disk cache", "disable_outlines_disk_cache disable_disk_cache"),
    **_taken(
        "memory stays taken while the server runs",
        "enable_memory_saver enable_weights_cpu_backup enable_draft_weights_cpu_backup delete_ckpt_after_loading",
    ),
    **_taken(
        _LOADER,
        "weight_loader_disable_mmap weight_loader_drop_cache_after_load weight_loader_prefetch_checkpoints "
        "efficient_weight_load remote_instance_weight_loader_start_seed_via_transfer_engine",
        "model_loader_extra_config model_config_parser startup_weight_load_mode modelexpress_config "
        "weight_cache_mode weight_cache_socket weight_cache_timeout weight_loader_prefetch_num_threads "
        "remote_instance_weight_loader_seed_instance_ip remote_instance_weight_loader_seed_instance_service_port "
        "remote_instance_weight_loader_backend",
        "remote_instance_weight_loader_send_weights_group_ports",
    ),
    # --- the prefix cache and memory
    **_taken(
        _CACHE,
        "enable_page_major_kv_layout enable_unified_memory "
        "enable_session_radix_cache enable_unified_cache_external_linker enable_linker_mla_dedup enable_flexkv "
        "enable_encoder_swa_bounded_replay enable_decoder_swa_bounded_replay prefill_only_disable_kv_cache "
        "enable_lmcache disable_hicache_numa_detect",
        "radix_eviction_policy_config radix_cache_backend hicache_host_memory_mode "
        "hicache_host_memory_fraction hicache_storage_prefetch_retry_poll_interval "
        "hicache_storage_prefetch_retry_max_attempts unified_cache_external_linker_backend "
        "unified_cache_external_linker_config flexkv_config_file c128_page_size swa_prefix_tails "
        "hicache_io_backend hicache_mem_layout hicache_storage_backend "
        "hicache_storage_prefetch_policy hicache_storage_backend_extra_config lmcache_config_file "
        "radix_eviction_policy",
    ),
    **_taken("the KV pool is one", "disable_hybrid_swa_memory", "swa_full_tokens_ratio", "hybrid_kvcache_ratio"),
    **_taken(
        _STATES,
        "enable_mamba_cache_stochastic_rounding enable_int8_mamba_checkpoint enable_linear_replayssm "
        "enable_linear_replayssm_spec",
        "max_mamba_cache_size mamba_max_states_per_path mamba_cache_philox_rounds int8_mamba_ckpt_size "
        "linear_replayssm_cache_len mamba_ssm_dtype mamba_full_memory_ratio mamba_scheduler_strategy "
        "mamba_track_interval mamba_radix_cache_strategy",
    ),
    **_neutral("weights stay where they are computed with", cpu_offload_gb=0),
    **_taken(
        "weights are not offloaded",
        "enable_paged_experts ple_offload_embedding",
        "offload_group_size offload_num_in_group offload_prefetch_step offload_mode paged_experts_num_resident "
        "ple_offload_backend ple_offload_dir",
    ),
    # --- several devices and machines
    **_neutral(
        "there is no pipeline parallelism: --tp-size shares a model among devices, and --nnodes among machines", pp_size=1
    ),
    **_neutral(
        "several devices share a model by --tp-size alone",
        attn_cp_size=1,
        moe_dp_size=1,
        dcp_size=1,
        attn_dp_size=1,
        dwdp_size=1,
    ),
    **_neutral("CUDA_VISIBLE_DEVICES chooses devices and their order", base_gpu_id=0, gpu_id_step=1),
    **_taken(
        _ONE_MACHINE,
        "enable_symm_mem use_ray enable_torch_symm_mem enable_quant_communications",
        "nccl_port load_balance_method load_watch_interval",
        "numa_node additional_ports",
    ),
    **_taken(
        _CLUSTER,
        "enable_ep_moe disaggregation_enable_kv_checksum disaggregation_decode_enable_radix_cache "
        "enable_pd_role_switch enable_adaptive_dispatch_to_encoder pre_warm_nccl enable_waterfill "
        "enable_prefill_cp enable_dsa_cache_layer_split enable_cp_decode_attn_tp enable_kv_cache_sharding "
        "enable_dp_attention_local_control_broadcast enable_tp_lm_head_all_to_all enable_shared_experts_attn_tp "
        "enable_dense_mlp_attn_tp enable_layernorm_sp enable_megamoe_for_layernorm_sp disable_attn_tp_gather "
        "dcp_replicate_q_proj enable_deepep_moe enable_eplb enable_expert_distribution_metrics "
        "enable_dp_attention enable_dp_lm_head enable_two_batch_overlap enable_single_batch_overlap "
        "enable_nccl_nvls disable_custom_all_reduce enable_mscclpp enable_p2p_check disable_shared_experts_fusion "
        "disable_chunked_prefix_cache enable_double_sparsity enable_pdmux enable_elastic_expert_backup "
        "enable_deepep_waterfill elastic_ep_rejoin enable_attn_tp_input_scattered "
        "enable_dsa_prefill_context_parallel enable_nsa_prefill_context_parallel prefill_round_robin_balance "
        "disaggregation_decode_enable_offload_kvcache enable_metrics_for_all_schedulers",
        "disaggregation_decode_allocation_policy disaggregation_decode_retraction_backup "
        "disaggregation_decode_extra_slots disaggregation_decode_host_receive_threshold encoder_bootstrap_port "
        "deepep_v2_mode fuseep_mode flashinfer_a2a_dispatch_type expert_balancedness_report_mode ep_join_mode "
        "elastic_ep_scale_timeout n_share_experts_fusion dcp_comm_backend cp_strategy shared_experts_tp_size ep_join_rank_offset "
        "elastic_ep_initial_size max_ep_size decoupled_spec_bind_endpoint decoupled_spec_rank decoupled_spec_role "
        "engine_info_bootstrap_port deepep_mode deepep_config deepep_dispatcher_output_dtype "
        "ep_num_redundant_experts ep_dispatch_algorithm init_expert_location eplb_algorithm "
        "eplb_rebalance_num_iterations eplb_rebalance_layers_per_chunk eplb_min_rebalancing_utilization_threshold "
        "expert_distribution_recorder_mode expert_distribution_recorder_buffer_size moe_dense_tp_size "
        "moe_a2a_backend elastic_ep_backend mooncake_ib_device tbo_token_distribution_threshold "
        "dsa_prefill_cp_mode nsa_prefill_cp_mode disaggregation_transfer_backend "
        "disaggregation_bootstrap_port disaggregation_ib_device disaggregation_decode_polling_interval "
        "disaggregation_decode_tp disaggregation_decode_dp disaggregation_prefill_pp num_reserved_decode_tokens "
        "pdlb_url pdmux_config_path sm_group_num encoder_transfer_backend ds_channel_config_path "
        "ds_heavy_channel_num ds_heavy_token_num ds_heavy_channel_type ds_sparse_decode_threshold",
        "encoder_urls encoder_register_urls decoupled_spec_connect_endpoints",
    ),
    "ep_size": OtherFlag("one", _CLUSTER, neutral=(1,)),
    "disaggregation_mode": OtherFlag("one", "a server does both, prefill and decode", neutral=("null",), refused=True),
    **_refused("a server serves whole models", "encoder_only language_model_only language_only"),
    # --- speculation, adapters, quantization
    **_refused(
        "heads that draft are not loaded: --speculative-draft-model-path names a model that does", "enable_multi_layer_eagle"
    ),
    **_taken(
        _DRAFTS,
        "speculative_dspark_align_verify_tokens_to_graph_tier speculative_use_rejection_sampling "
        "speculative_use_block_verification speculative_enable_w4a4_mxfp4_megamoe speculative_adaptive",
        "speculative_dflash_block_size speculative_domino_candidate_pool_size "
        "speculative_dspark_block_size speculative_dspark_sps_table_path speculative_dspark_confidence_sts_path "
        "speculative_dsa_topk_backend speculative_draft_kv_cache_dtype speculative_draft_window_size "
        "speculative_draft_sink_size speculative_adaptive_config spec_trace_dir "
        "speculative_ngram_external_corpus_path speculative_ngram_external_sam_budget "
        "speculative_ngram_external_corpus_max_tokens speculative_eagle_topk speculative_num_draft_tokens "
        "speculative_attention_mode speculative_draft_attention_backend speculative_draft_load_format "
        "speculative_moe_runner_backend speculative_moe_a2a_backend "
        "speculative_token_map speculative_ngram_min_match_window_size speculative_ngram_max_match_window_size "
        "speculative_ngram_min_bfs_breadth speculative_ngram_max_bfs_breadth speculative_ngram_match_type "
        "speculative_ngram_branch_length speculative_ngram_max_trie_depth speculative_ngram_capacity",
    ),
    **_neutral(
        "a draft never changes what is sampled",
        speculative_accept_threshold_single=1.0,
        speculative_accept_threshold_acc=1.0,
    ),
    **_refused("adapters of this kind are not served", "", "uno_lora_path"),
    **_taken(
        _ADAPTERS,
        "enable_lora_overlap_loading experts_shared_outer_loras lora_use_virtual_experts lora_strict_loading",
        "lora_backend max_lora_chunk_size lora_drain_wait_threshold",
        "lora_target_modules",
    ),
    **_neutral("--quantization int8 or int4 quantizes at load", torchao_config=""),
    **_refused(
        "--quantization int8 or int4 quantizes at load, and checkpoints are read as they are quantized",
        "quantize_and_serve",
        "modelopt_quant modelopt_checkpoint_restore_path modelopt_checkpoint_save_path modelopt_export_path rl_quant_profile",
    ),
    **_refused("scales of cached K and V are not read from a file", one="quantization_param_path"),
    # --- what requests may ask, and what they get
    **_refused(_NO_CODE, "enable_custom_logit_processor", "custom_sigquit_handler forward_hooks", "custom_weight_loader"),
    **_refused(
        "hidden states and the like are not returned",
        "enable_return_hidden_states enable_return_aux_hidden_states enable_return_indexer_topk return_input_ids "
        "return_output_ids enable_return_routed_experts",
        "return_hidden_states_mode",
        "return_aux_hidden_state_layer_ids",
    ),
    **_taken("replies of /generate always have output_ids", "return_token_ids"),
    **_refused("give the template itself with --chat-template", one="hf_chat_template_name"),
    **_refused("completions with a suffix are not served", one="completion_template"),
    **_refused("tools are called by the client", one="tool_server"),
    **_taken(
        "white space inside JSON is fixed, but for --constrained-json-whitespace-pattern",
        "constrained_json_disable_any_whitespace",
        "constrained_json_max_whitespace_cnt",
    ),
    **_taken(
        "a request's priority always counts, larger first",
        "enable_priority_scheduling abort_on_priority_when_disabled disable_priority_preemption",
    ),
    **_taken("running requests make room for none of a higher priority", one="priority_scheduling_preemption_threshold"),
    **_neutral("a request without a priority has 0", default_priority_value=0),
    **_refused("larger priorities go first", "schedule_low_priority_values_first"),
    **_taken("items are scored one by one", "enable_mis", "multi_item_scoring_delimiter"),
    **_taken("no version of the weights is told", one="weight_version"),
    **_taken("diffusion language models are not served", "dllm_fdfo"),
    **_refused("text is not watermarked", "enable_watermark", "watermark_config"),
    **_refused("requests give chat_template_kwargs", one="default_chat_template_kwargs"),
    **_refused("only the server's own chat template is rendered", "trust_request_chat_template"),
    **_refused("requests ask for usage with stream_options", "stream_response_default_include_usage"),
    **_refused("reasoning is not constrained here", "enable_strict_thinking"),
    **_taken(
        "responses and sessions are kept in memory", "enable_response_store enable_streaming_session strip_thinking_cache"
    ),
    **_taken("speech is not served", one="asr_max_buffer_seconds asr_max_concurrent_sessions"),
    **_refused("diffusion language models are not served", one="dllm_algorithm dllm_block_size dllm_algorithm_config"),
    **_refused("attention reads every position", "enable_hisparse", "hisparse_config"),
    **_refused("the checkpoint's own experts are served", one="kt_weight_path"),
    **_taken(
        _KERNELS,
        one="kt_method kt_cpuinfer kt_threadpool_count kt_num_gpu_experts kt_max_deferred_experts_per_token kt_amx_weight_path",
    ),
    **_refused("no trainer's numbers are copied", one="rl_on_policy_target"),
    # --- images
    **_taken(
        "--media-timeout, --max-media-items and their like limit images",
        "keep_mm_feature_on_device trust_mm_content_hashes enable_prefix_mm_cache enable_mm_global_cache "
        "mm_enable_dp_encoder enable_broadcast_mm_inputs_process disable_fast_image_processor",
        "mm_max_concurrent_calls mm_processor_worker_num mm_io_worker_num mm_preprocess_cache_size_mb "
        "image_processor_backend mm_global_cache_backend mm_feature_transport mm_per_request_timeout",
    ),
    **_refused("--max-media-bytes limits a request's files together", one="media_url_max_file_size_mb"),
    **_refused("--max-media-items limits a request's images and videos together", one="limit_mm_data_per_request"),
    **_neutral("a processor's settings come with the checkpoint", mm_process_config="{}"),
    **_refused("position embeddings are interpolated in one way", "enable_precise_embedding_interpolation"),
    # --- the server
    **_refused("only a command line reads flags from a file", one="config"),
    **_refused(
        "the server speaks HTTP/1.1: let a proxy speak HTTP/2",
        "grpc_mode smg_grpc_mode enable_http2",
        "smg_http_sidecar_port grpc_port sidecar sidecar_args",
    ),
    **_refused("clients are known by their API keys: let a proxy ask for certificates", one="ssl_ca_certs"),
    **_refused("a new certificate is read at SIGHUP", "enable_ssl_refresh"),
    **_taken(
        "the server speaks HTTP/1.1",
        one="grpc_response_timeout_secs http2_max_concurrent_streams http2_initial_connection_window_size",
    ),
    **_taken("the server warms itself up; --skip-server-warmup leaves that out", one="warmups"),
    **_refused("the server starts with the weights of --model-path", "checkpoint_engine_wait_weights_before_ready"),
    **_refused("files of a checkpoint are not compared with checksums", many="model_checksum"),
    **_refused("encrypted checkpoints are not read", one="decrypted_config_file decrypted_draft_config_file"),
    **_taken("files are not stored", one="file_storage_path"),
    # --- watching
    **_taken(
        _METRICS,
        "collect_tokens_histogram enable_forward_pass_metrics enable_mfu_metrics",
        "tokenizer_metrics_custom_labels_header load_snapshot_publish_interval extra_metric_labels "
        "load_publish_endpoint forward_pass_metrics_worker_id forward_pass_metrics_ipc_name",
        "bucket_time_to_first_token bucket_inter_token_latency bucket_e2e_request_latency prompt_tokens_buckets "
        "generation_tokens_buckets tokenizer_metrics_allowed_custom_labels",
    ),
    **_refused("metrics are at /metrics, with --enable-metrics", "export_metrics_to_file", "export_metrics_to_file_dir"),
    **_refused("cache events are not published", one="kv_events_config"),
    **_taken(
        "logs go to standard error, a line for each event",
        "show_time_cost enable_request_time_stats_logging disable_log_stats",
        "gc_warning_threshold_secs kv_canary kv_canary_sweep_interval kv_canary_real_data gated_launch_port "
        "log_stats_interval crash_dump_folder",
        "log_requests_target uvicorn_access_log_exclude_prefixes",
    ),
    **_neutral("the log has one format: --log-format", log_requests_format="text"),
    **_taken("traces are sent where --otlp-traces-endpoint says", "enable_trace", "trace_modules otlp_service_name"),
    **_taken("logits that are no numbers always end their request", "enable_nan_detection disable_nan_detection crash_on_nan"),
    **_refused(
        "tensors are not written to files",
        "debug_tensor_dump_prefill_only",
        "debug_tensor_dump_output_folder debug_tensor_dump_input_file debug_tensor_dump_inject msprobe_dump_config",
        "debug_tensor_dump_layers",
    ),
    **_taken("--enable-metrics and traces show where time goes", "enable_layerwise_nvtx_marker"),
}

"""Features of SGLang that this runtime lacks, with the reason and the alternative: endpoints of its server, methods of its
Engine, fields of requests."""

from __future__ import annotations

from sglang.srt.server.fields import Refusal

_NEW_WEIGHTS = "weights cannot be replaced while the server runs; restart it with the new ones"
_FIXED_FLAGS = "flags hold as long as the server runs; restart it with others"
_KEPT_MEMORY = "memory stays taken while the server runs"
_FROM_FILES = "adapters are read from files: load_lora_adapter takes a path"
_NOT_RECORDED = "what experts are chosen is not recorded"
_WEIGHTS_STAY = "weights are not told: read them from the checkpoint"

NOT_DONE = {
    "/load_lora_adapter_from_tensors": _FROM_FILES,
    "/update_weights_from_disk": _NEW_WEIGHTS,
    "/update_weights_from_tensor": _NEW_WEIGHTS,
    "/update_weights_from_distributed": _NEW_WEIGHTS,
    "/init_weights_update_group": _NEW_WEIGHTS,
    "/get_weights_by_name": _WEIGHTS_STAY,
    "/release_memory_occupation": _KEPT_MEMORY,
    "/resume_memory_occupation": _KEPT_MEMORY,
    "/set_internal_state": _FIXED_FLAGS,
    "/configure_logging": _FIXED_FLAGS,
    "/classify": "reward models and classifiers are not served; /v1/score gives probabilities of labels",
    "/start_expert_distribution_record": _NOT_RECORDED,
    "/stop_expert_distribution_record": _NOT_RECORDED,
    "/dump_expert_distribution_record": _NOT_RECORDED,
}
"""endpoints"""

NOT_DONE_BY_ENGINE = {path.removeprefix("/"): why for path, why in NOT_DONE.items()} | {
    **dict.fromkeys(("update_weights_from_ipc", "destroy_weights_update_group"), _NEW_WEIGHTS),
    **dict.fromkeys(("init_weights_send_group_for_remote_instance", "send_weights_to_remote_instance"), _WEIGHTS_STAY),
    **dict.fromkeys(("check_weights", "save_remote_model", "save_sharded_model"), _WEIGHTS_STAY),
    "collective_rpc": "no code that a call names is ever run",
    "freeze_gc": "the engine leaves the garbage collection of the process that it is in alone",
    "rerank": "a server does that at /v1/rerank; here score a pair with score, or compare vectors of encode",
}
"""methods of the Engine"""

_NO_CODE = "no code that a request names is run"
_ONE_SERVER = "prompts and answers are computed in one server"
_ONE_RANK = "there is one scheduler, whose rank is 0"
_NOT_TOLD = "answers do not have it"
_NO_TILES = "images are cut as the model's own processor does"
_NO_AUDIO = "audio is not understood"

NOT_DONE_FIELDS: dict[str, Refusal] = {
    "input_embeds": Refusal("send text or token ids"),
    "token_type_ids": Refusal("the model's own are used"),
    "lora_id": Refusal("an adapter is named by lora_path, as it was loaded", ("",)),
    "custom_logit_processor": Refusal(_NO_CODE),
    "custom_params": Refusal(f"they are for a custom logit processor, and {_NO_CODE}", ({},)),
    "max_thinking_tokens": Refusal("the limit of tokens is for reasoning and answer together"),
    "require_reasoning": Refusal("whether a model reasons is for its chat template to say", (False,)),
    "background": Refusal("the answer is sent on the request's connection", (False,)),
    **dict.fromkeys(("bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key"), Refusal(_ONE_SERVER)),
    "decode_tp_size": Refusal(_ONE_SERVER),
    **dict.fromkeys(("data_parallel_rank", "routed_dp_rank", "disagg_prefill_dp_rank"), Refusal(_ONE_RANK, (0,))),
    "return_hidden_states": Refusal("they are not returned", (False,)),
    "return_prompt_token_ids": Refusal(f"{_NOT_TOLD}; /tokenize tells ids", (False,)),
    "return_cached_tokens_details": Refusal(f"{_NOT_TOLD}; the number of cached tokens is always told", (False,)),
    **dict.fromkeys(("return_routed_experts", "return_indexer_topk"), Refusal(_NOT_RECORDED, (False,))),
    "routed_experts_start_len": Refusal(_NOT_RECORDED, (0,)),
    **dict.fromkeys(("return_bytes", "return_entropy", "return_meta_info"), Refusal(_NOT_TOLD, (False,))),
    **dict.fromkeys(
        ("max_dynamic_patch", "min_dynamic_patch", "image_max_dynamic_patch", "video_max_dynamic_patch"), Refusal(_NO_TILES)
    ),
    "use_audio_in_video": Refusal(_NO_AUDIO, (False,)),
    "need_wait_for_mm_inputs": Refusal("images come with the request, not from another server", (False,)),
}
"""fields of requests"""

NOTED = frozenset(
    {
        *("log_metrics", "no_logs", "custom_labels", "conversation_id", "routing_key", "external_trace_header"),
        *("received_time", "validation_time", "http_worker_ipc"),
    }
)
"""fields in which a router or a client notes something for itself"""

"""What the original has and this runtime does not, with the reason and what to do instead: endpoints of its server, methods of its
Engine."""

from __future__ import annotations

_NEW_WEIGHTS = "weights cannot be replaced while the server runs; restart it with the new ones"
_FIXED_FLAGS = "flags hold as long as the server runs; restart it with others"
_KEPT_MEMORY = "memory stays taken while the server runs"
_NO_ADAPTERS = "LoRA adapters are not supported"
_NOT_RECORDED = "what experts are chosen is not recorded"
_WEIGHTS_STAY = "weights are not told: read them from the checkpoint"

NOT_DONE = {
    "/load_lora_adapter": _NO_ADAPTERS,
    "/unload_lora_adapter": _NO_ADAPTERS,
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
    **dict.fromkeys(("load_lora_adapter_from_tensors", "async_load_lora_adapter", "async_unload_lora_adapter"), _NO_ADAPTERS),
    **dict.fromkeys(("update_weights_from_ipc", "destroy_weights_update_group"), _NEW_WEIGHTS),
    **dict.fromkeys(("init_weights_send_group_for_remote_instance", "send_weights_to_remote_instance"), _WEIGHTS_STAY),
    **dict.fromkeys(("check_weights", "save_remote_model", "save_sharded_model"), _WEIGHTS_STAY),
    "collective_rpc": "no code that a call names is ever run",
    "freeze_gc": "the engine leaves the garbage collection of the process that it is in alone",
    "rerank": "a server does that at /v1/rerank; here score a pair with score, or compare vectors of encode",
}
"""methods of the Engine"""

"""From a model's files to checked tensors; each file imports only what stands above it.

config_fields   a JSON object as checked fields
rope_reader     rotary parameters, old and new spelling
config_reader   config.json -> ModelConfig: one row per family
gguf_config     GGUF metadata -> ModelConfig
shapes          ModelConfig -> names and shapes of all tensors
safetensors_reader  gguf_source  dummy      three sources of tensors
loader          files and options -> Checkpoint
"""

"""Adapters of low rank (LoRA): their files, and those that are loaded.

peft_config   adapter_config.json of PEFT, and which modules it means
patterns      regular expressions in bounded time
reader        a folder or file -> Adapter
store         the loaded ones, and the slots of the layers' banks
"""

"""A model's files: finding them and reading what both the server and the model need of them.

gguf_reader     metadata and tensors of a .gguf file
sentence_files  what sentence-transformers puts beside a model
packages        downloads from the Python package index
hub             downloads from the Hugging Face hub
gguf_choice     which file of a repository is meant
resolve         a model argument -> ModelFiles
downloads       what is on this machine
"""

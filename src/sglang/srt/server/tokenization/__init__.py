"""Text to ids and back. A file imports only what stands below it in this list:

tokenizer.py        Tokenizer: three ways to encode, one to decode; load_tokenizer
cutting.py          where long texts may be cut
model_files.py      the text settings of a folder or GGUF file
gguf_tokenizer.py   a tokenizer from GGUF metadata
chat_template.py    sandboxed Jinja
named_templates.py  those that --chat-template names
token_bytes.py      the bytes behind every token
"""

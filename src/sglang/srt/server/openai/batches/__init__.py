"""OpenAI's /v1/files and /v1/batches (--batch-dir): files of requests that run while nobody else wants anything.

batch_routes.py  the endpoints: uploads (multipart_body.py), lists, contents
batch_runner.py  which batches run; each of them is batch_job.py, from its input to its files of answers
row_calls.py     one request of a batch, through the application, in the name of who sent the batch
stored_files.py  the files and how much of the disk they may take
batch_store.py   what is known of files and batches, in SQLite, shared by the servers of one machine
batch_records.py the records, and their shapes in answers
"""

"""Access to files by URI: on local disk, on S3, and in every store that fsspec knows.

Everything that reads, writes, lists or deletes belongs here, with its errors and retries. What the bytes mean (images,
tables, checkpoints) does not. Other packages use `store`, `uri`, `errors` and `concurrent`.
"""

"""Tests of `matting.storage`, against real servers of the S3 API, local disk and fsspec."""

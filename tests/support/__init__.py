"""Helpers that several tests share: servers, fault injection, running jobs, drawn datasets, paths. No tests."""

"""URIs: joined, resolved, made absolute, with keys that stay below their folder."""

from pathlib import Path

import pytest

from matting.storage.errors import StorageError
from matting.storage.uri import (
    Span,
    absolute_uri,
    absolute_uris,
    default_key,
    escape_name,
    is_local,
    is_utf8,
    join_uri,
    range_uri,
    redact_signatures,
    resolve_uri,
    split_range,
    split_uri,
    unsigned_uri,
)


def test_scheme_is_split_off_in_lower_case():
    assert split_uri("a/b") == ("file", "a/b")
    assert split_uri("file:///a#b?c%20d") == ("file", "/a#b?c%20d")
    assert split_uri("S3://bucket/Key") == ("s3", "bucket/Key")


def test_only_file_uris_are_local():
    assert is_local("a/b.jpg")
    assert is_local("file:///a/b.jpg")
    assert not is_local("s3://bucket/b.jpg")
    assert not is_local("memory://b.jpg")


def test_joined_keys_stay_below_the_root():
    assert join_uri("s3://bucket/photos/", "a/..b.jpg") == "s3://bucket/photos/a/..b.jpg"
    with pytest.raises(StorageError, match="rename the file"):
        join_uri("/output", "a/../../etc/passwd")


@pytest.mark.parametrize(
    ("folder", "written", "uri", "key"),
    [
        ("s3://b/lists/", "x/1.jpg", "s3://b/lists/x/1.jpg", "x/1.jpg"),
        ("s3://b/lists/", "s3://b/lists/x/1.jpg", "s3://b/lists/x/1.jpg", "x/1.jpg"),
        ("s3://b/lists/", "s3://b/2.jpg", "s3://b/2.jpg", "b/2.jpg"),
        ("s3://b/lists/", "/disk/3.jpg", "/disk/3.jpg", "disk/3.jpg"),
        ("s3://b/lists/", "./x/1.jpg", "s3://b/lists/x/1.jpg", "x/1.jpg"),
        ("s3://b/lists/", "../x/1.jpg", "s3://b/x/1.jpg", "b/x/1.jpg"),
        ("s3://b/lists/", ".././../1.jpg", "s3://b/../1.jpg", "b/../1.jpg"),
        ("/disk/lists/", "../x/1.jpg", "/disk/x/1.jpg", "disk/x/1.jpg"),
        ("/disk/lists/", "x/../1.jpg", "/disk/lists/x/../1.jpg", "x/../1.jpg"),
        ("", "4.jpg", "4.jpg", "4.jpg"),
        ("", "s3://bucket/a:b@c.jpg", "s3://bucket/a:b@c.jpg", "bucket/a:b@c.jpg"),
        (
            "/disk/",
            "https://host/get?u=http://x/5.jpg",
            "https://host/get?u=http://x/5.jpg",
            "host/get?u=http:/x/5.jpg",
        ),
    ],
)
def test_table_entries_resolve_to_uri_and_key(folder, written, uri, key):
    assert resolve_uri(folder, written) == uri
    assert default_key(folder, uri) == key


def test_only_local_paths_become_absolute(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("pairs") == f"{tmp_path}/pairs"
    assert absolute_uri("s3://bucket/pairs") == "s3://bucket/pairs"
    assert absolute_uris("pairs, s3://bucket/pairs,/data,") == f"{tmp_path}/pairs,s3://bucket/pairs,/data"
    assert absolute_uris("synthetic") == "synthetic"


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", f"{tmp_path}/me")
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("~/pairs") == f"{tmp_path}/me/pairs"
    assert absolute_uri("~") == f"{tmp_path}/me"
    assert absolute_uris("~/a, s3://bucket/~/b") == f"{tmp_path}/me/a,s3://bucket/~/b"
    assert absolute_uri("~no-such-user/pairs") == f"{tmp_path}/~no-such-user/pairs"
    assert absolute_uri("photos~/a") == f"{tmp_path}/photos~/a"


@pytest.mark.parametrize("uri", ["/disk/a.tar", "s3://bucket/a b#1.tar", "https://host/a.tar?x=1", "a\nb.tar"])
def test_part_of_a_file_has_a_uri(uri):
    named = range_uri(uri, Span(512, 1234))
    assert split_range(named) == (uri, Span(512, 1234))
    assert split_range(uri) == (uri, None)
    assert not is_local(named)


def test_names_that_are_not_utf8_are_escaped():
    assert is_utf8("café\U0001f600")
    assert not is_utf8("caf\udce9.jpg")
    assert escape_name("é caf\udce9.jpg") == "é caf\\xe9.jpg"


def test_passwords_are_refused():
    with pytest.raises(StorageError, match=r"sftp://…@host/photos has a password in it"):
        split_uri("sftp://user:hunter2@host/photos")


S3_SIGNED = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20260101&X-Amz-Expires=600&X-Amz-Signature=abc"
AZURE_SIGNED = "sv=2024-11-04&se=2026-12-01T00%3A00Z&sr=b&sp=r&sig=abc%3D"


@pytest.mark.parametrize(
    ("uri", "unsigned"),
    [
        (f"https://b.s3.amazonaws.com/my photo.jpg?{S3_SIGNED}", "https://b.s3.amazonaws.com/my photo.jpg"),
        (f"https://host/1.jpg?versionId=7&{S3_SIGNED}", "https://host/1.jpg?versionId=7"),
        (f"HTTPS://a.blob.core.windows.net/c/1.jpg?{AZURE_SIGNED}", "HTTPS://a.blob.core.windows.net/c/1.jpg"),
        ("https://cdn/1.jpg?Expires=1&Signature=abc&Key-Pair-Id=K", "https://cdn/1.jpg"),
        ("https://host/get?id=3&sr=b", "https://host/get?id=3&sr=b"),
        ("https://host/1.jpg", "https://host/1.jpg"),
        ("s3://bucket/1.jpg?sig=x", "s3://bucket/1.jpg?sig=x"),
        ("/disk/1.jpg?sig=x", "/disk/1.jpg?sig=x"),
    ],
)
def test_presigned_urls_lose_their_signature_alone(uri, unsigned):
    assert unsigned_uri(uri) == unsigned
    assert default_key("", uri) == unsigned.rpartition("://")[2].lstrip("/")
    assert redact_signatures(f"before '{uri}', after") == f"before '{unsigned}', after"

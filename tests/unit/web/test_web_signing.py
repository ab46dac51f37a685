"""Signed URLs cannot be bent, and their keys can be turned over while URLs are out."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachesrv.store.model import BlobId, EntryId, UploadId
from cachesrv.web.keys import ROTATE_SECONDS, UrlKeys, UrlKeysError
from cachesrv.web.signing import DownloadGrant, SignatureExpired, SignatureInvalid, UploadGrant, UrlSigner

NOW = 1_800_000_000.0
TTL = 3600.0
PATH = "/cachesrv/actions-cache"


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(tmp_path: Path, clock: Clock) -> UrlKeys:
    return UrlKeys.open(tmp_path / "url-keys", TTL, clock)


@pytest.fixture
def signer(keys: UrlKeys) -> UrlSigner:
    return UrlSigner(keys, PATH)


def taken_apart(url: str) -> tuple[str, dict[str, str]]:
    parts = urlsplit(url)
    return parts.path.rpartition("/")[2], dict(parse_qsl(parts.query))


def test_a_download_url_gives_back_what_was_signed(signer: UrlSigner) -> None:
    url = signer.sign_download("https://cache:3000", EntryId(103), BlobId(7), "octo/répo", NOW + 60)
    assert url.startswith("https://cache:3000/cachesrv/actions-cache/r-")
    opaque, query = taken_apart(url)
    assert signer.verify_download(opaque, query, NOW) == DownloadGrant(
        EntryId(103), BlobId(7), "octo/répo", int(NOW) + 60
    )


def test_an_upload_url_gives_back_what_was_signed(signer: UrlSigner) -> None:
    opaque, query = taken_apart(signer.sign_upload("http://[::1]:1", UploadId(9), "", NOW + 60))
    assert signer.verify_upload(opaque, query, NOW) == UploadGrant(UploadId(9), "", int(NOW) + 60)


def test_urls_have_the_form_that_azure_clients_insist_on(signer: UrlSigner) -> None:
    parts = urlsplit(signer.sign_upload("http://127.0.0.1:1", UploadId(9), "1", NOW + 60))
    assert len([part for part in parts.path.split("/") if part]) >= 3
    assert {"sig", "se", "sp"} <= dict(parse_qsl(parts.query)).keys()


def test_query_may_be_reordered_reencoded_and_extended(signer: UrlSigner) -> None:
    opaque, query = taken_apart(signer.sign_upload("http://c", UploadId(9), "1", NOW + 60))
    mangled = {"comp": "block", "blockid": "a+/=", **dict(reversed(query.items())), "timeout": "30"}
    again = dict(parse_qsl(urlencode(mangled, quote_via=lambda text, *_: "".join(f"%{ord(c):02x}" for c in text))))
    assert signer.verify_upload(opaque, again, NOW).upload == 9
    assert quote(query["sig"], safe="") == query["sig"], "nothing in it that an encoder could change"


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_expiry(signer: UrlSigner, direction: str) -> None:
    if direction == "download":
        opaque, query = taken_apart(signer.sign_download("http://c", EntryId(1), BlobId(2), "1", NOW + 60))
        verify = signer.verify_download
    else:
        opaque, query = taken_apart(signer.sign_upload("http://c", UploadId(1), "1", NOW + 60))
        verify = signer.verify_upload  # type: ignore[assignment]
    verify(opaque, query, NOW + 59)
    with pytest.raises(SignatureExpired):
        verify(opaque, query, NOW + 60)


def test_neither_direction_serves_the_other(signer: UrlSigner) -> None:
    down, down_query = taken_apart(signer.sign_download("http://c", EntryId(1), BlobId(1), "1", NOW + 60))
    up, up_query = taken_apart(signer.sign_upload("http://c", UploadId(1), "1", NOW + 60))
    for opaque in (down, up):
        for query in ({**down_query, "sp": "cw"}, {**up_query, "sp": "r"}):
            with pytest.raises(SignatureInvalid):
                signer.verify_download(opaque, query, NOW)
            with pytest.raises(SignatureInvalid):
                signer.verify_upload(opaque, query, NOW)


def test_the_url_of_one_entry_is_no_good_for_another(signer: UrlSigner) -> None:
    _, query = taken_apart(signer.sign_download("http://c", EntryId(1), BlobId(1), "1", NOW + 60))
    for entry, blob, repository in ((2, 1, "1"), (1, 2, "1"), (1, 1, "2")):
        other, _ = taken_apart(signer.sign_download("http://c", EntryId(entry), BlobId(blob), repository, NOW + 60))
        with pytest.raises(SignatureInvalid):
            signer.verify_download(other, query, NOW)


def test_another_rooms_url_is_refused(keys: UrlKeys, signer: UrlSigner) -> None:
    opaque, query = taken_apart(UrlSigner(keys, "/cachesrv/other").sign_upload("http://c", UploadId(1), "1", NOW + 60))
    with pytest.raises(SignatureInvalid):
        signer.verify_upload(opaque, query, NOW)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_change_of_any_field_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    signer = UrlSigner(UrlKeys.open(tmp_path_factory.mktemp("keys") / "url-keys", TTL, Clock()), PATH)
    opaque, query = taken_apart(signer.sign_download("http://c", EntryId(77), BlobId(88), "12", NOW + 60))
    fields = {"opaque": opaque, **query}
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(st.text(max_size=60).filter(lambda text: text != fields[name]))
    with pytest.raises(SignatureInvalid):
        signer.verify_download(fields.pop("opaque"), fields, NOW)


@pytest.mark.parametrize("missing", ["se", "sig", "sp"])
def test_a_missing_field_is_refused(signer: UrlSigner, missing: str) -> None:
    opaque, query = taken_apart(signer.sign_upload("http://c", UploadId(1), "1", NOW + 60))
    del query[missing]
    with pytest.raises(SignatureInvalid):
        signer.verify_upload(opaque, query, NOW)


def test_the_key_file_is_private_and_kept(tmp_path: Path, keys: UrlKeys) -> None:
    path = tmp_path / "url-keys"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["url-keys"], "no temporary file is left"
    assert UrlKeys.open(path, TTL).signing == keys.signing


def test_a_key_file_that_others_can_read_is_closed(tmp_path: Path, keys: UrlKeys) -> None:
    path = tmp_path / "url-keys"
    path.chmod(0o644)
    UrlKeys.open(path, TTL)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_key_is_turned_over_when_it_is_old(tmp_path: Path, keys: UrlKeys, clock: Clock) -> None:
    assert not keys.rotate_if_due()
    clock.now += ROTATE_SECONDS
    other = UrlKeys.open(tmp_path / "url-keys", TTL, clock)
    assert keys.rotate_if_due()
    assert not keys.rotate_if_due()
    assert not other.rotate_if_due()
    assert len(json.loads((tmp_path / "url-keys").read_bytes())) == 2


def test_rotation_leaves_issued_urls_good_until_they_expire(tmp_path: Path, keys: UrlKeys, clock: Clock) -> None:
    signer = UrlSigner(keys, PATH)
    other = UrlSigner(other_keys := UrlKeys.open(tmp_path / "url-keys", TTL, clock), PATH)
    before = keys.signing
    old = taken_apart(signer.sign_upload("http://c", UploadId(1), "1", NOW + TTL))
    keys.rotate()
    assert keys.signing == before, "a process that has not seen the new key must still understand what we sign"
    assert len(json.loads((tmp_path / "url-keys").read_bytes())) == 2

    clock.now += 60
    keys.refresh()
    assert keys.signing != before
    new = taken_apart(signer.sign_upload("http://c", UploadId(1), "1", clock.now + TTL))
    other_keys.refresh()
    for url in (old, new):
        assert signer.verify_upload(*url, clock.now).upload == 1
        assert other.verify_upload(*url, clock.now).upload == 1

    clock.now += TTL + 60
    keys.refresh()
    with pytest.raises(SignatureInvalid):
        signer.verify_upload(*old, NOW)
    keys.rotate()
    assert len(json.loads((tmp_path / "url-keys").read_bytes())) == 2, "the run-out key is gone from the file"


def _open(path: Path) -> bytes:
    return UrlKeys.open(path, TTL).signing


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert len(set(pool.map(_open, [tmp_path / "url-keys"] * 8))) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'[{"key": "c2hvcnQ", "created": 1}]', b'[{"key": 5}]'])
def test_a_broken_key_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "url-keys").write_bytes(content)
    with pytest.raises(UrlKeysError, match="url-keys: not a key file"):
        UrlKeys.open(tmp_path / "url-keys", TTL)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UrlKeysError, match="nowhere"):
        UrlKeys.open(tmp_path / "nowhere" / "url-keys", TTL)

"""File names of the archive: the documented digest, whichever implementation an interpreter has."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime import archive


@pytest.fixture(params=["the interpreter's", "OpenSSL's"])
def digest(request, monkeypatch):
    if request.param == "OpenSSL's":
        monkeypatch.setattr(archive, "import_module", lambda name: __import__(f"{name}_that_is_missing"))
    return archive._own_sha256()


@given(st.text(alphabet="0123456789.", min_size=1, max_size=64))
def test_names_are_the_documented_digest(uid):
    name = hashlib.sha256(uid.encode()).hexdigest()[:32]
    assert (
        archive.instance_path("abc", "def", uid) == f"ab/abc/def/{name}.dcm" == f"{archive.series_folder('abc', 'def')}/{name}.dcm"
    )


def test_every_implementation_gives_the_same_digest(digest):
    assert digest(b"1.2.3").digest() == hashlib.sha256(b"1.2.3").digest()

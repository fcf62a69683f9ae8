"""Files in an object store, and its faults, each in one line."""

import re

import pytest
from object_store import FOREVER

from hyperconformer.core.store import StoreError, list_sizes, read_bytes
from hyperconformer.core.text import read_text

CONTENT = "\ufeffGO\r\nSTOP".encode()


@pytest.fixture(scope="module")
def folder(object_store, tmp_path_factory):
    files = tmp_path_factory.mktemp("files")
    (files / "words.txt").write_bytes(CONTENT)
    return object_store.upload(files, "words")


@pytest.fixture
def failing(object_store):
    """The store, which is well again after the test."""
    yield object_store
    object_store.lives.value, object_store.forbidden.value = FOREVER, False


def test_files_and_parts_of_them_are_read(folder):
    assert list_sizes(folder) == {"words.txt": len(CONTENT)}
    assert read_bytes(f"{folder}/words.txt") == CONTENT
    assert read_bytes(f"{folder}/words.txt", 3, 2) == b"GO"
    assert read_text(f"{folder}/words.txt") == "GO\nSTOP"


def test_what_is_missing_is_named(folder):
    with pytest.raises(FileNotFoundError, match=f"^{folder}/no.txt does not exist$"):
        read_bytes(f"{folder}/no.txt", 0, 9)
    for url in ("s3://no-such-bucket/words", f"{folder}/no"):
        with pytest.raises(FileNotFoundError, match=f"^{url} does not exist$"):
            list_sizes(url)


@pytest.mark.parametrize("first", [5, 500])
def test_a_file_that_ends_early_is_named(folder, first):
    with pytest.raises(StoreError, match=f"^{folder}/words.txt .*"):
        read_bytes(f"{folder}/words.txt", first, 90)


@pytest.mark.parametrize("read", [list_sizes, read_bytes])
def test_a_store_that_does_not_answer_is_given_up(folder, failing, read):
    failing.lives.value = 0
    with pytest.raises(StoreError) as caught:
        read(f"{folder}/words.txt")
    message = str(caught.value)
    assert message.startswith(f"{folder}/words.txt cannot be read: ")
    assert re.search(r"Connection was closed .* \(tried for \d s\)$", message)


def test_a_refusal_names_where_credentials_are_from(folder, failing):
    failing.forbidden.value = True
    with pytest.raises(StoreError, match="Access Denied; credentials .*AWS_PROFILE"):
        read_bytes(f"{folder}/words.txt", 0, 2)

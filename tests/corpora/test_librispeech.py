"""LibriSpeech: its layout, its transcripts, its splits and their mergers."""

import hypothesis
import hypothesis.strategies as st
import pytest

from hyperconformer.corpora import librispeech, prepare
from hyperconformer.corpora.manifest import read_manifest

WORD = st.text(
    st.characters(blacklist_categories=("Z", "C")), min_size=1, max_size=12
).filter(lambda word: word == word.strip())
IDENTIFIER = st.from_regex(r"[0-9]{1,5}-[0-9]{1,6}-[0-9]{4}", fullmatch=True)
TEXT = st.lists(WORD, max_size=8).map(" ".join)


def ids_of(manifest):
    return [row["ID"] for row in read_manifest(manifest)]


@hypothesis.given(texts=st.dictionaries(IDENTIFIER, TEXT, max_size=5))
@hypothesis.settings(deadline=None, max_examples=50)
def test_transcripts_survive_a_round_trip(texts, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "1-2.trans.txt"
    librispeech.write_transcripts(path, texts)
    assert librispeech.read_transcripts(path) == texts


def test_transcripts_in_another_encoding_are_named(tmp_path):
    path = tmp_path / "1-2.trans.txt"
    path.write_bytes("1-2-0000 CAFÉ".encode("latin-1"))
    with pytest.raises(ValueError, match="1-2.trans.txt is not UTF-8"):
        librispeech.read_transcripts(path)


def test_every_official_split_that_is_there(libri_folder, tmp_path):
    manifests = prepare("librispeech", libri_folder, tmp_path / "out")
    assert list(manifests) == ["train-clean-100", "train-clean-360", "dev-clean"]
    assert ids_of(manifests["dev-clean"]) == ["84-7-0000", "84-7-0001", "84-7-0002"]
    row = read_manifest(manifests["dev-clean"])[0]
    assert (row["spk_id"], row["wrd"]) == ("84", "UTTERANCE OF DEV-CLEAN")


def test_chosen_splits_of_any_name(libri_folder, tmp_path):
    (libri_folder / "dev-clean").rename(libri_folder / "my-split")
    manifests = prepare(
        "librispeech", libri_folder, tmp_path / "out", splits=["my-split"]
    )
    assert list(manifests) == ["my-split"]
    assert manifests["my-split"].name == "my-split.csv"


def test_merged_splits(libri_folder, tmp_path):
    sources = ["train-clean-100", "train-clean-360"]
    manifests = prepare(
        "librispeech", libri_folder, tmp_path / "out", merge={"train": sources}
    )
    parts = [ids_of(manifests[source]) for source in sources]
    assert ids_of(manifests["train"]) == sum(parts, [])
    assert len(ids_of(manifests["train"])) == 6


@pytest.mark.parametrize(
    "merge, message",
    [
        ({"train": ["train-other-500"]}, "made of some.*got train-other-500"),
        ({"train": []}, "got none"),
        ({"dev-clean": ["train-clean-100"]}, "'dev-clean' is the name of a split"),
    ],
)
def test_wrong_mergers(merge, message, libri_folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare("librispeech", libri_folder, tmp_path / "out", merge=merge)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        prepare("librispeech", tmp_path / "nowhere", tmp_path)
    assert str(tmp_path / "nowhere") in str(error.value)
    assert "SPLIT/SPEAKER/CHAPTER/*.flac" in str(error.value)
    assert "openslr.org/12" in str(error.value)


def test_missing_split(libri_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="test-clean does not exist"):
        prepare("librispeech", libri_folder, tmp_path, splits=["test-clean"])


def test_no_split_at_all(libri_folder, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="(?s)none of the splits.*openslr"
    ) as error:
        prepare("librispeech", tmp_path, tmp_path / "out")
    assert f"Did you mean {libri_folder}?" in str(error.value)


def test_faults_are_skipped(libri_folder, tmp_path, tone):
    chapter = libri_folder / "dev-clean" / "84" / "7"
    (chapter / "84-7-0000.flac").unlink()
    tone(chapter / "84-7-0009.flac")
    tone(chapter.with_name("8") / "84-8-0000.flac")  # a chapter without transcripts
    with open(chapter / "84-7.trans.txt", "a") as transcripts:
        transcripts.write("84-7-0010\n\n")
    tone(chapter / "84-7-0010.flac")
    out = tmp_path / "out"
    manifests = prepare("librispeech", libri_folder, out, splits=["dev-clean"])
    assert ids_of(manifests["dev-clean"]) == ["84-7-0001", "84-7-0002"]
    skipped = (out / "skipped_dev-clean.csv").read_text().splitlines()[1:]
    reasons = {line.split(",")[0]: line.split(",")[2] for line in skipped}
    assert reasons == {
        "84-7-0000": "transcript without audio",
        "84-7-0009": "audio without transcript",
        "84-7-0010": "empty transcript",
        "84-8-0000": "audio without transcript",
    }


def test_wav_stands_for_flac(libri_folder, tmp_path, tone):
    chapter = libri_folder / "dev-clean" / "84" / "7"
    (chapter / "84-7-0000.flac").unlink()
    tone(chapter / "84-7-0000.wav")
    tone(chapter / "84-7-0001.wav")  # FLAC is preferred where there are both
    manifest = prepare("librispeech", libri_folder, tmp_path / "out")["dev-clean"]
    suffixes = [row["wav"].rsplit(".", 1)[1] for row in read_manifest(manifest)]
    assert suffixes == ["wav", "flac", "flac"]


def test_new_files_are_found(libri_folder, tmp_path, tone):
    out = tmp_path / "out"
    prepare("librispeech", libri_folder, out)
    chapter = libri_folder / "dev-clean" / "84" / "7"
    tone(chapter / "84-7-0003.flac")
    with open(chapter / "84-7.trans.txt", "a") as transcripts:
        transcripts.write("84-7-0003 NEW\n")
    manifest = prepare("librispeech", libri_folder, out)["dev-clean"]
    assert ids_of(manifest)[-1] == "84-7-0003"


def test_the_real_transcripts(librispeech_texts, tmp_path):
    utterances = librispeech.list_utterances(librispeech_texts / "dev-clean")
    assert len(utterances) == 2703
    assert len({utterance.speaker for utterance in utterances}) == 40
    assert all(utterance.text == utterance.text.upper() for utterance in utterances)
    with pytest.raises(ValueError, match="2703 transcript without audio"):
        prepare("librispeech", librispeech_texts, tmp_path)

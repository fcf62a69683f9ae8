"""``hyperconformer evaluate``."""

import re

import pytest
import soundfile
from command_line import run

from hyperconformer.evaluation import error_rates as evaluation
from hyperconformer.transcribe.offline import ASR


def evaluate(capsys, model, path, *rows, header="ID,wav,wrd", encoding="utf-8"):
    path.write_text("\n".join([header, *rows, ""]), encoding=encoding)
    return run(capsys, "evaluate", path, "--model", model)


def test_a_manifest_is_evaluated(capsys, files, tiny_model, tmp_path):
    spoken = run(capsys, "transcribe", files[0], "--model", tiny_model)[1].strip()
    manifest = tmp_path / "test.csv"
    rows = [f"1,1.0,{files[0]},s,{spoken}", f"2,1.0,{files[1]},s,DAD"]
    manifest.write_text("\n".join(["ID,duration,wav,spk_id,wrd", *rows, ""]))
    alignments = tmp_path / "wer.txt"
    code, out, _ = run(
        capsys,
        *("evaluate", manifest, "--model", tiny_model, "--alignments", alignments),
    )
    assert code == 0
    words = len(spoken.split()) + 1
    assert out.splitlines()[0].startswith("WER ") and f"of {words})" in out
    assert "95 % interval 0.00 to" in out  # both drawn may be the first utterance
    assert out.splitlines()[1].startswith("CER ")
    assert "%WER" in alignments.read_text()
    code, _, err = run(capsys, "evaluate", tmp_path / "no.csv", "--model", tiny_model)
    assert code == 1 and "no such manifest" in err
    manifest.write_text("a,b\n1,2\n")
    code, _, err = run(capsys, "evaluate", manifest, "--model", tiny_model)
    assert code == 1 and "columns ID, wav and wrd" in err


def test_one_bad_row_does_not_stop_an_evaluation(capsys, files, tiny_model, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    soundfile.write(tmp_path / "empty.wav", [], 16000)
    good = [f"good{i},{file},DAD BE" for i, file in enumerate(files)]
    arguments = capsys, tiny_model, tmp_path / "m.csv"
    _, expected, _ = evaluate(*arguments, *good)
    rows = [
        f"broken,{tmp_path}/bad.wav,DAD",
        good[0],
        f"gone,{tmp_path}/gone.wav,DAD",
        f"silent,{tmp_path}/empty.wav,DAD",
        f"short,{files[0]}",
        f"long,{files[0]},DAD, BE",
        f",{files[0]},DAD",
        "nowhere,,DAD",
        good[1],
    ]
    code, out, err = evaluate(*arguments, *rows)
    assert code == 1 and out == expected and out.startswith("WER ")
    for message in (
        "utterance broken: .*bad.wav cannot be read as audio",
        "utterance gone: no such audio file",
        "utterance silent: .*empty.wav: the audio holds no samples",
        "utterance m.csv:6: wrong number of columns",
        "utterance m.csv:7: wrong number of columns",
        "utterance m.csv:8: no ID",
        "utterance nowhere: no audio",
    ):
        assert re.search(f"hyperconformer: {message}", err), message
    assert (
        err.strip()
        .splitlines()[-1]
        .endswith(
            "7 of 9 utterances failed: "
            "broken, gone, silent, m.csv:6, m.csv:7, m.csv:8, nowhere"
        )
    )
    code, out, err = evaluate(*arguments, rows[0])
    assert code == 1 and out == "" and "none of its 1 utterances can be used" in err
    with pytest.raises(ValueError, match="m.csv: utterance broken: .*bad.wav"):
        evaluation.evaluate(ASR.from_hparams(tiny_model), tmp_path / "m.csv", False)


def test_references_in_any_form_are_compared_in_the_models(
    capsys, caplog, files, tiny_model, tmp_path
):
    spoken = run(capsys, "transcribe", files[0], "--model", tiny_model)[1].strip()
    arguments = capsys, tiny_model, tmp_path / "m.csv"
    for text, encoding in ((spoken, "utf-8-sig"), (spoken.lower(), "utf-8")):
        code, out, _ = evaluate(*arguments, f"a,{files[0]},{text}", encoding=encoding)
        assert code == 0 and out.startswith("WER 0.00 %")
        wide = "".join(chr(ord(c) + 0xFEE0) if c > " " else c for c in text)
        code, out, _ = evaluate(*arguments, f"a,{files[0]},{wide}")
        assert code == 0 and out.startswith("WER 0.00 %")
    assert "m.csv: 1 of 1 entries are in another letter case" in caplog.text
    assert "cannot write" not in caplog.text
    assert evaluate(*arguments, f"a,{files[0]},ZOO")[0] == 0
    assert "references hold letters that the recogniser cannot write" in caplog.text


def test_a_rate_without_references_is_undefined(capsys, files, tiny_model, tmp_path):
    spoken = run(capsys, "transcribe", files[0], "--model", tiny_model)[1].split()
    code, out, _ = evaluate(capsys, tiny_model, tmp_path / "m.csv", f"a,{files[0]},")
    assert code == 0 and out.splitlines()[0] == (
        f"WER undefined: the references are empty ({len(spoken)} insertions)"
    )
    assert out.splitlines()[1].startswith("CER undefined")
    # Words where nothing is said are errors of the whole set.
    rows = [f"a,{files[0]},", f"b,{files[0]},{' '.join(spoken)}"]
    _, out, _ = evaluate(capsys, tiny_model, tmp_path / "m.csv", *rows)
    n = len(spoken)
    assert out.startswith(f"WER 100.00 % ({n} of {n}), 95 % interval 0.00 to ")

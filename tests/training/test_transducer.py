"""A recogniser with a transducer is trained, tested in chunks, and loads."""

import pytest

from hyperconformer.evaluation.plots import read_test_log, read_train_log
from hyperconformer.transcribe.streaming import StreamingASR

pytestmark = pytest.mark.slow
TRANSDUCER = (
    "!new:hyperconformer.Transducer "
    "{d_model: !ref <d_model>, vocab_size: !ref <vocab_size>, width: 16}"
)
SEARCH = "!new:hyperconformer.TransducerSearcher {recognizer: !ref <recognizer>}"


def test_a_transducer_trains_and_streams(train_tiny, printed, tmp_path):
    folder = tmp_path / "run"
    streaming = ["--normalization=global", "--top_db=null", "--frontend_causal=True"]
    status = train_tiny(
        folder,
        f"--transducer={TRANSDUCER}",
        f"--test_search={SEARCH}",
        "--chunkwise_prob=0.6",
        "--test_chunks_ms=[null, 320]",
        *streaming,
    )
    assert status == 0, printed(folder)
    losses = read_train_log(folder / "train_log.txt")["train loss"]
    assert losses[-1] < losses[0]
    assert set(read_test_log(folder / "train_log.txt")) == {
        "valid",
        "valid_320ms",
        "test",
        "test_320ms",
    }
    asr = StreamingASR.from_hparams(folder, chunk_ms=320)
    assert asr.model.recognizer.transducer is not None

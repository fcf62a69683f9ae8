"""What an exported folder says of itself."""

from typing import Any

from hyperconformer.export.offline import PHONE_OUTPUT

OFFLINE = """\
`model.onnx` takes whole utterances ({rate} Hz, mono, full scale = 1):

| | name | type | shape | |
|---|---|---|---|---|
| input | `samples` | float32 | (B, N) | filled up with zeros |
| input, optional | `lengths` | int64 | (B,) | samples of each; left out = N |
| output | `log_probs` | float32 | (B, T, {vocabulary}) | CTC; 0 is the blank |
| output | `frames` | int64 | (B,) | real frames of each, of {frame_ms:g} ms |
"""

STREAMING = """\
`model.onnx` takes the next chunk ({chunk_ms:g} ms) of each stream and its right context
({right_context_ms:g} ms after it), which the next call takes again ({rate} Hz, mono,
full scale = 1):

| | name | type | shape | |
|---|---|---|---|---|
| input | `samples` | float32 | (B, {window}) | see below |
| input | `length` | int64 | (B,) | {window}, but for a stream's last call |
| input | `state` | float32 | (B, {state}) | zeros, then the last `new_state` |
| output | `log_probs` | float32 | (B, {frames}, {vocabulary}) | CTC; 0 is the blank |
| output | `frames` | int64 | (B,) | how many are real, of {frame_ms:g} ms |
| output | `new_state` | float32 | (B, {state}) | |

Put {before} zeros before a stream. Call number c (from 0) takes the samples from
{shift} c to {shift} c + {window} of what results. At a stream's end fill up with zeros,
say in `length` how many are no filling, and stop where {before} or more are not left.

`sherpa-onnx/model.onnx` is the same in sherpa-onnx's contract. sherpa-onnx believes
that such samples have 8000 Hz, so **say 8000 and give it {rate} Hz samples**.

```python
recognizer = sherpa_onnx.OnlineRecognizer.from_t_one_ctc(
    model="sherpa-onnx/model.onnx", tokens="sherpa-onnx/tokens.txt"
)
stream = recognizer.create_stream()
stream.accept_waveform(8000, samples)  # of {rate} Hz
```
"""

PHONES = """\
A further output, `phone_log_probs`, is (B, T, P) float32: log-probabilities of phones.
`phones.txt` holds a phone and its number a line; 0 is the blank. With a lexicon and an
n-gram model `hyperconformer transcribe` finds words by their phones. Both stay in the
model's folder. A client that takes the best token of each frame, as sherpa-onnx and
`--check` do, makes more errors.
"""

SHERPA_OFFLINE = """\
In sherpa-onnx:

```python
recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(
    model="model.onnx", tokens="tokens.txt"
)
```
"""
SHERPA_LEVEL = """\
sherpa-onnx makes the power of an utterance one before it calls such a graph. This model
hears levels (`normalization: {normalization}`), so its words would differ there.
"""


def readme(name: str, contract: dict[str, Any], report: Any, int8: bool) -> str:
    """The text of ``README.md``.

    Arguments
    ---------
    name : str
        Of the model.
    contract : dict
        What ``export.json`` holds.
    report : hyperconformer.export.check.Report or None
        What the comparison found.
    int8 : bool
        Whether there is a graph with weights of 8 bits.

    Returns
    -------
    str
    """
    values = {
        **contract,
        "rate": contract["sample_rate"],
        "vocabulary": contract["vocab_size"],
        "state": contract.get("state_dim"),
    }
    phones = [PHONES] if PHONE_OUTPUT in contract["outputs"] else []
    parts = [f"# {name}, exported by HyperConformer\n"]
    if contract["kind"] == "offline":
        hears_level = contract["normalization"] == "global"
        parts.append(OFFLINE.format(**values))
        parts += phones
        parts.append((SHERPA_LEVEL if hears_level else SHERPA_OFFLINE).format(**values))
    else:
        parts += [STREAMING.format(**values), *phones]
    if int8:
        parts.append("`model.int8.onnx` is the same with weights of 8 bits.\n")
    parts.append(
        "`export.json` holds the sizes, `tokens.txt` a token and its number a line.\n"
    )
    if report is None:
        parts.append("Not compared with PyTorch (`--check MANIFEST`).\n")
    else:
        parts.append(
            f"Compared with PyTorch on {report.utterances} utterances, greedy "
            f"decoding:\n\n{report.table()}"
        )
        parts += [f"- {fault}\n" for fault in report.faults]
    return "\n".join(parts)

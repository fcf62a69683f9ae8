"""Fixtures of the searches."""

import pytest

from hyperconformer.hub.folder import save_model
from hyperconformer.lm.linear_attention import LinearAttentionTransformerLM
from hyperconformer.training.data import load_tokenizer, train_tokenizer

TEXTS = ["CAB", "DAD", "BAD", "ACE"]
TOKENS = 9  # unknown, begin, end, the space and A to E


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory):
    """Of a language model: folder with its model folder, model and tokenizer."""
    folder = tmp_path_factory.mktemp("lm")
    manifest = folder / "train.csv"
    rows = [f"{i},1.0,{i}.wav,s,{text}" for i, text in enumerate(TEXTS)]
    manifest.write_text("\n".join(["ID,duration,wav,spk_id,wrd", *rows, ""]))
    tokenizer = load_tokenizer(
        train_tokenizer(manifest, folder / "tokenizer", "char", 0)
    )
    assert tokenizer.vocab_size() == TOKENS
    options = {"num_tokens": TOKENS, "dim": 8, "depth": 1, "max_seq_len": 64}
    options.update(heads=2, causal=True, positions="rotary")
    text = "language_model: !new:hyperconformer.LinearAttentionTransformerLM\n"
    text += "".join(f"    {key}: {value}\n" for key, value in options.items())
    model = LinearAttentionTransformerLM(**options)
    file = next((folder / "tokenizer").glob("*.model"))
    save_model(folder / "model", text, {"language_model": model}, file)
    return folder, model.eval(), tokenizer

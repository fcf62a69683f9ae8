"""Tokenizers of the characters of a few texts."""

import io

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer


def make_tokenizer(*texts, **options):
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        **{"model_type": "char", **options},
    )
    return SentencePieceProcessor(model_proto=model.getvalue())

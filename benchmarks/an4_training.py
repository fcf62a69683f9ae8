"""``python -m benchmarks.an4_training AN4_FOLDER``: training speed on real speech.

The model of recipes/AN4 trains on batches of AN4, and so does the same model built of
SpeechBrain's own modules: the same features, CTC loss (without the recipe's phones),
optimiser and batches, each batch first through the one and then through the other.
Nothing is printed unless both give the same output for the same weights.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR

from hyperconformer.config import read_config
from hyperconformer.corpora import prepare
from hyperconformer.model.recognizer import Recognition, Recognizer
from hyperconformer.training.data import (
    load_tokenizer,
    make_dataset,
    make_sampler,
    train_tokenizer,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/AN4/hparams/hyperconformer.yaml"
# Our classes in the YAML file, and SpeechBrain's in their place.
STOCK = {
    "hyperconformer.model.frontend.ConvolutionFrontEnd": (
        "benchmarks.an4_training.StockFrontEnd"
    ),
    "hyperconformer.model.transformer_asr.HyperConformerASR": (
        "benchmarks.an4_training.StockTransformer"
    ),
    "hyperconformer.model.recognizer.Recognizer": (
        "benchmarks.an4_training.StockRecognizer"
    ),
}


class StockFrontEnd(ConvolutionFrontEnd):
    """SpeechBrain's front end, without our option."""

    def __init__(self, causal, **kwargs):
        super().__init__(padding="causal" if causal else "same", **kwargs)


class StockTransformer(TransformerASR):
    """SpeechBrain's model, which has no options of a mixer."""

    def __init__(self, mixer_options, **kwargs):
        super().__init__(**kwargs)


class StockRecognizer(Recognizer):
    """The same heads around SpeechBrain's modules, called as its recipes call them."""

    def forward(self, features, lengths, targets=None):
        """(B, T, F) features and (B,) frames to a Recognition."""
        x = self.frontend(features)
        relative = lengths / features.shape[1]
        if targets is None:
            encoded, seq = self.transformer.encode(x, relative), None
        else:
            encoded, decoded = self.transformer(x, targets, relative, pad_idx=0)
            seq = self.decoder_head(decoded).log_softmax(-1)
        frames = (relative * encoded.shape[1]).round().long()
        ctc = self.ctc_head(encoded).log_softmax(-1)
        return Recognition(ctc, frames, encoded, seq)


class Trainee:
    """A model with its optimiser."""

    def __init__(self, config):
        self.config = config
        self.recognizer = config["recognizer"]
        self.optimizer = config["optimizer"](self.recognizer.parameters())

    def loss(self, batch):
        """The loss of a batch, as ASRBrain computes it without phones."""
        features, lengths = self.config["extractor"](*batch.sig)
        targets = batch.tokens_bos[0] if self.recognizer.decoder_head else None
        output = self.recognizer(features, lengths, targets)
        tokens, token_lens = batch.tokens
        loss = self.config["ctc_cost"](
            output.ctc, tokens, output.relative_lengths, token_lens
        )
        if targets is None:
            return loss
        seq_loss = self.config["seq_cost"](output.seq, *batch.tokens_eos)
        weight = self.config["ctc_weight"]
        return weight * loss + (1 - weight) * seq_loss

    def seconds(self, batch):
        """How long one update takes."""
        start = time.perf_counter()
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start


def load_batches(config, an4_folder, folder):
    """AN4's training batches, three single utterances, and the number of tokens."""
    manifest = prepare("an4", an4_folder, folder)["train"]
    tokenizer = load_tokenizer(train_tokenizer(manifest, folder, "char", 0))
    dataset = make_dataset(manifest, tokenizer, config["sample_rate"])
    limits = config["max_batch_s"], config["max_batch_utterances"]
    sampler = make_sampler(dataset, "duration", *limits, config["seed"])
    batches = [PaddedBatch([dataset[i] for i in batch]) for batch in sampler]
    singles = [PaddedBatch([dataset[i]]) for i in range(3)]
    return batches, singles, tokenizer.vocab_size()


@torch.no_grad()
def largest_difference(ours, theirs, singles):
    """Between losses of one utterance: padding would disturb SpeechBrain's."""
    found = theirs.recognizer.load_state_dict(
        ours.recognizer.state_dict(), strict=False
    )
    assert not found.unexpected_keys
    # Position codes are the only thing that SpeechBrain keeps and we do not.
    assert all(key.endswith("positional_encoding.pe") for key in found.missing_keys)
    for trainee in (ours, theirs):
        trainee.recognizer.eval()
    losses = [
        [trainee.loss(single) for single in singles] for trainee in (ours, theirs)
    ]
    for trainee in (ours, theirs):
        trainee.recognizer.train()
    return max(abs(one / other - 1).item() for one, other in zip(*losses))


def main(arguments=None):
    """Measure; returns 1 if the two models do not agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("an4_folder", help="with etc and wav")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=120, help="to spend")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        common = {"data_folder": options.an4_folder, "output_folder": folder}
        text = read_config(RECIPE, common)
        config = load_hyperpyyaml(text)
        batches, singles, vocab_size = load_batches(
            config, options.an4_folder, pathlib.Path(folder)
        )
        found = {"vocab_size": vocab_size}
        ours = Trainee(load_hyperpyyaml(text, found))
        for name, stock in STOCK.items():
            text = text.replace(name, stock)
        theirs = Trainee(load_hyperpyyaml(text, found))
    difference = largest_difference(ours, theirs, singles)
    print(f"largest relative difference of losses: {difference:.1e}")
    if difference > 1e-4:
        print("the models do not agree: no figures")
        return 1
    for trainee in (ours, theirs):
        trainee.seconds(batches[-1])
    audio_s, times, end = 0.0, ([], []), time.perf_counter() + options.seconds
    for batch in batches:
        if time.perf_counter() > end:
            break
        audio_s += (batch.sig.lengths * batch.sig.data.shape[1]).sum().item() / 16000
        for trainee, spent in zip((ours, theirs), times):
            spent.append(trainee.seconds(batch))
    ratios = sorted(their / our for our, their in zip(*times))
    tenths = statistics.quantiles(ratios, n=10)
    size = sum(weight.numel() for weight in ours.recognizer.parameters())
    print(
        f"{size / 1e6:.1f} M parameters, {len(ratios)} batches, {audio_s:.0f} s of "
        f"audio, {options.threads} threads, torch {torch.__version__}"
    )
    for name, spent in zip(("ours", "SpeechBrain"), times):
        print(f"{name:12} {audio_s / sum(spent):8.1f} audio-seconds a second")
    print(
        f"ratio {sum(times[1]) / sum(times[0]):.2f}; of single batches p20 "
        f"{tenths[1]:.2f}, p50 {tenths[4]:.2f}, p80 {tenths[7]:.2f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

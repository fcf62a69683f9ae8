"""``python -m benchmarks.recipe_cost [DEVICE]``: what LibriSpeech's recipes cost.

For each recipe's model, float32, on batches of random samples: bytes of every tensor
that autograd keeps between forward and backward, weights apart, over the seconds of
audio in the batch; and how many of these seconds an update takes in a second, features,
losses and optimiser included. Then how fast FLAC is read, from files and from shards.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml

from hyperconformer.audio import read_audio
from hyperconformer.config import read_config
from hyperconformer.corpora.manifest import read_manifest, write_manifest
from hyperconformer.corpora.shards import write_shards
from hyperconformer.training.results import kept_bytes

HPARAMS = pathlib.Path(__file__).resolve().parents[1] / "recipes/LibriSpeech/hparams"
RECIPES = ("hyperconformer_8M", "hyperconformer_22M", "conformer_baseline")
UTTERANCES, DURATION_S, TOKENS, RATE_HZ = 4, 10, 35, 16000
UPDATES = 5


class Trainee:
    """A recipe's model, its losses and its optimiser, with a batch."""

    def __init__(self, recipe, device):
        with tempfile.TemporaryDirectory() as folder:
            places = {"data_folder": "", "output_folder": folder}
            text = read_config(HPARAMS / f"{recipe}.yaml", places)
            self.config = load_hyperpyyaml(text)
        self.extractor = self.config["extractor"].to(device)
        self.recognizer = self.config["recognizer"].to(device).train()
        self.optimizer = self.config["optimizer"](self.recognizer.parameters())
        samples = RATE_HZ * DURATION_S
        self.samples = torch.randn(UTTERANCES, samples, device=device)
        vocabulary = self.config["vocab_size"]
        self.tokens = torch.randint(3, vocabulary, (UTTERANCES, TOKENS), device=device)
        self.whole = torch.ones(UTTERANCES, device=device)

    def loss(self):
        """Forward, from samples to the joint loss."""
        features, lengths = self.extractor(self.samples, self.whole)
        output = self.recognizer(features, lengths, self.tokens)
        ctc = self.config["ctc_cost"](
            output.ctc, self.tokens, output.relative_lengths, self.whole
        )
        seq = self.config["seq_cost"](output.seq, self.tokens, self.whole)
        return ctc + seq

    def update(self):
        """One update; returns its seconds."""
        started = time.perf_counter()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.samples.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started


def reading_speeds(utterances=100):
    """Seconds of audio read in a second, from files and from shards, by one thread."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows = []
        for number in range(utterances):
            # Ten bits a sample, more than FLAC takes for speech.
            noise = (300 * torch.randn(RATE_HZ * DURATION_S)).short().numpy()
            file = folder / f"{number}.flac"
            soundfile.write(file, noise, RATE_HZ)
            row = {"ID": number, "duration": DURATION_S, "wav": file}
            rows.append({**row, "spk_id": "none", "wrd": "NOISE"})
        manifest = write_manifest(folder / "files.csv", rows)
        write_shards({"noise": manifest}, folder / "shards")
        places = {
            "files": [row["wav"] for row in read_manifest(manifest)],
            "shards": [
                f"{folder / 'shards'}/{row['wav']}"
                for row in read_manifest(folder / "shards/noise.csv")
            ],
        }
        speeds = {}
        for kind, paths in places.items():
            started = time.perf_counter()
            for path in paths:
                read_audio(path, RATE_HZ)
            seconds = time.perf_counter() - started
            speeds[kind] = utterances * DURATION_S / seconds
    return speeds


def main(device="cpu"):
    """Print a line a recipe, and the speed of reading."""
    audio_s = UTTERANCES * DURATION_S
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    for recipe in RECIPES:
        trainee = Trainee(recipe, device)
        kept = kept_bytes(trainee.loss, trainee.recognizer.parameters()) / 2**20
        trainee.update()
        seconds = statistics.median(trainee.update() for _ in range(UPDATES))
        print(
            f"{recipe:20} {kept / audio_s:6.1f} MiB a second of audio"
            f"{audio_s / seconds:8.1f} s of audio a second"
        )
    for kind, speed in reading_speeds().items():
        print(f"reading FLAC from {kind:8} {speed:8.0f} s of audio a second")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What every training run begins with: its settings, its folder, its corpus."""

import logging
import pathlib

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML

from hyperconformer.config import read_config, resolve_config
from hyperconformer.corpora import prepare
from hyperconformer.training.data import (
    load_tokenizer,
    manifest_durations,
    train_tokenizer,
)

logger = logging.getLogger(__name__)


def open_experiment(config_file, overrides, used_keys):
    """Read the YAML file and make the run's folder.

    Arguments
    ---------
    config_file : str or pathlib.Path
        The YAML file.
    overrides : str or dict or None
        Changes to it.
    used_keys : collection of str
        The keys that the run reads, see :func:`hyperconformer.config.read_config`.

    Returns
    -------
    text : str
        HyperPyYAML text.
    plain : dict
        The same with its references resolved and nothing built.
    output : pathlib.Path
        The run's folder.
    """
    text = read_config(config_file, overrides, used_keys)
    plain = YAML().load(resolve_references(text))
    output = pathlib.Path(plain["output_folder"])
    sb.create_experiment_directory(experiment_directory=str(output))
    return text, plain, output


def load_experiment(text, found, output):
    """Build what the YAML file describes, and leave its resolved text in the folder.

    Arguments
    ---------
    text : str
        From :func:`open_experiment`.
    found : dict
        Last changes, known only once the corpus is there.
    output : pathlib.Path
        The run's folder.

    Returns
    -------
    dict
        The loaded YAML file.
    """
    resolved = resolve_config(text, found)
    if sb.utils.distributed.if_main_process():
        (output / "hyperparams.yaml").write_text(resolved, encoding="utf-8")
    sb.utils.seed.seed_everything(YAML().load(resolved)["seed"], verbose=False)
    return load_hyperpyyaml(text, found)


def prepare_corpus(config, output):
    """Make the manifests on one process, and say how much speech there is.

    Arguments
    ---------
    config : dict
        The loaded YAML file.
    output : pathlib.Path
        The run's folder.

    Returns
    -------
    dict of str to pathlib.Path
        Split to manifest.
    """
    manifests = {}

    def make():
        manifests.update(
            prepare(
                config["corpus"],
                config["data_folder"],
                output / "manifests",
                **config["corpus_options"],
            )
        )

    sb.utils.distributed.run_on_main(make)
    if not manifests:  # Another process made them; they are reused as they are.
        make()
    wanted = [config["train_split"], config["valid_split"], *config["test_splits"]]
    for split in wanted:
        if split not in manifests:
            raise ValueError(
                f"corpus {config['corpus']!r} has no split {split!r}; "
                f"it has: {', '.join(sorted(manifests))}"
            )
        utterances, hours = manifest_durations(manifests[split])
        logger.info(f"{split}: {utterances} utterances, {hours:.2f} hours")
    return manifests


def prepare_tokenizer(config, manifests, output):
    """Load the tokenizer of ``tokenizer_file``, or train one on the transcripts.

    Arguments
    ---------
    config : dict
        The loaded YAML file.
    manifests : dict of str to pathlib.Path
        Split to manifest.
    output : pathlib.Path
        The run's folder, which a trained one stays in.

    Returns
    -------
    tokenizer : sentencepiece.SentencePieceProcessor
    file : pathlib.Path
    """
    file = config["tokenizer_file"]
    if file is None:
        file = train_tokenizer(
            manifests[config["train_split"]],
            output / "tokenizer",
            config["token_unit"],
            config["vocab_size"],
        )
    return load_tokenizer(file), pathlib.Path(file)

"""What every training run begins with: its settings, its folder, its corpus."""

import logging
import pathlib
from typing import NamedTuple

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML
from sentencepiece import SentencePieceProcessor

from hyperconformer.config import read_config, resolve_config
from hyperconformer.corpora import load_corpus, prepare
from hyperconformer.info import describe_environment
from hyperconformer.model_folder import save_model
from hyperconformer.training.data import (
    load_tokenizer,
    manifest_durations,
    read_transcripts,
    train_tokenizer,
)
from hyperconformer.training.fine_tuning import keep_tokenizer

logger = logging.getLogger(__name__)


class Experiment(NamedTuple):
    """What a run works with.

    Attributes
    ----------
    config : dict
        The loaded YAML file.
    manifests : dict of str to pathlib.Path
        Split to manifest.
    tokenizer : sentencepiece.SentencePieceProcessor
        Text to tokens.
    tokenizer_file : pathlib.Path
        Where that lies.
    output : pathlib.Path
        The run's folder.
    plain : str
        The YAML file without references.
    """

    config: dict
    manifests: dict
    tokenizer: SentencePieceProcessor
    tokenizer_file: pathlib.Path
    output: pathlib.Path
    plain: str

    def save_model(self, modules, settings=(), ngram=None):
        """Leave a model folder in the run's folder.

        Arguments
        ---------
        modules : list of str
            Keys of the YAML file that are modules with weights.
        settings : list of str
            Other keys that whoever loads the model needs.
        ngram : dict, optional
            As for :func:`hyperconformer.model_folder.save_model`.

        Returns
        -------
        pathlib.Path
            The model folder.
        """
        return save_model(
            self.output / "model",
            resolve_config(self.plain, keys=[*settings, *modules]),
            {key: self.config[key] for key in modules},
            self.tokenizer_file,
            ngram,
        )


def open_experiment(config_file, overrides, used_keys):
    """Make the run's folder, the manifests, the tokenizer and the model.

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
    Experiment

    Raises
    ------
    FileNotFoundError, ValueError
        On a wrong YAML file, a missing corpus or an empty split.
    """
    text = read_config(config_file, overrides, used_keys)
    settings = YAML().load(resolve_references(text))
    settings["corpus"] = load_corpus(resolve_config(text, keys=["corpus"]))
    output = pathlib.Path(settings["output_folder"])
    sb.create_experiment_directory(str(output), save_env_desc=False)
    manifests = prepare_corpus(settings, output)
    tokenizer, tokenizer_file = prepare_tokenizer(settings, manifests, output)
    # How many tokens there are is known only now, and the model is built with it.
    found = {"vocab_size": tokenizer.vocab_size()}
    plain = resolve_config(text, found)
    if sb.utils.distributed.if_main_process():
        (output / "hyperparams.yaml").write_text(plain, encoding="utf-8")
        (output / "env.log").write_text(describe_environment(), encoding="utf-8")
    sb.utils.seed.seed_everything(settings["seed"], verbose=False)
    config = load_hyperpyyaml(text, found)
    return Experiment(config, manifests, tokenizer, tokenizer_file, output, plain)


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
                f"corpus {config['corpus']!r} has no split {split!r}; it has: "
                f"{', '.join(sorted(manifests))}. The settings train_split, "
                "valid_split and test_splits name the splits to use"
            )
        utterances, hours = manifest_durations(manifests[split])
        logger.info(f"{split}: {utterances} utterances, {hours:.2f} hours")
    return manifests


def prepare_tokenizer(config, manifests, output):
    """Load the tokenizer that the run names, or train one on the transcripts.

    It names a ``tokenizer_file``, or in ``init_from`` a model that has one, of which it
    keeps a copy.

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
    manifest = manifests[config["train_split"]]
    if file is None and config.get("init_from") is None:
        unit, size = config["token_unit"], config["vocab_size"]
        file = train_tokenizer(manifest, output / "tokenizer", unit, size)
        return load_tokenizer(file), file
    if file is None:
        file = keep_tokenizer(config["init_from"], output / "tokenizer")
    tokenizer = load_tokenizer(file)
    require_tokens(tokenizer, read_transcripts(manifest), file)
    return tokenizer, pathlib.Path(file)


def require_tokens(tokenizer, sentences, name):
    """Refuse transcripts of which a tokenizer lacks a part: it would count as blank.

    Arguments
    ---------
    tokenizer : sentencepiece.SentencePieceProcessor
        Somebody else's.
    sentences : list of str
        What is to be trained on.
    name : str or pathlib.Path
        Of the tokenizer, for the message.

    Raises
    ------
    ValueError
        Naming what is unknown.
    """
    unk_id, unknown = tokenizer.unk_id(), set()
    # A hundred characters are looked up, not a hundred thousand sentences.
    suspects = {c for c in set().union(*sentences) if unk_id in tokenizer.encode(c)}
    for sentence in sentences:
        if not suspects.isdisjoint(sentence):
            ids = tokenizer.encode(sentence)
            pieces = tokenizer.encode(sentence, out_type=str)
            unknown |= {piece for piece, id_ in zip(pieces, ids) if id_ == unk_id}
    if unknown:
        shown = ", ".join(map(repr, sorted(unknown)[:10]))
        raise ValueError(
            f"the tokenizer {name} lacks what the training transcripts hold: {shown}"
            f"{' and more' if len(unknown) > 10 else ''}; change the transcripts, or "
            "train a tokenizer of your own (tokenizer_file and init_from null)"
        )

"""Start of a training run: settings, output folder, corpus, tokenizer and model."""

import logging
import pathlib
from dataclasses import dataclass
from typing import Generic

import speechbrain as sb
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from sentencepiece import SentencePieceProcessor

from hyperconformer.config import read_config, resolve_config
from hyperconformer.core.extras import import_pyplot
from hyperconformer.core.files import write_atomically
from hyperconformer.core.tokens import list_pieces
from hyperconformer.corpora import prepare
from hyperconformer.evaluation.environment import describe_environment
from hyperconformer.hub.folder import TOKENIZER_FILE, check_file, find_model, save_model
from hyperconformer.hub.hyperparams import from_hyperpyyaml
from hyperconformer.training.data import (
    find_tokenizer,
    keep_tokenizer,
    load_tokenizer,
    manifest_durations,
    read_transcripts,
    train_tokenizer,
)
from hyperconformer.training.resume import (
    SETTINGS_FILE,
    read_earlier_settings,
    require_same_model,
)
from hyperconformer.training.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment(Generic[Settings]):
    """The parts of a training run.

    Attributes
    ----------
    settings : hyperconformer.training.settings.TrainingSettings
        The settings, built.
    manifests : dict of str to pathlib.Path
        Split to manifest.
    tokenizer : sentencepiece.SentencePieceProcessor
        Text to tokens.
    tokenizer_file : pathlib.Path
        The file of the tokenizer.
    output : pathlib.Path
        The run's folder.
    plain : str
        The YAML file without references.
    """

    settings: Settings
    manifests: dict[str, pathlib.Path]
    tokenizer: SentencePieceProcessor
    tokenizer_file: pathlib.Path
    output: pathlib.Path
    plain: str

    def make_brain(self, kind, train_loader, modules, run_options, parts=(), **options):
        """Build the Brain; its checkpointer saves all that a resumed run needs.

        Arguments
        ---------
        kind : type
            A :class:`hyperconformer.training.brain.TrainingBrain`.
        train_loader : dict
            Options of the training set's loader.
        modules : dict of str to torch.nn.Module
            What is trained.
        run_options : dict
            SpeechBrain's ``run_opts``.
        parts : collection of str
            Keys of further settings with a state.
        **options
            Further arguments of the class.

        Returns
        -------
        hyperconformer.training.brain.TrainingBrain
        """
        settings = self.settings
        settings.checkpointer.add_recoverables(
            {
                **modules,
                **{key: getattr(settings, key) for key in parts},
                "counter": settings.epoch_counter,
                "lr_schedule": settings.lr_schedule,
            }
        )
        return kind(
            train_loader=train_loader,
            modules=modules,
            opt_class=settings.optimizer,
            hparams=settings.as_dict(),
            run_opts=run_options,
            checkpointer=settings.checkpointer,
            **options,
        )

    def save_model(self, modules, settings=(), ngram=None):
        """Write a model folder into the run's folder.

        Arguments
        ---------
        modules : list of str
            Keys of the YAML file that are modules with weights.
        settings : list of str
            Other keys that loading the model needs.
        ngram : dict, optional
            As for :func:`hyperconformer.hub.folder.save_model`.

        Returns
        -------
        pathlib.Path
            The model folder.
        """
        return save_model(
            self.output / "model",
            resolve_config(self.plain, keys=[*settings, *modules]),
            {key: getattr(self.settings, key) for key in modules},
            self.tokenizer_file,
            ngram,
        )


def open_experiment(
    kind: type[Settings],
    config_file: str | pathlib.Path,
    overrides: str | dict | None,
    test_only: bool = False,
) -> Experiment[Settings]:
    """Make the run's folder, the manifests, the tokenizer and the model.

    Arguments
    ---------
    kind : type
        The class of the settings, whose keys the run reads.
    config_file : str or pathlib.Path
        The YAML file.
    overrides : str or dict or None
        Changes to the YAML file.
    test_only : bool
        True keeps the settings of a trained model unchanged.

    Returns
    -------
    Experiment

    Raises
    ------
    FileNotFoundError, ValueError
        If the YAML file is wrong, the corpus is missing, a split is empty, or the
        folder holds a run of another model or with other tokens.
    """
    if not test_only:
        import_pyplot()  # for curve.png: it would be missed after the first epoch only
    text = read_config(config_file, overrides, kind.keys())
    tree = YAML().load(resolve_references(text))
    try:
        settings = kind.read(tree)
    except ValueError as error:
        raise ValueError(f"{config_file}: {error}") from error
    output = pathlib.Path(settings.output_folder)
    checkpoints = pathlib.Path(tree["checkpointer"]["checkpoints_dir"])
    earlier = read_earlier_settings(output, checkpoints)
    if earlier is not None:
        now = YAML().load(resolve_references(text, _fit_tokens(earlier, tree)))
        require_same_model(earlier, now, output, test_only)
    sb.create_experiment_directory(str(output), save_env_desc=False)
    manifests = prepare_corpus(settings, output)
    tokenizer, file = prepare_tokenizer(settings, manifests, output, earlier)
    # The model needs the number of tokens, which is known only now.
    plain = resolve_config(text, {"vocab_size": tokenizer.vocab_size()})
    # Now, as a model that is no data could not be saved after the training.
    from_hyperpyyaml(plain, source=config_file)
    sb.utils.seed.seed_everything(settings.seed, verbose=False)
    settings.build(text, tokenizer.vocab_size())
    # Tests do not change a trained model.
    keep = test_only and earlier is not None
    if sb.utils.distributed.if_main_process() and not keep:
        write_atomically(output / SETTINGS_FILE, plain.encode())
        write_atomically(output / "env.log", describe_environment().encode())
    return Experiment(settings, manifests, tokenizer, file, output, plain)


def _trains_tokenizer(tree):
    """Return whether the run trains its own tokenizer."""
    borrowed = tree.get("init_from") is not None and not tree.get("new_head")
    return tree.get("tokenizer_file") is None and not borrowed


def _fit_tokens(earlier, now):
    """Return token settings that need no comparison: the tokenizer itself is compared.

    Only trained sub-words have a requested number of tokens. For characters and given
    tokenizers, the number is determined.
    """
    trained = _trains_tokenizer(now) and _trains_tokenizer(earlier)
    same = {} if trained else {"token_unit": earlier["token_unit"]}
    if not trained or now["token_unit"] == "char":
        same["vocab_size"] = earlier["vocab_size"]
    return same


def prepare_corpus(settings, output):
    """Make the manifests on one process and log the amount of speech.

    Arguments
    ---------
    settings : hyperconformer.training.settings.TrainingSettings
        The settings.
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
                settings.corpus,
                settings.data_folder,
                output / "manifests",
                **settings.corpus_options,
            )
        )

    sb.utils.distributed.run_on_main(make)
    if not manifests:  # Another process made them: reuse them.
        make()
    for split in (settings.train_split, *settings.evaluated_splits):
        if split not in manifests:
            raise ValueError(
                f"corpus {settings.corpus!r} has no split {split!r}; it has: "
                f"{', '.join(sorted(manifests))}. The settings train_split, "
                "valid_split and test_splits name the splits to use"
            )
        utterances, hours = manifest_durations(manifests[split])
        logger.info(f"{split}: {utterances} utterances, {hours:.2f} hours")
    return manifests


def prepare_tokenizer(settings, manifests, output, earlier=None):
    """Return the run's tokenizer, stored in its folder.

    A resumed run keeps its tokenizer. A new run takes ``tokenizer_file``, or the
    tokenizer of the model in ``init_from``, or trains one on the transcripts.

    Arguments
    ---------
    settings : hyperconformer.training.settings.TrainingSettings
        The settings.
    manifests : dict of str to pathlib.Path
        Split to manifest.
    output : pathlib.Path
        The run's folder.
    earlier : dict, optional
        The settings of the resumed run.

    Returns
    -------
    tokenizer : sentencepiece.SentencePieceProcessor
    file : pathlib.Path

    Raises
    ------
    FileNotFoundError
        If the file or the model does not exist.
    ValueError
        If the tokens differ from those of the initial weights, or do not cover the
        transcripts.
    """
    folder, manifest = output / "tokenizer", manifests[settings.train_split]
    source, given = settings.tokens_from, settings.tokenizer_file
    if earlier is not None:
        file = find_tokenizer(folder, earlier["vocab_size"])
        file = file or earlier.get("tokenizer_file")  # older runs kept no copy
        if file is None:
            raise ValueError(
                f"{folder} does not hold the tokenizer of {earlier['vocab_size']} "
                "tokens that this run started with. Put it back, or give another "
                "--output_folder"
            )
        if given is not None:
            _require_equal(given, file, "give another --output_folder")
    elif given is None and source is None:
        unit, size = settings.token_unit, settings.vocab_size
        file = train_tokenizer(manifest, folder, unit, size)
        return load_tokenizer(file), file
    else:
        file = given
        if source is not None:
            file = check_file(find_model(source), TOKENIZER_FILE)
        if source is not None and given is not None:
            _require_equal(given, file, "add --new_head=true to begin a head for them")
    tokenizer = load_tokenizer(file)
    require_tokens(tokenizer, read_transcripts(manifest), file)
    content = pathlib.Path(file).read_bytes()
    if pathlib.Path(file).parent != folder:
        sb.utils.distributed.run_on_main(
            keep_tokenizer, args=(folder, TOKENIZER_FILE, content)
        )
        file = folder / TOKENIZER_FILE
    return tokenizer, pathlib.Path(file)


def _require_equal(given, expected, advice):
    """Refuse a tokenizer whose tokens differ from those of the weights."""
    tokens, weights = (
        list_pieces(tokenizer) for tokenizer in map(load_tokenizer, (given, expected))
    )
    if tokens == weights:
        return
    first = next(
        (i for i, (a, b) in enumerate(zip(tokens, weights)) if a != b),
        min(len(tokens), len(weights)),
    )
    shown = [x[first] if first < len(x) else "none" for x in (tokens, weights)]
    raise ValueError(
        f"tokenizer_file {given} has other tokens than the weights, which were trained "
        f"with {expected}: {len(tokens)} instead of {len(weights)}, token {first} is "
        f"{shown[0]!r} instead of {shown[1]!r}; {advice}"
    )


def require_tokens(tokenizer, sentences, name):
    """Refuse transcripts with unknown tokens, which would count as CTC blank.

    Arguments
    ---------
    tokenizer : sentencepiece.SentencePieceProcessor
        The tokenizer, trained on other text.
    sentences : list of str
        The training transcripts.
    name : str or pathlib.Path
        Name of the tokenizer, for the message.

    Raises
    ------
    ValueError
        If the tokenizer does not cover the transcripts.
    """
    unk_id, unknown = tokenizer.unk_id(), set()
    # Looking up characters is faster than encoding all sentences.
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
            f"{' and more' if len(unknown) > 10 else ''}. Change the transcripts, or "
            "begin a run with tokens of its own: another --output_folder without "
            "tokenizer_file and, with init_from, --new_head=true"
        )

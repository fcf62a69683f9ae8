"""HyperPyYAML to the data of ``config.json``, and back for SpeechBrain.

Training files describe a model in HyperPyYAML. A model folder holds what they say as
``config.json``, which is what this package loads, and as ``hyperparams.yaml``, which
only SpeechBrain's own interfaces load.
"""

import io
import pathlib
import re
from collections.abc import Collection
from typing import Any

from ruamel.yaml import YAML, SafeLoader
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.tag import Tag

from hyperconformer.core.messages import quoted
from hyperconformer.hub.config import CLASS, CONSTRUCTOR, MODULES, TABLES

KINDS = {"!new": CLASS, "!name": CONSTRUCTOR}
# What of a training file goes into a model folder.
MODEL_KEYS = ("sample_rate", *MODULES)
# More than any model has, and few enough for aliases of aliases.
MAX_NODES = 10000

_CORE = "tag:yaml.org,2002:"
_PLAIN = {f"{_CORE}{name}" for name in ("str", "int", "float", "bool", "null")}
# Once HyperPyYAML has run, ruamel gives "(1, 2)" the tag !tuple by itself.
_TUPLE_TAGS = (f"{_CORE}str", "!tuple")
_TUPLE = re.compile(r"\((.*)\)", re.DOTALL)

_SPEECHBRAIN = """
# For SpeechBrain's {interface}.from_hparams
encoder: !new:hyperconformer.{encoder}
  extractor: !ref <extractor>
  recognizer: !ref <recognizer>
{decoding}
tokenizer: !new:sentencepiece.SentencePieceProcessor
audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
  sample_rate: !ref <sample_rate>
pretrainer: !new:hyperconformer.FolderPretrainer
  loadables:
    model: !ref <encoder>
    tokenizer: !ref <tokenizer>
  files:
    model: model.safetensors
    tokenizer: tokenizer.model
"""
_CTC = """modules:
  encoder: !ref <encoder>
decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
  blank_id: 0"""
_JOINT = """decoder: !new:hyperconformer.JointSearcher
  recognizer: !ref <recognizer>
modules:
  encoder: !ref <encoder>
  decoder: !ref <decoder>"""


def from_hyperpyyaml(
    text: str, keys: Collection[str] = MODEL_KEYS, source: str | pathlib.Path = "model"
) -> dict[str, Any]:
    """Turn what a HyperPyYAML text says of a model into data. Nothing of it is run.

    Arguments
    ---------
    text : str
        HyperPyYAML without references, as
        :func:`hyperconformer.config.resolve_config` returns it.
    keys : collection of str
        The keys to take, where they are there; by default those of a model.
    source : str or pathlib.Path
        Where the text is from, for messages.

    Returns
    -------
    dict
        As in ``config.json``; tuples are lists.

    Raises
    ------
    ValueError
        If the text is no HyperPyYAML, or these keys hold what is no data, such as
        ``!apply:``.

    Example
    -------
    >>> from_hyperpyyaml("extractor: !new:torch.nn.Linear\\n  a: (1, 2)\\nlr: 0.1")
    {'extractor': {'class': 'torch.nn.Linear', 'a': [1, 2]}}
    """
    try:
        root = SafeLoader(text).get_single_node()
    except (YAMLError, RecursionError, ValueError) as error:
        first = str(error).split("\n")[0]
        raise ValueError(f"{source} is not valid YAML: {first}") from None
    if not isinstance(root, MappingNode):
        raise ValueError(f"{source} must hold keys and values")
    reader = _Reader(source)
    return {
        key.value: reader.read(value, key.value)
        for key, value in root.value
        if key.value in keys
    }


class _Reader:
    """Turns YAML nodes into data."""

    def __init__(self, source):
        self.source, self.nodes = source, 0
        self.scalars = SafeLoader("")

    def read(self, node, path):
        self.nodes += 1
        # Aliases are read as often as they stand there.
        if self.nodes > MAX_NODES or path.count(".") + path.count("[") > 100:
            raise ValueError(f"{self.source}: {path[:50]}... is no model: too large")
        kind, _, name = node.tag.partition(":")
        if kind in KINDS:
            if not isinstance(node, MappingNode) and node.value:
                self._fail(path, "arguments must have names")
            return {
                KINDS[kind]: _short(name, TABLES[KINDS[kind]]),
                **self._pairs(node, path),
            }
        if isinstance(node, MappingNode) and node.tag == f"{_CORE}map":
            return self._pairs(node, path)
        if isinstance(node, SequenceNode) and node.tag == f"{_CORE}seq":
            return [self.read(x, f"{path}[{i}]") for i, x in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            match = _TUPLE.fullmatch(node.value)
            if match and not node.style and node.tag in _TUPLE_TAGS:
                values = SafeLoader(f"[{match[1]}]").get_single_node()
                return self.read(values, path)
            if node.tag in _PLAIN:
                return self.scalars.construct_object(node)
        self._fail(
            path,
            f"{quoted(node.tag)} cannot stand in a model folder, which holds plain "
            "values, !new: and !name: only",
        )

    def _pairs(self, node, path):
        """The entries of a mapping; none of the empty text after a tag."""
        if not isinstance(node, MappingNode):
            return {}
        for key, _ in node.value:
            if key.tag != f"{_CORE}str":  # among them the merge key
                self._fail(path, "keys must be plain strings")
        return {
            key.value: self.read(value, f"{path}.{key.value}")
            for key, value in node.value
        }

    def _fail(self, path, message):
        raise ValueError(f"{self.source}: {path}: {message}")


def _short(name, table):
    """A class as the table calls it, else its dotted name."""
    last = name.rpartition(".")[2]
    # Version 0.1 named this package's classes by their modules.
    if name.startswith("hyperconformer.") and last in table:
        return last
    return next((own for own, path in table.items() if path == name), name)


def to_hyperpyyaml(config: dict[str, Any], has_decoder: bool | None = None) -> str:
    """Write the data of a ``config.json`` as HyperPyYAML.

    Arguments
    ---------
    config : dict
        The data.
    has_decoder : bool, optional
        Whether the recogniser has an attention decoder: then the text also builds
        what SpeechBrain's ``EncoderDecoderASR`` needs, else what ``EncoderASR`` needs.
        None = neither, for a language model.

    Returns
    -------
    str

    Example
    -------
    >>> print(to_hyperpyyaml({"extractor": {"class": "Fbank", "n_mels": 40}}), end="")
    extractor: !new:speechbrain.lobes.features.Fbank
      n_mels: 40
    """
    tree = {key: _tagged(config[key]) for key in MODEL_KEYS if key in config}
    text = io.StringIO()
    YAML().dump(tree, text)
    if has_decoder is None:
        return text.getvalue()
    names = ("EncoderASR", "CTCEncoder", _CTC)
    if has_decoder:
        names = ("EncoderDecoderASR", "Encoder", _JOINT)
    options = dict(zip(("interface", "encoder", "decoding"), names))
    return text.getvalue() + _SPEECHBRAIN.format(**options)


def _tagged(value):
    if isinstance(value, list):
        row = CommentedSeq(_tagged(one) for one in value)
        if not any(isinstance(one, (dict, list)) for one in value):
            row.fa.set_flow_style()
        return row
    if not isinstance(value, dict):
        return value
    for tag, kind in KINDS.items():
        if kind in value:
            name = TABLES[kind].get(value[kind], value[kind])
            tree = CommentedMap()
            tree.update({k: _tagged(x) for k, x in value.items() if k != kind})
            tree.yaml_set_ctag(Tag(suffix=f"{tag}:{name}"))
            return tree
    return {key: _tagged(one) for key, one in value.items()}

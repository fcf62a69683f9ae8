"""HyperPyYAML from strangers: the same files, but nothing runs that is not listed here.

``hyperpyyaml.load_hyperpyyaml`` calls whatever the file names. Here a file may build
(``!new:``) and mention (``!name:``) only what the tables below allow, numbers are
bounded, and building cannot take more memory than a given budget.
"""

import functools
import importlib
import itertools
import re

import torch
from ruamel.yaml import SafeLoader
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from torch.utils._python_dispatch import TorchDispatchMode

from hyperconformer.core.messages import unknown

# What `!new:` may build.
BUILT = {
    "hyperconformer.HyperConformerASR",
    "hyperconformer.ConvolutionFrontEnd",
    "hyperconformer.FeatureExtractor",
    "hyperconformer.TransformerLM",
    "hyperconformer.Recognizer",
    "hyperconformer.Transducer",
    "hyperconformer.LinearAttentionTransformerLM",
    "speechbrain.lobes.features.Fbank",
}
# What `!name:` may hand over.
NAMED = {
    "speechbrain.nnet.activations.Swish",
    "torch.nn.ELU",
    "torch.nn.GELU",
    "torch.nn.Identity",
    "torch.nn.LeakyReLU",
    "torch.nn.ReLU",
    "torch.nn.SiLU",
    "torch.nn.Tanh",
}
# What may stand in the file for SpeechBrain's own loader, and is not built by ours.
MENTIONED = {
    "hyperconformer.JointSearcher",
    "hyperconformer.CTCEncoder",
    "hyperconformer.Encoder",
    "hyperconformer.FolderPretrainer",
    "sentencepiece.SentencePieceProcessor",
    "speechbrain.dataio.preprocess.AudioNormalizer",
    "speechbrain.decoders.ctc_greedy_decode",
}

MAX_CHARACTERS = 16384
MAX_DEPTH = 32
# No size of a model is larger, so that two of them multiplied still fit in memory.
MAX_NUMBER = 16384
LARGER = {
    "sample_rate": 384000,
    "num_tokens": 65536,
    "tgt_vocab": 65536,
    "vocab": 65536,
    "vocab_size": 65536,
}

_BRACKETS = {"[": 1, "{": 1, "]": -1, "}": -1}
_CORE = "tag:yaml.org,2002:"
_REFERENCE = re.compile(r"<([A-Za-z_]\w*)>")
# Once HyperPyYAML has run, ruamel gives "(1, 2)" the tag !tuple by itself.
_TUPLE_TAGS = (f"{_CORE}str", "!tuple")
_TUPLE = re.compile(r"\((.*)\)", re.DOTALL)


def load_safely(text, source, keys, max_bytes=2**31, max_tensors=100000):
    """Build some keys of a HyperPyYAML text.

    Every tag of the text is checked, also in the keys that are not built. Allowed
    are plain values, tuples, ``!ref <key>`` to a key of the top level, and ``!new:``
    and ``!name:`` with a listed name. There are no other tags, no merge keys, no
    arithmetic.

    Arguments
    ---------
    text : str
        The text.
    source : str or pathlib.Path
        Where it is from, for messages.
    keys : collection of str
        The keys to build; plain numbers and strings of the top level come with them.
    max_bytes : int
        Memory that all tensors made on the way may take together.
    max_tensors : int
        How many they may be, which bounds the number of layers.

    Returns
    -------
    dict
        Key to what it says.

    Raises
    ------
    ValueError
        If the text is no such file, or asks for more than is allowed; the message
        says where.

    Example
    -------
    >>> load_safely("rate: 8000\\nact: !name:torch.nn.ReLU", "a.yaml", ["act"])
    {'rate': 8000, 'act': <class 'torch.nn.modules.activation.ReLU'>}
    >>> load_safely("a: !apply:os.system [ls]", "a.yaml", [])
    Traceback (most recent call last):
    ValueError: a.yaml, line 1: the tag '!apply:os.system' is not allowed
    """
    try:
        return _load(text, source, keys, _Budget(max_bytes, max_tensors))
    except RecursionError as error:  # aliases in aliases in aliases
        raise ValueError(f"{source} is nested too deep") from error


def _load(text, source, keys, budget):
    builder = _Builder(source, _compose(text, source))
    missing = sorted(set(keys) - set(builder.top))
    if missing:
        raise ValueError(
            f"{source} should hold {', '.join(keys)}, but holds: "
            + ", ".join(builder.top)
        )
    with budget:
        return {
            key: builder.build(node)
            for key, node in builder.top.items()
            if key in keys or _is_plain_value(node)
        }


def _is_core(node):
    return node.tag.startswith(_CORE)


def _tuple_text(node):
    """What stands between the brackets of a tuple; None for other nodes."""
    if not isinstance(node, ScalarNode) or node.style or node.tag not in _TUPLE_TAGS:
        return None
    match = _TUPLE.fullmatch(node.value)
    return match and match[1]


def _is_plain_value(node):
    return isinstance(node, ScalarNode) and (
        _is_core(node) or _tuple_text(node) is not None
    )


def _compose(text, source):
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"{source} has {len(text)} characters; at most {MAX_CHARACTERS} are allowed"
        )
    # Before parsing, whose time grows with the square of the depth.
    depths = itertools.accumulate(_BRACKETS.get(character, 0) for character in text)
    if max(depths, default=0) > MAX_DEPTH:
        raise ValueError(f"{source} is more than {MAX_DEPTH} levels deep")
    try:
        root = SafeLoader(text).get_single_node()
    except MarkedYAMLError as error:
        # Not its whole text, which quotes the file.
        line = error.problem_mark.line + 1
        raise ValueError(
            f"{source}, line {line}: not valid YAML: {error.problem}"
        ) from None
    except (YAMLError, RecursionError, ValueError) as error:
        first = str(error).split("\n")[0]
        raise ValueError(f"{source} is not valid YAML: {first}") from error
    if not isinstance(root, MappingNode):
        raise ValueError(f"{source} must hold keys and values")
    return root


class _Builder:
    """Checks all nodes, then turns single ones into objects, each once."""

    def __init__(self, source, root):
        self.source = source
        self.scalars = SafeLoader("")
        self.built, self.open = {}, set()
        self.checked = set()
        self._check(root, 0)
        self.top = self._pairs(root)

    def _fail(self, node, message):
        line = node.start_mark.line + 1
        raise ValueError(f"{self.source}, line {line}: {message}")

    def _check(self, node, depth):
        if depth > MAX_DEPTH:
            self._fail(node, f"more than {MAX_DEPTH} levels deep")
        if id(node) in self.checked:  # an alias of what was seen
            return
        self.checked.add(id(node))
        self._check_tag(node)
        if _tuple_text(node) is not None:
            self._tuple(node)
        if isinstance(node, MappingNode):
            for key, value in self._pairs(node).items():
                self._check(value, depth + 1)
                self._check_number(key, value)
        elif isinstance(node, SequenceNode):
            for value in node.value:
                self._check(value, depth + 1)
                self._check_number(None, value)

    def _check_tag(self, node):
        tag = node.tag
        kind, _, name = tag.partition(":")
        if _is_core(node):
            simple = {"map", "seq", "str", "int", "float", "bool", "null"}
            allowed = tag[len(_CORE) :] in simple
        elif kind in ("!new", "!name"):
            known = (BUILT if kind == "!new" else NAMED) | MENTIONED
            if name not in known:
                self._fail(node, unknown(f"name after {kind}:", name, sorted(known)))
            allowed = True
        else:
            allowed = tag in ("!ref", "!tuple") and isinstance(node, ScalarNode)
        if not allowed:
            self._fail(node, f"the tag {tag!r} is not allowed")

    def _check_number(self, key, node):
        if not isinstance(node, ScalarNode) or node.tag not in (
            f"{_CORE}int",
            f"{_CORE}float",
        ):
            return
        limit = LARGER.get(key, MAX_NUMBER)
        number = self._scalar(node)
        if not abs(number) <= limit:
            self._fail(node, f"numbers go from -{limit} to {limit}, got {node.value}")

    def _pairs(self, node):
        pairs = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode) or key.tag != f"{_CORE}str":
                self._fail(key, "keys must be plain strings")
            if key.value in pairs:
                self._fail(key, f"the key {key.value!r} stands twice")
            pairs[key.value] = value
        return pairs

    def _scalar(self, node):
        if len(node.value) > 4096:
            self._fail(node, "a value of more than 4096 characters")
        try:
            return self.scalars.construct_object(node)
        except (ValueError, YAMLError) as error:
            self._fail(node, str(error))

    def build(self, node):
        """What a node says; aliases and references give the same object."""
        if id(node) in self.open:
            self._fail(node, "it refers to itself")
        if id(node) not in self.built:
            self.open.add(id(node))
            self.built[id(node)] = self._build(node)
            self.open.remove(id(node))
        return self.built[id(node)]

    def _build(self, node):
        kind, _, name = node.tag.partition(":")
        if kind == "!ref":
            return self._follow(node)
        if kind in ("!new", "!name") and name in MENTIONED:
            self._fail(node, f"{name} may stand here only for SpeechBrain")
        if kind == "!new":
            return self._call(node, _locate(name))
        if kind == "!name":
            found = _locate(name)
            arguments = self._arguments(node)
            return functools.partial(found, **arguments) if arguments else found
        if isinstance(node, MappingNode):
            return {k: self.build(v) for k, v in self._pairs(node).items()}
        if isinstance(node, SequenceNode):
            return [self.build(value) for value in node.value]
        if _tuple_text(node) is not None:
            return self._tuple(node)
        return self._scalar(node)

    def _follow(self, node):
        match = _REFERENCE.fullmatch(node.value)
        if match is None or match[1] not in self.top:
            self._fail(node, f"!ref must name a key in <>, got {node.value!r}")
        return self.build(self.top[match[1]])

    def _tuple(self, node):
        """HyperPyYAML's tuples: plain values between round brackets."""
        sequence = _compose(f"t: [{_tuple_text(node)}]", self.source).value[0][1]
        self._check(sequence, 0)
        values = sequence.value
        if not all(isinstance(v, ScalarNode) and _is_core(v) for v in values):
            self._fail(node, "tuples hold plain values")
        return tuple(self._scalar(value) for value in values)

    def _arguments(self, node):
        if isinstance(node, MappingNode):
            return {k: self.build(v) for k, v in self._pairs(node).items()}
        if node.value:
            self._fail(node, "arguments must have names")
        return {}

    def _call(self, node, cls):
        arguments = self._arguments(node)
        try:
            return cls(**arguments)
        # Whatever wrong settings provoke in a constructor, it is the file's fault.
        except Exception as error:
            self._fail(
                node, f"{cls.__name__} cannot be built: {type(error).__name__}: {error}"
            )


def _locate(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


class _Budget(TorchDispatchMode):
    """Refuses tensors past a sum of bytes, before their memory is touched."""

    def __init__(self, max_bytes, max_tensors):
        super().__init__()
        self.max_bytes, self.max_tensors = max_bytes, max_tensors
        self.bytes = self.tensors = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if "device" in kwargs and not any(isinstance(a, torch.Tensor) for a in args):
            # A new tensor: its size is asked where nothing is allocated.
            self._spend(func(*args, **{**kwargs, "device": torch.device("meta")}))
        return func(*args, **kwargs)

    def _spend(self, tensor):
        self.bytes += tensor.numel() * tensor.element_size()
        self.tensors += 1
        if self.bytes > self.max_bytes or self.tensors > self.max_tensors:
            raise ValueError(
                "the model would be far larger than its weights: more than "
                f"{self.max_bytes} bytes or {self.max_tensors} tensors"
            )

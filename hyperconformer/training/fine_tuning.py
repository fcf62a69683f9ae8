"""Training that begins with the weights of a trained model (``init_from``)."""

import logging
import re

from hyperconformer.config import flatten
from hyperconformer.hub.folder import load_weights, read_settings
from hyperconformer.hub.hyperparams import from_hyperpyyaml

logger = logging.getLogger(__name__)

# Weights that depend on the tokens: all but features and encoder.
HEADS = re.compile(
    r"recognizer\.(ctc_head|decoder_head|transducer|transformer\.decoder"
    r"|transformer\.custom_tgt_module)\..*"
)


def start_from(source, settings, extractor, recognizer, new_head=False):
    """Load the weights and feature statistics of another model.

    Statistics are kept if the two models normalise features differently. The other
    model is not built: its weights are loaded into this model's modules.

    Arguments
    ---------
    source : str or pathlib.Path
        As for :func:`hyperconformer.hub.folder.find_model`.
    settings : str
        HyperPyYAML text without references that describes this run's model.
    extractor, recognizer : torch.nn.Module
        This run's modules; changed in place.
    new_head : bool
        True loads the front end and the encoder only, for other tokens. The CTC head,
        and a decoder or transducer, keep their weights.

    Raises
    ------
    FileNotFoundError
        If the model does not exist.
    ValueError
        If its sample rate or its weights do not fit this run's model.
    """
    theirs = flatten(read_settings(source))
    ours = flatten(from_hyperpyyaml(settings))
    rates = [model.get("sample_rate") for model in (theirs, ours)]
    if rates[0] != rates[1]:
        raise ValueError(
            f"init_from: {source} was trained at {rates[0]} Hz, this run has "
            f"sample_rate: {rates[1]}"
        )
    own_statistics = {key: x.clone() for key, x in extractor.state_dict().items()}
    modules = {"extractor": extractor, "recognizer": recognizer}
    load_weights(source, modules, ignored=HEADS if new_head else None)
    same = "extractor.normalization"
    if theirs.get(same) != ours.get(same):
        extractor.load_state_dict(own_statistics)
    part = "encoder" if new_head else "weights"
    logger.info(f"beginning with the {part} of {source}")
    differences = [
        f"{key} ({theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} here)"
        for key in sorted(theirs.keys() | ours.keys())
        if key.split(".")[0] in ("extractor", "recognizer")
        if theirs.get(key) != ours.get(key)
        if not (new_head and key.split(".")[-1] in ("vocab_size", "tgt_vocab"))
    ]
    if differences:
        logger.warning(f"its settings differ: {', '.join(differences)}")

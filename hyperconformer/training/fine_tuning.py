"""Training that begins with the weights of a trained model (``init_from``)."""

import logging
import re

from torch import nn

from hyperconformer.config import flatten
from hyperconformer.hub.folder import load_weights, read_settings
from hyperconformer.hub.hyperparams import from_hyperpyyaml

logger = logging.getLogger(__name__)

# Weights that depend on the tokens: all but features and encoder.
HEADS = re.compile(
    r"recognizer\.(ctc_head|phone_head|decoder_head|transducer|transformer\.decoder"
    r"|transformer\.custom_tgt_module)\..*"
)
# A head that only publishing puts into a recogniser; in training it is `phone_ctc`.
PHONE_HEAD = r"recognizer\.phone_head\..*"


def start_from(source, settings, extractor, recognizer, new_head=False, phone_ctc=None):
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
    phone_ctc : hyperconformer.training.phones.PhoneCTC, optional
        This run's. It takes the other model's phone head where phones and layer are
        the same; changed in place.

    Raises
    ------
    FileNotFoundError
        If the model does not exist.
    ValueError
        If its sample rate or its weights do not fit this run's model.
    """
    described = read_settings(source)
    theirs = flatten(described)
    ours = flatten(from_hyperpyyaml(settings))
    rates = [model.get("sample_rate") for model in (theirs, ours)]
    if rates[0] != rates[1]:
        raise ValueError(
            f"init_from: {source} was trained at {rates[0]} Hz, this run has "
            f"sample_rate: {rates[1]}"
        )
    own_statistics = {key: x.clone() for key, x in extractor.state_dict().items()}
    modules = {"extractor": extractor, "recognizer": recognizer}
    ignored = HEADS if new_head else re.compile(PHONE_HEAD)
    load_weights(source, modules, ignored=ignored)
    same = "extractor.normalization"
    if theirs.get(same) != ours.get(same):
        extractor.load_state_dict(own_statistics)
    phones = described["recognizer"].get("phones")
    if phone_ctc is not None and phones is not None:
        encoder = recognizer.transformer.encoder
        if phones == phone_ctc.phones and phone_ctc.layer == len(encoder.layers):
            head = {"recognizer": nn.ModuleDict({"phone_head": phone_ctc.head})}
            load_weights(source, head, ignored=re.compile(f"(?!{PHONE_HEAD}).*"))
            phone_ctc.norm.load_state_dict(encoder.norm.norm.state_dict())
        else:
            logger.warning(
                f"phone_ctc begins anew: {source} has other phones, or predicts them "
                f"from another layer than the last of {len(encoder.layers)}"
            )
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

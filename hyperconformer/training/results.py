"""Measurements of a run, in machine-readable files."""

import csv
import json
import pathlib
import platform
import statistics
import sys
import time

import speechbrain
import torch
from torch.utils.flop_counter import FlopCounterMode

import hyperconformer


def write_results(path, splits, brain, model, valid, test, **measures):
    """Write ``results.json``: error rates, speed, sizes and environment.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.
    splits : dict of str to dict
        Split to its measures.
    brain : hyperconformer.training.brain.TrainingBrain
        The Brain of the training.
    model : torch.nn.Module
        The trained model, without heads for training only.
    valid, test : str
        The splits for choosing settings and for reporting.
    **measures
        Further measures.
    """
    content = {
        "splits": splits,
        "valid": valid,
        "test": test,
        "parameters": sum(part.numel() for part in model.parameters()),
        "updates": brain.optimizer_step,
        "train_s": brain.train_s,
        **measures,
        "peak_memory_bytes": peak_memory_bytes(brain.device),
        "device": str(brain.device),
        **versions(),
    }
    pathlib.Path(path).write_text(json.dumps(content, indent=2) + "\n")


def versions():
    """Return the environment of a measurement.

    Returns
    -------
    dict
        Versions, processor architecture and number of threads.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "speechbrain": speechbrain.__version__,
        "hyperconformer": hyperconformer.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def peak_memory_bytes(device):
    """Return the peak memory: of tensors on a GPU, else of the process.

    Arguments
    ---------
    device : str or torch.device
        The model's device.

    Returns
    -------
    int or None
        None if the system does not report it.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def count_macs(function, *arguments):
    """Count multiply-adds of matrix products, convolutions and attention in a call.

    Arguments
    ---------
    function : callable
        The function to call.
    *arguments
        Its arguments.

    Returns
    -------
    int

    Example
    -------
    >>> count_macs(torch.nn.Linear(3, 4), torch.zeros(5, 3))
    60
    """
    # Without gradients, its hooks fail on a module that returns parameters.
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops() // 2  # a multiply-add counts as two operations


def cost_against_length(recognizer, make_features, lengths_s, repetitions=3):
    """Measure time and memory of a single utterance, for several lengths.

    Arguments
    ---------
    recognizer : hyperconformer.integration.recognizer.Recognizer
        The model; encoder and CTC head are measured.
    make_features : callable
        Function from seconds to (1, T, F) features and (1,) frames.
    lengths_s : list of float
        The lengths.
    repetitions : int
        Number of timed calls after one warm-up; the median counts.

    Returns
    -------
    list of dict
        ``audio_s``, ``forward_s``, ``update_s`` (forward and backward), and
        ``kept_bytes``, which the forward pass keeps for the backward pass.
    """
    recognizer.eval()  # no dropout, which some mixers lack
    costs = []
    for audio_s in lengths_s:
        features = make_features(audio_s)

        def forward(features=features):
            return recognizer(*features).ctc

        def update(forward=forward):
            forward().sum().backward()
            recognizer.zero_grad(set_to_none=True)

        with torch.no_grad():
            forward_s = median_seconds(forward, repetitions, features[0].device)
        update_s = median_seconds(update, repetitions, features[0].device)
        kept = kept_bytes(forward, recognizer.parameters())
        cost = {"audio_s": audio_s, "forward_s": forward_s, "update_s": update_s}
        costs.append({**cost, "kept_bytes": kept})
    return costs


def median_seconds(function, repetitions, device):
    """Return the median time of a call, after one warm-up."""
    times = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def kept_bytes(forward, parameters=()):
    """Measure the memory that a forward pass keeps for its backward pass.

    Arguments
    ---------
    forward : callable
        Function without arguments that returns the output.
    parameters : iterable of torch.Tensor
        Tensors that exist anyway; they and their views are not counted.

    Returns
    -------
    int
        Bytes of the distinct storages that autograd saved.

    Example
    -------
    >>> x = torch.zeros(10, requires_grad=True)
    >>> kept_bytes(lambda: x.exp(), [x])
    40
    """
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        # Keep the tensor, so that no later one reuses its address.
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    for parameter in parameters:
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(size for size, _ in kept.values())


def write_errors(path, words, characters):
    """Write the errors of each utterance, for paired comparisons.

    Arguments
    ---------
    path : str or pathlib.Path
        The CSV: ``ID,words,word_errors,characters,character_errors``.
    words, characters : speechbrain.utils.metric_stats.ErrorRateStats
        The counts.
    """
    columns = ("ID", "words", "word_errors", "characters", "character_errors")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for word, character in zip(words.scores, characters.scores):
            row = [word["key"]]
            for score in (word, character):
                row += [score["num_ref_tokens"], score["num_edits"]]
            writer.writerow(row)

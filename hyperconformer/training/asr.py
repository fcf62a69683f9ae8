"""A training run from its YAML file to its error rates, model folder and transcript."""

import math
import random
import time

import speechbrain as sb
import torch
from speechbrain.dataio.dataio import load_data_csv
from tqdm import tqdm

from hyperconformer.audio import read_audio
from hyperconformer.core.text import write_references
from hyperconformer.training.brain import ASRBrain
from hyperconformer.training.chunks import check_chunk_training, chunks_to_test
from hyperconformer.training.data import (
    draw_fraction,
    make_dataset,
    manifest_durations,
    pad_batch,
    read_transcripts,
    train_loader_options,
)
from hyperconformer.training.experiment import open_experiment
from hyperconformer.training.fine_tuning import start_from
from hyperconformer.training.phones import PhoneInventory
from hyperconformer.training.results import (
    cost_against_length,
    count_macs,
    write_results,
)
from hyperconformer.training.settings import ASRSettings
from hyperconformer.transcribe.offline import ASR

# Length in seconds of the utterance whose multiply-adds are counted.
MACS_AUDIO_S = 10


def train(config_file, run_options=None, overrides=None):
    """Prepare the corpus, train, evaluate, export and transcribe one file.

    With the same arguments, an interrupted run continues from its last checkpoint.

    Arguments
    ---------
    config_file : str or pathlib.Path
        The YAML file.
    run_options : dict, optional
        SpeechBrain's ``run_opts`` (device, precision, gradient clipping, ...).
    overrides : str or dict, optional
        Changes to the YAML file.

    Returns
    -------
    dict
        Split to ``{"loss", "WER", "CER"}``.

    Raises
    ------
    FileNotFoundError, ValueError
        If the YAML file is wrong, the corpus is missing or a split is empty.
    """
    run_options = run_options or {}
    test_only = bool(run_options.get("test_only"))
    experiment = open_experiment(ASRSettings, config_file, overrides, test_only)
    settings, manifests = experiment.settings, experiment.manifests
    check_chunk_training(settings)
    tokenizer = experiment.tokenizer
    if sb.utils.distributed.if_main_process():
        for split in settings.evaluated_splits:
            write_references(read_transcripts(manifests[split]), tokenizer, split)
    if settings.test_search is not None:
        sentences = read_transcripts(manifests[settings.train_split], tokenizer)
        settings.test_search.prepare(tokenizer, sentences, experiment.output)
    results = _run(experiment, run_options)
    if sb.utils.distributed.if_main_process():
        model = experiment.output / "model"
        # Tests do not change a finished model.
        if not test_only or not model.is_dir():
            parts = ["extractor", "recognizer"]
            ngram = getattr(settings.test_search, "ngram", None)
            model = experiment.save_model(parts, ["sample_rate"], ngram)
        test_manifest = manifests[settings.test_splits[0]]
        report(results, model, test_manifest, experiment.output)
    return results


def _run(experiment, run_options):
    settings, manifests = experiment.settings, experiment.manifests
    tokenizer, output = experiment.tokenizer, experiment.output
    rate_hz = settings.sample_rate
    train_set = make_dataset(
        manifests[settings.train_split],
        tokenizer,
        rate_hz,
        sort="ascending",
        max_duration_s=settings.max_duration_s,
    )
    train_set = draw_fraction(train_set, settings.train_fraction, settings.seed)
    loader = train_loader_options(
        train_set,
        max_batch_s=settings.max_batch_s,
        max_batch_utterances=settings.max_batch_utterances,
        seed=settings.seed,
        workers=settings.loader_workers,
        join_fraction=settings.join_fraction,
    )
    modules = {"recognizer": settings.recognizer}
    phones = settings.phone_ctc
    if phones is not None and not run_options.get("test_only"):
        phones.prepare(
            read_transcripts(manifests[settings.train_split], tokenizer),
            len(settings.recognizer.transformer.encoder.layers),
        )
        modules["phone_ctc"] = phones
        settings.checkpointer.add_recoverable(
            "phones",
            PhoneInventory(phones.phones),
            optional_load=True,  # older checkpoints do not name them
        )
    brain = experiment.make_brain(
        ASRBrain, loader, modules, run_options, ["extractor"], tokenizer=tokenizer
    )
    settings.extractor.to(brain.device)
    eval_loader = {"batch_size": settings.max_batch_utterances}
    eval_loader["collate_fn"] = pad_batch
    if not brain.test_only:
        if settings.checkpointer.find_checkpoint() is None:
            if settings.init_from is not None:
                parts = settings.extractor, settings.recognizer
                new_head = settings.new_head
                start_from(
                    settings.init_from, experiment.plain, *parts, new_head, phones
                )
            measure_features(settings, manifests)
        valid_set = make_dataset(
            manifests[settings.valid_split], tokenizer, rate_hz, sort="ascending"
        )
        brain.fit(
            settings.epoch_counter,
            train_set,
            valid_set,
            train_loader_kwargs=loader,
            valid_loader_kwargs=dict(eval_loader),
        )
    results = {}
    for split in settings.evaluated_splits:
        dataset = make_dataset(manifests[split], tokenizer, rate_hz, sort="ascending")
        audio_s = 3600 * manifest_durations(manifests[split])[1]
        for suffix, chunk in chunks_to_test(settings).items():
            name = f"{split}{suffix}"
            started = time.monotonic()
            results[name] = brain.evaluate_split(
                name,
                dataset,
                dict(eval_loader),
                output / f"wer_{name}.txt",
                output / f"errors_{name}.csv",
                chunk,
            )
            seconds = time.monotonic() - started
            results[name]["times_real_time"] = audio_s / seconds
    if sb.utils.distributed.if_main_process():
        costs = measure_costs(settings, brain.device)
        first = next(iter(chunks_to_test(settings)))
        names = {
            "valid": settings.valid_split + first,
            "test": settings.test_splits[0] + first,
        }
        model = settings.recognizer
        write_results(output / "results.json", results, brain, model, **names, **costs)
    return results


def measure_costs(settings, device):
    """Measure the cost of encoder and CTC head.

    Arguments
    ---------
    settings : hyperconformer.training.settings.ASRSettings
        The settings, built. Its recogniser stays in evaluation mode.
    device : str or torch.device
        The device of the recogniser.

    Returns
    -------
    dict
        ``macs_per_audio_s``, multiply-adds per second of speech in utterances of
        :data:`MACS_AUDIO_S`, and ``against_length`` if ``cost_lengths_s`` is set.
    """
    recognizer = settings.recognizer.eval()

    def noise_features(audio_s):
        noise = torch.randn(1, round(audio_s * settings.sample_rate), device=device)
        with torch.no_grad():
            return settings.extractor(noise, torch.ones(1, device=device))

    macs = count_macs(recognizer, *noise_features(MACS_AUDIO_S))
    costs = {"macs_per_audio_s": macs // MACS_AUDIO_S}
    if settings.cost_lengths_s:
        costs["against_length"] = cost_against_length(
            recognizer, noise_features, settings.cost_lengths_s
        )
    return costs


def measure_features(settings, manifests):
    """Fit the feature normalisation on training speech.

    Nothing is done if the initial model has statistics, or if each utterance is
    normalised by itself.

    Arguments
    ---------
    settings : hyperconformer.training.settings.ASRSettings
        The settings, built.
    manifests : dict of str to pathlib.Path
        Split to manifest.
    """
    extractor = settings.extractor
    if extractor.mean.any() or extractor.normalization == "utterance":
        return
    rows = list(load_data_csv(str(manifests[settings.train_split])).values())
    random.Random(settings.seed).shuffle(rows)
    rows = rows[: settings.normalization_utterances]
    extractor.fit(
        read_audio(row["wav"], settings.sample_rate)
        for row in tqdm(
            rows, desc="measuring features", disable=None, dynamic_ncols=True
        )
    )


def report(results, model, test_manifest, output):
    """Print the error rates, one transcript and the paths of the results.

    Arguments
    ---------
    results : dict
        Split to ``{"loss", "WER", "CER"}``.
    model : pathlib.Path
        The model folder.
    test_manifest : pathlib.Path
        Manifest of the transcribed file.
    output : pathlib.Path
        The run's folder.
    """
    print(f"\n{'split':<20}{'WER %':>8}{'CER %':>8}")
    for split, stats in results.items():
        print(f"{split:<20}{stats['WER']:>8.2f}{stats['CER']:>8.2f}")
        if math.isnan(stats["WER"]):
            print("(nan: its references hold no words, so there is no error rate)")
    row = next(iter(load_data_csv(str(test_manifest)).values()))
    # This run's model is trusted: it may name the user's classes.
    asr = ASR.from_hparams(source=model, trusted=True)
    text = asr.transcribe_file(row["wav"])
    print(f"\n$ hyperconformer transcribe {row['wav']} --model {output}")
    print(f"{text}\n(spoken: {row['wrd']})")
    print(f"\nlog: {output / 'train_log.txt'}   curve: {output / 'curve.png'}")
    print(f"alignments: {output}/wer_*.txt   model: {model}")

"""Checkpoints from which a killed run continues exactly.

They extend SpeechBrain's checkpointer: a checkpoint is valid only when it is complete,
a failed write leaves nothing behind, and the random states are saved.
"""

import contextlib
import functools
import logging
import os
import random
import re
import shutil
import time
from typing import Any

import numpy as np
import torch
import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    PARAMFILE_EXT,
    Checkpoint,
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import (
    ddp_barrier,
    get_rank,
    if_main_process,
    is_distributed_initialized,
    run_on_main,
)

from hyperconformer.config import flatten
from hyperconformer.core.files import write_atomically

logger = logging.getLogger(__name__)

# The settings of a run, in its folder.
SETTINGS_FILE = "hyperparams.yaml"
MODULES = ("extractor", "recognizer", "language_model", "phone_ctc")

# Settings that define the meaning of a checkpoint's weights and the readers of its
# other files. A resumed run must not change them; it may change everything else.
TESTED = r"task|sample_rate|token_unit|vocab_size"
TESTED += r"|(extractor|recognizer|language_model)(\..*)?"
TRAINED = r"init_from|new_head|phone_ctc(\..*)?|optimizer|lr_schedule"
# Exceptions that do not change the meaning of a weight. The phones themselves are
# compared when they are loaded.
FREE = re.compile(
    r".*\.(\w*drop\w*|backend)|phone_ctc\.(weight|lexicon|pronunciations\..*)"
)
# Settings that earlier versions lacked, with their implicit values.
OLD_SETTINGS = {"new_head": False}

# Key in a checkpoint's meta file: the size of each other file in bytes.
SIZES = "file_sizes"


def read_earlier_settings(output, checkpoints):
    """Return the settings of the run that wrote the checkpoints.

    Arguments
    ---------
    output : pathlib.Path
        The run's folder.
    checkpoints : pathlib.Path
        The folder of its checkpoints.

    Returns
    -------
    dict or None
        None if there is no checkpoint.

    Raises
    ------
    ValueError
        If the settings of the checkpoints are missing.
    """
    if not any(_is_whole(path) for path in checkpoints.glob(f"{CKPT_PREFIX}*")):
        return None
    file = output / SETTINGS_FILE
    settings = None
    if file.is_file():
        with contextlib.suppress(YAMLError):
            settings = YAML().load(file.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(
            f"{checkpoints} holds checkpoints, but {file} does not say with which "
            "settings they were trained. Put it back, or give another --output_folder"
        )
    return settings


def require_same_model(earlier, now, output, test_only):
    """Refuse to resume a run with settings that do not fit its weights.

    Arguments
    ---------
    earlier : dict
        From :func:`read_earlier_settings`.
    now : dict
        The settings of this run, references resolved.
    output : pathlib.Path
        The run's folder, for the message.
    test_only : bool
        True ignores settings that matter for training only.

    Raises
    ------
    ValueError
        If settings differ; the message names them.
    """
    fixed = re.compile(TESTED if test_only else f"{TESTED}|{TRAINED}")
    there, here = (flatten({**OLD_SETTINGS, **x}) for x in (earlier, now))
    changed = {
        key: (there.get(key, "absent"), here.get(key, "absent"))
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    }
    parts = {
        key: values
        for key, values in changed.items()
        if fixed.fullmatch(key) and not FREE.fullmatch(key)
    }
    # Prefer the names that a user writes and that a part refers to.
    names = {}
    for key, values in parts.items():
        written = [
            name
            for name in changed
            if changed[name] == values and name.split(".")[0] not in MODULES
        ]
        same = [x for x in written if x.split(".")[-1] == key.split(".")[-1]]
        if not same and len(written) == 1:
            same = written
        names.update(dict.fromkeys(same or [key], values))
    if names:
        shown = [f"{key} ({a} there, {b} here)" for key, (a, b) in names.items()]
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        raise ValueError(
            f"the checkpoints in {output} belong to a run with other settings: "
            f"{', '.join(shown[:8])}{more}. Give another --output_folder, or delete "
            "this one to start again; nothing was changed"
        )


class WholeCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer, without incomplete checkpoints.

    SpeechBrain first writes the meta file that marks a folder as a checkpoint, so that
    a run killed during a write would continue from an incomplete checkpoint. Here the
    meta file comes last, after the others have reached the disk, and lists their sizes.
    A folder without it, or with a missing or truncated file, is not a checkpoint.
    The constructor is SpeechBrain's.

    Example
    -------
    >>> import tempfile
    >>> checkpointer = WholeCheckpointer(tempfile.mkdtemp())
    >>> checkpointer.add_recoverable("layer", torch.nn.Linear(2, 2))
    >>> checkpoint = checkpointer.save_checkpoint()
    >>> len(checkpointer.list_checkpoints())
    1
    >>> _ = (checkpoint.path / "layer.ckpt").write_bytes(b"cut off")
    >>> len(checkpointer.list_checkpoints())
    0
    """

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        """Save a checkpoint as SpeechBrain does, but atomically.

        Arguments
        ---------
        *args, **kwargs
            As SpeechBrain's.

        Returns
        -------
        speechbrain Checkpoint
            None on all processes but the first.

        Raises
        ------
        OSError
            If it cannot be written; its incomplete folder is removed.
        """
        run_on_main(self._remove_remains)
        try:
            checkpoint = super().save_checkpoint(*args, **kwargs)
            if checkpoint is not None:
                _finish(checkpoint)
        except (OSError, RuntimeError) as error:
            # PyTorch's file writer reports a full disk as a RuntimeError.
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise
            self._remove_remains()
            raise OSError(self._explain(error)) from error
        ddp_barrier()
        return checkpoint

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint as SpeechBrain does; explain one of another model.

        Arguments
        ---------
        checkpoint : speechbrain Checkpoint
            The checkpoint.

        Raises
        ------
        ValueError
            If a part of this run has no state in the checkpoint, unless partial loads
            are allowed, or has other weights.
        """
        missing = [
            name
            for name in self.recoverables
            if name not in checkpoint.paramfiles
            and not self.optional_recoverables.get(name)
            and "dataloader" not in name  # a loader that had not begun has no state
        ]
        if missing and not self.allow_partial_load:
            raise ValueError(
                f"{checkpoint.path} is of a run without {', '.join(missing)}, which "
                "this run has. Repeat the original command, or give "
                "another --output_folder"
            )
        try:
            super().load_checkpoint(checkpoint)
        except RuntimeError as error:
            if "Error(s) in loading state_dict" not in str(error):
                raise
            raise ValueError(
                f"{checkpoint.path} is of another model than this run's: {error}. "
                "Repeat the original command, or give another "
                "--output_folder"
            ) from error

    def _save_checkpoint_metafile(self, fpath, meta_to_include, end_of_epoch):
        # SpeechBrain would write this now; :func:`_finish` writes it at the end.
        return {
            "unixtime": time.time(),
            "end-of-epoch": end_of_epoch,
            **meta_to_include,
        }

    def _list_checkpoint_dirs(self):
        return [path for path in super()._list_checkpoint_dirs() if _is_whole(path)]

    @staticmethod
    def _construct_checkpoint_objects(checkpoint_dirs):
        # As SpeechBrain's, which parses each file a dozen times per epoch.
        return [
            Checkpoint(
                path,
                _read_meta(path),
                {file.stem: file for file in path.glob(f"*{PARAMFILE_EXT}")},
            )
            for path in checkpoint_dirs
        ]

    def _remove_remains(self):
        """Remove checkpoints that a killed run wrote or deleted incompletely."""
        for path in self.checkpoints_dir.glob(f"{CKPT_PREFIX}*"):
            if not _is_whole(path):
                shutil.rmtree(path)

    def _explain(self, error):
        free_mib = shutil.disk_usage(self.checkpoints_dir).free / 2**20
        last = self.find_checkpoint()
        last = f"from {last.path.name}" if last else "at the beginning"
        return (
            f"cannot write a checkpoint into {self.checkpoints_dir}, where "
            f"{free_mib:.0f} MiB are free: {error}. Free some space and start the same "
            f"command again: it continues {last}"
        )


def _finish(checkpoint):
    """Mark a folder as a checkpoint, once all its files are on the disk."""
    sizes = {}
    for file in sorted(checkpoint.path.iterdir()):
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
        sizes[file.name] = file.stat().st_size
    meta = {**checkpoint.meta, SIZES: sizes}
    write_atomically(checkpoint.path / METAFNAME, yaml.safe_dump(meta).encode())


def _is_whole(path):
    meta = _read_meta(path)
    # SpeechBrain's checkpoints list no sizes.
    return isinstance(meta, dict) and all(
        (path / name).is_file() and (path / name).stat().st_size == size
        for name, size in meta.get(SIZES, {}).items()
    )


def _read_meta(path):
    """Return a checkpoint's meta data; None if it has none yet."""
    file = path / METAFNAME
    return _parse_meta(file, file.stat().st_mtime_ns) if file.is_file() else None


@functools.lru_cache(maxsize=64)
def _parse_meta(file, changed_ns):
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def count_processes():
    """Return the number of training processes.

    Returns
    -------
    int
    """
    return torch.distributed.get_world_size() if is_distributed_initialized() else 1


@functools.partial(register_checkpoint_hooks, save_on_main_only=False)
class RandomStates:
    """The random states of Python, NumPy and PyTorch, of every process.

    A recoverable for SpeechBrain's checkpointer. If the number of processes has
    changed, each process keeps its seeded state and logs a warning.

    Example
    -------
    >>> import tempfile
    >>> states, file = RandomStates(), tempfile.mktemp()
    >>> states.save(file)
    >>> first = torch.rand(1), random.random()
    >>> states.load(file, end_of_epoch=False)
    >>> (torch.rand(1), random.random()) == first
    True
    """

    @mark_as_saver
    def save(self, path):
        """Write the states of all processes into one file.

        Arguments
        ---------
        path : str or pathlib.Path
            The file.
        """
        kind, keys, *rest = np.random.get_state()
        own = {
            "python": random.getstate(),
            "numpy": (kind, keys.tolist(), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        states = [own]
        if is_distributed_initialized():
            states = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, own)
        if if_main_process():
            torch.save(states, path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Restore the state of this process.

        Arguments
        ---------
        path : str or pathlib.Path
            The file.
        end_of_epoch : bool
            Not used.
        """
        del end_of_epoch
        states = torch.load(path, weights_only=True, map_location="cpu")
        processes = count_processes()
        if len(states) != processes:
            logger.warning(
                f"the checkpoint was written by {len(states)} processes, not by "
                f"{processes}: random numbers are not those of an uninterrupted run"
            )
            return
        own = states[get_rank() or 0]
        random.setstate(own["python"])
        np.random.set_state(own["numpy"])
        torch.set_rng_state(own["torch"])
        for device, state in enumerate(own["cuda"]):
            torch.cuda.set_rng_state(state, device)

"""What the corpora of your own share: one manifest a split, of any format."""

import os
import pathlib
from collections.abc import Callable

from hyperconformer.core.store import is_stored
from hyperconformer.corpora.manifest import (
    Checks,
    Utterance,
    check_merge,
    merge_manifests,
    prepare_split,
    require,
)

SOURCE = 'your own, see "Train on your own speech" in the README'


def make_prepare(
    suffix: str,
    list_utterances: Callable[[pathlib.Path, pathlib.Path], list[Utterance]],
    layout: str,
) -> Callable[..., dict[str, pathlib.Path]]:
    """Make the function ``prepare`` of a corpus whose splits are files of one format.

    Arguments
    ---------
    suffix : str
        The name of the corpus, and the suffix of its files.
    list_utterances : callable
        Function of a file and the data folder that returns the utterances.
    layout : str
        The expected content of the data folder, for errors.

    Returns
    -------
    callable
    """

    def prepare(
        data_folder,
        manifest_folder,
        splits: list[str] | dict[str, str] | None = None,
        merge: dict[str, list[str]] | None = None,
        min_duration_s: float = 0.1,
        max_duration_s: float | None = None,
        full_check: bool = False,
        workers: int | None = None,
    ) -> dict[str, pathlib.Path]:
        """Write one checked manifest per split, and one for each merger of splits.

        Arguments
        ---------
        data_folder : str or pathlib.Path
            The folder that holds the files.
        manifest_folder : str or pathlib.Path
            Where the checked manifests go.
        splits : list of str or dict of str to str, optional
            The splits: their names, or the file of each, relative to the data folder;
            by default every file of the format in the data folder.
        merge : dict of str to list of str, optional
            Further manifests, each made of several splits.
        min_duration_s, max_duration_s, full_check, workers
            See :class:`~hyperconformer.corpora.manifest.Checks`.

        Returns
        -------
        dict of str to pathlib.Path
            The manifests of the splits and of the mergers.

        Raises
        ------
        FileNotFoundError
            If the folder or the file of a split is missing.
        ValueError
            If a file is not of the format, or a split is left empty.
        """
        data_folder = pathlib.Path(data_folder)
        checks = Checks(min_duration_s, max_duration_s, full_check, workers)
        files = find_files(suffix, data_folder, splits, layout)
        merge = merge or {}
        check_merge(merge, list(files))
        manifests = {}
        for split, file in files.items():
            manifest = pathlib.Path(manifest_folder) / f"{split}.csv"
            if manifest.resolve() == file.resolve():
                raise ValueError(
                    f"the checked manifest of {file} would overwrite it: name another "
                    "data_folder or output_folder"
                )
            found = list_utterances(file, data_folder)
            manifests[split] = prepare_split(
                suffix, split, found, data_folder, manifest_folder, checks
            )
        for name, parts in merge.items():
            sources = [manifests[part] for part in parts]
            manifests[name] = merge_manifests(name, sources, manifest_folder)
        return manifests

    return prepare


def find_files(suffix: str, data_folder: pathlib.Path, splits, layout: str) -> dict:
    """Find the file of each split.

    Arguments
    ---------
    suffix, layout
        As for :func:`make_prepare`.
    data_folder, splits
        As for the corpus.

    Returns
    -------
    dict of str to pathlib.Path
        Split to file.

    Raises
    ------
    FileNotFoundError
        If the data folder or a file is missing, or the folder holds no manifest.
    ValueError
        If the data folder is a file.
    """
    require(data_folder, layout, SOURCE)
    if not data_folder.is_dir():
        raise ValueError(
            f"data_folder should be {layout}; {data_folder} is a file: name its folder"
        )
    if isinstance(splits, dict):
        files = {split: data_folder / file for split, file in splits.items()}
    elif splits:
        files = {split: data_folder / f"{split}.{suffix}" for split in splits}
    else:
        files = {
            file.stem: file
            for file in sorted(data_folder.glob(f"*.{suffix}"))
            # This project writes these beside manifests.
            if not file.name.startswith("skipped_")
        }
    if not files:
        raise FileNotFoundError(
            f"{data_folder} holds no *.{suffix}.\nExpected: {layout}. Files with other "
            "names: --corpus_options='{splits: {train: FILE, valid: FILE, test: FILE}}'"
        )
    return {split: require(file, layout, SOURCE) for split, file in files.items()}


def resolve_audio(audio: str, manifest: pathlib.Path) -> str:
    """Return the path of an audio file in a manifest.

    Arguments
    ---------
    audio : str
        The manifest's entry: a place in an object store, an absolute path, or one
        relative to the manifest's folder or, if there is no such file, to the working
        folder.
    manifest : pathlib.Path
        The manifest.

    Returns
    -------
    str
    """
    if is_stored(audio):
        return audio
    beside = manifest.parent / audio
    return audio if not beside.exists() and os.path.exists(audio) else str(beside)

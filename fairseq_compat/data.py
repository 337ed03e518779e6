"""Checks of binarised data before a training: one line says what is wrong.

fairseq's own messages name neither file nor cause (`cannot mmap an empty file`, `index out of range in self`),
and reversed languages train silently.
"""

import os
from pathlib import Path
from typing import Any

import numpy

from thoth_core.errors import UserError

REMEDY = "prepare the data again"
TOKENS_CHECKED = 20_000_000  # per file, against the dictionary: they take a fraction of a second


def check(cfg: Any) -> None:
    """Check the data that a training's configuration names, if its task is a translation.

    Raises:
        UserError: the folder, a dictionary or a split is missing, empty or truncated, or the languages are reversed.
    """
    data, source, target = (getattr(cfg.task, name, None) for name in ("data", "source_lang", "target_lang"))
    if not isinstance(data, str) or not all(hasattr(cfg.task, name) for name in ("source_lang", "target_lang")):
        return  # another kind of task
    splits = cfg.dataset.train_subset.split(",")
    if not cfg.dataset.disable_validation:
        splits += cfg.dataset.valid_subset.split(",")
    # A list of folders holds the shards of the training set; each has a train split, the first all others.
    for number, folder in enumerate(data.split(os.pathsep)):
        check_folder(Path(folder), source, target, splits if number == 0 else splits[:1])


def check_folder(folder: Path, source: str | None, target: str | None, splits: list[str]) -> None:
    """Check the splits and dictionaries of one folder that fairseq-preprocess wrote. Raises as `check`."""
    if not folder.is_dir():
        raise UserError(f"data folder {folder} does not exist; give the folder that fairseq-preprocess wrote")
    if source is None or target is None:
        from fairseq.data.data_utils import infer_language_pair

        pair = infer_language_pair(str(folder))
        if None in pair:
            raise UserError(
                f"data folder {folder} holds no binarised text; give the folder that fairseq-preprocess wrote"
            )
        source, target = pair
    if not _prefix(folder, "train", source, target, source).with_suffix(f".{source}.idx").exists():
        backward = folder / f"train.{target}-{source}.{source}.idx"
        if backward.exists():
            raise UserError(
                f"languages reversed: {folder} holds {target}-{source}, but --source-lang {source} --target-lang "
                f"{target} is given; swap them, or binarise {source}-{target} into a folder of its own"
            )
    sizes = {language: _check_dictionary(folder, language) for language in (source, target)}
    for split in splits:
        counts = {
            language: _check_split(folder, split, source, target, language, sizes[language])
            for language in (source, target)
        }
        if None not in counts.values() and counts[source] != counts[target]:
            raise UserError(
                f"{folder}: split {split} has {counts[source]} sentences in {source} but {counts[target]} in "
                f"{target}; {REMEDY}"
            )


def _prefix(folder: Path, split: str, source: str, target: str, language: str) -> Path:
    return folder / f"{split}.{source}-{target}.{language}"


def _check_dictionary(folder: Path, language: str) -> int:
    """The number of symbols of folder/dict.LANGUAGE.txt, fairseq's own four included."""
    from fairseq.data import Dictionary

    path = folder / f"dict.{language}.txt"
    if not path.is_file():
        raise UserError(f"dictionary {path} is missing; {REMEDY}, or check --source-lang and --target-lang")
    try:
        dictionary = Dictionary.load(str(path))
    except (ValueError, RuntimeError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"dictionary {path} is truncated or damaged ({reason}); {REMEDY}") from error
    if len(dictionary) == dictionary.nspecial:
        raise UserError(f"dictionary {path} is empty; {REMEDY}")
    return len(dictionary)


def _check_split(folder: Path, split: str, source: str, target: str, language: str, symbols: int) -> int | None:
    """The number of sentences of one language of a split; None if it is not in the mmap format."""
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    index, binary = (folder / f"{split}.{source}-{target}.{language}.{kind}" for kind in ("idx", "bin"))
    for path in (index, binary):
        if not path.exists():
            if folder.joinpath(f"{split}.{source}-{target}.{language}").exists():
                return None  # --dataset-impl raw
            raise UserError(f"{path} is missing: {folder} has no split {split} for {source}-{target}; {REMEDY}")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; {REMEDY}")
    magic = MMapIndexedDataset.Index._HDR_MAGIC
    with open(index, "rb") as file:
        if file.read(len(magic)) != magic:
            return None  # one of fairseq's older formats
    try:
        parsed = MMapIndexedDataset.Index(str(index))
        sizes, dtype = parsed.sizes, numpy.dtype(parsed.dtype)
    except Exception as error:  # struct.error, ValueError, KeyError: whatever the cut leaves
        raise UserError(f"{index} is truncated or damaged; {REMEDY}") from error
    if len(sizes) == 0:
        raise UserError(f"{index} holds no sentences; {REMEDY}")
    tokens, expected = divmod(binary.stat().st_size, dtype.itemsize)[0], int(sizes.sum())
    if tokens != expected:
        raise UserError(f"{binary} is truncated or damaged: {tokens:,} of {expected:,} tokens; {REMEDY}")
    largest = int(numpy.memmap(binary, dtype=dtype, mode="r", shape=(min(tokens, TOKENS_CHECKED),)).max())
    if largest >= symbols:
        raise UserError(
            f"dictionary {folder}/dict.{language}.txt has {symbols} symbols, but {binary.name} uses number "
            f"{largest}: it is truncated, or belongs to another corpus; {REMEDY}"
        )
    return len(sizes)

"""Data sets of the Hugging Face hub, and copies of them on this machine."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.config.corpora import Hub
from recipes.console.messages import say
from recipes.data.pairs import Pairs, pair_of, pairs_of_rows, stored_columns
from thoth_core.errors import UserError

DATA_SET_FILES = (".parquet", ".jsonl", ".json", ".csv")


def data_set_files(folder: Path) -> list[Path]:
    """The files of a data set in `folder`, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(DATA_SET_FILES))


def read_hub(
    location: str | Path, options: Hub, columns: Sequence[str], *, valid: bool = True
) -> dict[str, list[Pairs]]:
    """The splits of a data set: {"train": [one], "valid": [one or none], "test": [one or more]}.

    Args:
        location: the data set's name on the hub, or a folder on this machine.
        options: the block `hub` of a corpus file.
        columns: the names of the source's and the target's column.
        valid: whether to read a validation set.
    """
    # Without this the library asks the network about files that are here, again and again.
    if isinstance(location, Path):
        os.environ["HF_HUB_OFFLINE"] = "1"
    else:
        say(f"loading {location} from the Hugging Face hub")
    import datasets
    import huggingface_hub

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as cache:
        data_set = _load(datasets, location, options, cache)
        tests = options.test if isinstance(options.test, list) else [options.test]
        splits: dict[str, list[Pairs]] = {}
        for split, names in (("train", [options.train]), ("valid", [options.valid] if valid else []), ("test", tests)):
            for name in names:
                if name not in data_set:
                    raise UserError(
                        f"{location}: has no split {name} but {', '.join(data_set)}; name it under 'hub.{split}'"
                    )
            splits[split] = [_pairs(data_set[name], columns, f"{location}, split {name}") for name in names]
        return splits


def _load(datasets: Any, location: str | Path, options: Hub, cache: str) -> Any:
    local = isinstance(location, Path)
    try:
        if local:
            return datasets.load_dataset(str(location), options.configuration, cache_dir=cache)
        names = {"name": options.configuration, "data_dir": options.folder}
        return datasets.load_dataset(location, **names, revision=options.revision)
    except Exception as error:  # the library's many layers raise many kinds
        cause: BaseException = error
        while cause.__cause__ is not None:  # the outermost error only says that loading failed
            cause = cause.__cause__
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
    if local:
        raise UserError(f"{location}: cannot be loaded as a data set ({reason}); check its files")
    raise UserError(
        f"hub data set {location}: cannot be loaded ({reason}); check the network and the name, "
        "or give a copy on this machine with --from FOLDER"
    )


def _pairs(split: Any, columns: Sequence[str], origin: str) -> Pairs:
    names = stored_columns(columns, split.column_names, origin)
    # Whole columns at once: record by record takes a hundred times as long.
    values = split.select_columns(names)[:]
    records = (dict(zip(names, row, strict=True)) for row in zip(*(values[name] for name in names), strict=True))
    rows = [pair_of(record, columns, f"{origin}, row {number}") for number, record in enumerate(records, 1)]
    return pairs_of_rows(rows, origin, columns)

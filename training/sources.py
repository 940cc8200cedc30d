"""Any file or dataset of the hub, as rows."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError

from budgetctl.errors import TrainingError

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def read_dataset(
    source: str | Path, name: str | None = None, split: str = "train", cache_dir: str | None = None
) -> Dataset:
    """A file (JSON lines, parquet, csv) or a dataset of the hub.

    Args:
        source: path, or hub id.
        name: configuration of a dataset of the hub.
        split: its split.
        cache_dir: where the ``datasets`` library keeps its copy.

    Raises:
        TrainingError: it cannot be read.
    """
    path = Path(source)
    reader = _READERS.get(path.suffix)
    try:
        if reader is not None:
            return load_dataset(reader, data_files=str(path), split="train", cache_dir=cache_dir)
        return load_dataset(str(source), name, split=split, cache_dir=cache_dir)
    except (DatasetsError, FileNotFoundError, ValueError, ConnectionError) as error:
        why = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"{source} cannot be read ({type(error).__name__}: {why}): expected a .jsonl, .parquet or .csv file or a "
            "dataset of the hub; correct it"
        ) from error

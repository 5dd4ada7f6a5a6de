"""Where a benchmark's records are: in a folder of the user's, or on the Hugging Face hub."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2graph.errors import BenchmarkFileError, ConfigError, MissingExtraError

Record = dict[str, Any]


@dataclass(frozen=True)
class Hub:
    """A data set on the hub."""

    id: str
    split: str
    config: str | None = None


@dataclass(frozen=True)
class Source:
    """The files of one benchmark, or the hub where `folder` is `None`."""

    benchmark: str
    folder: Path | None

    def records(self, *patterns: str, hub: Hub | None = None) -> Iterator[Record]:
        """Those of all files that the first pattern with a match names, or those on the hub."""
        if self.folder is not None:
            for path in self.paths(*patterns):
                # Not `splitlines`: JSON may hold U+2028 as it is.
                lines = filter(str.strip, read(path).split("\n"))
                yield from map(json.loads, lines) if ".jsonl" in path.name else self.json(path.name)
        elif hub is None:
            raise ConfigError(f"{self.benchmark} is not on the hub: name a directory that holds it")
        else:
            yield from from_hub(hub)

    def json(self, name: str) -> Any:
        [path] = self.paths(name)
        return json.loads(read(path))

    def lines(self, name: str) -> list[str]:
        [path] = self.paths(name)
        return read(path).splitlines()

    def paths(self, *patterns: str) -> list[Path]:
        """Files in order of their names; `FILE.gz` serves as FILE."""
        if self.folder is None:
            raise ConfigError(f"{self.benchmark} is not on the hub: name a directory that holds it")
        for pattern in patterns:
            each = (self.folder.glob(pattern + suffix) for suffix in ("", ".gz"))
            if found := next(filter(None, map(sorted, each)), None):
                return found
        raise BenchmarkFileError(
            f"{self.benchmark} is read from {self.folder / patterns[0]}, which is not there: "
            "put the file there (docs/benchmarks.md says where it is from), or name another "
            "directory"
        )


def read(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()


def from_hub(hub: Hub) -> Iterator[Record]:
    try:
        from datasets import load_dataset  # type: ignore[import-untyped]
        from datasets.exceptions import DatasetsError  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("a benchmark from the hub", "eval") from None
    try:
        rows = load_dataset(hub.id, hub.config, split=hub.split)
    except (DatasetsError, OSError, ValueError) as error:
        raise BenchmarkFileError(
            f"{hub.id} did not load from the Hugging Face hub ({type(error).__name__}): check the "
            "connection, or name a directory that holds the benchmark's files"
        ) from None
    yield from rows

"""What a run of make_samples left in its folder, to compare it with that of another."""

import csv
from pathlib import Path

from tar3d.data.formats.shards import ShardedFiles


def everything(folder: Path) -> dict[str, bytes]:
    """All samples and views, loose or packed."""
    both = {kind: ShardedFiles(folder / kind) for kind in ("samples", "views")}
    return {f"{kind}/{name}": files.read(name) for kind, files in both.items() for name in files}


def facts(folder: Path) -> list[dict[str, str]]:
    """The report without what differs from run to run."""
    with (folder / "report.csv").open(newline="") as f:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)]

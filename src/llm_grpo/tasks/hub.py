"""A data set on the Hub, or a folder of one, whose rows hold a question and an answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm_grpo.errors import NotAtHandError, UserError, first_line
from llm_grpo.records import Task
from llm_grpo.tasks.readers import Row
from llm_grpo.tasks.table import Source, table_task, with_table_arguments

WAY_OUT = "Save it where there is a network, and give its folder as task.args.path."


class HubSplit(NamedTuple):
    """What datasets.load_dataset is given for one split."""

    path: str
    name: str | None
    revision: str | None
    files: str | None
    split: str


@with_table_arguments
def hub(
    *,
    path: str,
    name: str | None = None,
    revision: str | None = None,
    split: str = "train",
    validation_split: str | None = None,
    test_split: str | None = None,
    **rest: Any,
) -> Task:
    """A task from what `datasets.load_dataset(path, name, revision=..., split=...)` gives.

    path: owner/name, a folder, or hf://datasets/owner/name[@revision][/files].
    split, validation_split, test_split: the data set's own names; a split that is not named is drawn from `split` by
        a hash of the question. The rest is said at `table_task`.
    """
    owned, at, files = hub_name(path)

    def find(_: str, own: str) -> Source:
        place = HubSplit(owned, name, revision or at, files, own)
        return Source(read_hub, place, f"{owned}/{own}", f"{Path(owned).name}/{own}")

    return table_task("hub", find, {"train": split, "validation": validation_split, "test": test_split}, **rest)


def hub_name(path: str) -> tuple[str, str | None, str | None]:
    """(owner/name or folder, revision, files) of what may be written as hf://datasets/owner/name@revision/files."""
    if not path.startswith("hf://"):
        return path, None, None
    owner, _, rest = path.removeprefix("hf://").removeprefix("datasets/").partition("/")
    repository, _, files = rest.partition("/")
    repository, _, revision = repository.partition("@")
    return f"{owner}/{repository}", revision or None, files or None


def read_hub(place: HubSplit, way_out: str = WAY_OUT) -> Iterator[Row]:
    """(number from 1, row) of a split as `datasets` gives it: from the Hub, its cache, or a folder."""
    import datasets

    given = {"revision": place.revision, "data_files": place.files, "split": place.split}
    if Path(place.path).is_file():
        raise UserError(f"task.args.path: {place.path} is a file; task.name is its kind (jsonl, json, csv, parquet).")
    try:
        rows = datasets.load_dataset(place.path, place.name, **given)
    except OSError as error:  # no network, no such data set, no right to it
        raise NotAtHandError(f"{place.path} cannot be had from the Hub ({first_line(error)}). {way_out}") from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:  # no such split, say
        raise UserError(f"{place.path}: datasets cannot read split '{place.split}' ({first_line(error)}).") from error
    for number, row in enumerate(rows, start=1):
        yield Row(f"{place.path}/{place.split}", number, row)

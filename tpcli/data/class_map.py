"""Class maps: files that say which folder is which class of a head."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpcli.errors import UserError

from .classes import Classes
from .files import LeftOut

NOT_MAPPED = "not in the class map"


def read_class_map(path: Path) -> dict[str, int]:
    """Folder names and their indices in the head, from a file.

    .txt: a name a line, in the order of the head, as timm's. .csv: lines `folder,index`. .json: an
    object of names and indices, or a list of names.

    Raises:
        UserError: it can't be read, or is of another form; names the place.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = _PARSERS[path.suffix.lower()](text)
    except KeyError:
        raise UserError(f"class map {path} is no .txt, .csv or .json file; use one.") from None
    except OSError as error:
        raise UserError(f"class map {path} can't be read: {error.strerror}.") from None
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"class map {path} can't be read: {error}.") from None
    for name, index in pairs:
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise UserError(
                f"class map {path} gives {name!r} the index {index!r}; give a whole number from 0."
            )
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise UserError(f"class map {path} has {name!r} more than once; give it one index.")
    if not pairs:
        raise UserError(f"class map {path} is empty; give one folder name a line.")
    return dict(pairs)


def by_map(
    spec: str, found: Classes, class_map: Mapping[str, int]
) -> tuple[Classes, tuple[int, ...]]:
    """The classes that a class map has, and the index of each; the other folders are left out.

    Raises:
        UserError: it has none of them.
    """
    kept = [i for i, name in enumerate(found.names) if name in class_map]
    if not kept:
        raise UserError(
            f"the class map has none of the class folders of {spec}, such as {found.names[0]!r}; "
            f"it has {', '.join(map(repr, list(class_map)[:3]))}."
        )
    indices = tuple(class_map[found.names[i]] for i in kept)
    dropped = [LeftOut(name, NOT_MAPPED) for name in found.names if name not in class_map]
    return found.of(kept, dropped), indices


def _of_lines(text: str) -> list[tuple[str, Any]]:
    return [(line.strip(), i) for i, line in enumerate(text.splitlines()) if line.strip()]


def _of_csv(text: str) -> list[tuple[str, Any]]:
    rows = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    if rows and not rows[0][-1].strip().isdecimal():
        rows = rows[1:]  # a header
    for row in rows:
        if len(row) != 2 or not row[1].strip().isdecimal():
            raise ValueError(f"{','.join(row)!r} is not of the form folder,index")
    return [(row[0].strip(), int(row[1])) for row in rows]


def _of_json(text: str) -> list[tuple[str, Any]]:
    document = json.loads(text, object_pairs_hook=list)
    if isinstance(document, list) and all(isinstance(item, str) for item in document):
        return [(name, i) for i, name in enumerate(document)]
    if isinstance(document, list) and all(isinstance(item, tuple) for item in document):
        return document
    raise ValueError("it is neither an object of names and indices nor a list of names")


_PARSERS = {".txt": _of_lines, ".csv": _of_csv, ".json": _of_json}

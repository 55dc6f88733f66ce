"""Classes: from folders, `.cls` files or a class map, matched with the head of a model."""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

from tpcli.errors import UserError, did_you_mean

from .listing import CLASS, Files, LeftOut, Member, natural_key, some, warn_once

BESIDE = "beside the class folders"
NO_CLASS = "an image without a .cls file, beside those with one"
EMPTY = "a class folder without an image"
NO_LABEL = -1
"""Target of an image without a class."""
HOLDERS = ("images", "imgs", "image", "img")
"""Folders that are no class even where there is a single one."""


class NoClasses(UserError):
    """Images without class folders, or with class folders at different depths."""


@dataclass(frozen=True)
class Classes:
    """Images with the class folder of each.

    names: of the class folders that hold images, in natural order; empty where there are none.
    members, labels: the images, and for each the position of its class in `names`, or its index
    where a class map or a `.cls` file gives that, or NO_LABEL. left_out: images without a class,
    empty folders.
    """

    names: tuple[str, ...]
    members: tuple[Member, ...]
    labels: tuple[int, ...]
    left_out: tuple[LeftOut, ...]


def by_folder(files: Files) -> Classes:
    """The class of an image is the name of its folder.

    Where every class folder holds one folder of the same name, as in Tiny ImageNet's
    `class/images/*.jpg`, it is the name above.

    Raises:
        NoClasses: images lie beside each other, or at different depths.
        UserError: there are no images, or folders that may be splits.
    """
    root = files.root
    if not files.members:
        archive = next((e.name for e in files.left_out if e.name.lower().endswith(".tar")), None)
        hint = f", but {archive}; give that file, or name it after its split" if archive else ""
        raise UserError(f"{root} holds no images in class folders or beside each other{hint}.")
    members = [m for m in files.members if "/" in m.name]
    if not members:
        raise NoClasses(
            f"{root} holds images but no class folders; put the images of each class in a folder "
            "of its own."
        )
    folders = {posixpath.dirname(m.name) for m in members}
    _check_depths(files, folders)
    class_of = {folder: folder for folder in folders}
    while _holds_one_more(class_of.values()):
        class_of = {folder: posixpath.dirname(of) for folder, of in class_of.items()}
    paths = set(class_of.values())
    named: dict[str, str] = {}
    for path in sorted(paths):
        name, parent = posixpath.basename(path), posixpath.dirname(path)
        if name in named:
            raise UserError(
                f"{root} has {name}/ in both {posixpath.dirname(named[name])}/ and {parent}/, "
                "which may be splits that are not to be mixed; give the one folder that is meant, "
                "or name the splits train, validation or test."
            )
        named[name] = path
    names = sorted(named, key=natural_key)
    index = {named[name]: i for i, name in enumerate(names)}
    depth = next(iter(paths)).count("/")
    at_depth = {"/".join(f.split("/")[: depth + 1]) for f in files.folders if f.count("/") >= depth}
    return Classes(
        tuple(names),
        tuple(members),
        tuple(index[class_of[posixpath.dirname(m.name)]] for m in members),
        (
            *(LeftOut(m.name, BESIDE) for m in files.members if "/" not in m.name),
            *(LeftOut(f, EMPTY) for f in sorted(at_depth - paths, key=natural_key)),
        ),
    )


def without_classes(files: Files) -> Classes:
    """All images, unlabelled."""
    return Classes((), tuple(files.members), (NO_LABEL,) * len(files.members), ())


def by_class_files(files: Files) -> tuple[Classes, str]:
    """The class of an image is the number in the `.cls` file of its name; images without are left
    out. The second value says why the images have no labels, and is empty where they have.

    Raises:
        UserError: two of one name, or what is in one is no index.
    """
    labels: dict[str, int] = {}
    for member in files.classes:
        with files.open(member) as file:
            text = file.read(64).decode("utf-8", "replace").strip()
        if not text.removeprefix("-").isdecimal():
            raise UserError(
                f"{member.name} in {files.root} holds {text!r}, which is no index of a class; put "
                "numbers from 0 there, or the images into class folders."
            )
        labels[_key(member.name)] = int(text)
    found = [member for member in files.members if _key(member.name) in labels]
    dropped = [LeftOut(m.name, NO_CLASS) for m in files.members if _key(m.name) not in labels]
    if not found:
        return without_classes(files), f"no image in {files.root} has a {CLASS} file of its name."
    indices = tuple(labels[_key(member.name)] for member in found)
    hidden = "" if max(indices) >= 0 else f"the {CLASS} files in {files.root} hide the classes."
    return Classes((), tuple(found), indices, tuple(dropped)), hidden


def _key(name: str) -> str:
    """Key of a webdataset sample: the path up to the first dot of the file name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.')[0]}"


def _holds_one_more(folders: Collection[str]) -> bool:
    """Whether all folders have the same name, as in `class/images`."""
    last = {posixpath.basename(folder) for folder in folders}
    is_nested = all("/" in folder for folder in folders)
    return is_nested and len(last) == 1 and (len(set(folders)) > 1 or last.pop().lower() in HOLDERS)


def _check_depths(files: Files, folders: Collection[str]) -> None:
    depths = {folder.count("/"): folder for folder in sorted(folders, reverse=True)}
    if len(depths) > 1:
        shallow, deep = depths[min(depths)], depths[max(depths)]
        raise NoClasses(
            f"{files.root} holds images at different depths, in {shallow}/ and in {deep}/, so "
            "it is not clear which folder is the class; put all class folders side by side."
        )


NOT_MAPPED = "not in the class map"


def read_class_map(path: Path) -> dict[str, int]:
    """Read a class map: folder names and their indices in the head.

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
    """Select the classes in a class map, and their indices; other folders are left out.

    Raises:
        UserError: it has none of them.
    """
    class_map = {_composed(name): index for name, index in class_map.items()}
    composed = map(_composed, found.names)
    indices = {i: class_map[name] for i, name in enumerate(composed) if name in class_map}
    if not indices:
        raise UserError(
            f"the class map has none of the class folders of {spec}, such as {found.names[0]!r}; "
            f"it has {', '.join(map(repr, list(class_map)[:3]))}."
        )
    pairs = zip(found.members, found.labels, strict=True)
    images = [(member, indices[label]) for member, label in pairs if label in indices]
    members, labels = zip(*images, strict=True)
    kept = tuple(found.names[i] for i in indices)
    dropped = (LeftOut(name, NOT_MAPPED) for i, name in enumerate(found.names) if i not in indices)
    classes = Classes(kept, members, labels, (*found.left_out, *dropped))
    return classes, tuple(indices.values())


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


WORDNET = re.compile(r"(n\d{8})(?:[-_. ].*)?")
"""A WordNet id, or one with a name behind it, such as n02085620-Chihuahua."""
PLACEHOLDER = re.compile(r"(LABEL_)?\d+")
"""Label names that say nothing."""


class Unmatched(UserError):
    """Labels that can't be compared with the model: there are none, or of other classes."""


@dataclass(frozen=True)
class Head:
    """The output classes of a model.

    model: what it is called. size: number of classes. names: of each, empty where unknown.
    """

    model: str
    size: int
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Any, name: str = "the model") -> Head:
        """The head of a timm model, with the `label_names` of its config where they fit.

        Raises:
            UserError: it answers for each token, not for the image.
        """
        classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
        size = int(getattr(classifier, "out_features", model.num_classes))  # put on by hand
        if size and getattr(model, "global_pool", None) == "":
            raise UserError(
                f"{name} has global_pool '', so it answers for each token and not for the image; "
                "use token, avg or another that its architecture takes."
            )
        names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ()
        if isinstance(names, Mapping):  # by their indices
            names = list(names.values())
        fit = len(names) == size and not isinstance(names, str)
        return cls(name, size, tuple(map(str, names)) if fit else ())


def match(
    spec: str,
    classes: Sequence[str],
    head: Head,
    odd: Sequence[str] = (),
    *,
    are_folders: bool = True,
) -> tuple[int, ...]:
    """The index in the head of each class.

    By name where the head's names are known, or where it is ImageNet's: by WordNet id or English
    name. Fewer classes than the head has are fine then. Numbers are indices. Names go by position
    only where the head has none and counts agree, which is logged.

    Args:
        odd: folders without images, for the error.
        are_folders: whether people named them. A data set of timm's has an order of its own, which
            stands where none of its names is at another place in the head.

    Raises:
        Unmatched: no class is the head's, or numbers of classes differ.
        UserError: some classes are the head's and others are not; or a name is that of several.
    """
    if head.size == 0:
        raise no_head(spec, head)
    for names in _vocabularies(classes, head):
        found = [names.look_up(name) for name in classes]
        if all(len(indices) == 1 for indices in found):
            known = [index for (index,) in found]
            _check_distinct(spec, classes, known, head)
            return tuple(known)
        if any(found):
            if are_folders:
                raise UserError(_no_single_class(spec, classes, found, names.shown, head))
            _check_in_place(spec, classes, found, head)
    says_something = any(not PLACEHOLDER.fullmatch(name) for name in head.names)
    if are_folders:
        numbers = _numbers(spec, classes)
        if numbers is not None and (says_something or len(classes) != head.size):
            return _by_number(spec, classes, numbers, head, odd)
        if says_something:
            raise Unmatched(_unknown(spec, classes, head.names, head))
    if len(classes) != head.size:
        raise _wrong_count(spec, classes, head, odd)
    if not all(name.isdecimal() for name in classes):
        warn_once(
            f"the classes of {spec} and {head.model} are matched by position, from {classes[0]!r} "
            f"to {classes[-1]!r}, not by name; if the model has them in another order, use a class "
            "map"
        )
    return tuple(range(head.size))


def no_head(spec: str, head: Head) -> Unmatched:
    """The error for labels where the model has no head."""
    return Unmatched(
        f"{head.model} has no head, so the labels of {spec} say nothing about it; use a model "
        "with classes, or `measure=knn` or `measure=similarity`, which need no head."
    )


class _Vocabulary:
    """Names that the classes of a head go by; some may be those of several classes.

    shown: a name of each class, for errors. spellings: for each class in which forms it may be
    written: a name is looked up as it is, then among the first forms, then among all.
    """

    def __init__(self, shown: Sequence[str], spellings: Sequence[Sequence[str]]) -> None:
        self.shown = shown
        self._tables = (
            _positions([[name] for name in shown], str),
            _positions([forms[:1] for forms in spellings], _folded),
            _positions(spellings, _folded),
        )

    def look_up(self, name: str) -> tuple[int, ...]:
        """The classes of that name: as it is written, else in another form or other capitals."""
        keys = (name, _folded(name), _folded(name))
        found = (table[key] for table, key in zip(self._tables, keys, strict=True) if key in table)
        return next(found, ())


class _Synsets(_Vocabulary):
    """Classes of ImageNet by their WordNet ids, with or without a name behind them."""

    def look_up(self, name: str) -> tuple[int, ...]:
        parts = WORDNET.fullmatch(name.lower())
        return super().look_up(parts[1] if parts else name)


class _Descriptions(_Vocabulary):
    """Classes with several names each, such as "tench, Tinca tinca": one of them, or all."""

    def __init__(self, texts: Sequence[str]) -> None:
        parts = [[part.strip() for part in text.split(",")] for text in texts]
        forms = [[*several, text] for several, text in zip(parts, texts, strict=True)]
        super().__init__([several[0] for several in parts], forms)
        # "cardigan" is a jacket, and a dog to whoever writes all names small
        self._tables = ({}, *self._tables[1:])


def _positions(
    names: Sequence[Sequence[str]], form: Callable[[str], str]
) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for i, several in enumerate(names):
        for name in dict.fromkeys(map(form, several)):
            found[name] = (*found.get(name, ()), i)
    return found


def _vocabularies(classes: Sequence[str], head: Head) -> Iterator[_Vocabulary]:
    """Names that the head's classes may go by, the likeliest first."""
    if any("," in name for name in head.names):
        yield _Descriptions(head.names)
    elif head.names:
        yield _Vocabulary(head.names, [[name] for name in head.names])
    subset = infer_imagenet_subset({"num_classes": head.size})
    if subset is None or all(name.isdecimal() for name in classes):
        return
    info = ImageNetInfo(subset)
    is_imagenet = not head.names or any(map(WORDNET.fullmatch, head.names))
    if any(WORDNET.fullmatch(name.lower()) for name in classes):
        yield _Synsets(info.label_names(), [[name] for name in info.label_names()])
    elif is_imagenet or PLACEHOLDER.fullmatch(head.names[0]):
        yield _Descriptions(list(info.label_descriptions()))


def _composed(name: str) -> str:
    """In Unicode's composed form, which macOS does not use for names of files."""
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    """In one form of Unicode, without capitals, and with spaces for - and _."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", text)).strip()


def _numbers(spec: str, classes: Sequence[str]) -> list[int] | None:
    """The classes as numbers, rising; None where they are none.

    Raises:
        UserError: two of them are one number, such as 1 and 01.
    """
    if not all(name.isascii() and name.isdecimal() for name in classes):
        return None
    numbers = [int(name) for name in classes]
    for before, after, one, other in zip(numbers, numbers[1:], classes, classes[1:], strict=False):
        if before == after:
            raise UserError(
                f"{spec} has two folders, {one}/ and {other}/, of one number; join them."
            )
    return numbers


def _by_number(
    spec: str, classes: Sequence[str], numbers: Sequence[int], head: Head, odd: Sequence[str]
) -> tuple[int, ...]:
    """The indices of numbered folders: all of the head's, or some where 0 is among them.

    Raises:
        Unmatched: they may be numbered for themselves, or from 1.
        UserError: so many are missing, and folders without images are among them.
    """
    first, last, count = numbers[0], numbers[-1], len(numbers)
    if last - first >= count and first == 0 and last < head.size:
        warn_once(
            f"the folders of {spec}, {classes[0]}/ to {classes[-1]}/, are taken for indices of the "
            f"{head.size} classes of {head.model}"
        )
        return tuple(numbers)
    if last - first >= count or first > 1:
        raise Unmatched(
            f"the folders of {spec}, {classes[0]}/ to {classes[-1]}/, can't be told to be indices "
            f"of the {head.size} classes of {head.model}, from 0 or from 1; say which is which by "
            "a `class_map`."
        )
    if count == head.size:
        return tuple(range(count))
    raise _wrong_count(spec, classes, head, odd)


def _check_in_place(
    spec: str, classes: Sequence[str], found: Sequence[tuple[int, ...]], head: Head
) -> None:
    """Raise where names of a data set, of which the head has some, are not in the head's order."""
    for i, (name, indices) in enumerate(zip(classes, found, strict=True)):
        if indices and i not in indices:
            raise UserError(
                f"class {i} of {spec}, {name!r}, is class {indices[0]} of {head.model}, which does "
                "not have all of them; use class folders with a `class_map`."
            )


def _no_single_class(
    spec: str,
    classes: Sequence[str],
    found: Sequence[tuple[int, ...]],
    names: Sequence[str],
    head: Head,
) -> str:
    """What is wrong with folders of which some can't be told to be one class of the head."""
    matched = list(zip(classes, found, strict=True))
    unknown = [name for name, indices in matched if not indices]
    if unknown:
        return _unknown(spec, unknown, names, head)
    name, indices = next((name, indices) for name, indices in matched if len(indices) > 1)
    places = " and ".join(map(str, indices[:3]))
    return (
        f"{name!r} in {spec} is the name of several classes of {head.model}, {places}; say which "
        "is meant by a `class_map`."
    )


def _check_distinct(spec: str, classes: Sequence[str], indices: Sequence[int], head: Head) -> None:
    seen: dict[int, str] = {}
    for name, index in zip(classes, indices, strict=True):
        if index in seen:
            raise UserError(
                f"{spec} has two folders, {seen[index]}/ and {name}/, for one class of "
                f"{head.model}; make them one."
            )
        seen[index] = name


def _unknown(spec: str, unknown: Sequence[str], names: Sequence[str], head: Head) -> str:
    folders = some([f"{name}/" for name in unknown])
    verb = "is no class" if len(unknown) == 1 else "are no classes"
    return (
        f"{folders} in {spec} {verb} of {head.model}, whose classes are {some(names)}; rename or "
        "remove what is odd, or say which folder is which class by a `class_map`."
        f"{did_you_mean(unknown[0], names)}"
    )


def _wrong_count(spec: str, classes: Sequence[str], head: Head, odd: Sequence[str]) -> UserError:
    counts = f"{spec} has {len(classes)} classes, the head of {head.model} has {head.size}"
    if odd:
        folders = some([f"{name}/" for name in odd])
        verb = "holds" if len(odd) == 1 else "hold"
        return UserError(
            f"{counts}: {folders} {verb} no images; fill or remove what is odd, or say which "
            "folder is which class by a `class_map`."
        )
    if len(classes) == 1:
        return Unmatched(
            f"{counts}: all images lie in {classes[0]}/; put the images of each class in a folder "
            "of its own."
        )
    return Unmatched(
        f"{counts}; use data of {head.size} classes, say which folder is which class by a "
        f"`class_map`, or use a model with `num_classes={len(classes)}`."
    )

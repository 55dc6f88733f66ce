"""Data sets of timm's whose labels, columns or images are not as timm expects them."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.images import picture
from tpcli.data import Head, ImageData, Unmatched, create, match_classes
from tpcli.data.named import class_index
from tpcli.errors import TpcliError, UserError

from .test_open import CONFIG, everything

Rows = list[dict[str, Any]]


def png(seed: int = 0) -> bytes:
    out = io.BytesIO()
    picture(seed).save(out, "PNG")
    return out.getvalue()


class Columns:
    """As much of a data set of Hugging Face's as timm asks for."""

    def __init__(self, rows: Rows, classes: list[str] | None) -> None:
        self.rows = rows
        self._fingerprint = str(rows)
        names = dict.fromkeys(rows[0])
        label = SimpleNamespace(names=classes, num_classes=len(classes or []))
        features = {name: label if "label" in name and classes else name for name in names}
        self.info = SimpleNamespace(splits=None, features=features)

    def cast_column(self, key: str, feature: object) -> Columns:
        if key not in self.rows[0]:
            raise ValueError(f"Column {key} not in {list(self.rows[0])}")
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


Hub = Callable[..., Callable[..., ImageData]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Opens rows as a data set of the Hub."""
    module: Any = ModuleType("datasets")
    module.Image = lambda decode: None
    module.ClassLabel = SimpleNamespace
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)

    def serve(rows: Rows, classes: list[str] | None = None) -> Callable[..., ImageData]:
        module.load_dataset = lambda name, **more: Columns(rows, classes)
        return lambda **options: create("hfds/org/name", CONFIG, **options)

    yield serve
    sys.modules.pop("timm.data.readers.reader_hfds", None)


def rows_of(*labels: Any, key: str = "label", image: str = "image") -> Rows:
    return [{image: {"bytes": png(i), "path": None}, key: label} for i, label in enumerate(labels)]


HEAD = Head("mine", 3)


@pytest.mark.parametrize(
    ("label", "index"),
    [
        (2, 2), (2.0, 2), ("2", 2), (b" 2\n", 2), (np.int64(2), 2), (np.array(2), 2), (True, 1),
        (-1, -1), (-100, -1), (None, -1), ("-1", -1),
        (2.5, None), (float("nan"), None), ("cat", None), ("", None), ([1, 2], None),
        (np.array([1, 2]), None), ({"a": 1}, None), ("1e3", None),
    ],
)  # fmt: skip
def test_labels_as_indices(label: Any, index: int | None) -> None:
    assert class_index(label) == index


def test_labels_of_the_hub(hub: Hub) -> None:
    data = match_classes(hub(rows_of(0, 2, 1))(), HEAD)
    assert everything(data)[1] == [0, 2, 1]


def test_names_of_the_hub_are_matched(hub: Hub) -> None:
    data = hub(rows_of(0, 1, 0), ["dog", "cat"])()
    assert data.classes == ["dog", "cat"]
    assert everything(match_classes(data, Head("m", 3, ("cat", "cow", "dog"))))[1] == [2, 0, 2]


@pytest.mark.parametrize(
    ("labels", "named"), [((-1, -1), "-1"), (("cat", "dog"), "'cat'"), ((0.5, 1), "'0.5'")]
)
def test_labels_that_are_no_classes_are_told(hub: Hub, labels: Any, named: str) -> None:
    data = hub(rows_of(*labels))()
    with pytest.raises(Unmatched, match=f"{named}.*target_key"):
        match_classes(data, HEAD)
    assert everything(data)[1] == [-1, -1]  # for measures without labels


def test_a_missing_column_is_named_with_those_there(hub: Hub) -> None:
    opened = hub(rows_of(2, 1, key="fine_label"))
    with pytest.raises(Unmatched, match=r"'label'.*fine_label.*target_key"):
        match_classes(opened(), HEAD)
    assert len(everything(opened())[1]) == 2
    assert everything(match_classes(opened(target_key="fine_label"), HEAD))[1] == [2, 1]
    with pytest.raises(UserError, match=r"image.*input_key"):
        hub(rows_of(1, image="img"))()
    assert everything(hub(rows_of(1, image="img"))(input_key="img"))[1] == [1]


@pytest.mark.parametrize(("label", "named"), [(3, "3"), (99, "99"), (-1, "-1"), ("x", "'x'")])
def test_a_later_label_that_is_no_class_is_named(hub: Hub, label: Any, named: str) -> None:
    data = match_classes(hub(rows_of(0, label))(), HEAD)
    with pytest.raises(UserError, match=f"label {named}"):
        everything(data)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_network_error_shrinks_nothing(hub: Hub, workers: int) -> None:
    from tpcli.data import batches

    class Lost(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise ConnectionError("the line is dead")

    data = hub([*rows_of(0, 1), Lost(image=0, label=0)])()
    with pytest.raises(TpcliError, match="the line is dead") as caught:
        list(batches(data, 2, workers))
    assert "Traceback" not in str(caught.value)


def test_damaged_images_of_the_hub_are_left_out_with_the_reason(hub: Hub) -> None:
    broken = [{"image": {"bytes": b"no picture", "path": None}, "label": 1}]
    data = hub([*rows_of(0), *broken, {"image": None, "label": 1}])()
    assert everything(data)[1] == [0, -100, -100]
    assert data.why_unreadable(1) != data.why_unreadable(2)


def test_keys_are_for_sets_with_columns(tmp_path: Path) -> None:
    for spec in ("torch/cifar10", str(tmp_path)):
        with pytest.raises(UserError, match="target_key=fine"):
            create(spec, CONFIG, target_key="fine")


def test_fingerprints_tell_columns_scales_and_versions_apart(hub: Hub) -> None:
    rows = [{**row, "fine_label": 1 - row["label"]} for row in rows_of(0, 1)]
    opened = hub(rows)
    first = opened().fingerprint
    assert opened().fingerprint == first
    others = [
        opened(target_key="fine_label"),
        opened(pixel_max=4095),
        hub([rows[0], {**rows[1], "label": 0}])(),
    ]
    assert len({first, *(data.fingerprint for data in others)}) == 4


def grey(seed: int, white: int | None = None) -> bytes:
    """A PNG of a 12-bit sensor, or as it is in 8 bits."""
    out = io.BytesIO()
    values = np.asarray(picture(seed).convert("L")).astype(np.uint16) << 4
    if white is not None:
        values = np.rint(values * (255 / white)).astype(np.uint8)
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


def test_sensors_have_one_scale_in_columns_and_streams(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows, eight = rows_of(0, 1), rows_of(0, 1)
    for i, (row, other) in enumerate(zip(rows, eight, strict=True)):
        row["image"]["bytes"] = grey(i)
        other["image"]["bytes"] = grey(i, 4095)
    data = hub(rows)()
    assert "4095" in caplog.text
    images = everything(data)[0]
    assert torch.equal(images, everything(hub(eight)())[0])
    dark = everything(hub(rows)(pixel_max=65535))[0]
    assert dark.float().mean() < images.float().mean() / 8
    samples = {str(i): {"png": grey(i), "cls": b"1"} for i in range(2)}
    assert torch.equal(everything(stream(tmp_path, samples))[0], images)


def test_folders_of_torchvision_keep_sixteen_bits(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    (tmp_path / "cat").mkdir()
    file = tmp_path / "cat" / "0.png"
    file.write_bytes(grey(0))
    found = create("torch/image_folder", CONFIG, data_dir=str(tmp_path), split="")
    assert torch.equal(everything(found)[0], everything(create(str(tmp_path), CONFIG))[0])
    file.write_bytes(grey(1))
    again = create("torch/image_folder", CONFIG, data_dir=str(tmp_path), split="")
    assert again.fingerprint != found.fingerprint


@pytest.mark.parametrize("targets", [["a.xml", "b.xml"], np.arange(2), torch.arange(2)])
def test_targets_of_any_kind_have_a_fingerprint(
    monkeypatch: pytest.MonkeyPatch, targets: Any
) -> None:
    found = SimpleNamespace(targets=targets, transform=None, classes=["a", "b"])
    monkeypatch.setattr("tpcli.data.named.create_dataset", lambda *a, **k: Found(found))
    first = create("torch/some", CONFIG).fingerprint
    assert create("torch/some", CONFIG).fingerprint == first
    found.targets = targets[::-1] if isinstance(targets, list) else 1 - targets
    assert create("torch/some", CONFIG).fingerprint != first


class Found:
    """A data set of torchvision's of two images."""

    def __init__(self, attributes: SimpleNamespace) -> None:
        vars(self).update(vars(attributes))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return picture(index), index


def shard(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for suffix, content in parts.items():
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def test_a_shard_given_as_a_file_has_its_labels(tmp_path: Path) -> None:
    samples = {f"{i:04d}": {"png": png(i), "cls": str(2 - i).encode()} for i in range(3)}
    data = create(str(shard(tmp_path / "x.tar", samples)), CONFIG)
    assert everything(match_classes(data, HEAD))[1] == [2, 1, 0]
    assert not data.left_out
    with pytest.raises(UserError, match="label 2"):
        everything(match_classes(data, Head("m", 2)))
    samples["0001"].pop("cls")
    data = create(str(shard(tmp_path / "y.tar", samples)), CONFIG)
    assert (data.count, [entry.name for entry in data.left_out]) == (2, ["0001.png"])
    samples["0002"]["cls"] = b"cat"
    with pytest.raises(UserError, match="'cat'"):
        create(str(shard(tmp_path / "z.tar", samples)), CONFIG)


def stream(folder: Path, samples: Mapping[str, Mapping[str, bytes]], **options: Any) -> ImageData:
    pytest.importorskip("webdataset")
    shard(folder / "x-{0..0}.tar".replace("{0..0}", "0"), samples)
    return create("wds/x", CONFIG, data_dir=str(folder), split="x-0.tar", **options)


def test_streams_with_labels_elsewhere(tmp_path: Path) -> None:
    fields = json.dumps({"label": 1, "name": "cat"}).encode()
    samples = {str(i): {"png": png(i), "json": fields, "txt": b"2"} for i in range(3)}
    for key, label in (("label", 1), ("txt", 2)):
        data = stream(tmp_path, samples, target_key=key)
        assert everything(match_classes(data, HEAD))[1] == [label] * 3
    with pytest.raises(Unmatched, match=r"cls.*txt.*label, name.*target_key"):
        match_classes(stream(tmp_path, samples), HEAD)
    with pytest.raises(Unmatched, match="'cat'"):
        match_classes(stream(tmp_path, samples, target_key="name"), HEAD)
    assert everything(stream(tmp_path, samples))[1] == [-1] * 3


def test_another_shard_in_its_place_has_another_fingerprint(tmp_path: Path) -> None:
    samples = {str(i): {"png": png(i), "cls": b"1"} for i in range(3)}
    first = stream(tmp_path, samples).fingerprint
    assert stream(tmp_path, {**samples, "4": samples["2"]}).fingerprint != first


def test_a_damaged_image_of_a_stream_is_counted(tmp_path: Path) -> None:
    samples = {str(i): {"png": png(i), "cls": b"1"} for i in range(3)}
    samples["1"] = {"png": b"no picture", "cls": b"1"}
    data = match_classes(stream(tmp_path, samples), HEAD)
    assert everything(data)[1] == [1, -100, 1]
    samples["1"] = {"png": png(1), "cls": b"7"}
    with pytest.raises(UserError, match="label 7"):
        everything(match_classes(stream(tmp_path, samples), HEAD))


def test_a_stream_that_is_cut_off_shrinks_nothing(tmp_path: Path) -> None:
    samples = {str(i): {"png": png(i), "cls": b"1"} for i in range(30)}
    data = stream(tmp_path, samples)
    whole = (tmp_path / "x-0.tar").read_bytes()
    (tmp_path / "x-0.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TpcliError, match="wds/x"):
        everything(data)

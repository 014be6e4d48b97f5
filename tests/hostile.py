"""Writes files that declare far more memory than their size: packs, arrays, images and JSON."""

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tf_packnet.packfile import container
from tf_packnet.packfile.contents import opened

MB = 2**20
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
# More than a file may claim.
BOMB = 400 * MB


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, members: dict[str, bytes | int]) -> Path:
    """A ZIP archive; a number stands for so many zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            with archive.open(name, "w", force_zip64=True) as member:
                if isinstance(content, bytes):
                    member.write(content)
                    continue
                for _ in range(content // MB):
                    member.write(bytes(MB))
    return path


def keras_file(path: Path, genuine: Path, **changes: Any) -> Path:
    """A `.keras` file with some members replaced: `config`, `weights`, or `others`."""
    members: dict[str, bytes | int] = {**members_of(genuine), **changes.get("others", {})}
    members[CONFIG] = changes.get("config", members[CONFIG])
    members[WEIGHTS] = changes.get("weights", members[WEIGHTS])
    return write_zip(path, members)


def with_settings(genuine: Path, **settings: Any) -> bytes:
    """The config of a pack in which every setting of these names has another value."""

    def changed(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: settings.get(key, changed(value)) for key, value in part.items()}
        return [changed(each) for each in part] if isinstance(part, list) else part

    return json.dumps(changed(json.loads(members_of(genuine)[CONFIG]))).encode()


def with_weights(genuine: Path, change: Callable[[h5py.File, str], None]) -> bytes:
    """The weights of a pack after `change`, which gets the file and the path of a kernel's values."""
    content = io.BytesIO(members_of(genuine)[WEIGHTS])
    with h5py.File(content, "r+") as file:
        found: list[str] = []
        file.visit(lambda name: found.append(name) if name.endswith("kernel.variable") else None)
        change(file, found[0])
    return content.getvalue()


def replace_dataset(**how: Any) -> Callable[[h5py.File, str], None]:
    def change(file: h5py.File, kernel: str) -> None:
        del file[kernel]
        file.create_dataset(kernel, **how)

    return change


def replace_by_link(link: Any) -> Callable[[h5py.File, str], None]:
    def change(file: h5py.File, kernel: str) -> None:
        del file[kernel]
        file[kernel] = link

    return change


def cycle(file: h5py.File, kernel: str) -> None:
    file[kernel.rpartition("/")[0] + "/again"] = file["/"]


def virtual(file: h5py.File, kernel: str) -> None:
    del file[kernel]
    layout = h5py.VirtualLayout((30_000, 30_000), "f4")
    layout[:] = h5py.VirtualSource("/dev/null", "x", (30_000, 30_000))
    file.create_virtual_dataset(kernel, layout)


def packnet(path: Path, genuine: Path, change: Callable[[dict[str, Any], dict[str, list]], None]) -> Path:
    """A `.packnet` file whose directory and arrays, `{part: [(kind, name, value)]}`, `change` has altered."""
    with opened(genuine, None) as (file, contents):
        directory, before, parts = dict(file.directory), 0, {}
        for part in contents.parts:
            parts[part.name] = [(*key, value) for key, value in file.arrays(part, before).items()]
            before += part.stored
    change(directory, parts)
    container.write(path, directory, [container.pack_part(name, arrays) for name, arrays in parts.items()])
    return path


def replace_array(part: str, kind: str, value: np.ndarray) -> Callable[[dict, dict], None]:
    """Replace the first array of this kind in a part, or add one."""

    def change(_: dict[str, Any], parts: dict[str, list]) -> None:
        arrays = parts[part]
        place = next((i for i, each in enumerate(arrays) if each[0] == kind), len(arrays))
        name = arrays[place][1] if place < len(arrays) else "more/0"
        arrays[place : place + 1] = [(kind, name, value)]

    return change


def replace_number(old: int, new: int) -> Callable[[dict, dict], None]:
    """Replace a number in the config of a pack, wherever it stands."""

    def change(_: dict[str, Any], parts: dict[str, list]) -> None:
        text = with_number(parts["model"][0][2].tobytes(), old, new)
        parts["model"] = [("config", "network", np.frombuffer(text, np.uint8))]

    return change


def with_number(config: bytes, old: int, new: int) -> bytes:
    return re.sub(rb"\b%d\b" % old, b"%d" % new, config)


def npy(shape: tuple[int, ...], descr: Any, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


def png(path: Path, width: int, height: int, chunks: tuple[tuple[bytes, bytes], ...] = (), colours: int = 1) -> Path:
    """A black image of 1 or 3 colours."""
    compressor = zlib.compressobj(1)
    row = bytes(colours * width + 1)
    data = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if colours == 3 else 0, 0, 0, 0)
    parts = ((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b""))
    content = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def gif(path: Path, width: int, height: int) -> Path:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\x01\x00\x00;"
    path.write_bytes(b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame)
    return path


def bmp(path: Path, width: int, height: int) -> Path:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info + bytes(64))
    return path


def many_scans(path: Path, side: int, scans: int) -> Path:
    """A progressive JPEG image whose last scan comes `scans` times."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    path.write_bytes(content[:last] + content[last:-2] * scans + content[-2:])
    return path

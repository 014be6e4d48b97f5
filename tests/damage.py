"""Ways to damage a file of an output directory, for the tests of damaged directories."""

import os
import random
import re
import shutil
import socket
import stat
from pathlib import Path

USERS = b"a file of the user"


class Damage:
    """Ways to damage a file. Each method is one of them.

    Args:
        root: The output directory.
        elsewhere: A folder outside of it, for the targets of links.
        rng: Chooses what is changed.
    """

    def __init__(self, root: Path, elsewhere: Path, rng):
        self.root, self.elsewhere, self.rng = root, elsewhere, rng
        elsewhere.mkdir(exist_ok=True)

    def deleted(self, path):
        path.unlink()

    def truncated(self, path):
        path.write_bytes(path.read_bytes()[: self.rng.randrange(path.stat().st_size)])

    def bit_flipped(self, path):
        content = bytearray(path.read_bytes())
        content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(content)

    def emptied(self, path):
        path.write_bytes(b"")

    def content_of_another_file(self, path):
        contents = {other.read_bytes() for other in self.root.rglob("*") if other.is_file()}
        path.write_bytes(self.rng.choice(sorted(contents - {path.read_bytes(), b""})))

    def empty_folder(self, path):
        path.unlink()
        path.mkdir()

    def folder_with_a_users_file(self, path):
        self.empty_folder(path)
        (path / "notes.txt").write_bytes(USERS)

    def link_to_a_good_copy(self, path):
        shutil.move(path, self.elsewhere / "copy")
        path.symlink_to(self.elsewhere / "copy")

    def link_to_a_users_file(self, path):
        path.unlink()
        (self.elsewhere / "users").write_bytes(USERS)
        path.symlink_to(self.elsewhere / "users")

    def link_to_nothing(self, path):
        path.unlink()
        path.symlink_to(self.elsewhere / "nothing")

    def link_to_itself(self, path):
        path.unlink()
        path.symlink_to(path.name)

    def pipe(self, path):
        path.unlink()
        os.mkfifo(path)

    def socket(self, path):
        path.unlink()
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket has 107 characters at most
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        finally:
            os.chdir(here)


WAYS = sorted(name for name in vars(Damage) if not name.startswith("_"))


def snapshot(*roots: Path) -> dict[str, object]:
    """What is in some folders: contents of files, targets of links, types of everything else."""
    found = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found[str(path)] = path.read_bytes()
            else:
                found[str(path)] = os.readlink(path) if stat.S_ISLNK(mode) else stat.S_IFMT(mode)
    return found


def remove(path: Path) -> None:
    """Remove whatever is at `path`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def all_files(root):
    return [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file() and path.stat().st_size]


def one_of_each_kind(root):
    """One file of each folder and name, numbers left out: the last."""
    kinds = {(name.parts[0], re.sub(r"[\d.]+", "#", name.name)): name for name in all_files(root)}
    return sorted(kinds.values())


def check_fail(names, way, original, root, program, command):
    """Damage files of a copy of `original` in turn: `command` names each of them, and changes nothing.

    Args:
        names: The files.
        way: One of `WAYS`.
        original: The folder with undamaged files.
        root: The copy.
        program: How messages begin.
        command: Runs with `--on_corruption=fail`; returns exit code and standard error.
    """
    elsewhere = root.parent / "elsewhere"
    damages = Damage(root, elsewhere, random.Random(way))
    for name in names:
        getattr(damages, way)(root / name)
        before = snapshot(root, elsewhere)
        code, stderr = command()
        assert (code, stderr.partition(" is damaged")[0]) == (1, f"{program}: {root / name}")
        assert snapshot(root, elsewhere) == before, name
        remove(root / name)
        shutil.copy(original / name, root / name)


def check_recompute(name, way, original, root, rng, command):
    """Damage a file of a copy of `original`: `command` repairs it, or refuses it by name and changes nothing.

    Args:
        name: The file.
        way: One of `WAYS`.
        original: The folder with undamaged files.
        root: Where to copy it.
        rng: Random numbers for the damage.
        command: Runs; returns exit code and standard error.

    Returns:
        Whether it was repaired.
    """
    elsewhere = root.parent / "elsewhere"
    shutil.copytree(original, root)
    getattr(Damage(root, elsewhere, rng), way)(root / name)
    before, outside = snapshot(root, elsewhere), snapshot(elsewhere)
    code, stderr = command()
    if way == "folder_with_a_users_file":
        assert code == 1
        assert f"{root / name} is damaged (a folder, not a file); move this folder away" in stderr
        assert snapshot(root, elsewhere) == before
        return False
    assert code == 0, stderr
    reported = [line for line in stderr.splitlines() if "is damaged" in line]
    assert len(reported) == 1, reported
    assert re.fullmatch(rf"{re.escape(str(root / name))} is damaged( \(.+\))? and will be recomputed", reported[0])
    assert snapshot(elsewhere) == outside
    return True

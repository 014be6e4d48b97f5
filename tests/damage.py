"""Ways to damage a file of an output directory, for the tests of damaged directories."""

import os
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

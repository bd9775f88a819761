"""API keys: the file of their names and digests, who holds a key, and `python -m service keys`.

A line of the file is `name:sha256`, in hexadecimal; empty lines and those that begin with # count for nothing. SHA-256
without salt or stretching is enough for 256 random bits, which nobody can guess.
"""

import argparse
import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .followed_file import FollowedFile

PREFIX = "losseval_"
"""Lets scanners of leaked secrets recognise a key."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(rf"({_NAME.pattern}):([0-9a-fA-F]{{64}})")


class KeyRing:
    """The keys of a file; while the file is bad, those of its last good version.

    Raises:
        ValueError: The file can't be read or is bad at the start.
    """

    def __init__(self, path: Path) -> None:
        self._keys: list[tuple[str, bytes]] = []
        self.refresh = FollowedFile(path, self._take, title="keys file").refresh

    def holder_of(self, key: bytes) -> str | None:
        """Returns the name of a key, None for one that isn't there.

        The digest is compared with every key's, each in constant time. A dictionary would be faster from some hundred
        keys on, but would tell by its time how many bits of a digest were right.
        """
        digest = hashlib.sha256(key).digest()
        found = None
        for name, known in self._keys:
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _take(self, content: bytes) -> None:
        self._keys = [(name, bytes.fromhex(digest)) for name, digest in parse(content.decode()).items()]


def parse(text: str) -> dict[str, str]:
    """Returns the digests by name; their number may be 0, which lets nobody in.

    Raises:
        ValueError: A line is not `name:sha256`, or a name or a digest stands twice.
    """
    keys: dict[str, str] = {}
    taken: set[str] = set()
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} is not name:sha256")  # never shown: it might be a key
        name, digest = match[1], match[2].lower()
        if name in taken or digest in taken:
            raise ValueError(f"line {number}: the name or its key stands twice")
        keys[name] = digest
        taken |= {name, digest}
    return keys


def main(arguments: Sequence[str]) -> None:
    """Creates, lists or revokes keys; a running service follows within seconds."""
    parser = argparse.ArgumentParser("python -m service keys", description=main.__doc__)
    parser.add_argument("action", choices=("create", "list", "revoke"))
    parser.add_argument("name", nargs="?", default="", help="letters, digits, dots, hyphens and underscores; up to 64")
    file = os.environ.get("LOSSEVAL_KEYS_FILE")
    parser.add_argument("--keys-file", type=Path, default=file, required=not file, help="or LOSSEVAL_KEYS_FILE")
    options = parser.parse_args(arguments)
    if bool(options.name) == (options.action == "list"):
        parser.error("create and revoke take a name, list takes none")
    try:
        if options.action == "list":
            sys.stdout.writelines(f"{name}\n" for name in parse(options.keys_file.read_text()))
        elif options.action == "create":
            sys.stdout.write(f"{create(options.keys_file, options.name)}\n")
            sys.stderr.write("It isn't shown again: the file keeps only its SHA-256.\n")
        else:
            revoke(options.keys_file, options.name)
    except (OSError, ValueError) as error:
        parser.error(f"{options.keys_file}: {getattr(error, 'strerror', None) or error}")


def create(path: Path, name: str) -> str:
    """Adds a key to the file, which is made where there is none, and returns it.

    Raises:
        OSError, ValueError: The file can't be written or is bad, the name is there already or can't be one.
    """
    key = PREFIX + secrets.token_urlsafe(32)

    def add(text: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name: letters, digits, dots, hyphens and underscores, up to 64")
        if name in parse(text):
            raise ValueError(f"there is a key {name} already")
        return "\n".join([*text.splitlines(), f"{name}:{hashlib.sha256(key.encode()).hexdigest()}", ""])

    _rewrite(path, add)
    return key


def revoke(path: Path, name: str) -> None:
    """Takes a key out of the file.

    Raises:
        OSError, ValueError: The file can't be written or is bad, or has no such key.
    """

    def remove(text: str) -> str:
        if name not in parse(text):
            raise ValueError(f"there is no key {name}")
        return "".join(line for line in text.splitlines(keepends=True) if not line.strip().startswith(f"{name}:"))

    _rewrite(path, remove)


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Replaces a file at once: a reader finds the old one or the new one, whole."""
    path = path.resolve()  # where a link leads is replaced, not the link
    new = path.with_name(f"{path.name}.new")
    try:
        new.touch(mode=0o600, exist_ok=False)  # whoever makes it is the only one at work
    except FileExistsError:
        raise ValueError(f"somebody else is changing it; if nobody is, remove {new}") from None
    try:
        new.write_text(change(path.read_text() if path.exists() else ""))
        if path.exists():  # a service that runs as somebody else goes on reading it
            status = path.stat()
            os.chown(new, status.st_uid, status.st_gid)
            new.chmod(status.st_mode)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)

"""The newest state of etcd that this node has seen, in a file: a restart does not forget it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jumpvpn.runtime.stores.base import StoreUnavailable

_LONGEST_FILE = 4 << 10


class Remembered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which cluster (its id), its newest revision, and why it is refused since (empty: it is not)."""

    cluster: int = 0
    revision: int = 0
    refused: str = ""


@dataclass(frozen=True, slots=True)
class RevisionFile:
    """``store-revision`` of a node. A store restored to a state that is newer than this file cannot be told apart."""

    path: Path

    def read(self) -> Remembered:
        """What was written last; zeros if nothing was. Raises StoreUnavailable."""
        try:
            with self.path.open("rb") as file:
                return msgspec.json.decode(file.read(_LONGEST_FILE), type=Remembered)
        except FileNotFoundError:
            return Remembered()
        except OSError as error:
            raise StoreUnavailable(f"cannot read {self.path}: {error.strerror}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StoreUnavailable(
                f"{self.path} is damaged; if etcd was not restored from a backup since, remove it"
            ) from error

    def write(self, seen: Remembered) -> None:
        """Replace it as a whole, without waiting for the disk: what is lost with the power is a little younger.

        Raises StoreUnavailable.
        """
        draft = self.path.with_name(self.path.name + ".new")
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(seen))
            draft.replace(self.path)
        except OSError as error:
            raise StoreUnavailable(f"cannot write {self.path}: {error.strerror}") from error

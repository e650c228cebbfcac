"""How commands fail: one line that says what is wrong and what to do, and an exit code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

from jumpvpn.policy.problems import Rejected
from jumpvpn.runtime.cleanup import AlreadyRunning
from jumpvpn.runtime.control import ControlBusy, NotRunning, Refused
from jumpvpn.runtime.errors import KeyFileError, StartFailed
from jumpvpn.runtime.journal import JournalFailed
from jumpvpn.runtime.nft import NftFailed
from jumpvpn.runtime.rtnl import RtnlFailed
from jumpvpn.runtime.stores.base import StoreUnavailable

RUN_FAILURE = 1
USAGE_FAILURE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Failure(Exception):
    """A command's own error with its exit code."""

    def __init__(self, text: str, code: int = RUN_FAILURE) -> None:
        super().__init__(text)
        self.code = code


_EXPECTED = (
    AlreadyRunning,
    ControlBusy,
    JournalFailed,
    NftFailed,
    NotRunning,
    RtnlFailed,
    StartFailed,
    StoreUnavailable,
    OSError,
)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn every expected failure inside the block into a message on stderr and an exit code."""
    try:
        yield
    except Rejected as error:
        fail(str(error), USAGE_FAILURE)
    except Refused as error:
        fail(str(error), USAGE_FAILURE if error.code == "usage" else RUN_FAILURE)
    except KeyFileError as error:
        fail(str(error), USAGE_FAILURE)
    except Failure as error:
        fail(str(error), error.code)
    except PermissionError as error:
        fail(f"{_words(error)}; run as root or with CAP_NET_ADMIN")
    except _EXPECTED as error:
        fail(_words(error))
    except ImportError as error:
        if "_native" not in str(error):
            raise
        fail("the packet core is not built; run 'make setup'")
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def fail(text: str, code: int = RUN_FAILURE) -> NoReturn:
    """Say what went wrong and leave."""
    sys.stderr.write(f"jumpvpn: error: {text}\n")
    raise SystemExit(code)


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__

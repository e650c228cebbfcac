"""How commands fail: one line that says what is wrong and what to do, and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from jumpvpn.leaving import CLOSED_PIPE, INTERRUPTED, reader_is_gone, silence
from jumpvpn.policy.problems import Rejected
from jumpvpn.runtime.control import ControlBusy, NotRunning, Refused
from jumpvpn.runtime.errors import AlreadyRunning, KeyFileError, RtnlFailed, StartFailed
from jumpvpn.runtime.journal import JournalFailed
from jumpvpn.runtime.nft import NftFailed
from jumpvpn.runtime.stores.base import StoreUnavailable

RUN_FAILURE = 1
USAGE_FAILURE = 2
TRACEBACK_VARIABLE = "JUMPVPN_TRACEBACK"
LONGEST_WORDS = 200  # an unforeseen error may carry anything; one line is read by people


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
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            silence()
            raise SystemExit(CLOSED_PIPE) from None
        fail(_words(error))
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        if isinstance(error, ImportError) and "_native" in str(error):
            fail("the packet core is not built; run 'make setup'")
        fail(f"internal error: {_place(error)}; this is a defect: set {TRACEBACK_VARIABLE}=1 and report what it shows")


def fail(text: str, code: int = RUN_FAILURE) -> NoReturn:
    """Say what went wrong and leave."""
    sys.stderr.write(f"jumpvpn: error: {text}\n")
    raise SystemExit(code)


def _place(error: Exception) -> str:
    """Kind, words and origin of an error that nobody foresaw, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    origin = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    words = " ".join(str(error).split())[:LONGEST_WORDS]
    return f"{type(error).__name__}{': ' if words else ''}{words}{origin}"


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__

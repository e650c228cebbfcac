"""Calls to a cluster of etcd servers: one member after the other, bounded in time, refused in words."""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import msgspec
from google.protobuf.message import Message

from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb
from jumpvpn.runtime.stores.etcd.config import EtcdConfig, Identity
from jumpvpn.runtime.stores.etcd.remembered import Remembered, RevisionFile
from jumpvpn.runtime.stores.shared import Unanswered

LONGEST_ANSWER = 32 << 20  # a page of records (store.py) stays far below; etcd itself sets no bound
_FIRST_PAUSE = 0.05  # seconds, doubled after each round in which no member answered
_LONGEST_PAUSE = 0.4  # an election takes about a second: a member that is back is asked soon
_DIAGNOSIS_SECONDS = 2.0  # for each member at most, once, when the store is opened
_ALERT_SECONDS = 0.5  # a server that refuses our certificate says so within a round trip
_REREAD_SECONDS = 1.0  # between two looks at the files of our certificate while connections fail
_REMEMBER_SECONDS = 5.0  # between two writings of the newest revision
_OPTIONS = (
    ("grpc.max_receive_message_length", LONGEST_ANSWER),
    ("grpc.enable_http_proxy", 0),  # a proxy of the environment would see, and delay, who owns what
    ("grpc.use_local_subchannel_pool", 1),  # a new client proves its identity anew
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 10_000),  # etcd closes connections that ask more often than every 5 s
    ("grpc.keepalive_timeout_ms", 3_000),
)
# A member that has lost its leader ends a stream that carries this, instead of leaving it silent.
REQUIRE_LEADER = (("hasleader", "true"),)
_SPACE = (
    "etcd: has no space left (its --quota-backend-bytes is used up); compact and defragment it, "
    "then run 'etcdctl alarm disarm'"
)

_ISSUE = "it has to be issued by the CA that the etcd servers trust (their --trusted-ca-file)"
_TLS_WORDS = (  # in gRPC's details, and what they mean
    ("certificate has expired", "its certificate has expired; issue a new one"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not from our CA or for another name"),
    ("TSI_DATA_CORRUPTED", f"does not accept our certificate ({_ISSUE}), or the connection was damaged"),
    ("onnection refused", "connection refused"),
)
# Answers that another member would give too.
_DEFINITE = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


class Refused(StoreUnavailable):
    """etcd answered that it did not carry the request out."""

    def __init__(self, reason: str, code: grpc.StatusCode) -> None:
        super().__init__(reason)
        self.code = code


class OutOfSpace(Refused):
    """etcd has no space left. The change that used up the last of it got this answer, and took place all the same."""


class Unreachable(StoreUnavailable):
    """No member answered in time."""


class WentBack(StoreUnavailable):
    """etcd has an older state than this node has seen, or is another cluster: nothing is decided on it.

    The request that found it out may have been carried out, there.
    """


@dataclass(slots=True)
class Traffic:
    """What was asked of etcd since the start: changing transactions, with their operations; readings; lease calls."""

    transactions: int = 0
    puts: int = 0
    deletions: int = 0
    reads: int = 0
    leases: int = 0

    def count(self, method: Method, request: Any) -> None:
        """Count one request that is about to be sent."""
        if method is TXN and any(not op.HasField("request_range") for op in request.success):
            self.transactions += 1
            self.puts += sum(op.HasField("request_put") for op in request.success)
            self.deletions += sum(op.HasField("request_delete_range") for op in request.success)
        elif method in (TXN, RANGE):
            self.reads += 1
        else:
            self.leases += 1


@dataclass(frozen=True, slots=True)
class Method:
    """A method of etcd and how to read its answer."""

    path: str
    answer: Callable[[bytes], Any]


RANGE = Method("/etcdserverpb.KV/Range", pb.RangeResponse.FromString)
TXN = Method("/etcdserverpb.KV/Txn", pb.TxnResponse.FromString)
GRANT = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantResponse.FromString)
REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeResponse.FromString)
KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveResponse.FromString)
WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchResponse.FromString)


class Client:
    """Channels to all members, of which one is asked until it fails. Open with ``await Client.open(config)``."""

    def __init__(self, config: EtcdConfig, identity: Identity) -> None:
        self.config = config
        self.traffic = Traffic()
        self._identity = identity
        self._channels = _channels(config, identity)
        self._replaced: set[asyncio.Task[None]] = set()
        self._problem = ""  # with the files of our certificate
        self._read_at = -math.inf
        self._turn = 0
        self._file = None if config.remembered is None else RevisionFile(config.remembered)
        self._seen = Remembered() if self._file is None else self._file.read()
        self._written, self._written_at = self._seen, -math.inf
        self._closed = False

    @classmethod
    async def open(cls, config: EtcdConfig) -> Client:
        """Check the files and reach the cluster. Raises StoreUnavailable with what to do."""
        identity = Identity.read(config)
        client = cls(config, identity)
        try:
            await client.ask(RANGE, pb.RangeRequest(key=b"/jumpvpn/"))
        except StoreUnavailable as failure:
            await client.close()
            found = await asyncio.gather(*(_diagnose(endpoint, config) for endpoint in config.endpoints))
            advice = "; ".join(text for text in found if text)
            raise StoreUnavailable(f"etcd: {advice}" if advice else failure.reason) from failure
        except BaseException:
            await client.close()
            raise
        return client

    async def close(self) -> None:
        """Close all channels; a second call does nothing."""
        if not self._closed and self._seen != self._written and self._file is not None:
            with contextlib.suppress(StoreUnavailable):  # the file is a little older, as after a kill
                self._file.write(self._seen)
        self._closed = True
        for channel in self._channels:
            await channel.close(grace=None)
        for task in tuple(self._replaced):
            task.cancel()
        await asyncio.gather(*self._replaced, return_exceptions=True)

    @property
    def revision(self) -> int:
        """The newest revision of etcd that this node has seen."""
        return self._seen.revision

    def deadline(self, at_most: float = math.inf) -> float:
        """When a call that begins at once has to be over, in the loop's time (s)."""
        return asyncio.get_running_loop().time() + min(at_most, self.config.timeout_ms / 1000)

    def attempt(self, deadline: float) -> float:
        """How long (s) one try may last."""
        left = deadline - asyncio.get_running_loop().time()
        return max(0.001, min(left, self.config.attempt_ms / 1000))

    async def ask(self, method: Method, request: Message, deadline: float | None = None) -> Any:
        """The answer of the first member that gives one; for requests that may be carried out twice.

        Raises StoreUnavailable.
        """
        patience = Patience(self, deadline)
        while True:
            try:
                return await self.once(method, request, patience.deadline)
            except Unanswered as failure:
                await patience.wait(failure)

    async def once(self, method: Method, request: Message, deadline: float) -> Any:
        """One try at the member whose turn it is. Raises Unanswered (it is the next one's turn), StoreUnavailable."""
        call = self.channel.unary_unary(method.path, packed, method.answer)
        self._remember()
        self.traffic.count(method, request)
        revision, member = self._seen.revision, self._turn
        try:
            answer = await call(request, timeout=self.attempt(deadline))
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            raise self.failure(error, member) from None
        if method in (RANGE, TXN):
            self.check(answer.header, revision)
        return answer

    @property
    def channel(self) -> Any:
        """The channel to the member whose turn it is. Raises StoreUnavailable once closed."""
        if self._closed:
            raise self._closed_words()
        return self._channels[self._turn % len(self._channels)]

    @property
    def turn(self) -> int:
        """Which member is asked; to be handed to ``failure``."""
        return self._turn

    def failure(self, error: grpc.aio.AioRpcError | asyncio.CancelledError, member: int) -> BaseException:
        """What a failed call means: Unanswered, or StoreUnavailable where asking another member changes nothing.

        A cancellation of the task stays one; otherwise it says that the channel was closed under the call.
        """
        if isinstance(error, asyncio.CancelledError):
            if asyncio.current_task().cancelling():  # type: ignore[union-attr] # a coroutine runs in a task
                return error
            return self._closed_words() if self._closed else Unanswered("the connection was replaced")
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "space exceeded" in details:
            return OutOfSpace(_SPACE, code)
        if code in _DEFINITE and "too many requests" not in details:
            return Refused(_refusal(code, details), code)
        self.leave(member)
        self._read_again()
        endpoint = self.config.endpoints[member % len(self.config.endpoints)]
        return Unanswered(f"{endpoint}: {_unanswered(code, details)}")

    def leave(self, member: int) -> None:
        """It is the next member's turn; several calls that failed at one member leave it once."""
        if self._turn == member:
            self._turn += 1

    def unavailable(self, failure: BaseException) -> StoreUnavailable:
        """The words for a call that no member answered in time."""
        return Unreachable(
            f"etcd: no member answered in time (last, {failure}); {self._problem}"
            "check that a majority of the members runs and can be reached"
        )

    def check(self, header: pb.ResponseHeader, at_least: int = 0) -> None:
        """A store that goes back in time (restored from a backup, or another cluster) may not decide anything.

        ``at_least``: the newest revision seen before asking. Raises WentBack, and every call does so from then on,
        also in later processes: the revision may rise again over the one remembered.
        """
        seen = self._seen
        if seen.cluster and header.cluster_id != seen.cluster:
            raise self._refuse(
                f"etcd: is another cluster (id {header.cluster_id:x}) than the one used before (id {seen.cluster:x})"
            )
        if header.revision < at_least:
            raise self._refuse(f"etcd: went back from revision {at_least} to {header.revision}")
        if header.revision > seen.revision:
            self._seen = Remembered(header.cluster_id, header.revision)

    def _refuse(self, finding: str) -> WentBack:
        where = "this gateway" if self._file is None else f"{self._file.path}"
        go_on = "restart" if self._file is None else "stop every gateway of the cluster, remove at each"
        self._seen = msgspec.structs.replace(
            self._seen,
            refused=f"{finding}: it was restored from a backup or made anew, and what was committed since is lost "
            f"there; name the right members or restore a newer copy. To go on with what it has, {go_on} {where}",
        )
        if self._file is not None:
            with contextlib.suppress(StoreUnavailable):  # this process refuses anyway; the next one finds it out again
                self._file.write(self._seen)
        return WentBack(self._seen.refused)

    def _remember(self) -> None:
        """Before asking, write the newest revision if that is due. Raises StoreUnavailable: nothing was asked."""
        if self._seen.refused:
            raise WentBack(self._seen.refused)
        now = asyncio.get_running_loop().time()
        if self._file is not None and self._seen != self._written and now >= self._written_at + _REMEMBER_SECONDS:
            self._file.write(self._seen)
            self._written, self._written_at = self._seen, now

    def _read_again(self) -> None:
        """After a failure: use the files of our certificate as they are, so that renewed ones need no restart."""
        now = asyncio.get_running_loop().time()
        if now < self._read_at + _REREAD_SECONDS or self._closed:
            return
        self._read_at = now
        try:
            identity = Identity.read(self.config)
        except StoreUnavailable as problem:
            self._problem = f"{problem.reason}; "
            return
        self._problem = ""
        if identity != self._identity:
            replaced, self._identity = self._channels, identity
            self._channels = _channels(self.config, identity)
            task = asyncio.create_task(self._retire(replaced))
            self._replaced.add(task)
            task.add_done_callback(self._replaced.discard)

    async def _retire(self, channels: list[Any]) -> None:
        """Calls that are under way may end; streams are then opened again on the channels that are in use."""
        await asyncio.gather(*(channel.close(grace=self.config.attempt_ms / 1000) for channel in channels))

    def _closed_words(self) -> StoreUnavailable:
        return StoreUnavailable("etcd: the store is closed")


def _channels(config: EtcdConfig, identity: Identity) -> list[Any]:
    credentials = identity.credentials()
    return [grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS) for endpoint in config.endpoints]


class Patience:
    """When to ask again, and when to stop asking."""

    def __init__(self, client: Client, deadline: float | None = None) -> None:
        self.deadline = client.deadline() if deadline is None else deadline
        self._client = client
        self._failures = 0

    async def wait(self, failure: BaseException, least: float = 0.0) -> None:
        """Return when the next try is due, ``least`` seconds or more. Raises StoreUnavailable: no time for one."""
        self._failures += 1
        rounds, rest = divmod(self._failures, len(self._client.config.endpoints))
        pause = least if rest else min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(rounds, 8))
        if asyncio.get_running_loop().time() + pause >= self.deadline:
            raise self._client.unavailable(failure) from failure
        await asyncio.sleep(pause)


def packed(request: Message) -> bytes:
    """The bytes of a request."""
    data: bytes = request.SerializeToString()
    return data


def _refusal(code: grpc.StatusCode, details: str) -> str:
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return f"etcd: does not let this certificate in ({details}); grant its user read and write below /jumpvpn/"
    if "too large" in details:
        return f"etcd: {details}; raise its --max-request-bytes to the default of 1.5 MiB or more"
    return f"etcd: refused the request: {details or code.name}"


def _unanswered(code: grpc.StatusCode, details: str) -> str:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    for word, meaning in _TLS_WORDS:
        if word in details:
            return meaning
    _, _, last = details.rpartition("last error: ")
    return " ".join(last.split())[:200] or code.name


async def _diagnose(endpoint: str, config: EtcdConfig) -> str:
    """Why TLS with this member fails, in words; empty if it does not, or nothing can be said."""
    host, _, port = endpoint.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=config.ca)
        context.load_cert_chain(config.certificate, config.key)
        async with asyncio.timeout(_DIAGNOSIS_SECONDS):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)
            try:
                async with asyncio.timeout(_ALERT_SECONDS):
                    await reader.read(1)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return ""
    except ssl.SSLCertVerificationError as error:
        return f"{endpoint}: its certificate is not accepted: {error.verify_message}; check {config.ca}"
    except ssl.SSLError as error:
        said = (error.reason or str(error)).lower().replace("_", " ")
        if "alert" in said:
            return f"{endpoint}: does not accept our certificate {config.certificate} ({said}); {_ISSUE}"
        return f"{endpoint}: does not speak TLS as etcd does ({said}); check the port"
    except OSError:
        return ""
    return ""

"""Typed face of the packet core (Rust).

A `Plane` owns the TUN interface, the UDP sockets, the keys and the packet threads of one node. No packet ever enters
Python: orders go down as method calls, facts come up as tuples through a bounded ring of 4096.

Conventions. Handles (sockets, sessions, handshakes, requests) are positive ints, never reused. Addresses are strings
`ip:port` or `[ip6]:port`. Times are ns of CLOCK_BOOTTIME unless a name ends in `_ms`. Paths are 0..7.

Errors of all methods: KeyError for a handle that names nothing (any more), ValueError for an argument outside its
bounds, RuntimeError for an order that does not fit the present state, OSError when the system refuses.

Facts, by their first item:

- `("handshake_request", hs, socket, peer, device_key: bytes, timestamp_ns, version, capabilities, credential:
  bytes)` gateway: decide by
  `prepare_accept` + `finish_accept`, or `reject_handshake`; forgotten after 10 s.
- `("handshake_response", hs, session, session_id: bytes, welcome: bytes, peer)` client: epoch 1 is open; no path is
  set yet.
- `("handshake_failed", hs, reason: str)` client: `expired` after 60 s, or `cid_collision`.
- `("epoch_confirmed", session, epoch, path, peer)` first authenticated datagram of the newest epoch.
- `("reattach_request", req, session, session_id: bytes, socket, peer, proof: bool, nonce_id: str, next_epoch,
  expected_version, age_ms, path,
  cause, token_ok: bool, fresh_nonce: bool)` gateway; session is 0 (and proof False) when the ticket is right and
  the session is not here: `restore` it and `retry_reattach`, which tells the same request again, or
  `drop_reattach`. Otherwise decide by `prepare_reattach` + `commit_reattach`, `challenge_reattach`,
  `deny_reattach` or `drop_reattach`. Forgotten 5 s after it came or was retried, 120 s after it came when prepared.
- `("reattach_reply", session, nonce_id: str, status, epoch, version, reason, path, token: bytes)` client; status 0
  committed (order
  `finish_reattach`), 1 challenge (begin again with the token), 2 denied.
- `("path_validated", session, path, peer, rtt_ns)` a probe to `peer` was answered: the first after `set_path` or
  silence, and each one of `probe_now` and
  `challenge`.
- `("standby_answered", session, path, peer, rtt_ns, draining: bool)` client: the gateway at the end of a standby path
  answered a probe; each answer is told. `draining`: it is about to leave.
- `("path_measured", session, path, srtt_ns, rttvar_ns, loss_up_ppm, loss_down_ppm, received)` each 500 ms at most,
  sooner on a big change, and only when something changed;
  up is client to gateway; received counts inner packets.
- `("path_silent", session, path, silent_ns, limit_ns)`, `("path_dead", session, path, silent_ns)`, `("path_heard",
  session, path)` once each.
- `("peer_moved", session, path, old, new)` gateway: authenticated data from a new source; it was challenged,
  nothing moved.
- `("hinted", session, path, cause)` client: the gateway knows the session and may not send in its epoch.
- `("socket_error", socket, errno, session, path)` session 0 and path -1 when not known; each error at most ten
  times a second.
- `("control", session, path, kind, payload: bytes)`
- `("rekey_request", req, session, epoch)` gateway; `("rekey_reply", session, epoch)` client.
- `("plane_failed", thread: str)` a defect was caught in a packet thread, which goes on.
"""

from typing import Any, Literal, TypedDict, final

Fact = tuple[Any, ...]

class PathStats(TypedDict):
    """One path at one instant: times in ns, loss in parts per million of the last sample of at least 64 datagrams."""

    path: int
    peer: str
    srtt_ns: int
    rttvar_ns: int
    min_rtt_ns: int
    loss_up_ppm: int
    loss_down_ppm: int
    last_heard_ns: int
    owed_ns: int
    silent: bool
    sent_packets: int
    sent_bytes: int
    received_packets: int
    received_bytes: int

class SessionStats(TypedDict):
    """Totals of one session; packets and bytes are inner ones. `active` is the path that carries data."""

    epoch: int
    active: int | None
    sending: bool
    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
    queued: int
    shed: int
    resent: int
    duplicates: int
    replay_rejected: int
    wants_rekey: bool

class BackendInfo(TypedDict):
    """What the module was built with and what this CPU does well."""

    version: str
    protocol_version: int
    crypto: str
    aes_instructions: bool

@final
class Plane:
    """The packet path of one node. Stops when it is collected; `stop` is better."""

    def __new__(
        cls,
        *,
        role: Literal["client", "gateway"],
        private_key: bytes,
        cluster_key: bytes,
        tun: str,
        mtu: int,
        queue_bytes: int,
        replay_bytes: int,
        replay_ms: int,
        aead: Literal["auto", "aes", "chacha"] = "auto",
        tun_fd: int | None = None,
        drain_ms: int = 10_000,
    ) -> Plane:
        """Creates the TUN interface (offloads on, MTU set, not up) and starts the threads.

        `private_key` has 32 bytes, `cluster_key` 32 at a gateway and is not used by a client. `tun` may hold `%d`;
        empty makes no
        interface. `queue_bytes`: inner packets that wait per session while no binding lives (2048 at most).
        `replay_bytes`, `replay_ms`: sealed
        datagrams kept per session to be sent again. `tun_fd`: a packet socket with bare IP packets instead of an
        interface; it is duplicated.
        `drain_ms`: how long an old epoch still receives. OSError names the interface and the cause.
        """

    @property
    def tun_name(self) -> str:
        """Name the kernel gave; empty without an interface."""

    @property
    def tun_index(self) -> int:
        """Interface index; 0 without an interface."""

    @property
    def fact_fd(self) -> int:
        """Descriptor that is readable while facts wait; it stays the plane's own."""

    def drain(self, limit: int) -> list[Fact]:
        """Takes up to `limit` facts, oldest first."""

    def counters(self) -> dict[str, int]:
        """All counters by name: reasons for dropped datagrams and traffic of the whole plane."""

    def stop(self) -> None:
        """Joins the threads, closes sockets and device, erases keys; again does nothing."""

    def open_socket(self, *, bind: str, interface: str | None = None, mark: int = 0) -> tuple[int, str]:
        """Opens a UDP socket; returns its handle and bound address.

        `interface` binds it to a device (SO_BINDTODEVICE), `mark` other than 0 is its firewall mark (SO_MARK).
        """

    def close_socket(self, socket: int) -> None:
        """Closes a socket; paths that use it are dropped."""

    def begin_handshake(
        self, *, socket: int, gateway: str, gateway_key: bytes, timestamp_ns: int, credential: bytes
    ) -> int:
        """Client: sends message 1 and returns the handshake. `timestamp_ns` rises per device; `credential` has at
        most 256 bytes."""

    def resend_handshake(self, handshake: int, socket: int, gateway: str) -> None:
        """Client: sends message 1 again, perhaps through another socket to another address of the same gateway."""

    def cancel_handshake(self, handshake: int) -> None:
        """Client: forgets a handshake."""

    def prepare_accept(self, handshake: int, session_id: bytes, inner: list[str], welcome: bytes) -> bytes:
        """Gateway: makes the session's keys and returns them sealed for the record; sends nothing.

        `session_id` has 16 bytes, `inner` are addresses or ranges, `welcome` has at most 1500 bytes.
        """

    def finish_accept(self, handshake: int) -> int:
        """Gateway: opens the session, binds it to path 0 towards the handshake's source, answers; returns the
        session."""

    def reject_handshake(self, handshake: int) -> None:
        """Gateway: forgets a handshake without a word."""

    def restore(self, session_id: bytes, sealed: bytes, inner: list[str], routed: bool = True) -> int:
        """Gateway: a session from its record. It opens and answers probes by hints, and delivers nothing before a
        reattach; its epoch stays so after one.

        With `routed` False inner packets do not find it before `prepare_reattach` or `route_inner`: a candidate whose
        owner may be elsewhere. A session with this identifier that is here ends first, and its handle with it.
        """

    def route_inner(self, session: int) -> None:
        """Gateway: lets inner packets find a session that was restored without its routes; again does nothing."""

    def set_deadline(self, boot_ns: int) -> None:
        """Gateway: from CLOCK_BOOTTIME `boot_ns` on nothing is sealed, sent, opened or delivered; at first never.

        Inner packets then wait as for a session without binding, what comes in is dropped, both counted as `fenced`;
        `finish_accept`, `commit_reattach` and `commit_rekey` raise RuntimeError and leave the request as it is;
        `challenge_reattach` and `deny_reattach` forget it without a reply. A later deadline lifts all of this, and
        what waited goes out. 0 stops at once; 2**64 - 1 is never.
        """

    def set_ticket_keys(self, keys: list[bytes]) -> None:
        """Gateway: 1 to 4 keys of 32 bytes; the first seals tickets, all open them.

        Without an order the one key is derived from the cluster key; after one, tickets under a key that is not in
        `keys` are dropped as `bad_ticket`.
        """

    def set_draining(self, draining: bool) -> None:
        """Gateway: whether answers to standby probes say that this gateway is about to leave."""

    def set_path(
        self,
        session: int,
        path: int,
        socket: int,
        peer: str,
        gateway_key: bytes | None = None,
        standby: bool = False,
    ) -> None:
        """Sets where a path leads. The same way to the same gateway again only makes its next validation a fact.

        Client: `gateway_key` (32 bytes) is the public key of the gateway at the other end, None that of the birth;
        requests on this path name it, and no other gateway takes them. With `standby` that gateway does not hold the
        session: the path is probed as `set_liveness` says by probes that any gateway of the cluster answers
        (`standby_answered`; `path_silent`, `path_dead` and `path_heard` as on any path), and carries no data before a
        reattach on it. RuntimeError for a standby path that carries data, and for either at a gateway.
        """

    def drop_path(self, session: int, path: int) -> None:
        """Forgets a path; its limits stay. The session is without binding when it was the active one."""

    def set_peer(self, session: int, path: int, peer: str) -> None:
        """Follows a peer whose new address was validated."""

    def activate(self, session: int, path: int) -> None:
        """Makes a path carry data; what the peer has not reported goes first, then what waited. RuntimeError for a
        standby path."""

    def deactivate(self, session: int) -> None:
        """Ends the binding: inner packets wait from now on; what comes in is still taken."""

    def set_liveness(
        self,
        session: int,
        path: int,
        probe_busy_ns: int,
        probe_idle_ns: int,
        silence_busy_ns: int,
        silence_idle_ns: int,
        dead_factor: float,
        loss_window_ns: int,
    ) -> None:
        """Sets how a path is probed and when it is silent; without it a path is neither.

        Busy: traffic within the last second, or no binding. `silence_busy_ns` is the longest wait for a report on
        data, `silence_idle_ns` for the answer to a probe; `dead_factor` (1..1000) times that is death. Loss is taken
        over at least `loss_window_ns`. May come before `set_path` and outlives the path.
        """

    def probe_now(self, session: int, path: int) -> None:
        """Sends a fresh challenge; its answer is a `path_validated` fact."""

    def challenge(self, session: int, path: int, peer: str) -> None:
        """Sends a fresh challenge of a path to another address; its answer is a `path_validated` fact with that
        address."""

    def path_stats(self, session: int) -> list[PathStats]:
        """All paths that are set, by index. A gateway learns standby paths from the client's probes."""

    def session_stats(self, session: int) -> SessionStats:
        """Totals of a session."""

    def begin_reattach(
        self,
        session: int,
        *,
        path: int,
        next_epoch: int,
        expected_version: int,
        age_ms: int,
        cause: int,
        token: bytes,
        zero_rtt: bool = False,
        leaving: bool = False,
    ) -> str:
        """Client: sends a request on `path` and returns its nonce_id (16 hex digits); an earlier attempt is given up.

        With `zero_rtt` data follows at once under the next epoch; it waits again if the attempt fails. `token` is
        that of a challenge, or empty: then a standby path shows the token of its last answer, if it is still valid.
        `leaving` says that the present gateway asked for it: what another one sends waits a moment for its last
        packets.
        """

    def resend_reattach(self, session: int) -> None:
        """Client: sends the request under way again, byte for byte."""

    def abandon_reattach(self, session: int) -> None:
        """Client: gives up the attempt, whether answered or not."""

    def finish_reattach(self, session: int, handover: Literal["same", "lost", "drained"] = "same") -> None:
        """Client: the committed epoch sends, its path is active, what is owed and what waited goes out.

        `handover` says what became of the gateway before. "same": it is this one. "lost": every older epoch is closed
        at once. "drained": what it still sends is taken until the first inner packet of this one is delivered, which
        waits for its last ones, some 20 ms and what the paths differ by. After the last two
        nothing sealed in an older epoch is sent again, since the gateway before may have delivered it. The gateway of
        the path now holds the session: paths to it are probed as any, paths to others are standbys.
        """

    def retry_reattach(self, request: int) -> None:
        """Gateway: looks for the session of a request again that was not here when the request came.

        Tells `reattach_request` again, with the same request number. When the session is not here, or the request is
        not its own or names another gateway, the fact has proof False and the request is forgotten. RuntimeError when
        the session was here from the first, or the ring of facts is full.
        """

    def prepare_reattach(self, request: int) -> bytes:
        """Gateway: returns the sealed secret, with the next epoch, for the record; sends nothing."""

    def commit_reattach(self, request: int, version: int) -> None:
        """Gateway: installs the epoch, moves the binding, enters the inner routes, replies with fresh tickets,
        sends what is owed and what waited."""

    def challenge_reattach(self, request: int) -> None:
        """Gateway: replies with a return token for the source address and forgets the request."""

    def deny_reattach(self, request: int, reason: int, version: int) -> None:
        """Gateway: replies with `reason` (16 bits) and the version it holds. A copied request (nonce not fresh)
        gets no reply."""

    def drop_reattach(self, request: int) -> None:
        """Gateway: forgets the request without a word."""

    def begin_rekey(self, session: int) -> None:
        """Client: asks for a new root; repeated by itself for 16 s."""

    def prepare_rekey(self, request: int) -> bytes:
        """Gateway: returns the sealed secret of the new root for the record; sends nothing."""

    def commit_rekey(self, request: int) -> None:
        """Gateway: replies and opens the new epoch for receiving; it sends in it after the client's first
        datagram."""

    def finish_rekey(self, session: int) -> None:
        """Client: the new epoch sends."""

    def send_control(self, session: int, kind: int, payload: bytes, path: int | None = None) -> None:
        """Sends a message once, on `path` or the active one; it is not repeated. `kind` is 0..239, `payload` at
        most 9520 bytes. RuntimeError for a standby path."""

    def close_session(self, session: int) -> None:
        """Erases a session and its keys."""

def generate_private_key() -> bytes:
    """A fresh X25519 private key, 32 bytes."""

def public_key(private: bytes) -> bytes:
    """The X25519 public key of a private one, 32 bytes each (RFC 7748)."""

def boottime_ns() -> int:
    """CLOCK_BOOTTIME in ns, as the packet core reads it."""

def backend_info() -> BackendInfo:
    """What the module was built with."""

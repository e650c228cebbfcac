"""The policy of a session: every bound the machine works under, checked as a whole before it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from jumpvpn.policy.problems import Path, Problem, Rejected, problems_of, without
from jumpvpn.policy.relations import broken_relations
from jumpvpn.policy.selectors import Selector, SelectorText
from jumpvpn.policy.units import extent, span
from jumpvpn.values import HOUR, MILLISECOND, MINUTE, SECOND, Duration


class Section(BaseModel):
    """Common strictness: unknown keys, wrong types and later changes are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=False)


class SessionPolicy(Section):
    """How long a session may live, and how long without any binding."""

    max_lifetime: Annotated[Duration, span(SECOND, 30 * 24 * HOUR)] = Duration(24 * HOUR)
    transport_ttl: Annotated[Duration, span(100 * MILLISECOND, 24 * HOUR)] = Duration(300 * SECOND)
    handshake_timeout: Annotated[Duration, span(500 * MILLISECOND, 2 * MINUTE)] = Duration(10 * SECOND)
    lifetime_warnings: Annotated[
        tuple[Annotated[Duration, span(SECOND, 24 * HOUR)], ...], Field(strict=False, max_length=8)
    ] = (
        Duration(10 * MINUTE),
        Duration(2 * MINUTE),
    )


PROBE_PROFILES: Mapping[str, tuple[Duration, Duration]] = {
    "fast": (Duration(50 * MILLISECOND), SECOND),
    "default": (Duration(200 * MILLISECOND), Duration(5 * SECOND)),
    "battery": (SECOND, Duration(25 * SECOND)),  # 25 s keeps NAT mappings of 30 s (RFC 4787 asks 120 s) alive
}


class VolatilityPolicy(Section):
    """When a transport counts as unstable, silent or dead.

    ``probe_interval`` (while traffic flows) and ``probe_interval_idle`` follow ``profile`` unless written.
    """

    profile: Literal["fast", "default", "battery"] = "default"
    probe_interval: Annotated[Duration, span(10 * MILLISECOND, MINUTE)] = PROBE_PROFILES["default"][0]
    probe_interval_idle: Annotated[Duration, span(50 * MILLISECOND, 10 * MINUTE)] = PROBE_PROFILES["default"][1]
    silence_floor: Annotated[Duration, span(20 * MILLISECOND, MINUTE)] = Duration(100 * MILLISECOND)
    silence_ceiling: Annotated[Duration, span(20 * MILLISECOND, MINUTE)] = Duration(2 * SECOND)
    silence_margin: Annotated[Duration, span(10 * MILLISECOND, 10 * SECOND)] = Duration(50 * MILLISECOND)
    dead_factor: int = Field(default=2, ge=1, le=100)
    loss_window: Annotated[Duration, span(100 * MILLISECOND, MINUTE)] = Duration(2 * SECOND)
    loss_threshold: float = Field(default=0.20, gt=0.0, le=1.0)
    consecutive_drops: int = Field(default=3, ge=2, le=100)
    latency_p95: Annotated[Duration | Literal["off"], span(MILLISECOND, MINUTE, or_word="off")] = "off"
    volatile_max: Annotated[Duration, span(100 * MILLISECOND, 10 * MINUTE)] = Duration(4 * SECOND)
    stability_window: Annotated[Duration, span(100 * MILLISECOND, 10 * MINUTE)] = Duration(2 * SECOND)
    stability_window_max: Annotated[Duration, span(100 * MILLISECOND, HOUR)] = Duration(30 * SECOND)
    reentry_window: Annotated[Duration, span(SECOND, HOUR)] = Duration(60 * SECOND)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_profile(cls, table: Any) -> Any:
        if not isinstance(table, dict):
            return table
        profile = table.get("profile", "default")
        busy, idle = PROBE_PROFILES.get(profile, (None, None)) if isinstance(profile, str) else (None, None)
        if busy is None or idle is None:
            return table
        defaults = {"probe_interval": f"{busy}ns", "probe_interval_idle": f"{idle}ns"}
        return {**defaults, **table}

    def stability_after(self, entries: int) -> Duration:
        """How long (ns) a transport must be good after ``entries`` times in VOLATILE within ``reentry_window``."""
        doublings = min(max(0, entries - 1), 32)  # past every bound already
        return Duration(min(self.stability_window * 2**doublings, self.stability_window_max))

    def silence_limit_busy(self, rtt: int, rtt_deviation: int) -> Duration:
        """Silence (ns) after which owed reports count as missing, for a smoothed RTT and its deviation (ns)."""
        owed = 2 * rtt + 4 * rtt_deviation + self.silence_margin
        return Duration(min(max(self.silence_floor, owed), self.silence_ceiling))

    def silence_limit_idle(self) -> Duration:
        """Silence (ns) after which an idle transport counts as silent."""
        return Duration(self.consecutive_drops * self.probe_interval_idle)

    def silence_formula(self) -> str:
        """The busy formula in words, for ``status``."""
        floor, ceiling = self.silence_floor // MILLISECOND, self.silence_ceiling // MILLISECOND
        margin = self.silence_margin // MILLISECOND
        return f"min(max({floor} ms, 2 RTT + 4 dev + {margin} ms), {ceiling} ms)"


class SwitchingPolicy(Section):
    """How often and how eagerly the session may switch. Flap penalties follow RFC 2439, per transport."""

    max_per_minute: int = Field(default=8, ge=1, le=600)
    hold_down: Annotated[Duration, span(0, 10 * MINUTE)] = Duration(1500 * MILLISECOND)
    hysteresis: float = Field(default=1.10, ge=1.0, le=10.0)
    failback: Annotated[Duration | Literal["never"], span(SECOND, 24 * HOUR, or_word="never")] = Duration(30 * SECOND)
    flap_penalty: int = Field(default=1000, ge=0, le=1_000_000)
    flap_half_life: Annotated[Duration, span(SECOND, 24 * HOUR)] = Duration(60 * SECOND)
    flap_suppress: int = Field(default=3000, ge=1, le=10_000_000)
    flap_reuse: int = Field(default=1000, ge=1, le=10_000_000)


def _refuse_duplicates(wanted: bool) -> bool:
    if wanted:
        raise PydanticCustomError("duplicate", "must be false: sending on two transports at once is not available")
    return wanted


class RecoveryPolicy(Section):
    """How long and how often recovery may try, and what is sent again after a switch."""

    window: Annotated[Duration, span(100 * MILLISECOND, 10 * MINUTE)] = Duration(8 * SECOND)
    attempt_timeout: Annotated[Duration, span(50 * MILLISECOND, MINUTE)] = Duration(2 * SECOND)
    max_attempts: int = Field(default=8, ge=1, le=1000)
    episode_max: Annotated[Duration, span(SECOND, 24 * HOUR)] = Duration(600 * SECOND)
    replay_buffer: Annotated[int, extent(0, 64 * 1024**2)] = 1024**2
    replay_time: Annotated[Duration, span(0, 10 * SECOND)] = Duration(500 * MILLISECOND)
    duplicate: Annotated[bool, AfterValidator(_refuse_duplicates)] = False


class TransportPolicy(Section):
    """Which transports may be used and which come first; selectors as in ``policy.selectors``.

    An empty ``allow`` allows all; ``deny`` wins over ``allow``; ``tags`` maps a selector to tags of what it matches.
    ``standby_gateways``: at how many gateways beside the current one standby transports are kept validated.
    """

    allow: Annotated[tuple[SelectorText, ...], Field(strict=False, max_length=64)] = ()
    deny: Annotated[tuple[SelectorText, ...], Field(strict=False, max_length=64)] = ()
    prefer: Annotated[tuple[SelectorText, ...], Field(strict=False, max_length=64)] = ()
    tags: dict[SelectorText, Annotated[tuple[str, ...], Field(strict=False, max_length=16)]] = {}
    standby_gateways: int = Field(default=2, ge=0, le=7)  # each costs a probe per interface; 8 gateways are plenty

    def tags_of(self, interface: str, protocol: str, gateway: str) -> frozenset[str]:
        """Tags that the policy gives this transport."""
        found: set[str] = set()
        for selector, names in self.tags.items():
            if Selector.parse(selector).matches(interface=interface, protocol=protocol, gateway=gateway):
                found.update(names)
        return frozenset(found)

    def allows(self, interface: str, protocol: str, gateway: str) -> bool:
        """Whether this transport may carry the session."""
        if self._first(self.deny, interface, protocol, gateway) is not None:
            return False
        return not self.allow or self._first(self.allow, interface, protocol, gateway) is not None

    def rank(self, interface: str, protocol: str, gateway: str) -> int:
        """Place in ``prefer`` (0 is best); transports that it does not name share the last place."""
        found = self._first(self.prefer, interface, protocol, gateway)
        return len(self.prefer) if found is None else found

    def _first(self, selectors: tuple[str, ...], interface: str, protocol: str, gateway: str) -> int | None:
        tags = self.tags_of(interface, protocol, gateway)
        for index, text in enumerate(selectors):
            if Selector.parse(text).matches(interface=interface, protocol=protocol, gateway=gateway, tags=tags):
                return index
        return None


class SecurityPolicy(Section):
    """Ages of keys and of reattach requests. The replay window is a property of the packet core, stated here."""

    rekey_after: Annotated[Duration, span(5 * SECOND, 24 * HOUR)] = Duration(120 * SECOND)
    key_max_age: Annotated[Duration, span(10 * SECOND, 24 * HOUR)] = Duration(2 * HOUR)
    reattach_max_age: Annotated[Duration, span(500 * MILLISECOND, MINUTE)] = Duration(5 * SECOND)
    replay_window: int = Field(default=8192, ge=8192, le=8192)


class ObservabilityPolicy(Section):
    """What events say about addresses and how often state that does not change is repeated."""

    address_mode: Literal["full", "truncated", "hmac"] = "truncated"
    denial_interval: Annotated[Duration, span(SECOND, HOUR)] = Duration(10 * SECOND)


class Policy(Section):
    """A complete, valid policy. ``version`` is the author's own label ``X.Y``; ``digest`` names the content."""

    version: str = Field(default="1.0", pattern=r"^[0-9]{1,6}\.[0-9]{1,6}$")
    session: SessionPolicy = SessionPolicy()
    volatility: VolatilityPolicy = VolatilityPolicy()
    switching: SwitchingPolicy = SwitchingPolicy()
    recovery: RecoveryPolicy = RecoveryPolicy()
    transports: TransportPolicy = TransportPolicy()
    security: SecurityPolicy = SecurityPolicy()
    observability: ObservabilityPolicy = ObservabilityPolicy()

    @model_validator(mode="after")
    def _check_relations(self) -> Policy:
        problems = broken_relations(self.body())
        if problems:
            text = "; ".join(str(problem) for problem in problems)
            raise PydanticCustomError("policy_relation", "{text}", {"text": text})
        return self

    def body(self) -> dict[str, Any]:
        """The whole policy as plain JSON values; durations are integer nanoseconds."""
        return self.model_dump(mode="json")

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Policy:
        """The policy that ``body()`` described, for records and events. Raises pydantic's ValidationError."""
        return cls.model_validate(dict(body), context={"unit": "ns"})

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical form (RFC 8785) of ``body()``."""
        return hashlib.sha256(rfc8785.dumps(self.body())).hexdigest()


def load_policy(table: Mapping[str, Any]) -> Policy:
    """The policy written in ``table`` (as TOML gives it). Raises ``Rejected`` with every problem at once."""
    try:
        return Policy.model_validate(dict(table))
    except ValidationError as error:
        problems = [p for p in problems_of(error) if p.path]
    bad: list[Path] = [problem.path for problem in problems]
    raise Rejected([*problems, *_relations_of_the_rest(table, bad)])


def _relations_of_the_rest(table: Mapping[str, Any], bad: list[Path]) -> list[Problem]:
    """Broken relations among the keys that are themselves fine, so that one report names everything."""
    sections = without(table, bad)
    values: dict[str, Any] = {}
    for name, info in Policy.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            part = sections.get(name, {})
            values[name] = info.annotation.model_validate(part).model_dump(mode="json") if part != {} else {}
            values[name] = values[name] or info.annotation().model_dump(mode="json")
    return broken_relations(values, skip=frozenset(bad))

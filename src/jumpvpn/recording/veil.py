"""What a recording shows of addresses, secrets and policies, and how a reader takes it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from jumpvpn.audit.addresses import AddressMode
from jumpvpn.audit.envelope import LARGEST_INTEGER
from jumpvpn.audit.sealing import ShowAddress
from jumpvpn.policy.model import Policy, Section
from jumpvpn.recording.codec import BadValue

SECRET_BYTES = 16  # of a name: no two secrets of one recording share one
_ORDINAL = re.compile(r"#[0-9]+\Z")


class NodeVeil:
    """The node's side. ``salt`` is random and written nowhere; ``show`` is how the node's events show an address.

    Unless policy shows addresses in full, a name is the shown form and an ordinal, so that different addresses stay
    different: the engines compare them. What is known is bounded by what one segment holds.
    """

    def __init__(self, salt: bytes, show: ShowAddress, mode: AddressMode) -> None:
        self._salt = salt
        self._show = show
        self._mode: AddressMode = mode
        self._names: dict[str, str] = {}  # address -> name
        self._old_names: dict[str, str] = {}
        self._count = 0
        self._policies: dict[int, tuple[int, Policy]] = {}  # by identity; holding the object keeps that unique
        self._old_policies: dict[int, tuple[int, Policy]] = {}
        self._policy_count = 0

    def address(self, address: str) -> str:
        """The name of ``address``; the empty string stays empty."""
        known = self._names.get(address)
        if known is not None or not address:
            return known or ""
        name = self._old_names.get(address) or self._fresh(address)
        self._names[address] = name
        return name

    def secret(self, raw: bytes) -> str:
        """A salted hash (32 hexadecimal digits); nothing for nothing."""
        return hashlib.blake2b(raw, key=self._salt, digest_size=SECRET_BYTES).hexdigest() if raw else ""

    def policy(self, policy: Policy) -> Any:
        """``[number]``, the first time in a segment ``[number, body]``."""
        known = self._policies.get(id(policy))
        if known is not None:
            return [known[0]]
        known = self._old_policies.get(id(policy))
        if known is None:
            self._policy_count += 1
            known = (self._policy_count, policy)
        self._policies[id(policy)] = known
        return [known[0], policy.body()]

    def begin_segment(self) -> None:
        """What is written from here on explains itself; names stay what they were."""
        self._old_names, self._names = self._names, {}
        self._old_policies, self._policies = self._policies, {}

    def forget(self) -> None:
        """The segment's beginning is written: what did not occur in it is known to nobody any more."""
        self._old_names, self._old_policies = {}, {}

    def use_mode(self, mode: AddressMode) -> None:
        """Policy shows addresses otherwise from here on."""
        self._mode = mode

    def shown(self) -> dict[str, str]:
        """Names whose shown form is not the name without its ordinal: those from before another mode."""
        forms = {name: self._show(address, self._mode) for address, name in self._names.items()}
        return {name: form for name, form in forms.items() if without_ordinal(name) != form}

    def _fresh(self, address: str) -> str:
        form = self._show(address, self._mode)
        if form == address and "#" not in address:
            return address
        self._count += 1
        return f"{form}#{self._count}"


class ReaderSight:
    """The reader's side, for one segment: policies by number, and the forms in which events show addresses."""

    def __init__(self) -> None:
        self._policies: dict[int, Policy] = {}
        self._shown: dict[str, str] = {}

    def policy(self, value: Any) -> Policy:
        """The policy behind ``[number]`` or ``[number, body]``. Raises BadValue."""
        if not isinstance(value, list) or not 1 <= len(value) <= 2 or type(value[0]) is not int:
            raise BadValue("is no policy")
        if len(value) == 2 and value[0] not in self._policies:
            self._policies[value[0]] = policy_of(value[1])
        known = self._policies.get(value[0])
        if known is None:
            raise BadValue(f"policy {value[0]} is named, but its body is missing")
        return known

    def show(self, name: str, _mode: AddressMode) -> str:
        """The form in which events show the address behind ``name``."""
        return self._shown.get(name) or without_ordinal(name)

    def learn(self, shown: Mapping[str, str]) -> None:
        """Names that are shown in a form of their own from here on."""
        self._shown = dict(shown)


class ReaderVeil:
    """Writes again what was read, so that two states can be compared: names stay, policies count as they come."""

    def __init__(self) -> None:
        self._policies: dict[int, tuple[int, Policy]] = {}

    def address(self, address: str) -> str:
        """A recorded name stays."""
        return address

    def secret(self, raw: bytes) -> str:
        """The digits that were read."""
        return raw.hex()

    def policy(self, policy: Policy) -> Any:
        """``[number, body]`` at its first occurrence, then ``[number]``."""
        known = self._policies.get(id(policy))
        if known is not None:
            return [known[0]]
        self._policies[id(policy)] = (len(self._policies) + 1, policy)
        return [len(self._policies), policy.body()]


def without_ordinal(name: str) -> str:
    """``10.0.0.0/24`` for ``10.0.0.0/24#7``."""
    return _ORDINAL.sub("", name)


def policy_of(body: Any) -> Policy:
    """The policy that ``Policy.body`` described. Relations between keys are not demanded: bounds that a gateway tells
    are applied to a policy without them. Raises BadValue.
    """
    if not isinstance(body, dict) or body.keys() != Policy.model_fields.keys():
        raise BadValue("is no body of a policy")
    values: dict[str, Any] = {}
    for name, info in Policy.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            values[name] = _section(kind, name, body[name])
        elif isinstance(body[name], str):
            values[name] = body[name]
        else:
            raise BadValue(f"{name} is no text")
    return Policy.model_construct(**values)


def _section(kind: type[Section], name: str, table: Any) -> Section:
    if not isinstance(table, dict) or table.keys() != kind.model_fields.keys():
        raise BadValue(f"{name} is no section of a policy")
    try:
        return kind.model_validate(table, context={"unit": "ns"})
    except ValidationError:
        return _outside_spans(kind, name, table)


def _outside_spans(kind: type[Section], name: str, table: dict[str, Any]) -> Section:
    """A section with numbers outside their spans, as another end's bounds may be."""
    standard = kind().model_dump(mode="json")
    numbers = {key: value for key, value in table.items() if type(value) is int and type(standard[key]) is int}
    if not all(0 <= value <= LARGEST_INTEGER for value in numbers.values()):
        raise BadValue(f"{name}: a number is out of bounds")
    try:
        section = kind.model_validate({**table, **{key: standard[key] for key in numbers}}, context={"unit": "ns"})
    except ValidationError:
        raise BadValue(f"{name} is no section of a policy") from None
    return section.model_copy(update=numbers)

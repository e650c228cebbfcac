"""Patterns that name transports in a policy: by interface, protocol, gateway or tag."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

KINDS = ("interface", "protocol", "gateway", "tag")


@dataclass(frozen=True, slots=True)
class Selector:
    """``interface:wl*``, ``protocol:udp``, ``gateway:gw-eu*``, ``tag:metered``; a bare pattern means an interface."""

    kind: str
    pattern: str

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Read one selector. Raises ValueError for an unknown kind or an empty pattern."""
        kind, separator, pattern = text.partition(":")
        if not separator:
            kind, pattern = "interface", text
        if kind not in KINDS or not pattern:
            raise ValueError(f'must be a pattern such as "wl*" or one of {", ".join(k + ":PATTERN" for k in KINDS)}')
        return cls(kind, pattern)

    def matches(self, *, interface: str, protocol: str, gateway: str, tags: Collection[str] = ()) -> bool:
        """Whether a transport with these properties is meant. Shell patterns, case kept."""
        if self.kind == "tag":
            return any(fnmatchcase(tag, self.pattern) for tag in tags)
        subject = {"interface": interface, "protocol": protocol, "gateway": gateway}[self.kind]
        return fnmatchcase(subject, self.pattern)


def _checked(text: Any) -> Any:
    try:
        Selector.parse(text)
    except ValueError as error:
        raise PydanticCustomError("selector", "{text}", {"text": str(error)}) from None
    return text


SelectorText = Annotated[str, AfterValidator(_checked)]

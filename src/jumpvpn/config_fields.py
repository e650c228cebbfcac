"""The single values that a configuration file holds: how each is written, checked and kept."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

KEY_BYTES = 32  # X25519 (RFC 7748)
DEFAULT_PORT = 51900
SMALLEST_MTU = 1280  # IPv6 demands it of every link (RFC 8200, section 5)
LARGEST_MTU = 9000
LONGEST_INTERFACE_NAME = 15  # IFNAMSIZ - 1


class Table(BaseModel):
    """Common strictness: unknown keys, wrong types and later changes are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


def _parsed(read: Callable[[str], Any], wanted: str) -> BeforeValidator:
    """A field that is written as text and kept as what ``read`` makes of it."""

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            raise PydanticCustomError("text", "must be a text in quotes: {wanted}", {"wanted": wanted})
        try:
            return read(value)
        except ValueError:
            raise PydanticCustomError("text", "must be {wanted}", {"wanted": wanted}) from None

    return BeforeValidator(check)


def _checked(is_valid: Callable[[str], object], wanted: str) -> AfterValidator:
    """A field that stays text and must satisfy ``is_valid``."""

    def check(value: str) -> str:
        try:
            valid = is_valid(value)
        except ValueError:
            valid = False
        if not valid:
            raise PydanticCustomError("text", "must be {wanted}", {"wanted": wanted})
        return value

    return AfterValidator(check)


def decode_key(text: str) -> bytes:
    """The 32 bytes of a key in base64. Raises ValueError."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if len(raw) != KEY_BYTES:
        raise ValueError(f"{len(raw)} bytes instead of {KEY_BYTES}")
    return raw


def encode_key(raw: bytes) -> str:
    """A key of 32 bytes as 44 characters of base64."""
    return base64.b64encode(raw).decode("ascii")


def split_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``. Raises ValueError."""
    matched = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:\s]+))(?::([0-9]{1,5}))?", text)
    if matched is None:
        raise ValueError("not host:port")
    host = matched[1] or matched[2]
    if matched[1]:
        ipaddress.IPv6Address(host)
    port = int(matched[3]) if matched[3] else default_port
    if port is None or not 0 < port < 65536:
        raise ValueError("port missing or out of range")
    return host, port


def _is_listen(text: str) -> bool:
    ipaddress.ip_address(split_address(text)[0])
    return True


def _is_interface_name(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text) is not None and len(text) <= LONGEST_INTERFACE_NAME


def _resolve(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str | Path) or not str(value):
        raise PydanticCustomError("path", "must be a path in quotes")
    base = (info.context or {}).get("base", Path())
    return Path(base) / Path(value).expanduser()


PublicKey = Annotated[str, _checked(lambda text: decode_key(text) is not None, "a public key: 44 characters of base64")]
Listen = Annotated[str, _checked(_is_listen, f'an address and port such as "0.0.0.0:{DEFAULT_PORT}" or "[::]:443"')]
Endpoint = Annotated[
    str,
    _checked(
        lambda text: split_address(text) is not None, f'"host:port", for example "vpn.example.org:{DEFAULT_PORT}"'
    ),
]
Name = Annotated[
    str, _checked(re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}").fullmatch, "1 to 63 of letters, digits, . _ -")
]
InterfaceName = Annotated[str, _checked(_is_interface_name, "an interface name of at most 15 characters")]
Pattern = Annotated[str, _checked(re.compile(r"[^\s/:]{1,32}").fullmatch, 'an interface pattern such as "wl*"')]
FilePath = Annotated[Path, BeforeValidator(_resolve)]
Network4 = Annotated[ipaddress.IPv4Network, _parsed(ipaddress.IPv4Network, 'an IPv4 network such as "10.77.0.0/24"')]
Network6 = Annotated[ipaddress.IPv6Network, _parsed(ipaddress.IPv6Network, 'an IPv6 network such as "fd77::/64"')]
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = Annotated[IPNetwork, _parsed(ipaddress.ip_network, 'a network such as "10.0.0.0/8", "0.0.0.0/0" or "::/0"')]
Address4 = Annotated[ipaddress.IPv4Address, _parsed(ipaddress.IPv4Address, 'an IPv4 address such as "10.77.0.2"')]
Address6 = Annotated[ipaddress.IPv6Address, _parsed(ipaddress.IPv6Address, 'an IPv6 address such as "fd77::2"')]
Many = Field(strict=False, max_length=1024)  # lists in a file written by hand; more is a mistake or an attack
Mtu = Annotated[int, Field(ge=SMALLEST_MTU, le=LARGEST_MTU)]

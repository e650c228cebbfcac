"""How figures and transports read."""

from jumpvpn.lab.incidents import Effect

_INTERFACES = {"wlan0": "Wi-Fi", "wwan0": "LTE", "roam0": "roaming"}


def milliseconds(value: float | None) -> str:
    """``4 ms``, ``97 ms``, ``5.12 s``; a dash where nothing was measured."""
    if value is None:
        return "–"
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.2f} s"


def names_of(transport: str) -> str:
    """``Wi-Fi`` for ``wlan0/udp/gw1``; other names as they are."""
    interface = transport.partition("/")[0]
    return _INTERFACES.get(interface, interface)


def effect_cells(detection_ms: float, effect: Effect) -> tuple[str, ...]:
    """Detection, time without delivery (UDP, TCP, download), lost and duplicated, for table and picture alike."""
    waits = (detection_ms, effect.undelivered_ms, effect.tcp_undelivered_ms, effect.download_undelivered_ms)
    counts = (effect.lost, effect.duplicated)
    return (*map(milliseconds, waits), *("–" if count is None else str(count) for count in counts))

"""The fate of packets on an emulated link, without a network."""

import pytest

from jumpvpn.lab import Impairment, LabError, Link
from jumpvpn.lab.shaper import Shaper

MS = 1_000_000
PACKETS = 20_000


def fates(shaper: Shaper, count: int = PACKETS, spacing_ns: int = MS, size: int = 1000) -> list[tuple[int, ...]]:
    return [shaper.admit(number * spacing_ns, size, size - 14) for number in range(count)]


def delays_ms(shaper: Shaper, count: int = PACKETS) -> list[float]:
    return [(due - number * MS) / MS for number, dues in enumerate(fates(shaper, count)) for due in dues]


def within_five_sigma(events: int, trials: int, chance: float) -> bool:
    return abs(events - trials * chance) <= 5 * (trials * chance * (1 - chance)) ** 0.5


def test_unimpaired_packet_leaves_at_once() -> None:
    assert fates(Shaper(Impairment(), seed=1), count=3) == [(0,), (MS,), (2 * MS,)]


def test_same_seed_gives_same_fates_and_another_seed_others() -> None:
    rules = Impairment(delay_ms=20, jitter_ms=5, loss=0.05, duplicate=0.05, reorder=0.05, burst_enter=0.01)
    assert fates(Shaper(rules, seed=4)) == fates(Shaper(rules, seed=4))
    assert fates(Shaper(rules, seed=4)) != fates(Shaper(rules, seed=5))


def test_jitter_stays_within_its_bounds_and_in_order() -> None:
    delays = delays_ms(Shaper(Impairment(delay_ms=20, jitter_ms=4), seed=1))
    # Keeping order may hold a packet behind its predecessor, which itself is at most `jitter` late.
    assert min(delays) >= 16
    assert max(delays) <= 24
    dues = [due for fate in fates(Shaper(Impairment(delay_ms=20, jitter_ms=4), seed=1)) for due in fate]
    assert dues == sorted(dues)


@pytest.mark.parametrize("chance", [0.01, 0.3])
def test_independent_loss_has_its_rate(chance: float) -> None:
    lost = fates(Shaper(Impairment(loss=chance), seed=2)).count(())
    assert within_five_sigma(lost, PACKETS, chance)


def test_burst_loss_has_the_rate_and_run_length_of_its_chain() -> None:
    enter, leave = 0.02, 0.2
    lost = [not fate for fate in fates(Shaper(Impairment(burst_enter=enter, burst_leave=leave), seed=3))]
    runs = sum(now and not before for before, now in zip([False, *lost], lost, strict=False))
    assert sum(lost) / PACKETS == pytest.approx(enter / (enter + leave), rel=0.2)
    assert sum(lost) / runs == pytest.approx(1 / leave, rel=0.2)


def test_duplicates_and_reordering_have_their_rates() -> None:
    shaper = Shaper(Impairment(duplicate=0.1, reorder=0.2, reorder_ms=3), seed=5)
    results = fates(shaper)
    assert within_five_sigma(sum(len(fate) == 2 for fate in results), PACKETS, 0.1)
    late = sum(fate[0] > number * MS for number, fate in enumerate(results))
    assert late == shaper.counters["reordered"]
    assert within_five_sigma(late, PACKETS, 0.2)


def test_rate_spaces_packets_and_full_queue_drops_the_rest() -> None:
    shaper = Shaper(Impairment(rate_bytes_s=1_000_000, queue_bytes=10_000), seed=1)
    results = [shaper.admit(0, 1000, 986) for _ in range(20)]
    # One packet is being sent while 10,000 bytes wait behind it.
    assert results == [(number * MS,) for number in range(1, 12)] + [()] * 9
    assert shaper.counters["overflow"] == 9


def test_blackhole_and_mtu_drop_silently_and_are_counted() -> None:
    shaper = Shaper(Impairment(mtu=1000), seed=1)
    assert shaper.admit(0, 1014, 1000) == (0,)
    assert shaper.admit(0, 1015, 1001) == ()
    shaper.change(Impairment(blackhole=True))
    assert shaper.admit(0, 100, 86) == ()
    assert shaper.admit_arp(0) == ()
    assert shaper.counters == {"received": 4, "oversize": 1, "blackholed": 2}


def test_impossible_parameters_are_named_together() -> None:
    with pytest.raises(LabError, match=r"loss=2.*delay_ms=-1"):
        Impairment(loss=2, delay_ms=-1)
    with pytest.raises(LabError, match="a link has no color"):
        Link.with_delay(10, color="red")


def test_only_constant_delay_keeps_super_packets() -> None:
    assert not Link.with_delay(10, mtu=1400).acts_per_packet
    assert Link.with_delay(10, loss=0.01).acts_per_packet
    assert Link.with_delay(10, rate_bytes_s=1_000_000).acts_per_packet

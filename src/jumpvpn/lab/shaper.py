"""The decision about one packet in one direction of an emulated link: when it leaves, how often, or never."""

import random
from collections import Counter

from jumpvpn.lab.link import Impairment

_MS = 1_000_000


class Shaper:
    """One direction of a link. Seeded: the same arrivals under the same impairment get the same fate.

    Order of effects as on a real path: the drop rules, then the bottleneck queue (`rate_bytes_s`), then propagation.
    """

    def __init__(self, impairment: Impairment, seed: int) -> None:
        self.counters: Counter[str] = Counter()
        self._random = random.Random(seed).random
        self._bad = False
        self._queue_empty_ns = 0
        self._last_due_ns = 0
        self.impairment = impairment
        self.change(impairment)

    def change(self, impairment: Impairment) -> None:
        """Take effect for the packets that arrive from now on; what is under way keeps its schedule."""
        self.impairment = impairment
        self._delay_ns = round(impairment.delay_ms * _MS)
        self._jitter_ns = round(impairment.jitter_ms * _MS)
        self._reorder_ns = round(impairment.reorder_ms * _MS)
        self._bad = self._bad and impairment.burst_enter > 0

    def admit(self, now_ns: int, size: int, largest: int) -> tuple[int, ...]:
        """Return the times at which copies of a packet leave: usually one, none if it is dropped.

        `size` is what it occupies on the wire, `largest` its largest IP packet once segmented, both in bytes.
        """
        rules, counters = self.impairment, self.counters
        counters["received"] += 1
        if (cause := self._drop_cause(rules, largest)) is not None:
            counters[cause] += 1
            return ()
        start_ns = now_ns
        if rules.rate_bytes_s:
            start_ns = max(now_ns, self._queue_empty_ns)
            if (start_ns - now_ns) * rules.rate_bytes_s > rules.queue_bytes * 1_000_000_000:
                counters["overflow"] += 1
                return ()
            start_ns = self._queue_empty_ns = start_ns + size * 1_000_000_000 // rules.rate_bytes_s
        due_ns = start_ns + self._delay_ns
        if self._jitter_ns:
            due_ns += int((2 * self._random() - 1) * self._jitter_ns)
        if rules.reorder and self._random() < rules.reorder:
            counters["reordered"] += 1
            due_ns += self._reorder_ns
        else:
            due_ns = self._last_due_ns = max(due_ns, self._last_due_ns)
        if rules.duplicate and self._random() < rules.duplicate:
            counters["duplicated"] += 1
            return due_ns, due_ns
        return (due_ns,)

    def admit_arp(self, now_ns: int) -> tuple[int, ...]:
        """Return when an ARP frame leaves: it is delayed or swallowed, never lost by chance.

        One lost ARP frame costs a second of silence, which radio links prevent by retransmission of their own.
        """
        self.counters["received"] += 1
        if self.impairment.blackhole:
            self.counters["blackholed"] += 1
            return ()
        return (now_ns + self._delay_ns,)

    def _drop_cause(self, rules: Impairment, largest: int) -> str | None:
        if rules.blackhole:
            return "blackholed"
        if rules.mtu is not None and largest > rules.mtu:
            return "oversize"
        if rules.burst_enter:
            self._bad = self._random() >= rules.burst_leave if self._bad else self._random() < rules.burst_enter
        chance = rules.burst_loss if self._bad else rules.loss
        return "lost" if chance and self._random() < chance else None

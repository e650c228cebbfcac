"""Exhaustive exploration of the shipped session machine under an adversarial environment and small clocks.

Nothing here is a copy of the machine: ``explorer`` feeds ``engine.seat.Turn`` and judges what comes out by
``published``, a statement of the lifecycle that is written out a second time and shares nothing with the table.
"""

"""Routes inputs between the pure machines: ``handle(input, now) -> outputs``. The only package that knows them all."""

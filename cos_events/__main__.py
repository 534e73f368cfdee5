"""`python -m cos_events` is `cos-events`."""

from cos_events.cli import main

main(prog_name="cos-events")

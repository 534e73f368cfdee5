"""Fault runs: break everything while events are committed, then count what was delivered.

    run       a load, its faults and its books     schedule  what a seed decides
    bench     private servers and processes        kinds     what each fault does
    wire      a server behind a proxy              kill_points  where a process can die
    truth     what really happened                 books, report  what was found

`cos-events faults` runs one; `cos_events.testing` offers the bench to users' own tests. Nothing
else knows of this package: processes that it starts wrap what they need (`entry`).
"""

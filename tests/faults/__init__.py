"""Faults done to every program on purpose: kills, full disks, damaged and hostile files, odd command lines.

    make faults                                   everything, for about an hour
    python -m tests.faults --kind commands --number 200 --seed 7

A fault is drawn from a seed, which a failure names. What a program may do with any of them: finish, or end
with one line on stderr and a non-zero exit; a traceback is a failure, and so is a lost or changed result.
"""

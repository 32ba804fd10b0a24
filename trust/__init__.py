"""Trust: the gate of replicas, the membership test, a visual Turing test, a scorecard of a release."""

# What a verdict is to a shell, and on a page.
EXIT = {"passed": 0, "failed": 1, "inconclusive": 2}
STATES = {"passed": "good", "failed": "bad", "inconclusive": ""}

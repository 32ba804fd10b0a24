"""Trust: the gate of replicas, the membership test, a visual Turing test, a scorecard of a release."""

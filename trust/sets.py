"""The three sets of the gate and of the membership test, which must be what they are called."""

from volumetric.cli import UserError
from volumetric.collection import same_geometry, volumes_in
from volumetric.sidecars import left_of_training, refuse_seen, trained_on


def check_held_out(config):
    """Raise a UserError unless held-out volumes are given, or a split that has them."""
    if config.held_out is None and config.split is None:
        raise UserError(
            "Give --held_out DIR, volumes that the generator was not trained on, or --split FILE."
        )


def read_sets(config, fewest):
    """The sets of a ReplicasConfig or MembershipConfig.

    Args:
        config: With training, held_out, generated and split; without held_out, the split's held-out part of
            the training folder is taken.
        fewest: {name: volumes that a set needs}.

    Returns:
        ({"training", "held_out", "generated": [VolumeFile]}, number of the volumes that the generator was
        trained on and that are not in the first; None if it is not known).

    Raises:
        UserError: A file cannot be used, the sets are of different shapes or voxel sizes, held-out volumes
            are in another set or were trained on, or training volumes were not.
    """
    folders = {"training": config.training, "held_out": config.held_out or config.training}
    sets = {
        name: volumes_in(folder, f"--{name}", fewest[name], config.split, (name,))
        for name, folder in folders.items()
    }
    sets["generated"] = volumes_in(config.generated, "--generated", fewest["generated"])
    same_geometry(sets)
    known = trained_on(config.generated)
    if getattr(config, "checkpoint", None):
        from volumetric.runs import read_state

        known |= told_by(read_state(config.checkpoint), config.checkpoint)
    others = {f"--{name}": sets[name] for name in ("training", "generated")}
    refuse_seen(sets["held_out"], "--held_out", others, known)
    return sets, left_of_training(sets["training"], "--training", known)


def told_by(state, path):
    """{content: text for a person} of what a checkpoint was trained on; as `sidecars.trained_on`."""
    return dict.fromkeys(state.get("trained_on", ()), f"trained on by {path}")

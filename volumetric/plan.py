"""Where a training writes, and what of it is due after which step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEST = ("MD", "FD-random-volume")  # the lower the better: the first that there is decides on model_best.pt


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where a run writes and what is due when.

    Args:
        models: Folder of its checkpoints.
        results: Folder of its previews and logs.
        num_train_steps: Steps in the whole run.
        save_every: Steps between checkpoints.
        preview_every: Steps between previews.
        early_preview_every, early_until: Previews come more often in the beginning.
        also_previews_at: More steps with previews.
        evaluate_every: Steps between evaluations; None is never.
        keep_checkpoints: Number of newest checkpoints kept; None keeps all.
        volumes_per_step: Training volumes in a step.
        columns: Losses and scores, the columns of metrics.csv beside step and times.
        shown: Losses in the progress bar.
        lowest_is_best: Metrics, of which the first that there is decides on model_best.pt.
        tensorboard: Write TensorBoard files too.
        is_fixed: A run keeps num_train_steps, its rates and its precision.
    """

    models: Path
    results: Path
    num_train_steps: int
    save_every: int
    preview_every: int
    early_preview_every: int = 100
    early_until: int = 2500
    also_previews_at: Sequence[int] = ()
    evaluate_every: int | None = None
    keep_checkpoints: int | None = None
    volumes_per_step: int = 1
    columns: Sequence[str] = ()
    shown: Sequence[str] = ()
    lowest_is_best: Sequence[str] = ()
    tensorboard: bool = False
    is_fixed: bool = False

    @classmethod
    def of(cls, config: Any, columns: Sequence[str] = (), scores: Any = None, **more: Any) -> "Plan":
        """Plan of a run.

        Args:
            config: RunConfig, with EvaluationOptions for scores.
            columns: Losses, in metrics.csv.
            scores: TrainingScores of its evaluations, whose numbers follow there; None without.
            more: What else its trainer says.
        """
        names = ("models", "results", "num_train_steps", "save_every", "keep_checkpoints")
        about = {name: getattr(config, name) for name in names}
        about |= {"preview_every": config.evaluate_every, "tensorboard": config.log}
        about["volumes_per_step"] = config.batch_size * config.gradient_accumulate_every
        about["columns"] = (*columns, *(scores.names() if scores else ()))
        if scores:
            about |= {"evaluate_every": config.calculate_fid_every, "lowest_is_best": BEST}
        return cls(**about | more)

    def is_due(self, step: int) -> bool:
        """True if a checkpoint of so many steps is one that stays."""
        return step % self.save_every == 0

    def saves_at(self, step: int) -> bool:
        """True if a checkpoint is written after so many steps: a due one, or the run's last."""
        return self.is_due(step) or step == self.num_train_steps

    def previews_at(self, step: int) -> bool:
        """True if a preview is due after so many steps."""
        early = step < self.early_until and step % self.early_preview_every == 0
        return early or step % self.preview_every == 0 or step in self.also_previews_at

    def evaluates_at(self, step: int) -> bool:
        """True if an evaluation is due after so many steps."""
        return self.evaluate_every is not None and step % self.evaluate_every == 0

    def anything_at(self, step: int) -> bool:
        """True if anything is due after so many steps."""
        return self.saves_at(step) or self.previews_at(step) or self.evaluates_at(step)

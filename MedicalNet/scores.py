"""The evaluation of a training: the same numbers, of volumes straight from memory."""

import functools
import json
import re
from dataclasses import replace
from pathlib import Path

from volumetric import logs, parallel, runs
from volumetric.cli import UserError, split_runs
from volumetric.files import by, file_digest, finite, next_free, read_json, write_json
from volumetric.tables import write_table

import numpy as np

from MedicalNet.comparing import compare, named
from MedicalNet.evaluation import EvaluateConfig, Evaluator, describe, unpublished
from MedicalNet.measuring import concatenated, measure
from MedicalNet.noise import shares_of
from MedicalNet.spread import check_alike, doubts, write_spread
from MedicalNet.volumes import in_memory

ALONE = ("MD", "recall", "coverage")  # numbers that are also given of volumes with one noise for all


def open_scores(config, group, bootstrap=0):
    """TrainingScores of a run's data; weights are looked for, and downloaded, now and not later.

    Args:
        config: RunConfig with EvaluationOptions.
        group: parallel.Group of the processes that will evaluate together.
        bootstrap: Resamples of the intervals; 0 for none.
    """
    if config.calculate_fid_num_images < group.world:
        raise UserError(f"--calculate_fid_num_images must be {group.world} or more for as many processes.")
    names = ("embedding", "medicalnet_weights", "inception_weights", "device", "seed", "split")
    settings = {name: getattr(config, name) for name in names}
    with group.first_before_others():  # it downloads the weights
        return TrainingScores(config.data, config.clear_fid_cache, bootstrap, **settings)


def scores_of(config, group):
    """{"scores": TrainingScores} of a run that evaluates, else {}; for `VolumeTrainer.prepare`."""
    return {} if config.calculate_fid_every is None else {"scores": open_scores(config, group)}


def evaluate_checkpoints(config, open_model, **how):
    """`--evaluate_checkpoints`: scores of all checkpoints of a run, of --checkpoint, or of --runs.

    Args:
        config: RunConfig with EvaluationOptions and GenerationOptions.
        open_model: Function of the configuration that gives the generation.Model.
        how: What its `volumes_of` takes beside.

    Returns:
        The folder of the table.
    """
    if config.runs:
        return evaluate_runs(config, open_model, **how)
    if config.checkpoint is None:
        runs.find_checkpoint(config.models)  # or say that there is none
    scores = open_scores(config, parallel.Group(), bootstrap=200)
    models = {}
    if config.checkpoint is not None:
        models[Path(config.checkpoint)] = functools.partial(open_model, config)
    else:
        for number in runs.checkpoint_numbers(config.models):
            of_number = replace(config, load_from=number)
            models[config.models / f"model_{number}.pt"] = functools.partial(open_model, of_number)
    seeds = range(config.seed, config.seed + config.calculate_fid_num_images)
    folder = scores.sweep(models, seeds, config.batch_size, config.results / "sweep", **how)
    print(f"{folder / 'sweep.png'} shows the curves; the numbers are in {folder / 'sweep.csv'}.")
    return folder


def evaluate_runs(config, open_model, **how):
    """`--evaluate_checkpoints --runs a,b`: the newest of each, and their spread; returns the folder.

    Args: as of `evaluate_checkpoints`.
    """
    configs = {run: replace(config, name=run, runs=None) for run in split_runs(config.runs)}
    paths = {run: runs.find_checkpoint(one.models) for run, one in configs.items()}
    models = {run: open_model(one) for run, one in configs.items()}
    check_alike(models)
    for text in doubts({run: runs.read_state(path, check=False) for run, path in paths.items()}, config):
        logs.say(f"Warning: {text}")
    scores = open_scores(config, parallel.Group(), bootstrap=200)
    seeds = range(config.seed, config.seed + config.calculate_fid_num_images)
    with_paths = {run: (paths[run], model) for run, model in models.items()}
    folder = scores.spread(with_paths, seeds, config.batch_size, config.results / "spread", **how)
    print(f"The numbers of {len(models)} runs and their spread are in {folder / 'spread.csv'}.")
    return folder


def remember_maxima(volumes, maxima):
    """Yield volumes, and add the maximum of each to a list."""
    for volume in volumes:
        maxima.append(float(volume.max()))
        yield volume


def plain_result(value, better, estimand):
    """A result as of `compare`, without interval."""
    return {
        "value": float(value),
        "interval_95": None,
        "spread_95": None,
        "better": better,
        "estimand": estimand,
    }


def until_received(items, received):
    """Yield items until a signal has been received; then an InterruptedError."""
    for item in items:
        if received:
            raise InterruptedError(f"{received[0]} came first")
        yield item


def or_reason(function, *args):
    """function(*args), or the text of whatever error it raises: it must not end a training of days."""
    try:
        return function(*args)
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__


class TrainingScores:
    """Numbers of generated volumes against the training volumes, which are measured once.

    What can be wrong with weights and volumes is found when it is built; a network without weights is left
    out, with a warning.

    Args:
        real: Folder of the training volumes.
        recompute: Measure the training volumes again, whatever is cached.
        bootstrap: Resamples of the intervals; 0 for none.
        split: Table of preprocessing/split.py, whose part `training` they are; None is all of the folder.
        settings: embedding, medicalnet_weights, inception_weights, device and seed of EvaluateConfig.

    Raises:
        UserError: The training volumes cannot be used.
    """

    def __init__(self, real, recompute=False, bootstrap=0, split=None, **settings):
        config = EvaluateConfig(
            real=str(real),
            split=split,
            planes=("axial",),
            metrics=("fid", "md", "ms_ssim", "anatomy"),
            real_split=False,
            bootstrap=bootstrap,
            recompute=recompute,
            **settings,
        )
        self.evaluator = Evaluator(config, optional=True)
        missing = "training without the metrics of this network."
        warnings = [f"{missing} {reason}" for reason in self.evaluator.missing]
        for text in (*warnings, *(f"{w}." for w in unpublished(self.evaluator.weights))):
            logs.say(f"Warning: {text}")

    def names(self):
        """Names of the numbers."""
        return self.evaluator.names()

    def evaluate(self, volumes, number, affine, group, step, received):
        """Numbers of volumes that the processes of a training share out; what fails is said, not raised.

        Args:
            volumes: Iterable of this process's (seed, volume (1, Z, X, Y)).
            number: How many these are.
            affine: Their affine, (4, 4).
            group: Group of the processes.
            step: Step of the training, for the message.
            received: Names of the signals that have arrived; with one, the evaluation is given up.

        Returns:
            {metric: value}, for the first process; {} for the others, and when something failed.
        """
        parts = group.collect(
            or_reason(self.measure_part, until_received(volumes, received), number, affine, group.world)
        )
        found = {}
        if group.first:
            failed = [part for part in parts if isinstance(part, str)]
            found = failed[0] if failed else or_reason(self.compare_parts, parts)
        group.wait()  # for the first process, which compares alone
        if isinstance(found, str):
            logs.warn(f"Step {step} could not be evaluated: {found}")
            return {}
        return {name: result["value"] for name, result in found.items() if result["value"] is not None}

    def measure_part(self, volumes, number, affine, parts=1):
        """Measure volumes that are one of several parts of a set."""
        evaluator = self.evaluator
        config = replace(evaluator.config, num_pairs=-(-evaluator.config.num_pairs // parts))
        sources = in_memory(volumes, affine, evaluator.config.protocol)
        return measure(sources, number, evaluator.extractors, config, evaluator.cache, "generated volumes")

    def compare_parts(self, parts):
        """Compare volumes, measured in parts, with the real ones; see `compare`.

        The pairs of MS-SSIM lie within the parts; volumes of other seeds are independent, so any will do.
        """
        return compare(self.evaluator.measure_real(), concatenated(parts), self.evaluator.config)[0]

    def rehearse(self, shape):
        """Run every network once on a volume of a shape (X, Y, Z), for its memory."""
        ramp = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        for extractor in self.evaluator.extractors:
            extractor(ramp, np.eye(4))

    def sweep(self, models, seeds, batch_size, folder, **how):
        """Evaluate volumes of several models, and write a table and a picture of the curves.

        Every row is written as it is there; the same command goes on with the checkpoints that have none.

        Args:
            models: {path of a checkpoint: function that gives its generation.Model}.
            seeds: Of the volumes of each.
            batch_size: Volumes at a time.
            folder: For sweep.csv, sweep.json and sweep.png; one made with other settings is kept, and the
                next free name taken.
            how: What `volumes_of` takes beside.

        Returns:
            The folder.

        Raises:
            UserError: No model can be evaluated, or one is of another size.
        """
        about = self.about(seeds, how)
        folder, rows = earlier_rows(Path(folder) / "sweep.json", about)
        for path, load in models.items():
            digest = file_digest(path)
            if any(row["sha256"] == digest for row in rows):
                continue
            model = load()
            self.check_shape(model)
            try:
                results = self.of_model(model, seeds, batch_size=batch_size, **how)
            except UserError as error:
                print(f"{model.path}: no numbers. {error}")
                continue
            number = re.search(r"\d*$", model.path.stem).group()
            number = int(number) if number else None
            step = number if model.step is None else model.step
            rows.append({"checkpoint": number, "step": step, "sha256": digest, "metrics": results})
            folder.mkdir(parents=True, exist_ok=True)
            self.write_sweep(sorted(rows, key=lambda row: row["step"]), about, folder)
            best = named("MD", self.evaluator.config.embedding)
            print(model.path, f"{best} {results[best]['value']:.5g}" if best in results else "")
        if not rows:
            raise UserError("No checkpoint could be evaluated.")
        return folder

    def about(self, seeds, how):
        """What a reader of a table must know, as it is read again from JSON."""
        about = {"seeds": [seeds[0], len(seeds)], **how, **describe(self.evaluator)}
        return json.loads(json.dumps(finite({"n_generated": len(seeds), **about})))

    def spread(self, models, seeds, batch_size, folder, **how):
        """Evaluate volumes of one model of each run, and write what they say together; see `spread.summary`.

        The same command goes on with the runs that are not in spread.json.

        Args:
            models: {run: (path of its checkpoint, its generation.Model)}.
            seeds, batch_size, folder, how: As of `sweep`, for spread.csv and spread.json.

        Returns:
            The folder.
        """
        about = {**self.about(seeds, how), "runs": list(models)}
        folder, rows = earlier_rows(Path(folder) / "spread.json", about)
        earlier, rows = {(row["run"], row["sha256"]): row for row in rows}, []
        for _, model in models.values():
            self.check_shape(model)
        for run, (path, model) in models.items():
            digest = file_digest(path)
            row = earlier.get((run, digest))
            if row is None:
                number = int(re.search(r"\d*$", path.stem).group())
                row = {"run": run, "checkpoint": number, "step": model.step, "sha256": digest}
                row["metrics"] = self.of_model(model, seeds, batch_size=batch_size, **how)
            rows.append(row)
            write_spread(rows, about, folder)
        return folder

    def of_model(self, model, seeds, **how):
        """{metric: result} of a model's volumes.

        Beside those of `compare`: the median of their maxima before they are scaled, which is 1 in training
        volumes; and of a model with a noise input, its noise shares, and what is left of the numbers in
        ALONE when all volumes have the noise of the first seed. That takes as many volumes again, and 192.
        """
        maxima = []
        found = self.compare_volumes(remember_maxima(model.volumes_of(seeds, **how), maxima), seeds, model)
        found["maximum-generated"] = plain_result(np.median(maxima), "near 1", "median maximum, unscaled")
        if not getattr(model, "noise_input", False):
            return found
        fixed = self.compare_volumes(model.volumes_of(seeds, noise_seed=seeds[0], **how), seeds, model)
        for name in (named(name, self.evaluator.config.embedding) for name in ALONE):
            if name in fixed:
                found[f"{name}-one-noise"] = fixed[name]
        for name, share in shares_of(model, seeds[0], **how).items():
            found[name] = plain_result(share, "lower", "share of the variance that noise explains, not z")
        return found

    def compare_volumes(self, volumes, seeds, model):
        """{metric: result} of the volumes of some seeds; see `compare`."""
        pairs = zip(seeds, volumes, strict=True)
        return self.compare_parts([self.measure_part(pairs, len(seeds), model.affine)])

    def check_shape(self, model):
        """Raise a UserError unless a model generates volumes of the real ones' shape."""
        real = self.evaluator.real_files[0].shape
        if model.array_shape != real:
            raise UserError(
                f"{model.path} generates {by(model.array_shape)} voxels, the real volumes have {by(real)}."
            )

    def write_sweep(self, rows, about, folder):
        """sweep.json, sweep.csv and sweep.png."""
        from MedicalNet.report import draw_sweep

        write_json(folder / "sweep.json", {"checkpoints": rows, **about})
        head = ["checkpoint", "step", *rows[0]["metrics"]]
        values = [[r["checkpoint"], r["step"], *(m["value"] for m in r["metrics"].values())] for r in rows]
        write_table(folder / "sweep.csv", head, values)
        draw_sweep(rows, folder / "sweep.png")


def earlier_rows(there, about):
    """The folder to write to, and the rows of an earlier call with the same settings, of a table `there`."""
    if there.is_file():
        record = read_json(there)
        rows = record.pop("checkpoints", None)
        record.pop("summary", None)
        if record == about and isinstance(rows, list):
            return there.parent, rows
    return next_free(there.parent), []

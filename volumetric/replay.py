"""Steps of a training as CUDA graphs: a GPU does small ones faster than its host can launch them."""

import functools

from volumetric.cli import UserError

import torch
from torch.utils._pytree import tree_leaves

ORDINARY_RUNS = 3  # before a capture: cuDNN tries its algorithms, optimisers make their moments
# What a step asks of its trainer's `source`: all that is new, and all that the host decides.
SOURCES = ("random", "draw", "draw_labels", "draw_mixing", "draw_augmentation", "next_real")


class Elsewhere:
    """A trainer's source in place of itself: `take(name, *args)` answers for its methods SOURCES."""

    def __init__(self, take):
        self.take = take

    def __getattr__(self, name):
        if name not in SOURCES:
            raise AttributeError(f"{name} is none of {', '.join(SOURCES)}")
        return functools.partial(self.take, name)


class Inputs:
    """What part of a step takes from outside by the SOURCES of its trainer, in order and in fixed memory.

    Args:
        trainer: Trainer with the methods SOURCES, and `elsewhere`, which answers for them if it is there.
    """

    def __init__(self, trainer):
        self.sources = {name: getattr(trainer, name) for name in SOURCES}
        self.trainer, self.calls = trainer, []  # (name, arguments, result)

    def record(self, function):
        """Run a function, and keep what it takes."""

        def keep(name, *args):
            self.calls.append((name, args, self.sources[name](*args)))
            return self.calls[-1][-1]

        return self.run(function, keep)

    def repeat(self, function):
        """Run the function that was recorded, on what is kept."""
        calls = iter(self.calls)
        return self.run(function, lambda name, *args: next(calls)[-1])

    def run(self, function, take):
        """Run a function while `take(name, *args)` answers for the SOURCES."""
        self.trainer.elsewhere = Elsewhere(take)
        try:
            return function()
        finally:
            self.trainer.elsewhere = None

    def renew(self):
        """Fill what is kept with what the trainer's present step takes."""
        renewed = {}  # generators of the step that was recorded -> those of this one
        for name, args, kept in self.calls:
            fresh = self.sources[name](*(renewed.get(id(arg), arg) for arg in args))
            if name == "random":
                renewed |= {id(old): new for old, new in zip(kept, fresh, strict=True)}
                continue
            for old, new in zip(tree_leaves(kept), tree_leaves(fresh), strict=True):
                if old is not None:
                    old.copy_(new)


class Graph:
    """A function captured as a CUDA graph.

    Args:
        pool: Memory pool that it shares with other graphs, of which one runs at a time.
        device: torch.device of the GPU.
    """

    def __init__(self, pool, device):
        self.pool, self.device, self.graph = pool, device, torch.cuda.CUDAGraph()

    def capture(self, warm_up, function):
        """Run `warm_up` once, then capture `function`; returns what that returned, which a replay renews."""
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                warm_up()
            torch.cuda.current_stream().wait_stream(stream)
            # Other threads, as that of a DataLoader, may allocate meanwhile.
            with torch.cuda.graph(self.graph, self.pool, stream, capture_error_mode="thread_local"):
                return function()

    def replay(self):
        """Compute once more what was captured, on what its memory holds now."""
        with torch.cuda.device(self.device):
            self.graph.replay()


class Replay:
    """Computes gradients and losses of parts of a step, after some ordinary runs as replays of a graph.

    What such a part does must be the same at every step, but for what it takes by the SOURCES.

    Args:
        trainer: Trainer of the parts.
        parameters: Those that get gradients.
    """

    def __init__(self, trainer, parameters):
        self.trainer, self.parameters, self.parts = trainer, list(parameters), {}
        self.pool = torch.cuda.graph_pool_handle() if trainer.device.type == "cuda" else None

    def __call__(self, function, *args):
        """As function(*args), a method of the trainer that returns {loss: tensor}; gradients are set.

        Raises:
            UserError: It cannot be captured.
        """
        part = self.parts.setdefault((function.__name__, *args), Part())
        if part.runs < ORDINARY_RUNS:
            part.runs += 1
            return function(*args)
        if part.graph is None:
            self.capture(part, lambda: function(*args))
        else:
            part.inputs.renew()
        part.graph.replay()
        for parameter, gradient in part.gradients:
            parameter.grad = gradient
        return {name: loss.clone() for name, loss in part.losses.items()}

    def forget(self):
        """Capture all parts anew: what they read may be elsewhere."""
        self.parts.clear()

    def capture(self, part, run):
        """Capture a part, with the inputs of this step; nothing else is changed."""
        part.graph = Graph(self.pool, self.trainer.device)
        part.inputs = Inputs(self.trainer)

        def warm_up():
            part.inputs.record(run)
            self.forget_gradients()

        try:
            part.losses = part.graph.capture(warm_up, lambda: part.inputs.repeat(run))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"A step cannot be captured as a CUDA graph ({reason}): give --cuda_graphs False."
            ) from error
        part.gradients = [(p, p.grad) for p in self.parameters if p.grad is not None]
        self.forget_gradients()

    def forget_gradients(self):
        """No parameter has a gradient: the next one has memory of its own."""
        for parameter in self.parameters:
            parameter.grad = None


class Part:
    """A part of a step: how often it ran as usual, and its graph, once it is captured."""

    runs = 0
    graph = inputs = losses = gradients = None

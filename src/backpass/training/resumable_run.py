"""What a run has come to: its state, history and traces, saved in checkpoints and resumed from them."""

from collections.abc import Callable
from typing import Any

from backpass._internal.paths import AnyPath
from backpass.errors import StateError
from backpass.training.checkpoint import Checkpoints
from backpass.training.items import Data
from backpass.training.loaders import build_loaders
from backpass.training.outcome import EpochRecord
from backpass.training.processes import build_accelerator, on_main
from backpass.training.recipe import Run, Runtime
from backpass.training.state import TrainingState, build_state, check_checkpoint
from backpass.training.tasks import build_task
from backpass.training.traces import TraceRecorder

__all__ = ["ResumableRun"]


class ResumableRun:
    """A run with all that its epochs change; arguments and errors as those of the trainer."""

    def __init__(
        self, run: Run, data: Data, runtime: Runtime, folder: AnyPath | None, on_save: Callable[[], None]
    ) -> None:
        self.run = run
        self.data = data
        self.runtime = runtime
        self.checkpoints = None if folder is None else Checkpoints(folder)
        self.on_save = on_save
        self.accelerator = build_accelerator(runtime)
        self.task = build_task(run.recipe, data)
        self.loaders = build_loaders(run, data, self.task, runtime, self.accelerator)
        self.history: list[EpochRecord] = []
        self.traces = self._new_traces()
        self._in_epoch = False
        self._may_write = self.checkpoints is None  # until the checkpoint in the folder is known to be of this run
        # The weights of a run that resumes are in its checkpoint, and their source may be gone.
        self._has_weights = self.checkpoints is None or not on_main(self.checkpoints.exist)
        self._use(self._new_state(self._has_weights))
        if self.checkpoints is not None:
            on_main(self.checkpoints.make_folder)  # The last, so that a run that is refused leaves none.

    def _new_state(self, weights: bool) -> TrainingState:
        steps = len(self.loaders.train)
        folder = None if self.checkpoints is None else self.checkpoints.folder
        return build_state(
            self.run, self.data, self.task, self.runtime, self.accelerator, steps, folder=folder, weights=weights
        )

    def _new_traces(self) -> TraceRecorder:
        return TraceRecorder(self.run.recipe.epochs, self.accelerator.device, enabled=self.runtime.traces)

    def _use(self, state: TrainingState) -> None:
        self._state = state
        self.model, self.wrapped, self.methods = state.model, state.wrapped, state.methods
        self.optimizer, self.schedule, self.criterion = state.optimizer, state.schedule, state.criterion
        self._stepping = state.stepping

    def start(self) -> None:
        """Check that training can go on from here; read the trained weights of a run whose checkpoint was not loaded.

        Raises:
            StateError: an epoch was interrupted, and left the model between two epochs.
            InputError: the folder holds the checkpoint of another run, which would be overwritten.
        """
        if self._in_epoch:
            raise StateError(
                "expected a state between two epochs, got one that an interrupted epoch left; load a checkpoint with "
                "resume(), or make a new Trainer"
            )
        if self.checkpoints is not None and not self._may_write:
            if (state := on_main(self.checkpoints.load)) is not None:
                check_checkpoint(state, self.run, self.runtime, self._items())
            self._may_write = True
        if not self._has_weights:
            self.accelerator.free_memory()
            self._use(self._new_state(weights=True))
            self._has_weights = True

    def _items(self) -> dict[str, int]:
        """Return how many items are trained on and evaluated, by split, and their classes."""
        split, evaluated = self.loaders.evaluated
        return {
            "train": self.loaders.train.plan.count,
            split: evaluated.plan.count,
            "classes": self.data.num_classes,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs to resume, bit for bit, after the epochs in the history."""
        return {
            "run": self.run.as_dict(),
            "precision": self.runtime.precision,
            "items": self._items(),
            **self._state.state_dict(),
            "history": self.history,
            "traces": self.traces.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict`; after an error nothing has changed.

        Raises:
            InputError: the state belongs to another run, another precision or other items, or a part of it is missing
                or has another form.
        """
        check_checkpoint(state, self.run, self.runtime, self._items())
        traces = self._new_traces()
        if self.runtime.traces:
            traces.load_state_dict(state["traces"])
        fresh = self._new_state(weights=False)
        fresh.load_state_dict(state)
        self.accelerator.free_memory()  # It would keep the optimizer that is replaced.
        self._use(fresh)
        self.traces = traces
        self._has_weights = True
        self._in_epoch = False
        self.history = list(state["history"])

    def resume(self) -> bool:
        """Load the newest checkpoint of the folder that is not damaged; return whether there is one.

        Raises:
            InputError: all checkpoints are damaged, or see :meth:`load_state_dict`.
        """
        checkpoints = self.checkpoints
        state = None if checkpoints is None else on_main(checkpoints.load)
        if state is None:
            return False
        self.load_state_dict(state)
        self._may_write = True
        return True

    def save(self) -> None:
        """Save a checkpoint, if the run has a folder; call in the main process."""
        if self.checkpoints is not None:
            self.on_save()
            self.checkpoints.save(self.state_dict())

"""GRPO from its first step, or a checkpoint, to wherever it ends, with what was learned in the run's folder then."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from llm_grpo import processes, runs
from llm_grpo.checkpoints import Checkpoint
from llm_grpo.errors import UserError
from llm_grpo.files import disk_told, read_json, write_json
from llm_grpo.policy import Policy, load_weights, save_weights
from llm_grpo.runs import Run
from llm_grpo.training.trainer import RecordingTrainer
from llm_grpo.training.watching import Watch


@dataclass(frozen=True)
class Trained:
    """How far a run is: updates done, of how many, and the seconds they took (validation and saving left out).

    ended: why it came to an end before them all (run.halt_on, evaluation.patience); code: the exit code of that.
    """

    steps: int
    planned: int
    seconds: float
    ended: str = ""
    code: int = 0

    @property
    def finished(self) -> bool:
        return self.steps >= self.planned > 0 or bool(self.ended)


def optimise(trainer: RecordingTrainer, watch: Watch, run: Run, checkpoint: Checkpoint | None) -> Trained:
    """GRPO itself. However it ends, what was learned is in the run's folder then, with a checkpoint of the last step.

    Nothing is overwritten before the policy is seen to hold what the checkpoint holds. Raises UserError.
    """
    with disk_told(run.folder):
        return _optimised(trainer, watch, run, checkpoint)


def _optimised(trainer: RecordingTrainer, watch: Watch, run: Run, checkpoint: Checkpoint | None) -> Trained:
    if checkpoint is not None:
        load_weights(trainer.policy, checkpoint.folder)
        processes.from_first(lambda: runs.forget_after(run, checkpoint))
        told, summary = processes.from_first(lambda: (read_json(run.progress) or {}, read_json(run.summary) or {}))
        concluded = summary.get("steps")  # a run that ended early goes on where it was summed up
        early = told.get("ended") and concluded != told["steps"] == checkpoint.step
        if early or checkpoint.finished(trainer.facts["config"]["grpo"]):  # only what follows the training is left
            trainer.finish(checkpoint)
            end = (told["ended"], told["code"]) if early else ()
            return _written(
                trainer.policy, run, Trained(checkpoint.step, checkpoint.planned, trainer.train_seconds, *end)
            )

    def keep() -> Trained:
        state = trainer.state
        trained = Trained(state.global_step, state.max_steps, trainer.train_seconds, watch.stop.why, watch.stop.code)
        if trainer.broken:
            return trained
        if trained.planned:  # else it did not get as far as the first step
            _written(trainer.policy, run, trained)
        if trained.steps < trained.planned or not trainer.ended:
            trainer.rescue()
        return trained

    try:
        with watch.stop.listening(keep):
            trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    except KeyboardInterrupt:
        pass
    except SystemExit as error:
        raise UserError(f"Something in the run called sys.exit({error.code}); that is no end of a training.") from error
    finally:
        watch.bar.bar.stop()
        trained = keep()
    return trained


def _written(policy: Policy, run: Run, trained: Trained) -> Trained:
    save_weights(policy, run.last)
    write_json(run.progress, {**asdict(trained), "finished": trained.finished})
    return trained

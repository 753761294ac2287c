"""A reward in processes of its own, which can be ended: what hangs, dies or exits takes nobody with it.

    rewards:
      - {name: "mine.py:judge", workers: 4, timeout_s: 10, per_completion: true}

A batch goes over whole, as TRL calls a reward (it may compare the completions of a group), to one warm worker that has
timeout_s times its completions. One that judges each completion alone is spread over the workers, and what hangs or
dies takes one completion with it. What got no score is None, "cannot be judged", up to a share (max_failed); then
the run ends with a message, and its checkpoint is whole. `workers: 0` is the trainer's own process, for a reward that
needs the GPU or things that cannot be sent.
"""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from llm_grpo.errors import UserError
from llm_grpo.rewards.guarding import RewardError, at_step, is_column, step_of
from llm_grpo.rewards.lifting import text_of
from llm_grpo.rewards.process import Worker, place_in, withheld
from llm_grpo.rewards.worker import Batch, Ready, Reply

if TYPE_CHECKING:
    from llm_grpo.config.schema import RewardSpec
    from llm_grpo.runs import Run

logger = logging.getLogger(__name__)
RECENT = 20  # batches over which failures are counted
SLOW = 0.5  # of its time, from which on a part is named
TICK_S = 0.05  # between two looks at the clock; a reply is noticed at once


@dataclass(frozen=True)
class Trouble:
    """Something a person should see, a line of the run's rewards.jsonl. kind: failed, slow or printed (once).

    row: within the batch, with its prompt and completion; None where it is not known which of the `completions` it was.
    """

    reward: str
    step: int | None
    kind: str
    said: str
    completions: int
    seconds: float
    row: int | None = None
    prompt: Any = None
    completion: str | None = None


def check_limits(spec: RewardSpec, can_have_workers: bool) -> int:
    """How many workers a reward gets. Raises UserError for wishes that cannot be met."""
    workers = (1 if ".py" in spec.name else 0) if spec.workers is None else spec.workers
    if workers and not can_have_workers:
        raise UserError(f"rewards: {spec.name}: a learned reward stays with the trainer and its GPU; take workers out.")
    if workers > 1 and ".py" in spec.name and not spec.per_completion:
        raise UserError(
            f"rewards: {spec.name}: a batch goes whole to one worker, {workers} would stand idle. Set per_completion: "
            "true if it judges each completion alone, or workers: 1."
        )
    idle = [key for key in ("timeout_s", "max_failed", "memory_gb", "environment")
            if getattr(spec, key) != type(spec).model_fields[key].default]  # fmt: skip
    if idle and not workers:
        raise UserError(f"rewards: {spec.name}: {', '.join(idle)} has no effect without workers; set workers: 1.")
    return workers


class Pool:
    """One reward and its workers, called as any reward is. `troubles`: the newest, for those who have no run."""

    def __init__(self, spec: RewardSpec, workers: int, *, alone: bool, run: Run | None = None) -> None:
        """Starts the workers and waits until they have loaded the reward. Raises UserError."""
        self.spec, self.alone, self.run = spec, alone, run
        self.workers = [Worker(spec) for _ in range(workers)]
        self.troubles: deque[Trouble] = deque(maxlen=100)
        self.recent: deque[list[int]] = deque(maxlen=RECENT)  # [completions without a score, completions] of a batch
        for worker in self.workers:
            worker.start()
        self.loaded: Ready = [worker.ready() for worker in self.workers][0]
        self.__name__, self.__doc__ = self.loaded.name, self.loaded.doc

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        start = time.perf_counter()
        log_extra, log_metric = columns.pop("log_extra", None), columns.pop("log_metric", None)
        given = {"prompts": prompts, "completions": completions, **columns}
        batch = _batch(given, logs=log_metric is not None)
        if not (count := len(completions)):
            return []
        scores: list[float | None] = [None] * count
        extra: dict[str, list[Any]] = {}
        slowest, slow_rows = SLOW * self.spec.timeout_s, None
        self.recent.append([0, count])
        try:
            for rows, reply in self._replies(batch):
                _fill(scores, rows, reply.scores or [])
                for column, values in reply.extra:
                    _fill(extra.setdefault(column, [None] * count), rows, values)
                for metric in reply.metrics:
                    log_metric(*metric)
                if reply.seconds / len(rows) > slowest:
                    slowest, slow_rows = reply.seconds / len(rows), rows
        except BaseException:  # a late answer would be taken for one to the next batch
            self.close()
            for worker in self.workers:
                self._keep_output(worker, batch)
            raise
        for column, values in extra.items() if log_extra else ():
            log_extra(column, values)
        if slow_rows:
            self._note(
                batch, "slow", f" took {slowest * len(slow_rows):.3g} s", slow_rows, None, slowest * len(slow_rows)
            )
        if batch.logs:
            log_metric(f"seconds/reward/{self.__name__}", time.perf_counter() - start)
            if self.recent[-1][0]:
                log_metric(f"failed/reward/{self.__name__}", self.recent[-1][0] / count)
        return scores

    def close(self) -> None:
        """End the workers; the next call starts them again."""
        for worker in self.workers:
            worker.end(last_words=bool(worker.rows))
            worker.rows = []

    def _replies(self, batch: Batch) -> Iterator[tuple[list[int], Reply]]:
        """The answers as they come. What got none is counted; raises RewardError where that is too much."""
        waiting = deque([row] for row in batch.rows) if self.alone else deque([batch.rows])
        while waiting or any(worker.rows for worker in self.workers):
            for worker in self.workers:
                if waiting and not worker.rows:
                    self._give(worker, batch, waiting.popleft())
            busy = [worker for worker in self.workers if worker.rows]
            wait([worker.link for worker in busy], timeout=TICK_S)
            for worker in busy:
                if (outcome := worker.outcome()) is None:
                    continue
                rows, worker.rows = worker.rows, []
                if isinstance(outcome, str):
                    place = place_in(self._keep_output(worker, batch), self.spec.name)
                    self._failed(batch, outcome + place, rows, None, time.monotonic() - worker.since)
                elif outcome.scores is None:
                    self._failed(batch, outcome.said, rows, outcome.row, outcome.seconds)
                else:
                    yield rows, outcome
        for worker in self.workers:
            if (printed := self._keep_output(worker, batch)) and "printed" not in {t.kind for t in self.troubles}:
                self._note(batch, "printed", f" printed {printed[:60]!r}", batch.rows, None, 0.0)

    def _give(self, worker: Worker, batch: Batch, rows: list[int]) -> None:
        if worker.process.poll() is not None:
            worker.start()
            if worker.ready().crc != self.loaded.crc:
                said = ": its file changed while the run goes on, and a new worker would score by the new one"
                raise self._error(batch, f"{said}. Put it back and go on, or begin again.")
        try:
            worker.give(batch.only(rows))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            said = f": what it is given cannot be sent to another process ({error}). Set workers: 0."
            raise self._error(batch, said) from error

    def _failed(self, batch: Batch, said: str, rows: list[int], row: int | None, seconds: float) -> None:
        hidden = next((name for name in sorted(withheld(self.spec)) if name in said), None)
        said += f" ({hidden} is kept from workers: name it under environment)" if hidden else ""
        found = rows[row or 0] if row is not None or len(rows) == 1 else None
        self._note(batch, "failed", said, rows, found, seconds)
        self.recent[-1][0] += len(rows)
        failed, seen = (sum(counts) for counts in zip(*self.recent, strict=True))
        share = self.spec.max_failed
        allowed = max(len(rows), share * seen) if 0 < share < 1 else share * seen  # one mishap is forgiven early on
        if failed > allowed or (failed == seen and share < 1):
            said += (
                f"\n{failed} of the last {seen} completions got no score from it, max_failed allows {share:.0%}. Mend "
                "it, or give it more time (timeout_s) or more failures (max_failed)."
            )
            raise self._error(batch, said, found)

    def _note(self, batch: Batch, kind: str, said: str, rows: list[int], row: int | None, seconds: float) -> None:
        """Into the run's rewards.jsonl, and of each kind the first on the screen."""
        if kind not in {trouble.kind for trouble in self.troubles}:
            logger.warning(str(self._error(batch, said, row)))
        row = rows[0] if len(rows) == 1 else row
        texts = {} if row is None else {name: batch.columns[f"{name}s"][row] for name in ("prompt", "completion")}
        shown = texts and texts | {"completion": text_of(texts["completion"])}
        trouble = Trouble(self.__name__, batch.step, kind, said.strip(": "), len(rows), round(seconds, 3), row, **shown)
        self.troubles.append(trouble)
        if self.run is not None and self.run.folder.is_dir():
            with self.run.reward_troubles.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(trouble), default=str) + "\n")

    def _error(self, batch: Batch, said: str, row: int | None = None) -> RewardError:
        return RewardError(said, name=self.__name__, step=batch.step, row=row)

    def _keep_output(self, worker: Worker, batch: Batch) -> str:
        """What the worker printed, which goes to the run's rewards.log."""
        printed = worker.printed()
        if printed and self.run is not None and self.run.folder.is_dir():
            with self.run.reward_output.open("a", encoding="utf-8") as file:
                file.write(f"--- {self.__name__}{at_step(batch.step)}\n{printed.rstrip()}\n")
        return printed


def _batch(given: Mapping[str, Any], logs: bool) -> Batch:
    """As it is sent: what has a value per completion, and what is one value for all."""
    count, state = len(given["completions"]), given.get("trainer_state")
    columns = {name: value for name, value in given.items() if is_column(value, count)}
    shared = {name: value for name, value in given.items() if name not in columns}
    if state is not None:  # its plain values; of the log, which grows with the run, the newest entry
        plain = {k: v for k, v in vars(state).items() if type(v) in (int, float, str, bool, type(None))}
        shared["trainer_state"] = plain | {"log_history": list(getattr(state, "log_history", [])[-1:])}
    return Batch(step_of(given), list(range(count)), columns, shared, logs)


def _fill(into: list[Any], rows: Sequence[int], values: Sequence[Any]) -> None:
    """A reward's own log may have another length than the batch, which is its own fault and nobody's crash."""
    for row, value in zip(rows, values, strict=False):
        into[row] = value

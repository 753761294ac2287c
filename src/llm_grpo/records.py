"""The words everyone shares: Example, Completion, Judgement, Scored, and what a task is.

Nothing here imports torch; nothing here changes after it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]  # {"role": "system" | "user" | "assistant" | "tool", "content": ...}
RewardFunction = Callable[..., "list[float | None]"]  # TRL's: f(prompts, completions, **columns)


@dataclass(frozen=True)
class Example:
    """One problem: what is asked (without the system prompt) and the gold answer.

    meta: columns of the data that rewards may read, whatever they are called and hold.
    shown: what a person is shown of it, where the last message does not say it.
    """

    id: str
    prompt: tuple[Message, ...]
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    shown: str = ""

    @property
    def question(self) -> str:
        """What a person is shown of it: `shown`, else the last message."""
        return self.shown or self.prompt[-1]["content"]


@dataclass(frozen=True)
class Problem:
    """An example with the whole conversation the model is given: system prompt, worked examples, question."""

    example: Example
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Reward:
    """One objective: its label in logs and reports, its function, its weight in the sum."""

    label: str
    function: RewardFunction
    weight: float


def weighted_sum(rewards: Sequence[Reward], scores: Mapping[str, float | None]) -> float | None:
    """What one completion earns in all, as TRL adds it up (1.15): a score of None counts nothing, and where no
    reward could judge it there is no sum."""
    known = [reward.weight * scores[reward.label] for reward in rewards if scores[reward.label] is not None]
    return sum(known) if known else None


@dataclass(frozen=True)
class Completion:
    """What the policy wrote; `truncated` when it ran into the token limit instead of stopping.

    thought: the beginning of the text that judges and rewards do not read (`prompt.thinking: apart`).
    """

    text: str
    tokens: int
    truncated: bool = False
    thought: str = ""

    @property
    def answer(self) -> str:
        """What judges and rewards read; the text itself is what is kept."""
        return self.text[len(self.thought) :]


@dataclass(frozen=True)
class Judgement:
    """What a task says of one completion.

    strict: the right answer, read from exactly the format that was asked for.
    lenient: the right answer, wherever in the text a person would find it.
    """

    extracted: str | None
    strict: bool
    lenient: bool
    formatted: bool


@dataclass(frozen=True)
class Scored:
    """A completion with all that was said of it. A reward of None means "cannot be judged"."""

    example: Example
    completion: Completion
    judgement: Judgement
    rewards: Mapping[str, float | None]


@dataclass(frozen=True)
class Metrics:
    """What a task counts besides accuracy, over one answer per problem.

    numbers: by name. classes: numbers by name for each class, such as precision and recall of a label.
    confusion: counts[gold][answered], with the names of its rows and columns; None where the task has no classes.
    """

    numbers: Mapping[str, float]
    classes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    confusion: Mapping[str, list[Any]] | None = None  # {"gold": names, "answered": names, "counts": rows}


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, by its place: never dropped without being counted."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Split:
    """The examples of one split, and the rows that could not become one."""

    examples: tuple[Example, ...]
    bad_rows: tuple[BadRow, ...] = ()


@dataclass(frozen=True)
class Task:
    """The world: its problems, how they are put to the model, and when an answer is right.

    system: the default system prompt (`prompt.system` in the config replaces it).
    load: "train" | "validation" | "test" -> Split; the three never share an example.
    judge: (completion text, gold answer) -> Judgement.
    metrics: all scored completions of an evaluation -> what this task counts besides; None: nothing.
    published_train_size: training examples where the data are public and may not be at hand, for a plan.
    """

    name: str
    system: str
    load: Callable[[str], Split]
    judge: Callable[[str, str], Judgement]
    published_train_size: int | None = None
    metrics: Callable[[Sequence[Scored]], Metrics] | None = None


# Names that stand for something else wherever a reward is called: TRL gives them, or keeps them from rewards.
RESERVED_COLUMNS = frozenset({"prompt", "prompts", "completion", "completions", "completion_ids", "trainer_state",
                              "log_extra", "log_metric", "environments"})  # fmt: skip


def columns_of(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """What a reward sees besides prompts and completions, in training, evaluation and the lab: every key of `meta` as
    a column, `answer` and `id`. The values are the task's own; nothing is made of them on the way."""
    return columns_of_rows([{**e.meta, "answer": e.answer, "id": e.id} for e in examples])


def columns_of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The rows as columns but for RESERVED_COLUMNS; None where a row lacks one."""
    names = dict.fromkeys(name for row in rows for name in row if name not in RESERVED_COLUMNS)
    return {name: [row.get(name) for row in rows] for name in names}

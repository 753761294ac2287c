"""Sales calls made from a seed, with the label set each of them deserves: which criteria the lead meets in the end.

Every criterion is told in one of several ways, and what was said last counts: stated, denied, never mentioned, stated
and withdrawn later, denied and confirmed later; beside it stand remarks that sound alike and decide nothing (another
company's money, a holiday in the month of the start). The same words occur on both sides, so that a list of keywords
does not tell the sets apart. Lines of different criteria are mixed; those of one criterion keep their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from llm_grpo.answers.labels import LABELS, LabelSet

PEOPLE = "Anna Berg,Omar Said,Lena Fox,Ivan Petrov,Mia Chen,Tom Hall,Rosa Diaz,Finn Moe,Eva Klein,Sam Reed".split(",")
BOSSES = "Mr Lang,Ms Ortiz,Dr Weiss,Ms Kato,Mr Boyd,Dr Adler".split(",")
TITLES = "head of sales,office manager,managing director,buyer,vice president,assistant,team lead,owner".split(",")
COMPANIES = "Alder,Birch,Cedar,Delta,Ember,Falcon,Garnet,Harbor,Iris,Juniper,Kestrel,Lumen".split(",")
BRANCHES = "Foods,Logistics,Tools,Clinics,Energy,Books,Motors,Textiles".split(",")
MONTHS = "January March April June August October December".split()
PAINS = ("orders are typed in twice", "the lists never agree", "half of the calls are not logged",
         "offers go out days late", "nobody finds old contracts")  # fmt: skip
TURNS = ("I have to correct myself:", "Wait,", "Something has changed:", "Forget what I said before:")
SMALL_TALK = (
    "Thank you for taking the time.", "Can you hear me well?", "We met at the fair.", "Your demo was clear.",
    "Please send me the slides.", "That is good to know.", "The line is a bit noisy.", "Let us go on.",
)  # fmt: skip
DODGES = ("Let us come back to that.", "That is hard to say.", "Good question, the next one please.")


@dataclass(frozen=True)
class Criterion:
    """What may be said about one criterion. yes and no settle it, withdrawn and confirmed turn it round, asides sound
    alike and settle nothing, asked is the seller's question."""

    asked: tuple[str, ...]
    yes: tuple[str, ...]
    no: tuple[str, ...]
    withdrawn: tuple[str, ...]
    confirmed: tuple[str, ...]
    asides: tuple[str, ...]


CRITERIA: dict[str, Criterion] = {
    "Authority": Criterion(
        ("Who decides about this on your side?", "Do you sign such contracts yourself?"),
        ("I sign contracts of this size myself.", "The decision is mine alone.", "My signature is all it takes.",
         "{boss} leaves such decisions entirely to me."),
        ("{boss} decides about this, I only collect offers.", "The decision is not mine alone, the board takes it.",
         "My signature is not enough, {boss} signs.", "I leave such decisions entirely to {boss}."),
        ("{boss} signs contracts of this size from now on, not I.", "the decision was taken away from me."),
        ("{boss} agrees that I sign this one myself.", "the decision was handed to me alone."),
        ("At {other} I signed such contracts myself.", "{boss} signs for the other plant.",
         "My sister decides about contracts at {other}."),
    ),
    "Budget": Criterion(
        ("Is there money for this?", "Has {amount} been approved?"),
        ("We have {amount} approved for this.", "Finance has released {amount}.", "{amount} are set aside for it.",
         "The money is there."),
        ("We have asked for {amount}, nothing is approved.", "Finance has not released {amount} or any money.",
         "I guess {amount}, but none are set aside.", "The money is not there."),
        ("finance has just frozen the money.", "the {amount} approved for this went to another project."),
        ("finance has just approved the money.", "the {amount} of another project went to this one."),
        ("{other} had {amount} approved for theirs.", "Last year finance released {amount} for cars.",
         "What would {amount} buy?"),
    ),
    "Timeline": Criterion(
        ("When would you start?", "Does it have to run by {month}?"),
        ("It has to run by {month}.", "We start in {weeks} weeks.", "The start is fixed for {month}.",
         "Our contract ends in {month}, the new tool must run by then."),
        ("It may run by {month} or never.", "We start some day, not in {weeks} weeks.", "No start is fixed.",
         "Our contract ends some day, there is no date."),
        ("{month} is off, the start has no date any more.", "the date in {month} was dropped."),
        ("{month} is on, the start has a date now.", "a date in {month} was fixed."),
        ("{other} had to start in {month}.", "In {month} I am away for {weeks} weeks.",
         "Your fair is fixed for {month}, I read."),
    ),
    "Need": Criterion(
        ("What does not work today?", "Is it true that {pain}?"),
        ("We lose customers because {pain}.", "Every week {pain}, it has to stop.", "The trouble is that {pain}.",
         "Our tool fails us and {pain}."),
        ("We lose no customers, all is well.", "Nothing has to stop, I am only curious.", "There is no trouble here.",
         "Our tool does not fail us."),
        ("our team has solved that trouble, all is well.", "nothing is left to fix since the new release."),
        ("our team has found trouble, {pain}.", "there is a lot left to fix since the new release."),
        ("At {other} they lose customers because {pain}.", "Years ago {pain}, that was the old tool.",
         "Does your tool help where {pain}?"),
    ),
}  # fmt: skip

# How a criterion that is met, or is not, may be told: the fields its lines are drawn from, in this order.
MET = (("yes",), ("no", "confirmed"), ("asides", "yes"), ("yes", "asides"))
NOT_MET = ((), ("no",), ("asides",), ("yes", "withdrawn"), ("no", "asides"))


def make_call(rng: Random, labels: LabelSet) -> dict[str, str]:
    """One call that deserves these labels: `company`, `person` and its `transcript`."""
    company, other = (f"{name} {rng.choice(BRANCHES)}" for name in rng.sample(COMPANIES, 2))
    person, boss = rng.choice(PEOPLE), rng.choice(BOSSES)
    slots = {"other": other, "boss": boss}
    waiting = [_told(rng, CRITERIA[label], label in labels) for label in LABELS]
    lines = [f"Call with {person}, {rng.choice(TITLES)} at {company}"]
    while any(waiting):
        line = rng.choice([told for told in waiting if told]).pop(0)
        if rng.random() < 0.15:
            lines.append(f"{rng.choice(('Rep', 'Lead'))}: {rng.choice(SMALL_TALK)}")
        lines.append(line.format(**slots, **_numbers(rng)))
    return {"company": company, "person": person, "transcript": "\n".join(lines)}


def _told(rng: Random, criterion: Criterion, met: bool) -> list[str]:
    """The lines about one criterion in their order; questions are asked where nothing is said about it, too."""
    fields = rng.choice(MET if met else NOT_MET)
    lines = []
    for field in fields:
        turn = f"{rng.choice(TURNS)} " if field in ("withdrawn", "confirmed") else ""
        lines.append(f"Lead: {turn}{rng.choice(getattr(criterion, field))}")
    if rng.random() < 0.4:
        question = f"Rep: {rng.choice(criterion.asked)}"
        lines[:1] = [f"{question}\n{lines[0]}"] if lines else [f"{question}\nLead: {rng.choice(DODGES)}"]
    return lines


def _numbers(rng: Random) -> dict[str, str]:
    """Drawn anew for every line, so that no number gives a line away."""
    amount = f"{rng.randint(2, 95)},{rng.choice(('000', '500'))}"
    return {
        "amount": amount,
        "month": rng.choice(MONTHS),
        "weeks": str(rng.randint(2, 12)),
        "pain": rng.choice(PAINS),
    }

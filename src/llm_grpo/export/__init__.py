"""From an adapter to a model that others can open: merged by streaming, and pushed."""

from llm_grpo.export.push import make_repository, push
from llm_grpo.export.streaming import MergeReport, merge

__all__ = ["MergeReport", "make_repository", "merge", "push"]

"""From an adapter to a model that others can trust: merged by streaming, proved, described, and pushed."""

from llm_grpo.export.streaming import MergeReport, merge

__all__ = ["MergeReport", "merge"]

"""One table of tasks. A task is a function of keyword-only arguments (the YAML's `task.args`) that returns a `Task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llm_grpo.errors import check_arguments, check_choice
from llm_grpo.records import Task
from llm_grpo.tasks.gsm8k import gsm8k
from llm_grpo.tasks.hub import hub
from llm_grpo.tasks.lead_qualification import lead_qualification
from llm_grpo.tasks.table import csv_task, json_task, jsonl_task, parquet_task
from llm_grpo.tasks.word_problems import word_problems

TASKS: dict[str, Callable[..., Task]] = {
    "gsm8k": gsm8k,
    "word_problems": word_problems,
    "jsonl": jsonl_task,
    "json": json_task,
    "csv": csv_task,
    "parquet": parquet_task,
    "hub": hub,
    "lead_qualification": lead_qualification,
}


def build_task(name: str, args: Mapping[str, Any]) -> Task:
    """The task of that name with its arguments checked by name. Raises UserError."""
    check_choice("task.name", name, TASKS)
    check_arguments(TASKS[name], args, where="task.args")
    return TASKS[name](**args)
